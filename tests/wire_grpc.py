"""tritonserver's gRPC face of a FakeTransport, on loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import asdict
from typing import Any

import grpc
from google.protobuf.json_format import ParseDict
from tritonclient.grpc import service_pb2, service_pb2_grpc

from mooring import (
    MooringError,
)
from mooring._operations import (
    GetConfig,
    GetIndex,
    GetMetadata,
    GetModelReady,
    GetServerMetadata,
    GetServerReady,
    GetStatistics,
    Infer,
    LoadModel,
    Operation,
    Tensor,
    UnloadModel,
)
from wire_messages import (
    Served,
    code_of,
    config_json,
    make_request,
    metadata_json,
    read_tensor,
    statistics_json,
    write_tensor,
)


def _headers(context: Any) -> dict[str, str]:
    """Repeated ones are joined, as HTTP has it."""
    headers: dict[str, str] = {}
    for name, value in context.invocation_metadata():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


class GrpcServicer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """tritonserver's gRPC face."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def _ask(self, operation: Operation[Any], context: Any) -> Any:
        try:
            return self._served.ask(operation, _headers(context))
        except MooringError as error:
            context.abort(code_of(error)[0], str(error))

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
        return service_pb2.ServerReadyResponse(ready=self._ask(GetServerReady(), context))

    def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return ParseDict(
            asdict(self._ask(GetServerMetadata(), context)), service_pb2.ServerMetadataResponse()
        )

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        operation = GetModelReady(model=request.name, version=request.version)
        return service_pb2.ModelReadyResponse(ready=self._ask(operation, context))

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        said = self._ask(GetMetadata(model=request.name, version=request.version), context)
        return ParseDict(metadata_json(said), service_pb2.ModelMetadataResponse())

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        said = self._ask(GetConfig(model=request.name, version=request.version), context)
        return ParseDict({"config": config_json(said)}, service_pb2.ModelConfigResponse())

    def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        said = self._ask(GetStatistics(model=request.name, version=request.version), context)
        return ParseDict(statistics_json(said), service_pb2.ModelStatisticsResponse())

    def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        said = self._ask(GetIndex(), context)
        return ParseDict({"models": list(map(asdict, said))}, service_pb2.RepositoryIndexResponse())

    def RepositoryModelLoad(self, request: Any, context: Any) -> Any:  # noqa: N802
        files = {
            key.removeprefix("file:"): value.bytes_param
            for key, value in request.parameters.items()
            if key != "config"
        }
        config = request.parameters["config"].string_param if "config" in request.parameters else None
        self._ask(LoadModel(model=request.model_name, config=config, files=files), context)
        return service_pb2.RepositoryModelLoadResponse()

    def RepositoryModelUnload(self, request: Any, context: Any) -> Any:  # noqa: N802
        dependents = request.parameters["unload_dependents"].bool_param
        self._ask(UnloadModel(model=request.model_name, unload_dependents=dependents), context)
        return service_pb2.RepositoryModelUnloadResponse()

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        asked, _ = self._read_infer(request)
        return self._write_infer(asked, self._ask(asked, context))

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:  # noqa: N802
        for request in requests:
            asked, wants_end = self._read_infer(request)
            try:
                for answer in self._served.stream(asked, _headers(context)):
                    yield service_pb2.ModelStreamInferResponse(
                        infer_response=self._write_infer(asked, answer)
                    )
            except MooringError as error:
                yield service_pb2.ModelStreamInferResponse(error_message=str(error))
                continue
            if wants_end:
                end = service_pb2.ModelInferResponse(model_name=asked.model)
                end.parameters["triton_final_response"].bool_param = True
                yield service_pb2.ModelStreamInferResponse(infer_response=end)

    def _read_infer(self, request: Any) -> tuple[Infer, bool]:
        tensors = [
            Tensor(t.name, t.datatype, read_tensor(t.datatype, list(t.shape), raw))
            for t, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        ]
        parameters = {
            key: getattr(value, value.WhichOneof("parameter_choice"))
            for key, value in request.parameters.items()
        }
        wants_end = parameters.pop("triton_enable_empty_final_response", False)
        asked = make_request(
            request.model_name,
            request.model_version,
            tensors,
            parameters,
            outputs=tuple(output.name for output in request.outputs) or None,
            request_id=request.id,
        )
        return asked, wants_end

    def _write_infer(self, asked: Infer, answer: Any) -> Any:
        outputs = self._served.model(asked.model).outputs
        said = service_pb2.ModelInferResponse(model_name=asked.model, model_version=answer.model_version)
        for name, array in answer.outputs.items():
            # What the model's signature lacks is written as what it is.
            datatype = outputs[name][0] if name in outputs else "FP32"
            said.outputs.add(name=name, datatype=datatype, shape=array.shape)
            said.raw_output_contents.append(write_tensor(datatype, array))
        return said


def start_grpc(
    served: Served, credentials: grpc.ServerCredentials | None = None
) -> tuple[int, Callable[[], Any]]:
    """Start a gRPC server; returns its port and what ends it."""
    # Streams that are read slowly hold a thread each.
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(GrpcServicer(served), server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return port, lambda: server.stop(grace=None).wait()
