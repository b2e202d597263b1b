from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mooring._cli import _build_parser

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
# Parts of the client that some programs need; nothing of them is imported before it is asked for.
CLIENT_EXTRAS = {"otel": "opentelemetry", "plot": "matplotlib", "progress": "tqdm", "tokenize": "tokenizers"}
ROOMS = {
    "mooring": ("client", [line for extra in CLIENT_EXTRAS for line in EXTRAS[extra]]),
    "mooring_build": ("build", EXTRAS["build"]),
    "mooring_serve": ("serve", EXTRAS["serve"]),
    "mooring_loadtests": ("loadtests", EXTRAS["loadtests"]),
}
# tritonclient[all] brings these along as part of itself.
PARTS_OF = dict.fromkeys(("aiohttp", "grpcio", "protobuf", "yarl"), "tritonclient")


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def _requirements() -> list[Requirement]:
    declared = [*PYPROJECT["project"]["dependencies"], *PYPROJECT["build-system"]["requires"]]
    declared += [line for extra, lines in EXTRAS.items() if extra != "all" for line in lines]
    return [Requirement(line) for line in (*declared, *PYPROJECT["dependency-groups"]["dev"])]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built with the root as working folder: there ``build/`` must not shadow ``build``."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_module_of_the_four_packages(wheel: zipfile.ZipFile) -> None:
    modules = {
        str(path.relative_to(ROOT / folder))
        for package, (folder, _) in ROOMS.items()
        for path in (ROOT / folder / package).rglob("*.py")
    }
    # Beside the modules there are scripts that draw data.
    names = {name for name in wheel.namelist() if not name.startswith("mooring_build/recipes/data/")}
    names.remove("mooring_loadtests/locustfile/locustfile.py")
    assert {name for name in names if name.endswith(".py")} == modules
    assert {name.partition("/")[0] for name in modules} == set(ROOMS)


def test_the_wheel_holds_what_is_no_module(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert "mooring/py.typed" in names
    recipes = ROOT / "build" / "recipes"
    for path in recipes.rglob("*.*"):
        if "__pycache__" in path.parts:
            continue
        assert f"mooring_build/recipes/{path.relative_to(recipes)}" in names
    assert {"mooring_build/recipes/ner.toml", "mooring_build/recipes/intent.toml"} <= names
    for backend in ("onnxruntime", "pytorch"):
        assert f"mooring_serve/backends/{backend}/model.py" in names
    assert "mooring_build/served/batch_by_tokens.c" in names
    assert {"mooring_loadtests/load_report.html", "mooring_loadtests/profiles/steady.toml"} <= names


def test_load_tests_run_from_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    code = "from mooring_loadtests import load_run; print(load_run._LOCUSTFILE)"
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(said.strip()) == tmp_path / "mooring_loadtests" / "locustfile" / "locustfile.py"
    # Nothing else lies where Locust looks for modules first.
    assert [path.name for path in Path(said.strip()).parent.glob("*.py")] == ["locustfile.py"]


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    roots = {name.partition("/")[0] for name in wheel.namelist()}
    version = PYPROJECT["project"]["version"]
    assert roots == {*ROOMS, f"mooring-{version}.dist-info"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name]


def test_the_wheels_metadata_names_command_and_extras(wheel: zipfile.ZipFile) -> None:
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    text = wheel.read(entry_points).decode()
    for line in ("mooring = mooring._cli:main", "build = mooring_build.cli:add_command"):
        assert line in text
    (metadata,) = (name for name in wheel.namelist() if name.endswith("METADATA"))
    extras = re.findall(r"(?m)^Provides-Extra: (\S+)$", wheel.read(metadata).decode())
    assert sorted(extras) == sorted(EXTRAS)
    assert {*CLIENT_EXTRAS, "all", "build", "loadtests", "serve"} == set(EXTRAS)
    assert EXTRAS["all"] == [f"mooring[{','.join(extra for extra in EXTRAS if extra != 'all')}]"]


def test_every_declared_requirement_is_pinned_within_its_bounds() -> None:
    pins = _pins()
    assert pins["torch"] == "2.13.0"
    for requirement in _requirements():
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} but {version} is pinned"


def test_pins_are_sorted_and_name_no_build_of_a_version() -> None:
    pins = _pins()
    assert list(pins) == sorted(pins)
    assert not [name for name, version in pins.items() if "+" in version]


