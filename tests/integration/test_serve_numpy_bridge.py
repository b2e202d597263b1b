"""Tensors pass through the Python backend unchanged, whatever their type, shape and layout."""

from __future__ import annotations

import json
import struct
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from mooring_serve import TritonServer
from python_models import write_python_model

pytestmark = pytest.mark.integration

Array = npt.NDArray[Any]
_NUMBERS = [
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    "float16", "float32", "float64",
]  # fmt: skip
_DTYPES = [*_NUMBERS, "object"]

_SOURCE = """
    import sys
    import threading

    import numpy as np
    import triton_python_backend_utils as pb_utils

    LAYOUTS = {
        "as it is": lambda x: x,
        "transposed": lambda x: x.T,
        "backwards": lambda x: x[::-1, ::-1],
        "every other column": lambda x: x[:, ::2],
        "from the second row": lambda x: x[1:],
        "repeated": lambda x: np.broadcast_to(x[:1], (3, x.shape[1])),
        "no rows": lambda x: x[:0],
        "read-only": lambda x: (x.setflags(write=False), x)[1],
        "fixed-width strings": lambda x: x.astype("S") if x.dtype == object else x,
        "Fortran order": np.asfortranarray,
    }


    class TritonPythonModel:
        def execute(self, requests):
            return [self.answer(request) for request in requests]

        def answer(self, request):
            layout = pb_utils.get_input_tensor_by_name(request, "layout").as_numpy()[0].decode()
            arrays = {t.name(): t.as_numpy() for t in request.inputs() if t.name() != "layout"}
            if layout == "made by threads":
                return pb_utils.InferenceResponse(self.make_in_threads(arrays))
            made = [self.tensor(name, LAYOUTS[layout](array)) for name, array in arrays.items()]
            return pb_utils.InferenceResponse(made)

        def tensor(self, name, array):
            before = array.copy()
            made = pb_utils.Tensor(name, array)
            # What the model keeps must be what it made, before, while and after the stub has it.
            assert array.dtype == before.dtype and np.array_equal(array, before)
            assert array.copy().dtype.itemsize == before.dtype.itemsize
            return made

        def make_in_threads(self, arrays):
            interval = sys.getswitchinterval()
            sys.setswitchinterval(1e-6)
            made = {}

            def make(name, array):
                for _ in range(100):
                    made[name] = self.tensor(name, array)

            threads = [threading.Thread(target=make, args=item) for item in arrays.items()]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            sys.setswitchinterval(interval)
            return list(made.values())
"""


def _config() -> str:
    lines = ['backend: "python"', 'input { name: "layout" data_type: TYPE_STRING dims: [1] }']
    for dtype in _DTYPES:
        triton = np_to_triton_dtype(np.dtype(dtype))
        body = f'name: "{dtype}" data_type: TYPE_{"STRING" if triton == "BYTES" else triton} dims: [-1, -1]'
        lines += [f"input {{ {body} optional: true }}", f"output {{ {body} }}"]
    return "\n".join(lines)


def _values(dtype: str) -> Array:
    if dtype == "object":
        texts = [b"", b"a", "\u00fc\U0001f600".encode(), b"\x00in\x00side", b"x" * 70000, b"last"]
        return np.array(texts, dtype=object).reshape(2, 3)
    if dtype == "bool":
        return np.array([[True, False, True], [False, False, True]])
    kind = np.dtype(dtype)
    bounds = np.finfo(kind) if kind.kind == "f" else np.iinfo(kind)
    return np.array([[bounds.min, 0, 1], [2, 3, bounds.max]], dtype=kind)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("bridge")
    repository = write_python_model(folder / "repository", "layouts", source=_SOURCE, config=_config())
    with TritonServer(repository, log_file=folder / "tritonserver.log") as running:
        yield running


