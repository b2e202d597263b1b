from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mooring_serve._command import _CACHE_BYTES
from mooring_serve._installation import _GPU_SETTINGS

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "container" / "Dockerfile"


def _instructions() -> list[tuple[str, str]]:
    """Name and arguments of each instruction, with continuation lines joined and comments gone."""
    text = DOCKERFILE.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(name, arguments) for name, _, arguments in (line.partition(" ") for line in joined)]


def _arguments(name: str) -> list[str]:
    return [arguments for instruction, arguments in _instructions() if instruction == name]


def _pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"(?m)(?:^|\s)([a-z0-9-]+)==([^\s\\]+)", text))


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_hadolint_is_told_to_ignore_nothing() -> None:
    assert "hadolint ignore" not in DOCKERFILE.read_text(encoding="utf-8")
    assert not list(ROOT.glob(".hadolint.y*ml"))


def test_the_base_image_is_the_official_one_and_pinned() -> None:
    assert _arguments("FROM") == ["nvcr.io/nvidia/tritonserver:26.07-py3"]


def test_it_adds_what_the_python_models_import_as_pinned_for_this_project() -> None:
    run = _arguments("RUN")[0]
    constraints = _pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    assert _pins(run) == {name: constraints[name] for name in ("numpy", "pillow", "tokenizers")}
    assert "--no-deps" in run


def test_what_it_adds_is_where_python_looks() -> None:
    run = _arguments("RUN")[0]
    target = re.search(r"--target=(\S+)", run)[1]
    # Before, not instead of what the image sets.
    assert f"PYTHONPATH={target}${{PYTHONPATH:+:$PYTHONPATH}}" in _arguments("ENV")


def test_it_does_not_run_as_root() -> None:
    # Numbers: Kubernetes can't tell whether a name is root.
    assert [re.fullmatch(r"(\d+):\d+", user)[1] for user in _arguments("USER")] == ["1000"]
    names = [name for name, _ in _instructions()]
    assert names.index("USER") > max(i for i, name in enumerate(names) if name == "RUN")


def test_every_copied_path_exists_and_is_let_through() -> None:
    copied = [arguments.split() for arguments in _arguments("COPY")]
    sources = [word.rstrip("/") for words in copied for word in words[:-1] if not word.startswith("--")]
    assert sources == ["deploy/container/serve.sh", "model_repository"]
    assert all((ROOT / source).exists() for source in sources)
    ignored = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text(encoding="utf-8").split("\n")
    assert [f"!{source}" for source in sources] == [line for line in ignored if line.startswith("!")]


def test_it_serves_the_folder_that_it_copied() -> None:
    script, models = (arguments.split()[-1].rstrip("/") for arguments in _arguments("COPY"))
    assert _command()[:2] == [script, f"--model-repository={models}"]


def _start(repository: Path, folder: Path) -> list[str]:
    """What the image's script starts, with these arguments beside it."""
    folder.mkdir()
    (folder / "tritonserver").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (folder / "tritonserver").chmod(0o755)
    done = subprocess.run(
        [DOCKERFILE.with_name("serve.sh"), f"--model-repository={repository}", "--log-format=ISO8601"],
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second, *more = done.stdout.splitlines()
    assert (first, second) == (f"--model-repository={repository}", "--log-format=ISO8601")
    return more


def test_it_starts_with_all_models_that_are_built(tmp_path: Path) -> None:
    repository = tmp_path / "my models"
    for name in ("ner", "ner_tokenizer"):
        (repository / name / "1").mkdir(parents=True)
    assert _start(repository, tmp_path / "one") == []
    # A config alone, as in a checkout, and what a build has just begun.
    (repository / "intent").mkdir()
    (repository / "faq_tokenizer" / ".staging-1").mkdir(parents=True)
    assert _start(repository, tmp_path / "two") == [
        "--model-control-mode=explicit",
        "--load-model=ner",
        "--load-model=ner_tokenizer",
    ]
    for name in ("intent", "faq_tokenizer"):
        shutil.rmtree(repository / name)
    assert _start(repository, tmp_path / "three") == []
    (repository / ".git").mkdir()
    assert _start(repository, tmp_path / "four") == [
        "--model-control-mode=explicit",
        "--load-model=ner",
        "--load-model=ner_tokenizer",
    ]


def test_it_caches_answers_and_sets_gpus_as_mooring_serve_does() -> None:
    assert f"--cache-config=local,size={_CACHE_BYTES}" in _command()
    assert {f"{name}={value}" for name, value in _GPU_SETTINGS.items()} <= {*_arguments("ENV")}


def test_it_offers_the_three_ports_and_a_probe() -> None:
    assert _arguments("EXPOSE") == ["8000 8001 8002"]
    assert len(_arguments("HEALTHCHECK")) == 1


@pytest.mark.integration
def test_tritonserver_knows_every_flag() -> None:
    from mooring_serve._installation import find_installation

    installation = find_installation()
    done = subprocess.run(
        [installation.executable, "--help"],
        env=dict(installation.environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    known = set(re.findall(r"^\s+(--[a-z-]+)", done.stdout + done.stderr, re.MULTILINE))
    assert "--model-repository" in known
    flags = {flag.partition("=")[0] for flag in _command()[1:]} | {"--model-control-mode", "--load-model"}
    assert flags <= known


def test_docker_is_told_to_stop_after_the_server_stops() -> None:
    # Docker sends SIGKILL 10 s after SIGTERM.
    (seconds,) = (flag.partition("=")[2] for flag in _command() if flag.startswith("--exit-timeout-secs="))
    assert 0 < int(seconds) < 10


def _command() -> list[str]:
    (command,) = _arguments("CMD")
    words: list[str] = json.loads(command)
    return words


def test_a_mistake_would_be_found(tmp_path: Path) -> None:
    """hadolint really runs: a file with known faults fails it."""
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint is not None
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN pip install numpy\n", encoding="utf-8")
    done = subprocess.run([hadolint, "--no-color", bad], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert {"DL3006", "DL3013"} <= set(re.findall(r"DL\d{4}", done.stdout))