@pytest.mark.parametrize("package", sorted(ROOMS))
def test_a_room_declares_what_it_imports(package: str) -> None:
    folder, extra = ROOMS[package]
    declared = {
        canonicalize_name(Requirement(line).name) for line in (*PYPROJECT["project"]["dependencies"], *extra)
    }
    # These modules are shipped with models, and the server's Python runs them.
    served = {canonicalize_name(Requirement(line).name) for line in EXTRAS["serve"]}
    found = importlib.metadata.packages_distributions()
    for path in (ROOT / folder / package).rglob("*.py"):
        for module in _imports(path):
            if module in sys.stdlib_module_names or module in ROOMS or module not in found:
                continue  # the last: what tritonserver offers to its models
            names = {canonicalize_name(name) for name in found[module]}
            names |= {PARTS_OF[name] for name in names & PARTS_OF.keys()}
            assert names & (declared | served if path.parent.name == "_served" else declared), (
                f"{path.relative_to(ROOT)} imports {module}, which {package} does not declare"
            )


def test_the_client_imports_none_of_its_extras_before_they_are_asked_for() -> None:
    program = "import sys, mooring, mooring._cli; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "mooring" in imported
    assert not imported & set(CLIENT_EXTRAS.values())


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


# Left may import right; nothing else.
ALLOWED = {
    "mooring": set(),
    "mooring_build": {"mooring"},
    "mooring_serve": {"mooring"},
    "mooring_loadtests": {"mooring", "mooring_build", "mooring_serve"},
}


@pytest.mark.parametrize("package", sorted(ROOMS))
def test_a_room_imports_no_other_rooms_than_it_may(package: str) -> None:
    folder, _ = ROOMS[package]
    for path in (ROOT / folder / package).rglob("*.py"):
        foreign = {module for module in _imports(path) if module in ROOMS} - {package} - ALLOWED[package]
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def _make(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Without what the make that runs these tests hands down.
    environment = {
        name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL"}
    }
    command = ["make", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _targets() -> set[str]:
    phony = re.findall(r"(?m)^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"))
    return {target for line in phony for target in line.split()}


@pytest.mark.parametrize("command", sorted(PYPROJECT["project"]["entry-points"]["mooring.commands"]))
def test_a_command_says_what_each_of_its_options_is_for(command: str) -> None:
    [subparsers] = [found for found in _build_parser([command])._actions if isinstance(found.choices, dict)]
    assert [option.dest for option in subparsers.choices[command]._actions if not option.help] == []


@pytest.mark.parametrize("command", sorted(PYPROJECT["project"]["entry-points"]["mooring.commands"]))
def test_a_command_tells_no_default_that_says_nothing(command: str) -> None:
    [subparsers] = [found for found in _build_parser([command])._actions if isinstance(found.choices, dict)]
    said = " ".join(subparsers.choices[command].format_help().split())
    assert re.findall(r"default: (?:None|False|\[\])", said) == []


def test_make_alone_lists_every_target() -> None:
    done = _make()
    assert done.returncode == 0
    assert {line.split()[1] for line in done.stdout.splitlines()} == _targets()
    assert {"demo", "test", "test-unit", "lint", "format", "types", "serve", "clean"} <= _targets()


def test_make_says_which_python_is_needed() -> None:
    done = _make("venv", "PYTHON=/no/python9", "VENV=no-such-environment")
    assert done.returncode != 0
    assert "needs Python 3.11, 3.12 or 3.13, and none of these is one: /no/python9" in done.stderr
    assert not (ROOT / "no-such-environment").exists()


def test_make_clean_leaves_sources_and_published_models() -> None:
    done = _make("--dry-run", "clean")
    assert done.returncode == 0
    removed = set(done.stdout.split())
    assert not removed & {"build", "build/", "model_repository", "artifacts", "*"}


def test_ci_runs_make_targets_that_exist() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    called = set(re.findall(r"(?m)^make ([a-z-]+)", script.read_text(encoding="utf-8")))
    assert called == {"lint", "types", "test"}
    assert called <= _targets()


# Joined here, so that this file does not find itself.
UNFINISHED = re.compile("|".join((r"\bTO" + "DO", r"\bFIX" + "ME", r"\bX" + "XX")))


def test_every_test_file_is_collected(pytestconfig: pytest.Config) -> None:
    left_out = pytestconfig.getini("norecursedirs")
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py")}
    assert Path("tests/build") in folders
    hidden = [part for folder in folders for part in folder.parts if any(fnmatch(part, p) for p in left_out)]
    assert hidden == []


def test_nothing_is_left_to_do_in_the_text() -> None:
    folders = ["build", "client", "deploy", "docs", "loadtests", "serve", "tests", ".ci"]
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    paths += [path for path in ROOT.iterdir() if path.is_file()]
    found = []
    for path in paths:
        if "__pycache__" in path.parts:
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in UNFINISHED.finditer(text)]
    assert found == []