@pytest.fixture
def ask(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Any]:
    """Asks over gRPC unless told otherwise: a model gets the same tensors over either protocol."""
    protocol = getattr(request, "param", "grpc")
    module = triton_grpc if protocol == "grpc" else triton_http
    url = server.grpc_url if protocol == "grpc" else server.http_url
    with module.InferenceServerClient(url.partition("://")[2]) as client:

        def infer(layout: str, arrays: dict[str, Array]) -> dict[str, Array]:
            inputs = []
            for name, array in {"layout": np.array([layout.encode()], dtype=object), **arrays}.items():
                inputs.append(module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
                inputs[-1].set_data_from_numpy(array)
            outputs = [module.InferRequestedOutput(name) for name in arrays]
            result = client.infer("layouts", inputs, outputs=outputs)
            return {name: result.as_numpy(name) for name in arrays}

        yield infer


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("as it is", lambda x: x),
        ("transposed", lambda x: x.T),
        ("backwards", lambda x: x[::-1, ::-1]),
        ("every other column", lambda x: x[:, ::2]),
        ("from the second row", lambda x: x[1:]),
        ("repeated", lambda x: np.concatenate([x[:1]] * 3)),
        ("no rows", lambda x: x[:0]),
        ("read-only", lambda x: x),
        ("fixed-width strings", lambda x: x),
        ("Fortran order", lambda x: x),
    ],
)
def test_every_dtype_in_every_layout_comes_back(ask: Any, dtype: str, layout: str, expected: Any) -> None:
    sent = _values(dtype)
    (answer,) = ask(layout, {dtype: sent}).values()
    np.testing.assert_array_equal(answer, expected(sent))
    assert answer.dtype == sent.dtype


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 0), (1, 1), (64, 1)])
def test_every_shape_comes_back(ask: Any, dtype: str, shape: tuple[int, int]) -> None:
    sent = np.resize(_values(dtype), shape)
    (answer,) = ask("as it is", {dtype: sent}).values()
    assert answer.shape == shape
    np.testing.assert_array_equal(answer, sent)


@pytest.mark.parametrize("ask", ["grpc", "http"], indirect=True)
def test_threads_of_a_model_make_tensors_at_once(ask: Any) -> None:
    sent = {dtype: _values(dtype) for dtype in _DTYPES}
    for dtype, answer in ask("made by threads", sent).items():
        np.testing.assert_array_equal(answer, sent[dtype])


_ONE = struct.pack("<I", 1) + b"a"


@pytest.mark.parametrize(
    "raw",
    [
        b"\x01\x00",
        _ONE,
        _ONE * 3,
        struct.pack("<I", 9) + _ONE,
        _ONE + struct.pack("<I", 9) + b"ab",
        _ONE + struct.pack("<I", 2**32 - 1),
        _ONE * 2 + b"\x00",
    ],
    ids=["half a length", "one of two", "three of two", "eats the next", "cut off", "huge", "one byte more"],
)
def test_malformed_bytes_fail_alone(server: TritonServer, ask: Any, raw: bytes) -> None:
    # The stub would die of them; the server refuses them before.
    inputs = [
        triton_grpc.InferInput("layout", [1], "BYTES"),
        triton_grpc.InferInput("object", [1, 2], "BYTES"),
    ]
    inputs[0].set_data_from_numpy(np.array([b"as it is"], dtype=object))
    inputs[1]._raw_content = raw
    with (
        triton_grpc.InferenceServerClient(server.grpc_url.partition("://")[2]) as client,
        pytest.raises(InferenceServerException, match="string"),
    ):
        client.infer("layouts", inputs)

    tensors = [("layout", [1], struct.pack("<I", 8) + b"as it is"), ("object", [1, 2], raw)]
    head = {
        "inputs": [
            {"name": name, "shape": shape, "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
            for name, shape, data in tensors
        ]
    }
    header = json.dumps(head).encode()
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/layouts/infer",
        data=header + b"".join(data for _, _, data in tensors),
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)
    refused.value.close()
    assert refused.value.code == 400

    good = _values("object")
    np.testing.assert_array_equal(ask("as it is", {"object": good})["object"], good)
