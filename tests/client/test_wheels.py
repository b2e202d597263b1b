from __future__ import annotations

import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fake_wheel import write_wheel
from mooring import ConfigError, TransportError
from mooring._wheels import cache_root, fetch_wheel, make_cache_folder

FILES = {"example/__init__.py": b"answer = 42\n"}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_wheel_is_fetched_once_and_stays(index: Path, tmp_path: Path) -> None:
    source, sha256 = write_wheel(index, "mooring-example", "1.2", FILES)
    cache = tmp_path / "cache"

    wheel = fetch_wheel("mooring-example==1.2", sha256, cache_dir=cache)

    assert wheel.name == "mooring_example-1.2-py3-none-any.whl"
    assert wheel.read_bytes() == source.read_bytes()
    source.unlink()
    assert fetch_wheel("mooring-example==1.2", sha256, cache_dir=cache) == wheel
    assert files_below(cache) == [wheel]


def test_a_damaged_file_in_the_cache_is_fetched_again(index: Path, tmp_path: Path) -> None:
    source, sha256 = write_wheel(index, "mooring-example", "1.2", FILES)
    wheel = fetch_wheel("mooring-example==1.2", sha256, cache_dir=tmp_path / "cache")
    wheel.write_bytes(wheel.read_bytes()[:100])

    assert fetch_wheel("mooring-example==1.2", sha256, cache_dir=tmp_path / "cache") == wheel
    assert wheel.read_bytes() == source.read_bytes()


def test_several_at_once_all_get_it(index: Path, tmp_path: Path) -> None:
    _, sha256 = write_wheel(index, "mooring-example", "1.2", FILES)
    cache = tmp_path / "cache"

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(fetch_wheel, "mooring-example==1.2", sha256, cache_dir=cache) for _ in range(3)]
    wheels = {future.result() for future in asked}

    assert len(wheels) == 1
    assert files_below(cache) == list(wheels)


def test_another_file_under_the_name_is_refused(index: Path, tmp_path: Path) -> None:
    write_wheel(index, "mooring-example", "1.2", FILES)
    with pytest.raises(ConfigError, match=r"mooring-example==1\.2 is not the pinned one \(sha256 0{64}\)"):
        fetch_wheel("mooring-example==1.2", "0" * 64, cache_dir=tmp_path / "cache")
    assert not files_below(tmp_path / "cache")


@pytest.mark.parametrize(
    ("version", "tag"),
    [("1.2", "py3-none-win_arm64"), ("1.3", "py3-none-any")],
    ids=["for another platform", "in another version"],
)
def test_no_wheel_that_fits(index: Path, tmp_path: Path, version: str, tag: str) -> None:
    _, sha256 = write_wheel(index, "mooring-example", version, FILES, tag=tag)
    with pytest.raises(ConfigError, match=r"found no wheel of mooring-example==1\.2 .* set PIP_FIND_LINKS"):
        fetch_wheel("mooring-example==1.2", sha256, cache_dir=tmp_path / "cache")


def test_an_index_that_cannot_be_reached(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(TransportError, match=r"can't reach the package index .* PIP_FIND_LINKS") as raised:
        fetch_wheel("mooring-example==1.2", "0" * 64, cache_dir=tmp_path / "cache")
    assert isinstance(raised.value.__cause__, subprocess.CalledProcessError)


@pytest.mark.parametrize("said", ["No space left on device", "Disk quota exceeded"])
def test_a_full_disk_is_no_wheel_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    # What pip download ends with, a traceback.
    stderr = f"ERROR: Exception:\nTraceback (most recent call last):\n  …\nOSError: [Errno 28] {said}\n"
    answer = subprocess.CompletedProcess([], 1, stderr=stderr)
    monkeypatch.setattr("mooring._wheels.subprocess.run", lambda *args, **options: answer)
    with pytest.raises(
        ConfigError, match=rf"no room for the wheel of mooring-example.*TMPDIR.*XDG.*OSError.*{said}"
    ):
        fetch_wheel("mooring-example==1.2", "0" * 64, cache_dir=tmp_path / "cache")


def test_a_python_without_pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mooring._wheels.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs pip, .* -m ensurepip"):
        fetch_wheel("mooring-example==1.2", "0" * 64, cache_dir=tmp_path / "cache")


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_root() == tmp_path / "cache" / "mooring"
    # Only what is fetched or built needs it.
    assert not cache_root().exists()
    make_cache_folder(cache_root())
    assert list(cache_root().iterdir()) == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        ConfigError, match=r"can't write into the cache folder .*/file/mooring: .* XDG_CACHE_HOME"
    ):
        make_cache_folder(cache_root())
