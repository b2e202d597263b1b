"""Quality of every system on real data: train, serve, ask through the client, and compare with PyTorch.

::

    python -m mooring_loadtests.quality                     # every system
    python -m mooring_loadtests.quality ner sentiment       # these; the table keeps the others' last figures

Needs the real data sets, which are not part of the project (``--data``). Each system is trained as its recipe
says but for the settings of ``quality_systems``, published into a repository of its own, served by a real
tritonserver, and asked about every example of its test set. ``docs/quality.md`` gets the table; the last line
is JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mooring import Client, ConfigError
from mooring_loadtests.commands import exit_code

if TYPE_CHECKING:
    from mooring_build.recipe import Recipe

_RESULTS = "results.json"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of a system."""

    #: Name in the closing line of JSON.
    name: str
    #: Name among the metrics; the same unless it says otherwise.
    metric: str
    #: What it should reach.
    at_least: float


def figure(name: str, at_least: float, metric: str | None = None) -> Figure:
    return Figure(name=name, metric=metric or name, at_least=at_least)


@dataclass(frozen=True, kw_only=True)
class Files:
    """A real data set as overrides of a recipe."""

    #: Name the training files, and validation files that pick the best epoch.
    training: Sequence[str]
    #: Name the test files, which training never sees. Empty where the training files hold the test too.
    test: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Figures by metric, and on how many examples."""

    served: Mapping[str, float]
    pytorch: Mapping[str, float]
    examples: int


@dataclass(frozen=True, kw_only=True)
class Training:
    """One recipe trained on one real data set."""

    system: str
    recipe: str
    data: str
    #: Converts the data set in the first folder into files in the second.
    prepare: Callable[[Path, Path], Files]
    #: Overrides of the recipe.
    settings: Sequence[str]
    figures: Sequence[Figure]
    #: Scores what is served; ``None`` scores it as ``mooring evaluate`` does.
    measure: Callable[[Client, Recipe, Mapping[str, Any]], Measured] | None = None
    #: Whether the data come with a library.
    bundled: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table.

    Returns:
        0 if every figure that was asked for reaches its goal, 1 if not, 2 if data are missing.
    """
    from mooring_loadtests.quality_systems import TRAININGS

    args = _parser([training.system for training in TRAININGS]).parse_args(argv)
    chosen = [training for training in TRAININGS if not args.systems or training.system in args.systems]
    return exit_code(lambda: _run(chosen, args.data, args.work, args.table))


def _parser(systems: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mooring_loadtests.quality",
        description="Train every system on real data, score what is served, and write the table.",
    )
    parser.add_argument(
        "systems", nargs="*", choices=[*dict.fromkeys(systems), []], metavar="SYSTEM", help="default: all"
    )
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), metavar="FOLDER", help="the real data sets"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("artifacts/quality"),
        metavar="FOLDER",
        help="what is made, and kept",
    )
    parser.add_argument("--table", type=Path, default=Path("docs/quality.md"), metavar="FILE")
    return parser


def _run(chosen: Sequence[Training], data: Path, work: Path, table: Path) -> int:
    results = _read_results(work)
    for training in chosen:
        results[f"{training.system} {training.data}"] = _measure(training, data, work)
        work.mkdir(parents=True, exist_ok=True)
        (work / _RESULTS).write_text(json.dumps(results, indent=2), encoding="utf-8")
    from mooring_loadtests.quality_systems import TRAININGS

    rows = list(_rows(TRAININGS, results))
    table.write_text(_table(rows), encoding="utf-8")
    print(f"\n{_table(rows)}")
    systems = {training.system for training in chosen}
    reached = all(row.reached for row in rows if row.system in systems)
    print(json.dumps(_summary(row for row in rows if row.system in systems)))
    return 0 if reached else 1


