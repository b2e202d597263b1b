"""``mooring evaluate``: score a served model, and hold the score against its manifest."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mooring import Client, Outcome
    from mooring_build.recipe import Recipe
    from mooring_build.scoring import Score

# Requests under way at a time.
_CONCURRENCY = 8
# Overrides that ask for other examples than those of the manifest.
_OTHER_EXAMPLES = re.compile(r"(data|heads|catalogue)[.=]")


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mooring evaluate`` to the command line."""
    from mooring._commands import add_folder_option, add_server_options
    from mooring._toml_files import add_override_option

    parser = subparsers.add_parser(
        "evaluate",
        help="score a served model on its evaluation set",
        description=(
            "Ask a served model about every example of its recipe's evaluation set, score the answers and "
            "compare with what its manifest says of the PyTorch model. Exit code 1: the score is lower by "
            "more than quality.max_drop of the recipe, or there is nothing to compare with although neither "
            "--limit nor --set asked for other examples than the manifest's."
        ),
    )
    parser.add_argument("model", help="the model's name on the server")
    parser.add_argument(
        "--recipe", metavar="RECIPE", help="path of a TOML file, or a shipped recipe's name (default: MODEL)"
    )
    add_override_option(parser, "change one key of the recipe, e.g. data.evaluation=my.csv; may be repeated")
    add_folder_option(parser, "--repository", "model_repository", "where the model's manifest lies")
    parser.add_argument("--limit", type=int, metavar="N", help="ask for the first N examples only")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    add_server_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Score one model.

    Raises:
        ConfigError: the task has no metrics, or ``--limit`` can't be right.
        RecipeError, DataError: the recipe or its data can't be used.
        PublishError: the model has no readable manifest.
        TransportError, ServerError: the server can't be asked at all.
    """
    from mooring import Client, ConfigError
    from mooring._commands import client_options, server_urls
    from mooring_build.recipe import load_recipe

    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit is {args.limit}: it must be above 0")
    recipe = load_recipe(args.recipe or args.model, args.overrides)
    with Client(server_urls(args), **client_options(args)) as client:
        version, score = evaluate_served(client, recipe, model=args.model, limit=args.limit)
    recorded = recorded_metrics(args.repository, args.model, version, score)
    others = args.limit is not None or any(_OTHER_EXAMPLES.match(one) for one in args.overrides)
    verdict = None if recorded is None and others else judge(recipe, score.metrics, recorded)
    if args.json:
        print(json.dumps(_as_json(args.model, version, score, recorded, verdict)))
    else:
        print("\n".join(describe(args.model, version, score, recorded, verdict)))
    return 1 if verdict else 0


def evaluate_served(
    client: Client, recipe: Recipe, *, model: str, limit: int | None = None
) -> tuple[int, Score]:
    """Ask a served model about its recipe's evaluation set.

    Args:
        client: of the server.
        recipe: task and data.
        model: the name on the server.
        limit: how many examples; ``None`` is all.

    Returns:
        The version that answered, and the score.
    """
    from dataclasses import replace

    from mooring_build.scoring import evaluation_set, score_served

    task = client.task(model)
    labels = json.loads(client.config(model).parameters.get("labels", "null"))
    dataset = evaluation_set(recipe, labels)
    if limit is not None:
        dataset = replace(dataset, evaluation=dataset.evaluation[:limit])

    def ask(items: Sequence[Any]) -> list[Outcome[Any]]:
        return list(task.map(items, concurrency=_CONCURRENCY))

    score = score_served(recipe, dataset, ask)
    return max(map(int, client.metadata(model).versions)), score


def judge(recipe: Recipe, served: Mapping[str, float], recorded: Mapping[str, Any] | None) -> str | None:
    """What is wrong with a score, or ``None``.

    The headline metric of the task may be lower than the manifest's by ``quality.max_drop`` at most. Where
    there is nothing to compare, that is wrong too.
    """
    from mooring_build.scoring import HEADLINES

    name = HEADLINES[recipe.task]
    if recorded is None:
        return "no manifest of this version with figures of these examples: see --repository"
    if name not in recorded:
        return f"the manifest has no {name} to compare with"
    if name not in served:
        return f"{name} looks deeper than the {recipe.top_k} places that are served (catalogue.top_k)"
    drop = recorded[name] - served[name]
    if drop <= recipe.quality.max_drop:
        return None
    return (
        f"{name} is {served[name]:.4f}, the manifest says {recorded[name]:.4f}: a drop of {drop:.4f}, "
        f"{recipe.quality.max_drop:g} is allowed (quality.max_drop)"
    )


def describe(
    model: str,
    version: int,
    score: Score,
    recorded: Mapping[str, Any] | None,
    verdict: str | None,
) -> list[str]:
    """The score as lines of text."""
    from mooring_build.metrics import format_report

    lines = [f"{model} version {version}: {score.examples} examples, {score.failures} without an answer"]
    if score.failures:
        lines.append(f"  the first of them: {score.first_failure}")
    if score.report:
        lines += ["", *(f"  {line}" for line in format_report(score.report))]
    width = max(map(len, score.metrics))
    lines += ["", f"  {'':<{width}}  served  PyTorch"]
    for name, figure in score.metrics.items():
        other = (recorded or {}).get(name)
        lines.append(f"  {name:<{width}}  {figure:6.4f}  {'-' if other is None else f'{other:7.4f}'}")
    if recorded is None and not verdict:
        lines += ["", "Other examples than the manifest's: nothing to compare with."]
    if verdict:
        lines += ["", f"FAILED: {verdict}"]
    return lines


def _as_json(
    model: str, version: int, score: Score, recorded: Mapping[str, Any] | None, verdict: str | None
) -> dict[str, Any]:
    return {
        "model": model,
        "version": version,
        "examples": score.examples,
        "failures": score.failures,
        "served": dict(score.metrics),
        "pytorch": {name: recorded[name] for name in score.metrics if name in recorded} if recorded else None,
        "report": {label: dict(row) for label, row in score.report.items()},
        "failed": verdict,
    }


def recorded_metrics(repository: Path, model: str, version: int, score: Score) -> dict[str, Any] | None:
    """What the manifest says of the PyTorch model; ``None`` where there is no manifest, or where its figures
    are of other examples than were asked."""
    from mooring_build.repository import MANIFEST, read_manifest

    if not (repository / model / str(version) / MANIFEST).is_file():
        return None
    manifest = read_manifest(repository, model, version)
    data = manifest.get("data", {})
    if (data.get("evaluation_digest"), data.get("evaluation_examples")) != (
        score.evaluation_digest,
        score.examples,
    ):
        return None
    metrics: dict[str, Any] = manifest.get("metrics", {})
    return metrics
