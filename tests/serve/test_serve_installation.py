from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from fake_wheel import write_wheel
from mooring import ConfigError, UnsupportedPlatform
from mooring_serve import _installation
from mooring_serve._backend_directory import assemble_backend_directory
from mooring_serve._cache_folder import build_once
from mooring_serve._installation import find_installation, unpack_server

SERVER = "pytriton/tritonserver"
WHEEL_FILES = {
    f"{SERVER}/bin/tritonserver": b"program",
    f"{SERVER}/backends/python/libtriton_python.so": b"library",
    f"{SERVER}/backends/python/triton_python_backend_utils.py": b"import json\n",
    f"{SERVER}/python_backend_stubs/3.11/triton_python_backend_stub": b"stub for 3.11",
    f"{SERVER}/python_backend_stubs/3.12/triton_python_backend_stub": b"stub for 3.12",
    "nvidia_pytriton.libs/libtritonserver.so": b"library",
    "pytriton/triton.py": b"not needed",
}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The sha256 of a fake of the server's wheel, which is all that can be fetched."""
    path, sha256 = write_wheel(tmp_path / "index", "nvidia-pytriton", "0.7.0", WHEEL_FILES)
    monkeypatch.setattr(_installation, "fetch_wheel", lambda *args, cache_dir: path)
    return sha256


@pytest.fixture
def without_official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))


def unpack(wheel: str, cache: Path) -> Path:
    return unpack_server("nvidia-pytriton==0.7.0", wheel, cache)


def test_only_the_server_is_unpacked_and_can_be_run(wheel: str, tmp_path: Path) -> None:
    unpacked = unpack(wheel, tmp_path / "cache")
    files = {str(path.relative_to(unpacked)): path for path in unpacked.rglob("*") if path.is_file()}
    assert set(files) == set(WHEEL_FILES) - {"pytriton/triton.py"}
    assert all(os.access(path, os.X_OK) for path in files.values())
    assert stat.S_IMODE(files[f"{SERVER}/bin/tritonserver"].stat().st_mode) == 0o755