def _read_results(work: Path) -> dict[str, Any]:
    try:
        results: dict[str, Any] = json.loads((work / _RESULTS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return results


def _measure(training: Training, data: Path, work: Path) -> dict[str, Any]:
    """Train, publish, serve and score one system."""
    from mooring_build.building import build
    from mooring_build.recipe import load_recipe
    from mooring_build.repository import read_manifest

    source = data / training.data
    if not training.bundled and not source.is_dir():
        raise ConfigError(f"{source} is missing: {training.system} is scored on it (--data names the folder)")
    print(f"{training.system} on {training.data}", flush=True)
    target = work / "data" / training.data
    target.mkdir(parents=True, exist_ok=True)
    files = training.prepare(source, target)
    recipe = load_recipe(training.recipe, [*training.settings, *files.training])
    tested = load_recipe(training.recipe, [*training.settings, *files.training, *files.test])
    repository, artifacts = work / "repositories" / training.data, work / "builds" / training.data
    started = time.monotonic()
    version = build(
        recipe,
        repository=repository,
        artifacts=artifacts,
        say=lambda line: print(f"  {line}", flush=True),
    )
    seconds = time.monotonic() - started
    recorded = read_manifest(repository, recipe.name, version)["metrics"]
    with _served(repository, recipe.name, work) as client:
        if training.measure is not None:
            measured = training.measure(client, tested, recorded)
        else:
            measured = evaluate(client, tested, recorded, artifacts if files.test else None)
    names = [figure.metric for figure in training.figures]
    for name in names:
        served, pytorch = measured.served[name], measured.pytorch[name]
        print(f"  {name:<20} served {served:.4f}, PyTorch {pytorch:.4f}", flush=True)
    return {
        "served": {name: measured.served[name] for name in names},
        "pytorch": {name: measured.pytorch[name] for name in names},
        "examples": measured.examples,
        "build_s": round(seconds, 1),
    }


def evaluate(client: Client, recipe: Recipe, recorded: Mapping[str, Any], artifacts: Path | None) -> Measured:
    """Score the served model and, on the same examples, the PyTorch model.

    Args:
        client: of the server.
        recipe: names the test files.
        recorded: the manifest's metrics; the PyTorch model's where the test files are those of the training.
        artifacts: where the checkpoint lies that is to be scored on other files; ``None``: there are none.
    """
    from mooring_build.evaluate_command import evaluate_served

    _, score = evaluate_served(client, recipe, model=recipe.name)
    if score.failures:
        print(f"  {score.failures} without an answer: {score.first_failure}", flush=True)
    pytorch = recorded if artifacts is None else _evaluate_checkpoint(client, recipe, artifacts)
    return Measured(served=score.metrics, pytorch=pytorch, examples=score.examples)


def _evaluate_checkpoint(client: Client, recipe: Recipe, artifacts: Path) -> dict[str, Any]:
    from mooring_build.datasets import load_dataset
    from mooring_build.stages import newest_stage
    from mooring_build.training import evaluate_checkpoint

    newest = newest_stage(artifacts, recipe.name, "trained")
    labels = json.loads(client.config(recipe.name).parameters.get("labels", "null"))
    dataset = load_dataset(recipe, labels=labels, evaluation_only=True)
    return evaluate_checkpoint(recipe, newest, dataset, newest / "test")


@contextmanager
def _served(repository: Path, model: str, work: Path) -> Iterator[Client]:
    from mooring_serve import TritonServer

    with (
        TritonServer(repository, log_file=work / f"{model}.log") as server,
        Client(server.grpc_url, timeout_s=60.0) as client,
    ):
        yield client


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table."""

    system: str
    data: str
    figure: Figure
    #: ``None`` where it was not measured.
    served: float | None
    pytorch: float | None
    examples: int | None

    @property
    def reached(self) -> bool:
        return self.served is not None and self.served >= self.figure.at_least


def _rows(trainings: Sequence[Training], results: Mapping[str, Any]) -> Iterator[Row]:
    for training in trainings:
        result = results.get(f"{training.system} {training.data}", {})
        for goal in training.figures:
            yield Row(
                system=training.system,
                data=training.data,
                figure=goal,
                served=result.get("served", {}).get(goal.metric),
                pytorch=result.get("pytorch", {}).get(goal.metric),
                examples=result.get("examples"),
            )


def _summary(rows: Iterator[Row]) -> dict[str, dict[str, float | None]]:
    summary: dict[str, dict[str, float | None]] = {}
    for row in rows:
        served = None if row.served is None else round(row.served, 4)
        summary.setdefault(row.system, {})[row.figure.name] = served
    return summary


def _table(rows: Sequence[Row]) -> str:
    lines = [
        "# Quality on real data",
        "",
        "Written by `make quality` (or `make quality SYSTEM=ner`), which trains each system on a real",
        "data set, serves it with tritonserver, and asks the client about every test example. *Served* is",
        "scored on those answers, *PyTorch* on the fine-tuned model before export. Seeds are fixed. The best",
        "epoch is picked on other examples, but for `tabular` and `faq`, which have none to spare.",
        "`oos_recall` is the share of texts out of scope that is refused where 95 % of the validation texts",
        "in scope are accepted. The data sets are not part of the project.",
        "",
        "Seeds make a training repeatable on one machine only: another kind of processor, or another number",
        "of threads, rounds otherwise and may move a figure by a point. `ner`, `intent` and `sentiment` are",
        "that near to what they should reach.",
        "",
        "| system | data | test examples | figure | at least | served | PyTorch |",
        "|---|---|---:|---|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row.system} | {row.data} | {row.examples or '-'} | {row.figure.name} "
            f"| {row.figure.at_least:g} | {_shown(row.served)} | {_shown(row.pytorch)} |"
        )
    return "\n".join([*lines, ""])


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"


if __name__ == "__main__":
    sys.exit(main())
