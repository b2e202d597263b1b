"""Compare an exported engine with the PyTorch model, on inputs that were not traced."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mooring import VerificationError
from mooring_build.engines import Engine
from mooring_build.learners import Case, Exportable
from mooring_build.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Parity:
    """What verification measured; goes into the manifest."""

    passed: bool
    #: Largest absolute difference of any logit over all cases.
    max_abs_difference: float
    tolerance: float
    #: Cases, each one batch, and rows in them.
    cases: int
    rows: int
    #: Shape and kind of the case with the largest difference.
    worst_case: str
    #: Share of answers (rows, or unmasked tokens) whose largest value is at the PyTorch model's place.
    label_agreement: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verify_engine(
    engine: Engine,
    exportable: Exportable,
    recipe: Recipe,
    cases: Iterable[Case],
    *,
    lowered: bool = False,
) -> Parity:
    """Run every case through both and compare.

    Args:
        engine: the export under test.
        exportable: the PyTorch model it was made from.
        recipe: gives the tolerance.
        cases: batches of other sizes than were traced.
        lowered: whether the engine's precision is lower than the model's: ``verify.lowered_tolerance`` holds.

    Raises:
        VerificationError: the engine fails to run, gives another shape, gives NaN or infinity, or is
            further away than the tolerance; the message names output, case and distance.
    """
    output = exportable.output
    key = "lowered_tolerance" if lowered else "tolerance"
    allowed = recipe.verify.lowered_tolerance if lowered else recipe.verify.tolerance
    worst, worst_case, count, rows, answers, agreed = -1.0, "", 0, 0, 0, 0
    for case in cases:
        expected, actual = _run_model(exportable, case), _run_engine(engine, case)
        expected, actual = _comparable(output, case, expected, actual)
        distance = float(np.abs(actual - expected).max())
        if distance > worst:
            worst, worst_case = distance, case.name
        agreed += int((actual.argmax(-1) == expected.argmax(-1)).sum())
        answers += expected.shape[0]
        count, rows = count + 1, rows + case.inputs[0].shape[0]
    parity = Parity(
        passed=worst <= allowed,
        max_abs_difference=worst,
        tolerance=allowed,
        cases=count,
        rows=rows,
        worst_case=worst_case,
        label_agreement=agreed / answers,
    )
    if not parity.passed:
        raise VerificationError(
            f"output {output!r} differs from the PyTorch model by {worst:.3g} in case {worst_case}, "
            f"the recipe allows {allowed:.3g} (verify.{key}); best labels agree on "
            f"{parity.label_agreement:.1%} of {answers} answers"
        )
    return parity


def _comparable(
    output: str, case: Case, expected: np.ndarray, actual: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both outputs without what is nobody's answer; refused where they can't be compared."""
    if not np.isfinite(expected).all():
        raise VerificationError(f"the PyTorch model itself gives NaN or infinity in case {case.name}")
    if actual.dtype != np.float32:
        raise VerificationError(f"output {output!r} of case {case.name} is {actual.dtype}, float32 is served")
    if actual.shape != expected.shape:
        raise VerificationError(
            f"output {output!r} of case {case.name} has shape {actual.shape}, "
            f"the PyTorch model gives {expected.shape}"
        )
    if case.keep is not None:
        expected, actual = expected[case.keep], actual[case.keep]
    if not np.isfinite(actual).all():
        raise VerificationError(f"output {output!r} of case {case.name} holds NaN or infinity")
    return expected, actual


def _run_model(exportable: Exportable, case: Case) -> np.ndarray:
    with torch.inference_mode():
        return exportable.module(*map(torch.from_numpy, case.inputs)).numpy()


def _run_engine(engine: Engine, case: Case) -> np.ndarray:
    try:
        return engine(*case.inputs)
    except Exception as exc:  # engines raise whatever their runtime has
        reason = str(exc).strip().splitlines()[-1] if str(exc).strip() else type(exc).__name__
        raise VerificationError(f"the engine fails on case {case.name}: {reason}") from exc
