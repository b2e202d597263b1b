"""Arguments of an inference call, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import get_args

from mooring._errors import ConfigError
from mooring._operations import Compression, Infer, Parameter, SequenceStep, Tensor

#: Empty, or what tritonserver takes for a version.
_VERSION = re.compile(r"([1-9][0-9]{0,17})?")
#: Parameters with an argument of their own.
_RESERVED = {
    "timeout": "timeout_s",
    "priority": "priority",
    "sequence_id": "sequence",
    "sequence_start": "sequence",
    "sequence_end": "sequence",
    "binary_data_output": "outputs",
    "triton_enable_empty_final_response": "stream",
}


def make_request(
    *,
    model: str,
    version: str,
    inputs: tuple[Tensor, ...],
    outputs: tuple[str, ...] | None,
    request_id: str,
    priority: int,
    sequence: SequenceStep | None = None,
    parameters: Mapping[str, Parameter] | None,
    request_compression: Compression | None = None,
    response_compression: Compression | None = None,
    batched: bool = False,
) -> Infer:
    """Make an inference request of checked tensors and unchecked options.

    Raises:
        ConfigError: an option can't be right.
    """
    request = Infer(model=model, version=version, inputs=inputs, outputs=outputs)
    if batched and inputs:
        request.batch_size = len(inputs[0].array)
    # Most requests have none of these.
    if request_id:
        check_text("request_id", request_id)
        request.request_id = request_id
    if priority:
        if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority < 2**32:
            raise ConfigError(f"priority must be a whole number from 0, got {priority!r}")
        request.priority = priority
    if sequence is not None:
        request.sequence = _check_sequence(sequence)
    if parameters:
        request.parameters = _check_parameters(parameters)
    if request_compression is None and response_compression is None:
        return request
    for name, value in (("request", request_compression), ("response", response_compression)):
        if value is not None and value not in get_args(Compression):
            known = ", ".join(get_args(Compression))
            raise ConfigError(f"{name}_compression must be None or one of {known}, got {value!r}")
    request.request_compression = request_compression
    request.response_compression = response_compression
    return request


def check_names(model: str, version: str) -> None:
    """Check a model's name and version.

    Raises:
        ConfigError: not a name, or not a version.
    """
    check_text("model", model)
    if not model:
        raise ConfigError("the model name is empty; the client's models() lists what the server has")
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise ConfigError(f"version must be a positive whole number as text, or empty, got {version!r}")


def check_text(what: str, value: str) -> None:
    """Check a text that travels as it is.

    Raises:
        ConfigError: not a ``str``, or not to be written as UTF-8.
    """
    if not isinstance(value, str):
        raise ConfigError(f"{what} must be a str, got {value!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise ConfigError(f"{what} {value!r} can't be written as UTF-8 (character {exc.start})") from exc


def _check_sequence(sequence: SequenceStep) -> SequenceStep:
    if not isinstance(sequence, SequenceStep):
        raise ConfigError(f"sequence must be a SequenceStep, got {sequence!r}")
    correlation = sequence.id
    if isinstance(correlation, str):
        check_text("SequenceStep.id", correlation)
        is_id = bool(correlation)
    else:
        is_id = isinstance(correlation, int) and not isinstance(correlation, bool)
        is_id = is_id and 0 < correlation < 2**63
    if not is_id:
        raise ConfigError(f"SequenceStep.id must be a number above 0 or a text, got {sequence.id!r}")
    return sequence


def _check_parameters(parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    if not isinstance(parameters, Mapping):
        raise ConfigError(f"parameters must map names to values, got {type(parameters).__name__}")
    for key, value in parameters.items():
        check_text("a parameter's name", key)
        if key in _RESERVED:
            raise ConfigError(f"parameter {key!r} is set by the argument {_RESERVED[key]}")
        if isinstance(value, str):
            check_text(f"parameter {key!r}", value)
        elif not isinstance(value, bool | int | float):
            raise ConfigError(f"parameter {key!r} must be a str, bool, int or float, got {value!r}")
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError(f"parameter {key!r} does not fit 64 bits: {value!r}")
    return dict(parameters)
