"""The terms in which pipelines are laid out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Tensors by name: (data type of Triton's protobuf, dims without the batch axis).
Tensors = dict[str, tuple[int, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class PythonStep:
    """A model on Triton's Python backend, ``<recipe>_<suffix>``."""

    suffix: str
    #: File of ``mooring_build/served`` that becomes ``model.py``.
    entry_point: str
    #: Files of ``mooring._served`` that it imports.
    shared: tuple[str, ...]
    inputs: Tensors
    outputs: Tensors
    #: Outputs for those who ask for them by name; the ensemble does not.
    asides: Tensors = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EngineStep:
    """The exported model, one Triton model for each export format, ``<recipe>_<format>``."""

    #: In the order of the engine's arguments.
    inputs: Tensors
    #: The only output.
    output: str
    data_type: int
    #: Without the batch axis. An axis that the exported file fixes must be given.
    dims: tuple[int, ...]
    #: Lengths of the axes that inputs leave open (-1), one warm-up request each; the last is the longest.
    warm_up_lengths: tuple[int, ...] = ()
    #: Where the engine takes all items of a batch packed into one row: its input for their lengths, INT32
    #: ``[items, 1]``. An output whose first axis is open then has a row for each element of the first input.
    lengths: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelStep:
    """Another recipe's pipeline, in whichever version is released."""

    model: str
    #: Its own names to the ensemble's.
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


Step = PythonStep | EngineStep | ModelStep


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A pipeline: a Triton ensemble of steps that find each other's tensors by name."""

    inputs: Tensors
    steps: tuple[Step, ...]
    answers: Tensors
    #: What the ensemble's config tells clients, beyond the task and the labels.
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def engine(self) -> EngineStep | None:
        """The engine, where the pipeline has one of its own."""
        return next((step for step in self.steps if isinstance(step, EngineStep)), None)

    @property
    def python_steps(self) -> tuple[PythonStep, ...]:
        return tuple(step for step in self.steps if isinstance(step, PythonStep))
