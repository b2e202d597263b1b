"""What is made for TensorRT, and the script that builds plans, with a stand-in for NVIDIA's trtexec."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import helper
from tritonclient.grpc import model_config_pb2 as pb

from mooring_build.publish import publish_release
from mooring_build.recipe import load_recipe
from mooring_build.repository import read_config
from tiny_release import make_release

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "container" / "tensorrt.py"
TRTEXEC = """#!/bin/sh
echo "$@" >> "$CALLS"
for word in "$@"; do
    case $word in --saveEngine=*) echo plan > "${word#*=}" ;; esac
done
exit "${STATUS:-0}"
"""


def _publish(folder: Path, *overrides: str, shipped: str = "intent") -> Path:
    recipe = load_recipe(shipped, ['export.formats=["onnx"]', *overrides])
    runnable = recipe.serving.mixed_lengths != "ragged"
    files = folder / f"files {recipe.serving.mixed_lengths}"
    publish_release(folder / "models", recipe, make_release(files, recipe, runnable=runnable))
    return folder / "models"


def _convert(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, source, target], capture_output=True, text=True, check=False
    )


@pytest.fixture
def converted(tmp_path: Path) -> Path:
    source = _publish(tmp_path, "serving.mixed_lengths=padded")
    (source / "unbuilt").mkdir()
    (source / "unbuilt" / "config.pbtxt").write_text('name: "unbuilt"\nbackend: "onnxruntime"\n')
    done = _convert(source, tmp_path / "plans")
    assert (done.returncode, done.stdout) == (0, "intent_onnx: TensorRT\n"), done.stderr
    return tmp_path / "plans"


def test_an_engine_becomes_one_of_the_tensorrt_backend(converted: Path, tmp_path: Path) -> None:
    before, after = (read_config(folder, "intent_onnx") for folder in (tmp_path / "models", converted))
    assert (before.backend, after.backend) == ("onnxruntime", "tensorrt")
    assert {group.kind for group in after.instance_group} == {pb.ModelInstanceGroup.KIND_GPU}
    assert "intra_op_thread_count" not in after.parameters
    assert after.input == before.input
    assert after.output == before.output
    assert after.dynamic_batching == before.dynamic_batching
    assert after.version_policy == before.version_policy


def test_everything_else_that_is_built_is_copied(converted: Path, tmp_path: Path) -> None:
    source = tmp_path / "models"
    names = {path.relative_to(source) for path in source.rglob("*") if not path.name.startswith(".")}
    names -= {Path("unbuilt"), Path("unbuilt/config.pbtxt")}
    added = {path.relative_to(converted) for path in converted.rglob("*")} - names
    assert {str(path) for path in added} == {"build_plans.sh", "intent_onnx/plan_shapes"}
    for name in names - {Path("intent_onnx/config.pbtxt")}:
        assert (source / name).is_dir() or (source / name).read_bytes() == (converted / name).read_bytes()


def test_shapes_go_from_one_token_to_what_the_recipe_allows(converted: Path) -> None:
    recipe = load_recipe("intent")
    aim, most = max(recipe.serving.preferred_batch_size), recipe.serving.max_batch_size
    longest = recipe.text.max_length
    assert (converted / "intent_onnx" / "plan_shapes").read_text().splitlines() == [
        "--minShapes=input_ids:1x1,attention_mask:1x1",
        f"--optShapes=input_ids:{aim}x{longest // 2},attention_mask:{aim}x{longest // 2}",
        f"--maxShapes=input_ids:{most}x{longest},attention_mask:{most}x{longest}",
    ]


def test_fixed_axes_stay(tmp_path: Path) -> None:
    assert _convert(_publish(tmp_path, shipped="tabular"), tmp_path / "plans").returncode == 0
    recipe = load_recipe("tabular")
    count = recipe.features.count
    shapes = (tmp_path / "plans" / "tabular_onnx" / "plan_shapes").read_text().splitlines()
    assert shapes[0] == f"--minShapes=features:1x{count}"
    assert shapes[2] == f"--maxShapes=features:{recipe.serving.max_batch_size}x{count}"


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["serving.mixed_lengths=ragged"], "intent_onnx_ragged: stays as it is: it takes texts packed"),
        (["serving.mixed_lengths=padded", "serving.warm_up=false"], "it has no warm-up requests"),
    ],
)
def test_what_tensorrt_cant_run_stays_and_the_reason_is_said(
    tmp_path: Path, overrides: list[str], reason: str
) -> None:
    done = _convert(_publish(tmp_path, *overrides), tmp_path / "plans")
    assert done.returncode == 2
    assert reason in done.stdout
    assert "has no engine that TensorRT can run" in done.stderr
    assert not (tmp_path / "plans").exists()


def test_an_int8_engine_stays(tmp_path: Path) -> None:
    source = _publish(tmp_path, "serving.mixed_lengths=padded")
    node = helper.make_node("MatMulInteger", ["a", "b"], ["logits"])
    onnx.save(
        helper.make_model(helper.make_graph([node], "int8", [], [])),
        source / "intent_onnx" / "1" / "model.onnx",
    )
    done = _convert(source, tmp_path / "plans")
    assert done.returncode == 2
    assert "intent_onnx: stays as it is: it is int8 for CPUs" in done.stdout

    # After another build the int8 version lies beside, and is not served.
    recipe = load_recipe("intent", ['export.formats=["onnx"]', "serving.mixed_lengths=padded"])
    newer = make_release(tmp_path / "newer", recipe, runnable=True, inputs_digest="b")
    assert publish_release(source, recipe, newer) == 2
    done = _convert(source, tmp_path / "plans")
    assert (done.returncode, done.stdout) == (0, "intent_onnx: TensorRT\n"), done.stderr
    assert [path.name for path in (tmp_path / "plans" / "intent_onnx").glob("[0-9]*")] == ["2"]


def test_an_engine_that_nobody_asks_stays(tmp_path: Path) -> None:
    formats = ['export.formats=["onnx", "torchscript"]', "export.engine=torchscript"]
    done = _convert(_publish(tmp_path, "serving.mixed_lengths=padded", *formats), tmp_path / "plans")
    assert done.returncode == 2
    way_out = "one does if it is built with --set export.engine=onnx"
    assert f"intent_onnx: stays as it is: no pipeline calls it; {way_out}" in done.stdout


def test_an_engine_of_earlier_settings_stays(tmp_path: Path) -> None:
    _publish(tmp_path, "serving.mixed_lengths=ragged")
    done = _convert(_publish(tmp_path, "serving.mixed_lengths=padded"), tmp_path / "plans")
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        "intent_onnx: TensorRT",
        "intent_onnx_ragged: stays as it is: no pipeline calls it",
    ]


def test_a_folder_that_is_there_is_left_alone(converted: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in converted.rglob("*")}
    done = _convert(tmp_path / "models", converted)
    assert done.returncode == 2
    assert f"{converted} is there already" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in converted.rglob("*")} == before


def _build_plans(repository: Path, bin_folder: Path, **environment: str) -> tuple[int, list[list[str]]]:
    bin_folder.mkdir(exist_ok=True)
    (bin_folder / "trtexec").write_text(TRTEXEC)
    (bin_folder / "trtexec").chmod(0o755)
    calls = bin_folder / "calls"
    calls.write_text("")
    done = subprocess.run(
        [repository / "build_plans.sh"],
        env=os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "CALLS": str(calls)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, [line.split() for line in calls.read_text().splitlines()]


def test_plans_are_built_once(converted: Path, tmp_path: Path) -> None:
    status, calls = _build_plans(converted, tmp_path / "bin")
    assert status == 0
    shapes = (converted / "intent_onnx" / "plan_shapes").read_text().split()
    onnx, plan = "intent_onnx/1/model.onnx", "intent_onnx/1/model.plan"
    settings = ["--stronglyTyped", "--noTF32", "--skipInference"]
    assert calls == [[*settings, f"--onnx={onnx}", f"--saveEngine={plan}.part", *shapes]]
    assert (converted / plan).read_text() == "plan\n"
    assert _build_plans(converted, tmp_path / "bin") == (0, [])


@pytest.mark.skipif(Path("/usr/src/tensorrt/bin/trtexec").exists(), reason="TensorRT is installed here")
def test_an_image_without_trtexec_is_told_from_a_model_that_fails(converted: Path) -> None:
    done = subprocess.run(
        [converted / "build_plans.sh"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "There is no trtexec" in done.stderr
    assert "nvcr.io/nvidia/tensorrt of the release that will serve" in done.stderr


def test_a_build_that_fails_leaves_no_plan(converted: Path, tmp_path: Path) -> None:
    status, _ = _build_plans(converted, tmp_path / "bin", STATUS="3")
    assert status != 0
    assert not (converted / "intent_onnx" / "1" / "model.plan").exists()
