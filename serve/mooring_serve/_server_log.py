"""Read from a tritonserver's log what its endpoints don't tell."""

from __future__ import annotations

import re

# I, W or E, date, time, process, source file and line, message; such as
#   E1122 07:52:07.643686 8922 model_lifecycle.cc:642] "failed to load 'bad' version 1: Internal: ..."
# The line before says what is wrong with a config.pbtxt that can't be parsed:
#   [libprotobuf ERROR .../text_format.cc:337] Error parsing text-format inference.ModelConfig: 1:32: ...
_ERROR = re.compile(
    r"^(?:\[libprotobuf ERROR [^\]]+\] (?P<detail>.*)\n)?E\d{4} \S+ \d+\s+\S+\] (?P<message>.*)$",
    re.MULTILINE,
)
# What a server without a GPU always says.
_HARMLESS = ("CudaDriverHelper has not been initialized", "unable to create stream for")
_PORT_TAKEN = re.compile(r"Socket '[^']*:(\d+)' already in use")
_LOAD_EVENT = re.compile(r"\] \"(loading: |successfully loaded '|failed to load ')([^':\"]+)")
# Written before hundreds of lines that explain every option.
_BAD_OPTION = re.compile(r"unrecognized option .*|Bad option.*|Invalid option value.*")
# The model that an error is about is the first one that it names.
_SUBJECT = re.compile(
    r"(?:(?:for model(?: directory)?|failed to (?:load|poll)(?: model)?) '|ensemble '?)(?P<model>[^' ]+)"
)


def errors(log: str) -> list[str]:
    """Messages of the log's error lines, in order."""
    messages = [
        ": ".join(_unquoted(part) for part in (found["message"], found["detail"]) if part)
        for found in _ERROR.finditer(log)
    ]
    return [message for message in messages if not message.startswith(_HARMLESS)]


def last_lines(log: str, *, limit: int = 5) -> str:
    """The last error messages, or what is wrong with the command line, or else the last lines."""
    lines = errors(log) or _BAD_OPTION.findall(log) or [line for line in log.splitlines() if line.strip()]
    return "\n".join(lines[-limit:])


def load_errors(log: str) -> dict[str, str]:
    """The first error about each model that the log names."""
    reasons: dict[str, str] = {}
    for message in errors(log):
        subject = _SUBJECT.search(message)
        if subject:
            reasons.setdefault(subject["model"], message)
    return reasons


def still_loading(log: str) -> list[str]:
    """Names of the models whose load has begun and not ended."""
    loading: dict[str, None] = {}
    for event, model in _LOAD_EVENT.findall(log):
        if event == "loading: ":
            loading[model] = None
        else:
            loading.pop(model, None)
    return list(loading)


def taken_port(log: str) -> int | None:
    """Port that the server found in use."""
    found = _PORT_TAKEN.search(log)
    return int(found[1]) if found else None


def _unquoted(message: str) -> str:
    # The server writes messages as quoted strings with escaped line breaks.
    return message.strip().strip('"').replace("\\n", "\n").strip()