def test_it_is_unpacked_once(wheel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked = unpack(wheel, tmp_path / "cache")
    monkeypatch.delattr(_installation, "fetch_wheel")
    assert unpack(wheel, tmp_path / "cache") == unpacked
    assert unpacked.name == f"nvidia-pytriton-0.7.0-{wheel[:12]}"


def test_a_half_built_folder_never_counts(tmp_path: Path) -> None:
    target = tmp_path / "cache" / "folder"

    def fail(folder: Path) -> None:
        (folder / "first").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_once(target, fail)
    assert list(target.parent.iterdir()) == []
    build_once(target, lambda folder: (folder / "whole").touch())
    assert [path.name for path in target.iterdir()] == ["whole"]


def test_what_a_killed_build_left_is_removed_after_a_day(tmp_path: Path) -> None:
    for name, hours in ((".building-old", 25), (".building-new", 23), ("built", 25)):
        (tmp_path / name / "folder").mkdir(parents=True)
        (tmp_path / name / "folder" / "file").touch()
        changed_s = time.time() - 3600 * hours
        os.utime(tmp_path / name, (changed_s, changed_s))
    build_once(tmp_path / "folder", lambda folder: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".building-new", "built", "folder"]


def test_a_full_disk_names_the_way_out(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        ConfigError, match=r"/folder can't be made: .*No space left on device; XDG_CACHE_HOME"
    ):
        build_once(tmp_path / "folder", fail)
    assert list(tmp_path.iterdir()) == []


def test_what_can_not_be_read_for_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/cache/some.whl")

    with pytest.raises(ConfigError, match=r"/folder can't be made: .*Permission denied: '/cache/some.whl';"):
        build_once(tmp_path / "folder", fail)

    def refuse(**where: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", lambda *a, **k: refuse())
    with pytest.raises(ConfigError, match=r"/folder can't be made: .*No space left on device"):
        build_once(tmp_path / "folder", lambda folder: None)


def test_a_cache_that_may_not_be_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    # As below another user's home; root, who may look everywhere, runs tests too.
    monkeypatch.setattr(Path, "is_dir", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ConfigError, match=r"can't write into the cache folder .*/cache: .*XDG_CACHE_HOME"):
        build_once(tmp_path / "home" / "cache" / "folder", lambda folder: None)


def test_two_that_build_at_once_get_the_same_folder(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    both_building = Barrier(2)

    def build(folder: Path) -> None:
        (folder / "file").touch()
        both_building.wait(20)

    with ThreadPoolExecutor(2) as pool:
        built = [pool.submit(build_once, target, build) for _ in range(2)]
    assert [future.result() for future in built] == [target, target]
    assert sorted(tmp_path.rglob("*")) == [target, target / "file"]


@pytest.fixture
def server(wheel: str, tmp_path: Path) -> Path:
    return unpack(wheel, tmp_path / "cache") / SERVER


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    for name in ("onnxruntime/model.py", "pytorch/model.py", "python/shared.py", "python/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    return folder


def test_backend_directory(server: Path, sources: Path, tmp_path: Path) -> None:
    made = assemble_backend_directory(server, (3, 12), tmp_path / "cache", sources=sources)
    files = {str(path.relative_to(made)): path for path in made.rglob("*") if path.is_file()}
    assert set(files) == {
        "onnxruntime/model.py",
        "pytorch/model.py",
        "python/shared.py",
        "python/libtriton_python.so",
        "python/triton_python_backend_stub",
        "python/triton_python_backend_utils.py",
        "python/_mooring_numpy_bridge.py",
    }
    assert not any(path.is_symlink() for path in files.values())
    assert files["python/triton_python_backend_stub"].read_text() == "stub for 3.12"
    assert os.access(files["python/triton_python_backend_stub"], os.X_OK)
    utils = files["python/triton_python_backend_utils.py"].read_text()
    assert utils.startswith("import json\n")
    assert utils.endswith("import _mooring_numpy_bridge\n\n_mooring_numpy_bridge.apply(globals())\n")


def test_backend_directory_changes_with_its_sources(server: Path, sources: Path, tmp_path: Path) -> None:
    def assemble(python: tuple[int, int] = (3, 12)) -> Path:
        return assemble_backend_directory(server, python, tmp_path / "cache", sources=sources)

    first = assemble()
    assert assemble() == first
    other_python = assemble((3, 11))
    (sources / "onnxruntime" / "model.py").write_text("# changed\n")
    other_backend = assemble()
    (server / "backends/python/libtriton_python.so").write_bytes(b"newer")
    other_wheel = assemble()
    assert len({first, other_python, other_backend, other_wheel}) == 4
    assert (first / "onnxruntime" / "model.py").read_text() == "# onnxruntime/model.py\n"
    assert (other_backend / "onnxruntime" / "model.py").read_text() == "# changed\n"


def test_an_unpacked_server_that_is_not_whole(server: Path, sources: Path, tmp_path: Path) -> None:
    # As where a cleaner of temporary folders came by.
    (server / "backends/python/libtriton_python.so").unlink()
    unpacked = server.parent.parent
    with pytest.raises(ConfigError, match=f"libtriton_python.so'; remove {unpacked}, so that it is unpacked"):
        assemble_backend_directory(server, (3, 12), tmp_path / "cache", sources=sources)


def test_who_wants_tf32_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tritonserver").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert find_installation().environment["NVIDIA_TF32_OVERRIDE"] == "1"


def test_an_official_server_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = tmp_path / "bin" / "tritonserver"
    official.parent.mkdir()
    official.touch(0o755)
    monkeypatch.setenv("PATH", str(official.parent))
    found = find_installation()
    assert found.executable == official
    assert not found.embedded
    assert found.environment["PATH"] == str(official.parent)
    assert found.environment["NVIDIA_TF32_OVERRIDE"] == "0"


@pytest.mark.usefixtures("without_official")
def test_the_embedded_server(wheel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/before")
    monkeypatch.setattr(_installation, "cache_root", lambda: tmp_path / "cache")
    monkeypatch.setattr(_installation, "WHEEL_SHA256", wheel)
    monkeypatch.setattr(_installation, "check_platform", lambda facts: None)
    monkeypatch.setattr(_installation, "find_libpython", lambda folders, python: Path("/libpython"))
    monkeypatch.setattr(_installation, "assemble_backend_directory", lambda *args: Path("/backends"))

    found = find_installation()

    unpacked = tmp_path / "cache" / f"nvidia-pytriton-0.7.0-{wheel[:12]}"
    assert found.embedded
    assert found.executable == unpacked / SERVER / "bin" / "tritonserver"
    assert found.backend_directory == Path("/backends")
    assert found.cache_directory == unpacked / SERVER / "caches"
    assert found.environment["LD_LIBRARY_PATH"] == f"{unpacked}/nvidia_pytriton.libs:/libpython:/before"
    assert found.environment["PATH"] == f"{Path(sys.executable).parent}:{tmp_path}/nothing"
    assert found.environment["NVIDIA_TF32_OVERRIDE"] == "0"


@pytest.mark.usefixtures("without_official")
def test_a_cache_whose_path_is_not_ascii(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_installation, "fetch_wheel")
    monkeypatch.setattr(_installation, "cache_root", lambda: tmp_path / "caché")
    monkeypatch.setattr(_installation, "check_platform", lambda facts: None)
    monkeypatch.setattr(_installation, "find_libpython", lambda folders, python: None)
    with pytest.raises(ConfigError, match=r"the cache folder \(XDG_CACHE_HOME\) is .*/caché': .* ASCII"):
        find_installation()


@pytest.mark.usefixtures("without_official")
def test_nothing_is_fetched_where_it_could_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_installation, "fetch_wheel")
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(UnsupportedPlatform, match="this is darwin"):
        find_installation()
