"""What a search of the tuner has found so far, on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mooring_loadtests.load_result import finite
from mooring_loadtests.tuner import Candidate, Probe, Stage

#: The journal's last line.
_FINISHED = {"finished": True}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a search begins."""

    #: About what the present settings take within the bound, in requests a second.
    guess: float
    #: Candidates of the first round.
    first_round: int


class Journal:
    """Probes on disk, so that a search that was interrupted goes on; one that was finished begins anew.

    Args:
        path: JSON lines.
        search: what the search is about; probes of another are dropped. Those that failed are, too: what
            failed may have been the machine.
    """

    def __init__(self, path: Path, search: Mapping[str, Any]) -> None:
        self._path = path
        self._search = dict(search)
        #: Of the search that goes on.
        self.plan: Plan | None = None
        self.probes: list[Probe] = []
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        entries = [entry for entry in map(_entry, text.splitlines()) if entry is not None]
        if entries and entries[0].get("search") == self._search and _FINISHED not in entries:
            self.plan = Plan(**entries[0]["plan"])
            probes = [_read_probe(entry) for entry in entries[1:]]
            self.probes = [probe for probe in probes if probe.error is None]
            if not text.endswith("\n"):
                # Ends the line that was cut off, so that what follows can be read.
                self._append("")

    def start(self, plan: Plan) -> None:
        """Begin a search, or go on with the one that is there."""
        if self.plan is None:
            self.plan = plan
            begin = {"search": self._search, "plan": asdict(plan)}
            self._path.write_text(json.dumps(begin) + "\n", encoding="utf-8")

    def add(self, probe: Probe) -> None:
        """Note a probe."""
        self.probes.append(probe)
        entry = asdict(probe)
        entry["stages"] = [finite(stage) for stage in entry["stages"]]
        self._append(json.dumps(entry))

    def finish(self) -> None:
        """Note that the search came to its end."""
        self._append(json.dumps(_FINISHED))

    def _append(self, line: str) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def _entry(line: str) -> dict[str, Any] | None:
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:
        # The last line of a search that was killed while it wrote.
        return None
    return entry


def _read_probe(entry: Mapping[str, Any]) -> Probe:
    candidate = dict(entry["candidate"])
    candidate["preferred_batch_size"] = tuple(candidate["preferred_batch_size"])
    stages = (
        Stage(rate=stage["rate"], p99_ms=math.inf if stage["p99_ms"] is None else stage["p99_ms"])
        for stage in entry["stages"]
    )
    return Probe(
        candidate=Candidate(**candidate), round=entry["round"], stages=tuple(stages), error=entry["error"]
    )
