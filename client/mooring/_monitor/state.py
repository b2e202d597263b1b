"""A monitor's state as a JSON file."""

from __future__ import annotations

import json
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mooring._errors import ConfigError, DataError
from mooring._monitor.events import Alert
from mooring._monitor.policy import MonitorPolicy
from mooring._monitor.topic import OpenAlert, Step, Topic

_FORMAT = 1
#: What can't change while counts are kept.
_GRID = ("step_s", "window_s", "baseline_s")


@dataclass(frozen=True, kw_only=True)
class MonitorState:
    """What a monitor knows."""

    counts: Mapping[str, int]
    topics: list[Topic]
    next_step: int | None
    newest_s: float | None


def write_state(
    path: str | os.PathLike[str],
    *,
    policy: MonitorPolicy,
    counts: Mapping[str, int],
    topics: Iterable[Topic],
    next_step: int | None,
    newest_s: float | None,
) -> None:
    """Replace the file in one step.

    Raises:
        ConfigError: it can't be written.
    """
    state = {
        "format": _FORMAT,
        "grid": {name: getattr(policy, name) for name in _GRID},
        "counts": dict(counts),
        "next_step": next_step,
        "newest_s": newest_s,
        "topics": {topic.name: _topic_state(topic) for topic in topics},
    }
    target = Path(path)
    try:
        # Readable by its owner alone: it may hold examples.
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(state, file, ensure_ascii=False, separators=(",", ":"))
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, target)  # noqa: PTH105  # names are what mkstemp gives
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as exc:
        raise ConfigError(f"the monitor's state can't be written to {target}: {exc.strerror}") from exc


def read_state(path: str | os.PathLike[str], policy: MonitorPolicy) -> MonitorState:
    """Read what :func:`write_state` wrote.

    Raises:
        DataError: the file can't be read, or is no state of a monitor.
        ConfigError: the policy has another grid.
    """
    try:
        state = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise DataError(f"the monitor's state {os.fspath(path)} can't be read: {reason}") from exc
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise DataError(f"{os.fspath(path)} is no state of a monitor that this version can read")
    try:
        grid = {name: float(state["grid"][name]) for name in _GRID}
        for name, value in grid.items():
            if value != getattr(policy, name):
                raise ConfigError(
                    f"the monitor's state {os.fspath(path)} was kept with {name}={value:g}, not "
                    f"{getattr(policy, name):g}: keep the option, or begin with another file"
                )
        return MonitorState(
            counts={name: int(count) for name, count in state["counts"].items()},
            topics=[_read_topic(name, raw, policy) for name, raw in state["topics"].items()],
            next_step=state["next_step"],
            newest_s=state["newest_s"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        if isinstance(exc, ConfigError):
            raise
        raise DataError(f"{os.fspath(path)} is no state of a monitor: {exc!r}") from exc


def _topic_state(topic: Topic) -> dict[str, Any]:
    state: dict[str, Any] = {
        "window": [_step_state(step) for step in topic.window],
        "baseline": list(topic.baseline),
        "open": {str(number): _step_state(step) for number, step in topic.open.items()},
    }
    if topic.alert is not None:
        state["held"] = list(topic.held)
        state["alert"] = asdict(topic.alert)
    return state


def _step_state(step: Step) -> list[Any]:
    return [step.texts, step.negatives, step.examples]


def _read_topic(name: str, state: Mapping[str, Any], policy: MonitorPolicy) -> Topic:
    topic = Topic(name, policy)
    topic.window = deque(_read_step(raw, policy) for raw in state["window"])
    topic.baseline.extend(_read_pair(raw) for raw in state["baseline"])
    topic.open = {int(number): _read_step(raw, policy) for number, raw in state["open"].items()}
    if "alert" in state:
        topic.held.extend(_read_pair(raw) for raw in state["held"])
        raw = dict(state["alert"])
        examples = state["alert"]["alert"]["examples"][: policy.examples]  # newest first
        alert = Alert(**{**raw.pop("alert"), "examples": tuple(examples)})
        topic.alert = OpenAlert(alert=alert, **raw)
    topic.recount()
    return topic


def _read_step(raw: Any, policy: MonitorPolicy) -> Step:
    texts, negatives, examples = raw
    newest = examples[max(0, len(examples) - policy.examples) :]
    return Step(*_read_pair((texts, negatives)), examples=[str(text) for text in newest])


def _read_pair(raw: Any) -> tuple[int, int]:
    texts, negatives = (int(value) for value in raw)
    if not 0 <= negatives <= texts:
        raise ValueError(f"{negatives} negative ones of {texts} texts")
    return texts, negatives
