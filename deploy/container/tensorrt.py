"""Copy a model repository so that its ONNX engines run as TensorRT plans.

::

    python deploy/container/tensorrt.py model_repository tensorrt_repository

A plan is tied to the GPU and to the TensorRT that made it. So the copy has configs for Triton's TensorRT
backend, the ONNX files, and ``build_plans.sh``, which makes the plans where they will run; README shows the
commands. Precision is the ONNX file's own: from 11.0 on TensorRT takes no other, and before that the script
asks for the same ("Migrating trtexec usage" in TensorRT's documentation). The operators of a padded BERT
classifier, in fp32 and in fp16, are all among those that the parser takes (``docs/operators.md`` of
onnx/onnx-tensorrt for 10.15), and the backend takes INT64 since TensorRT 10
(https://github.com/triton-inference-server/tensorrt_backend/pull/89).

ONNX Runtime can run TensorRT by itself, but caches plans by a graph's structure: a new release of a model
would get the plan of the old one (https://github.com/microsoft/onnxruntime/issues/6455).
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx
from tritonclient.grpc import model_config_pb2 as pb

from mooring import ConfigError
from mooring_build.repository import CONFIG, read_config, versions_of
from mooring_build.triton_config import dumps_config
from mooring_loadtests.commands import exit_code

#: In a converted model's folder: trtexec's arguments for the shapes that it will meet.
SHAPES = "plan_shapes"
SCRIPT = Path(__file__).with_name("build_plans.sh")

# What dynamic quantisation leaves; TensorRT has neither.
_INT8_OPERATORS = {"DynamicQuantizeLinear", "MatMulInteger"}
# Of ONNX Runtime alone.
_THREADS = ("intra_op_thread_count", "inter_op_thread_count")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the copy.

    Returns:
        0 if some engine was converted, 1 if the repository can't be read, 2 if none can be converted.
    """
    parser = argparse.ArgumentParser(description="Copy a model repository for Triton's TensorRT backend.")
    parser.add_argument("source", type=Path, help="model repository that mooring build made")
    parser.add_argument("target", type=Path, help="folder that is made")
    args = parser.parse_args(argv)
    return exit_code(lambda: _run(args.source, args.target))


def _run(source: Path, target: Path) -> int:
    if target.exists():
        raise ConfigError(f"{target} is there already: name a new folder, or remove it")
    converted: dict[str, pb.ModelConfig] = {}
    configs = {path.parent: read_config(source, path.parent.name) for path in source.glob(f"*/{CONFIG}")}
    called = {
        step.model_name for config in configs.values() if config for step in config.ensemble_scheduling.step
    }
    for folder, config in sorted(configs.items()):
        if config is None or config.backend != "onnxruntime" or not _onnx_files(folder, config):
            continue
        reason = _obstacle(folder, config)
        if folder.name not in called:
            other = folder.name.replace("_onnx", "_torchscript")
            reason = "no pipeline calls it"
            if other in called:
                reason += "; one does if it is built with --set export.engine=onnx"
        print(f"{folder.name}: {f'stays as it is: {reason}' if reason else 'TensorRT'}")
        if reason is None:
            converted[folder.name] = config
    if not converted:
        raise ConfigError(f"{source} has no engine that TensorRT can run")
    for path in sorted(source.iterdir()):
        # Triton takes a model of which only the config is there, not a built version, for one that failed.
        if versions_of(source, path.name):
            hidden = [str(version) for version in _not_served(path, converted.get(path.name))]
            shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns(".*", *hidden))
    for name, config in converted.items():
        (target / name / SHAPES).write_text("\n".join([*plan_shapes(config), ""]), encoding="utf-8")
        (target / name / CONFIG).write_text(dumps_config(tensorrt_config(config)), encoding="utf-8")
    shutil.copy(SCRIPT, target / SCRIPT.name)
    return 0


def _onnx_files(model: Path, config: pb.ModelConfig) -> list[Path]:
    """Of the versions that are served: older ones beside them may be of another precision."""
    paths = [model / str(version) / "model.onnx" for version in config.version_policy.specific.versions]
    return [path for path in paths if path.is_file()]


def _not_served(model: Path, config: pb.ModelConfig | None) -> set[int]:
    """Versions of a converted model for which no plan is needed."""
    if config is None:
        return set()
    return versions_of(model.parent, model.name) - set(config.version_policy.specific.versions)


def _obstacle(model: Path, config: pb.ModelConfig) -> str | None:
    """Why TensorRT can't run an engine."""
    if any(tensor.allow_ragged_batch for tensor in config.input):
        return "it takes texts packed; build it with --set serving.mixed_lengths=padded"
    if not config.model_warmup:
        return "it has no warm-up requests, which say how long inputs get; build it with serving.warm_up"
    for path in _onnx_files(model, config):
        operators = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
        if operators & _INT8_OPERATORS:
            return "it is int8 for CPUs; build it with --set export.precision=fp32, or fp16"
    return None


def plan_shapes(config: pb.ModelConfig) -> list[str]:
    """trtexec's arguments: the smallest shapes, those to be fastest at, and the largest.

    Batches go up to ``max_batch_size`` and open axes up to the longest warm-up request. Fastest is the
    largest batch that is warmed up, which is the largest that the batcher aims at, of half that length.
    """
    aim = max(config.model_warmup, key=lambda request: request.batch_size)
    longest = max(config.model_warmup, key=lambda request: list(_dims(config, request).values()))
    smallest = {tensor.name: [max(size, 1) for size in tensor.dims] for tensor in config.input}
    return [
        _argument("min", 1, smallest),
        _argument("opt", aim.batch_size, _between(_dims(config, aim), _dims(config, longest))),
        _argument("max", config.max_batch_size, _dims(config, longest)),
    ]


def _dims(config: pb.ModelConfig, request: pb.ModelWarmup) -> dict[str, list[int]]:
    return {tensor.name: list(request.inputs[tensor.name].dims) for tensor in config.input}


def _between(short: dict[str, list[int]], long: dict[str, list[int]]) -> dict[str, list[int]]:
    """Open axes at half the length; the others are the same in both."""
    return {
        name: [size if size == most else most // 2 for size, most in zip(sizes, long[name], strict=True)]
        for name, sizes in short.items()
    }


def _argument(bound: str, batch: int, dims: dict[str, list[int]]) -> str:
    shapes = [f"{name}:{'x'.join(map(str, [batch, *sizes]))}" for name, sizes in dims.items()]
    return f"--{bound}Shapes={','.join(shapes)}"


def tensorrt_config(config: pb.ModelConfig) -> pb.ModelConfig:
    """The same model on Triton's TensorRT backend, which runs on GPUs alone."""
    changed = pb.ModelConfig()
    changed.CopyFrom(config)
    changed.backend = "tensorrt"
    for group in changed.instance_group:
        group.kind = pb.ModelInstanceGroup.KIND_GPU
    for name in _THREADS:
        changed.parameters.pop(name, None)
    return changed


if __name__ == "__main__":
    sys.exit(main())
