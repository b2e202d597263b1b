"""The demo's closing words: short tables of plain text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mooring import Entity, Label
from mooring_loadtests.answers import AnswerPair
from mooring_loadtests.releases import ReleaseFacts

_TEXT_WIDTH = 60


def summarise(
    *,
    releases: Sequence[ReleaseFacts],
    answers: Mapping[str, Sequence[AnswerPair]],
    load: Sequence[str],
    load_title: str,
    report: Path,
    command: str = "mooring",
) -> str:
    """Say what was trained, exported, answered and measured, and what to try next.

    Args:
        releases: what was published.
        answers: pairs of answers by model.
        load: lines of the load test's figures.
        load_title: what was loaded, and how.
        report: the load test's report.
        command: how to call ``mooring`` from here.
    """
    sections = [
        ("Trained", _trained(releases)),
        ("Exported: largest difference from the PyTorch model's logits", _exported(releases)),
        (f"Answers: {_verdict(answers)}", _answers(answers)),
        (load_title, load),
        ("Report", [str(report)]),
        ("Next", _next_steps(command)),
    ]
    return "\n\n".join("\n".join([title, *(f"  {line}" for line in lines)]) for title, lines in sections)


def table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Align columns with two spaces between.

    Args:
        rows: equally many cells each.
        right: columns that are aligned to the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _trained(releases: Sequence[ReleaseFacts]) -> list[str]:
    rows = []
    for release in releases:
        figures = ", ".join(f"{words} {figure:.3f}" for words, figure in release.metrics[:2])
        source = f"{release.train_examples} examples, from {release.base_checkpoint}"
        rows.append([release.name, f"version {release.version}", figures or "not evaluated", source])
    return table(rows)


def _exported(releases: Sequence[ReleaseFacts]) -> list[str]:
    return table(
        [
            [
                engine.model,
                f"{engine.max_abs_difference:.1e}",
                f"over {engine.cases} batches, {engine.tolerance:.0e} allowed",
            ]
            for release in releases
            for engine in release.engines
        ]
    )


def _verdict(answers: Mapping[str, Sequence[AnswerPair]]) -> str:
    agree = [pair.agree for pairs in answers.values() for pair in pairs]
    if all(agree):
        return "gRPC and HTTP agree"
    return f"gRPC and HTTP DISAGREE on {agree.count(False)} of {len(agree)} texts"


def _answers(answers: Mapping[str, Sequence[AnswerPair]]) -> list[str]:
    rows = [["", "", "", "gRPC", "HTTP"]]
    for model, pairs in answers.items():
        name = model
        for pair in pairs:
            text = textwrap.shorten(pair.text, _TEXT_WIDTH, placeholder=" …")
            for said, grpc, http in _items(pair):
                rows.append([name, text, said, grpc, http])
                # Once is enough: the lines below belong to the same.
                name = text = ""
    return table(rows, right=(3, 4))


def _items(pair: AnswerPair) -> Iterator[tuple[str, str, str]]:
    """What was said, with its score over each protocol; ``-`` where a protocol did not say it."""
    grpc, http = ({_describe(item): item.score for item in answer} for answer in (pair.grpc, pair.http))
    for said in dict.fromkeys([*grpc, *http]):
        yield said, _score(grpc.get(said)), _score(http.get(said))
    if not grpc and not http:
        yield "(nothing)", "", ""


def _describe(item: Entity | Label) -> str:
    return f"{item.label}  {item.text} [{item.start}:{item.end}]" if isinstance(item, Entity) else item.label


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


_TRAIN = "build ner --set name=my_ner --set labels= --set data.train=FILE --set data.evaluation=FILE"


def _next_steps(command: str) -> list[str]:
    text = "Maria Santos lives in Lisbon."
    url = "localhost:8000/v2/models/ner/generate"
    return table(
        [
            ["serve until Ctrl-C", f"{command} serve"],
            ["ask, elsewhere", f'{command} predict ner "{text}"'],
            ["ask without Mooring", f'curl -d \'{{"text": "{text}"}}\' {url}'],
            ["train on your data", f"{command} {_TRAIN}"],
        ]
    )
