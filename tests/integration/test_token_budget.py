"""Batches limited by their tokens, on a real server: what is published, and which batches it forms."""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mooring import BuildError, Client, StartError
from mooring_build.batch_strategy import STRATEGY_FILE, batch_strategy
from mooring_build.publish import publish_release
from mooring_build.recipe import load_recipe
from mooring_build.triton_config import dumps_config, loads_config
from mooring_serve import TritonServer
from python_models import write_python_model
from tiny_release import make_release

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler (cc)"),
]

LIMIT = 100
SETTINGS = (
    f"serving.max_batch_tokens={LIMIT}",
    'export.formats=["onnx"]',
    "data.out_of_scope=",
    "data.out_of_scope_train=",
)
# Answers how many tokens and requests its batch has, and takes long enough for others to wait meanwhile.
COUNTING = """
    import time
    import numpy as np
    import triton_python_backend_utils as pb_utils


    class TritonPythonModel:
        def execute(self, requests):
            time.sleep(0.01)
            sizes = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy().size for request in requests]
            batch = pb_utils.Tensor("batch", np.array([[sum(sizes), len(sizes)]], np.int32))
            return [pb_utils.InferenceResponse([batch]) for _ in requests]
"""
COUNTING_CONFIG = """
    backend: "python"
    max_batch_size: 32
    input { name: "x" data_type: TYPE_INT64 dims: [-1] allow_ragged_batch: true }
    output { name: "batch" data_type: TYPE_INT32 dims: [2] }
    instance_group { count: 2 kind: KIND_CPU }
"""


def write_counting_model(folder: Path) -> Path:
    """A model that counts, with the library, batching and parameters that an engine gets."""
    recipe = load_recipe("intent", SETTINGS)
    library = batch_strategy(recipe, folder / "artifacts", lambda line: None)
    release = replace(make_release(folder / "files", recipe), batch_strategy=library)
    publish_release(folder / "published", recipe, release)
    engine = folder / "published" / "intent_onnx_ragged"
    repository = write_python_model(
        folder / "repository", "counting", source=COUNTING, config=COUNTING_CONFIG
    )
    path = repository / "counting" / "config.pbtxt"
    published, config = (loads_config(one.read_text()) for one in (engine / "config.pbtxt", path))
    config.dynamic_batching.CopyFrom(published.dynamic_batching)
    config.parameters["max_batch_tokens"].CopyFrom(published.parameters["max_batch_tokens"])
    path.write_text(dumps_config(config), encoding="utf-8")
    shutil.copy(engine / "1" / STRATEGY_FILE, repository / "counting" / "1")
    return repository


def test_no_batch_has_more_tokens_than_the_limit(tmp_path: Path) -> None:
    sizes = np.clip(np.random.default_rng(0).lognormal(2.5, 1.0, 800).astype(int), 1, 3 * LIMIT)
    repository = write_counting_model(tmp_path)
    with (
        TritonServer(repository) as server,
        Client(server.grpc_url, timeout_s=30.0) as client,
        ThreadPoolExecutor(32) as callers,
    ):
        asked = [{"x": np.zeros((1, size), np.int64)} for size in sizes]
        batches = list(
            callers.map(lambda tensors: tuple(client.infer("counting", tensors)["batch"][0]), asked)
        )
    for size, (tokens, requests) in zip(sizes, batches, strict=True):
        assert tokens <= LIMIT or (tokens, requests) == (size, 1)
    # The test means something only if batches were formed, and long texts were there to keep out.
    assert sum(requests > 1 for _, requests in batches) > len(sizes) / 2
    assert (sizes > LIMIT).sum() > 10


def test_a_limit_that_is_no_number_keeps_the_model_from_loading(tmp_path: Path) -> None:
    repository = write_counting_model(tmp_path)
    path = repository / "counting" / "config.pbtxt"
    path.write_text(path.read_text().replace(f'"{LIMIT}"', '"many"'), encoding="utf-8")
    with pytest.raises(StartError, match="max_batch_tokens must be a number above 0"):
        TritonServer(repository, log_file=tmp_path / "tritonserver.log").start()


def test_a_version_from_before_the_limit_was_dropped_goes_on_serving(tmp_path: Path) -> None:
    # Its library stays beside it, and the config that both versions share has no limit any more.
    repository = write_counting_model(tmp_path)
    path = repository / "counting" / "config.pbtxt"
    config = loads_config(path.read_text(encoding="utf-8"))
    del config.parameters["max_batch_tokens"]
    path.write_text(dumps_config(config), encoding="utf-8")
    with TritonServer(repository) as server, Client(server.grpc_url, timeout_s=30.0) as client:
        tokens = np.zeros((1, 3 * LIMIT), np.int64)
        assert client.infer("counting", {"x": tokens})["batch"].tolist() == [[3 * LIMIT, 1]]


def test_a_compiler_that_is_missing_or_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("intent", SETTINGS)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(BuildError, match=r"needs a C compiler, and 'no-such-compiler' is not one"):
        batch_strategy(recipe, tmp_path, print)
    monkeypatch.setenv("CC", f"{sys.executable} -c 'raise SystemExit(3)'")
    with pytest.raises(BuildError, match=r"failed \(3\)"):
        batch_strategy(recipe, tmp_path, print)
    monkeypatch.delenv("CC")
    assert batch_strategy(load_recipe("intent"), tmp_path, print) is None
    first = batch_strategy(recipe, tmp_path, print)
    assert first is not None
    made = first.stat().st_mtime_ns
    assert batch_strategy(recipe, tmp_path, print) == first
    assert first.stat().st_mtime_ns == made
