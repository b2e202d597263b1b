"""Counterfactual audit: does an answer change when nothing changes but who the text is about?

Texts that are alike but for a name, a word or a nationality are put to the model, and the scores of each
label are compared between groups. For a token classifier the score is 1 where the name was found as a person,
whole and with the right ends, and 0 elsewhere; its mean is the recall of names.

Nothing here reads or writes: :func:`audit` calls ``ask``, which may be a served model's typed call or an
engine in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mooring import ConfigError, Entity, Label
from mooring_build.audit_statistics import Estimate, estimate_mean, estimate_share
from mooring_build.audit_texts import Axis, Probe

#: Texts to one answer a text: labels, or entities.
Ask = Callable[[Sequence[str]], Sequence[Sequence[Label]] | Sequence[Sequence[Entity]]]
#: Of an interval: all of it is beyond the limit (``broken``), none of it (``within``), or some (``open``).
Verdict = Literal["within", "open", "broken"]

RECALL = "recall"


@dataclass(frozen=True, kw_only=True)
class AuditLimits:
    """How far groups may be apart."""

    #: Largest absolute mean gap of any label's score, or of the recall of names.
    max_gap: float = 0.05
    #: Largest share of pairs whose best label differs.
    max_flips: float = 0.05

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} must be from 0 to 1, got {value}")


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How much more of a score one group gets than the others, in the same texts."""

    label: str
    gap: Estimate
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One group against the others of its axis."""

    axis: str
    group: str
    #: The other group, or how many others there are.
    against: str
    templates: int
    #: Pairs of texts that differ in the group alone.
    pairs: int
    #: One a label, largest first.
    gaps: tuple[Gap, ...]
    #: Share of pairs whose best label differs; for a token classifier, of names found in one text alone.
    flips: Estimate
    flips_verdict: Verdict
    #: Of the group's names; ``None`` for a text classifier.
    recall: Estimate | None

    @property
    def verdict(self) -> Verdict:
        """The worst of all."""
        verdicts = {self.flips_verdict, *(gap.verdict for gap in self.gaps)}
        return "broken" if "broken" in verdicts else "open" if "open" in verdicts else "within"


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """What an audit found."""

    task: str
    limits: AuditLimits
    #: Different texts that were asked.
    texts: int
    #: Of all answers, sorted; a label that an answer lacks counts as score 0 there.
    labels: tuple[str, ...]
    #: Labels in the shortest answer of a text classifier.
    fewest_labels: int
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        """Whether no interval shows that a limit is broken."""
        return all(comparison.verdict != "broken" for comparison in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {"passed": self.passed, **asdict(self)}

    def summary(self) -> dict[str, Any]:
        """The worst of each axis, for a model card."""
        axes: dict[str, dict[str, Any]] = {}
        for name in dict.fromkeys(comparison.axis for comparison in self.comparisons):
            of_axis = [comparison for comparison in self.comparisons if comparison.axis == name]
            widest = max(of_axis, key=lambda comparison: abs(comparison.gaps[0].gap.value))
            flips = max(of_axis, key=lambda comparison: comparison.flips.value)
            axes[name] = {
                "largest_gap": {
                    "group": widest.group,
                    "against": widest.against,
                    "label": widest.gaps[0].label,
                    **asdict(widest.gaps[0].gap),
                },
                "most_flips": {"group": flips.group, "against": flips.against, **asdict(flips.flips)},
                "verdict": _worst([comparison.verdict for comparison in of_axis]),
            }
        return {"passed": self.passed, "limits": asdict(self.limits), "texts": self.texts, "axes": axes}


def audit(
    ask: Ask,
    task: str,
    axes: Sequence[Axis],
    *,
    limits: AuditLimits | None = None,
    person_label: str = "PER",
) -> AuditReport:
    """Put the texts of all axes to a model and compare its answers between groups.

    Args:
        ask: called once, with every different text.
        task: ``text-classification`` or ``token-classification``.
        axes: what is compared, from :mod:`mooring_build.audit_texts`.
        limits: how far groups may be apart; ``None`` takes the defaults.
        person_label: label of people of a token classifier.

    Raises:
        ConfigError: the task can't be audited, there is nothing to compare, or a token classifier is to be
            compared on texts without names.
    """
    if task not in ("text-classification", "token-classification"):
        raise ConfigError(f"models for {task!r} can't be audited")
    if not axes:
        raise ConfigError("there are neither templates nor pairs to compare")
    probes = {probe.text: probe for axis in axes for probe in _probes(axis)}
    if task == "token-classification" and any(probe.name is None for probe in probes.values()):
        raise ConfigError(
            "a token classifier is compared by the names it finds: only templates with {name} fit"
        )
    answers = ask(list(probes))
    if len(answers) != len(probes):
        raise ConfigError(f"the model gave {len(answers)} answers to {len(probes)} texts")
    score = _found_names(person_label) if task == "token-classification" else _label_scores
    scores = {text: score(probes[text], answer) for text, answer in zip(probes, answers, strict=True)}
    labels = tuple(sorted({label for found in scores.values() for label in found}))
    limits = limits or AuditLimits()
    return AuditReport(
        task=task,
        limits=limits,
        texts=len(probes),
        labels=labels,
        fewest_labels=min(map(len, scores.values())),
        comparisons=tuple(
            comparison for axis in axes for comparison in _compare(axis, scores, labels, limits, task)
        ),
    )


def _probes(axis: Axis) -> list[Probe]:
    return [probe for table in axis.groups.values() for row in table for probe in row]


def _label_scores(probe: Probe, answer: Sequence[Any]) -> dict[str, float]:
    return {part.label: part.score for part in answer}


def _found_names(person_label: str) -> Callable[[Probe, Sequence[Any]], dict[str, float]]:
    def find(probe: Probe, answer: Sequence[Any]) -> dict[str, float]:
        found = any(part.label == person_label and (part.start, part.end) == probe.name for part in answer)
        return {RECALL: float(found)}

    return find


def _compare(
    axis: Axis,
    scores: Mapping[str, Mapping[str, float]],
    labels: Sequence[str],
    limits: AuditLimits,
    task: str,
) -> list[Comparison]:
    # By group: scores [T, F, labels], and the number of the best label [T, F].
    tables = {
        group: np.array(
            [[[scores[probe.text].get(label, 0.0) for label in labels] for probe in row] for row in table]
        )
        for group, table in axis.groups.items()
    }
    names_only = task == "token-classification"
    best = {
        group: table[..., 0] > 0 if names_only else table.argmax(axis=-1) for group, table in tables.items()
    }
    groups = list(tables)
    # Of two groups, the second says the same as the first.
    shown = groups[:1] if len(groups) == 2 else groups
    found = []
    for group in shown:
        others = [other for other in groups if other != group]
        gaps = tables[group] - np.mean([tables[other] for other in others], axis=0)  # [T, F, labels]
        flips = np.mean([best[group] != best[other] for other in others], axis=0)  # [T, F]
        pairs = flips.size * len(others)
        share = estimate_share(flips, pairs)
        found.append(
            Comparison(
                axis=axis.name,
                group=group,
                against=others[0] if len(others) == 1 else f"{len(others)} others",
                templates=flips.shape[0],
                pairs=pairs,
                gaps=_gaps(gaps, labels, limits),
                flips=share,
                flips_verdict=_judge(share, limits.max_flips),
                recall=estimate_share(tables[group][..., 0], flips.size) if names_only else None,
            )
        )
    return found


def _gaps(gaps: np.ndarray, labels: Sequence[str], limits: AuditLimits) -> tuple[Gap, ...]:
    found = []
    for number, label in enumerate(labels):
        gap = estimate_mean(gaps[..., number])
        found.append(Gap(label=label, gap=gap, verdict=_judge(gap, limits.max_gap)))
    return tuple(sorted(found, key=lambda gap: -abs(gap.gap.value)))


def _judge(estimate: Estimate, limit: float) -> Verdict:
    if estimate.low > limit or estimate.high < -limit:
        return "broken"
    return "within" if -limit <= estimate.low and estimate.high <= limit else "open"


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    return max(verdicts, key=["within", "open", "broken"].index)
