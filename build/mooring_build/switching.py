"""Make one version of a pipeline the one that answers, in place of another one: steps 4 to 6 of a publish."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tritonclient.grpc import model_config_pb2 as pb

from mooring_build.repository import (
    CONFIG,
    STAGING,
    Journal,
    read_text,
    released_version,
    remove_staged,
    remove_version,
    versions_of,
    write_file,
)
from mooring_build.triton_config import dumps_config, loads_config, serve_versions


@dataclass(frozen=True, kw_only=True)
class Switch:
    """The configs before and after, as a journal keeps them."""

    name: str
    #: The version that answered before; ``None`` for a first release.
    released: int | None
    version: int
    #: Texts by model; ``None`` for a model that had no config.
    before: Mapping[str, str | None]
    after: Mapping[str, str]
    #: Whether the version's folders go away again with it, as those of a publish do.
    placed: bool
    #: Whether the new version has answered: from then on nothing takes it back.
    committed: bool = False

    @classmethod
    def to(
        cls, repository: Path, name: str, version: int, after: Mapping[str, str], *, placed: bool
    ) -> Switch:
        """From what is there now."""
        return cls(
            name=name,
            released=released_version(repository, name),
            version=version,
            before={model: read_text(repository / model / CONFIG) for model in after},
            after=after,
            placed=placed,
        )

    def commit(self, repository: Path, journal: Journal) -> Iterator[str]:
        """Switch over; yields the name of each step after it is done."""
        parts = [model for model in self.after if model != self.name]
        for model in parts:
            write_file(repository / model / CONFIG, self._both(repository, model))
            yield f"opened {model}"
        write_file(repository / self.name / CONFIG, self.after[self.name])
        yield "committed"
        journal.write({**vars(self), "committed": True})
        for model in parts:
            write_file(repository / model / CONFIG, self.after[model])
            yield f"narrowed {model}"
        journal.write({})
        yield "closed"

    def _both(self, repository: Path, model: str) -> str:
        """A part's config for the moment in which the old and the new ensemble must both be able to run."""
        old_text, new_text = self.before[model], self.after[model]
        if self.released is None or old_text is None or self.released not in versions_of(repository, model):
            return new_text
        old, config = loads_config(old_text), loads_config(new_text)
        if list(old.output) != list(config.output):
            _leave_open(config, "output", old.output)
        if list(old.input) != list(config.input):
            _leave_open(config, "input", old.input)
            # Of the new shape alone.
            config.ClearField("model_warmup")
        if config.backend == "python":
            # The old ensemble may ask for what the new release no longer answers, such as a head.
            kept = {output.name for output in config.output}
            config.output.extend(output for output in old.output if output.name not in kept)
        serve_versions(config, [self.released, *config.version_policy.specific.versions])
        # An ensemble may not take larger batches than its steps.
        config.max_batch_size = max(config.max_batch_size, old.max_batch_size)
        return dumps_config(config)


def recover(repository: Path, journal: Journal) -> None:
    """Complete a switch that was interrupted after its commit, or undo one that was interrupted before.

    What an interrupted publish of any recipe left unfinished is deleted.
    """
    if plan := journal.read():
        # Journals of earlier versions of Mooring were of publishes alone.
        switch = Switch(**{"released": None, "placed": True} | plan)
        if released_version(repository, switch.name) == switch.version:
            for model, text in switch.after.items():
                write_file(repository / model / CONFIG, text)
        elif not switch.committed:
            _undo(repository, switch)
        journal.write({})
    # Whoever holds the lock is the only one who writes.
    for model in {path.parent for path in repository.glob(f"*/{STAGING}*")}:
        remove_staged(model)


def _undo(repository: Path, switch: Switch) -> None:
    for model, text in switch.before.items():
        if text is not None:
            write_file(repository / model / CONFIG, text)
    for model, text in switch.before.items():
        if switch.placed:
            remove_version(repository / model, switch.version)
        if text is None:
            (repository / model / CONFIG).unlink(missing_ok=True)
            remove_staged(repository / model)


def _leave_open(
    config: pb.ModelConfig, field: Literal["input", "output"], old: Iterable[pb.ModelInput | pb.ModelOutput]
) -> None:
    """Make a part's config fit versions whose tensors have other dims, such as the number of labels.

    The onnxruntime backend refuses -1 for an axis that the file fixes, but reads what is not declared from
    each version's own file; the pytorch backend wants tensors declared and compares nothing.
    """
    if config.backend == "onnxruntime":
        config.ClearField(field)
        return
    before = {tensor.name: tensor.dims for tensor in old}
    for tensor in getattr(config, field):
        for axis, size in enumerate(before.get(tensor.name, tensor.dims)):
            if tensor.dims[axis] != size:
                tensor.dims[axis] = -1
