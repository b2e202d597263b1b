"""``make demo SYSTEM=<name>``: serve one built system, ask it over both protocols, and show its answers.

A system for opinions also watches the shipped stream of headlines, and shows the alerts.

::

    python -m mooring_loadtests.system_demo sentiment --repository model_repository --reports reports
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mooring import Client
from mooring._answers import format_readable
from mooring._commands import add_folder_option
from mooring.monitor import MonitorPolicy, OpinionMonitor, Timeline, read_texts, watch
from mooring_loadtests.answers import same
from mooring_loadtests.commands import exit_code
from mooring_loadtests.releases import check_built

if TYPE_CHECKING:
    from mooring_build.recipe import Recipe

#: Two invented days of headlines, and a policy for so short a stream.
_STREAM = "data/opinion_monitor/stream.csv"
_POLICY = MonitorPolicy(
    window_s=3 * 3600.0,
    step_s=1800.0,
    baseline_s=24 * 3600.0,
    warm_up_s=12 * 3600.0,
    min_texts=5,
    min_baseline_texts=15,
)
_SHOWN = 3

# Items that show what a system is for; the others show examples of their evaluation sets.
_ITEMS: Mapping[str, Sequence[Any]] = {
    "ner": (
        "Maria Santos flew from Lisbon to meet engineers of Nordwind Energy in Hamburg.",
        "It rained all afternoon.",
    ),
    "ner_zh": ("王小明在北京的海风能源公司工作。", "今天下了一整天的雨。"),
    "intent": ("Where is my parcel? It should have come on Monday.", "The vase arrived in pieces."),
    "faq": ("how long do i have to send something back", "can I pay by card?"),
    "customer_service": (
        "My parcel was due on Monday and still is not here.",
        "What rhymes with orange?",
        "I want to talk to a real person, please.",
    ),
    "topic": (
        "Brightwater raises its quarterly dividend to 40 cents.",
        "Central bank leaves its key rate unchanged.",
    ),
    "sentiment": (
        "Operating profit rose by a fifth to EUR 12.4 million.",
        "The company will publish its report on Thursday.",
        "Nordwind cuts its outlook after a weak quarter.",
    ),
}
_ITEMS = {
    **_ITEMS,
    "opinion_monitor": (*_ITEMS["topic"], *_ITEMS["sentiment"]),
    "opinion_heads": (*_ITEMS["topic"], *_ITEMS["sentiment"]),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Show one system.

    Returns:
        0 if every item was answered and the protocols agreed, 1 if not, 2 if something needed is missing.
    """
    args = _parser().parse_args(argv)
    return exit_code(lambda: _run(args.system, args.repository, args.reports))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mooring_loadtests.system_demo",
        description="Serve one built system, ask it over gRPC and HTTP, and show its answers.",
    )
    parser.add_argument("system", metavar="NAME", help="name of a shipped recipe that is built")
    add_folder_option(parser, "--repository", "model_repository", "where it is")
    add_folder_option(parser, "--reports", "reports", "where the report goes")
    return parser


def _run(name: str, repository: Path, reports: Path) -> int:
    from mooring_build.recipe import load_recipe
    from mooring_serve import TritonServer

    recipe = load_recipe(name)
    asked = _items(recipe)
    check_built(repository, name)
    reports.mkdir(parents=True, exist_ok=True)
    server = TritonServer(
        repository,
        log_file=reports / "tritonserver.log",
        model_control_mode="explicit",
        extra_args=[f"--load-model={name}"],
    )
    with (
        server,
        Client(server.grpc_url, timeout_s=30.0) as grpc,
        Client(server.http_url, timeout_s=30.0) as http,
    ):
        tasks = grpc.task(name), http.task(name)
        answers = [(word, *(task(item) for task in tasks)) for word, item in asked]
        agree = all(same(one, other) for _, one, other in answers)
        print(f"\n{name}: {tasks[0].name}; gRPC and HTTP {'agree' if agree else 'DISAGREE'}\n")
        for word, answer, _ in answers:
            print(format_readable(word, answer), end="\n\n")
        if recipe.task == "opinion-monitoring":
            print("\n".join(_watch(tasks[0], recipe.path(_STREAM), reports)))
    return 0 if agree else 1


def _watch(task: Any, stream: Path, reports: Path) -> list[str]:
    """What a monitor says of a stream of texts."""
    timeline = Timeline()
    monitor = OpinionMonitor(_POLICY, timeline=timeline)
    lines = [event.to_json() for event in watch(monitor, task, read_texts(stream))]
    picture = reports / "opinion-timeline.svg"
    timeline.plot(picture)
    counted = f"Watched {monitor.counters.counted} headlines of {stream.name}, timeline in {picture}"
    return [f"{counted}; alerts:", *lines]


def _items(recipe: Recipe) -> list[tuple[str, Any]]:
    """What is asked: words for it, and the item."""
    if recipe.name in _ITEMS:
        return [(text, text) for text in _ITEMS[recipe.name]]
    from mooring_build.datasets import load_dataset, read_labels
    from mooring_build.scoring import item_of

    dataset = load_dataset(recipe, labels=read_labels(recipe) or None, evaluation_only=True)
    step = max(1, len(dataset.evaluation) // _SHOWN)
    examples = [dataset.evaluation[place] for place in range(0, step * _SHOWN, step)]
    return [(_describe(example), item_of(recipe.task, example)) for example in examples]


def _describe(example: Any) -> str:
    if hasattr(example, "history"):
        return ", ".join(example.history)
    return f"{'an image' if hasattr(example, 'image') else 'a row'} labelled {example.label}"


if __name__ == "__main__":
    sys.exit(main())
