"""The last part of ``make demo``: serve what was built, ask it, load it, and sum up.

::

    python -m mooring_loadtests.demo --repository model_repository --reports reports --seconds 20
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mooring import Client
from mooring._commands import add_folder_option
from mooring_loadtests.answers import ask_both
from mooring_loadtests.commands import count, exit_code
from mooring_loadtests.cores import usable_cores
from mooring_loadtests.load_command import figure_lines
from mooring_loadtests.load_profile import Profile, Stage
from mooring_loadtests.load_run import run_load
from mooring_loadtests.progress import Progress
from mooring_loadtests.releases import ReleaseFacts, check_built, read_release
from mooring_loadtests.summary import summarise

TEXTS = {
    "ner": (
        "Maria Santos flew from Lisbon to meet engineers of Nordwind Energy in Hamburg.",
        "The French minister Claire Dubois spoke at the United Nations in New York.",
        "It rained all afternoon.",
    ),
    "intent": (
        "Where is my parcel? It should have come on Monday.",
        "I forgot my password and can't log in.",
        "The vase arrived in pieces.",
    ),
}
_LOADED = "ner"
_USERS = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Returns:
        0 if every request was answered and the protocols agreed, 1 if not, 2 if something needed is missing.
    """
    args = _parser().parse_args(argv)
    return exit_code(lambda: _run(args.repository, args.reports, args.seconds))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mooring_loadtests.demo",
        description="Serve the built ner and intent, ask both, load ner, and sum up.",
    )
    add_folder_option(parser, "--repository", "model_repository", "what is served")
    add_folder_option(parser, "--reports", "reports", "where the report goes")
    parser.add_argument("--seconds", type=count, default=20, help="length of the load test (default: 20)")
    return parser


def _run(repository: Path, reports: Path, seconds: int) -> int:
    from mooring_loadtests.load_report import write_report
    from mooring_serve import TritonServer

    check_built(repository, *TEXTS)
    reports.mkdir(parents=True, exist_ok=True)
    print("Serving with tritonserver", flush=True)
    with TritonServer(repository, log_file=reports / "tritonserver.log") as server:
        with Client(server.grpc_url, timeout_s=30.0) as grpc, Client(server.http_url, timeout_s=30.0) as http:
            releases = [_served_release(grpc, repository, model) for model in TEXTS]
            print("Asking over gRPC and HTTP", flush=True)
            answers = {model: ask_both(grpc, http, model, texts) for model, texts in TEXTS.items()}
        print(f"Loading {_LOADED} for {seconds} s", flush=True)
        progress = Progress(seconds)
        try:
            load = run_load(
                model=_LOADED,
                name="demo",
                profile=Profile(loop="closed", users=_USERS, stages=(Stage(seconds=seconds),)),
                grpc_url=server.grpc_url,
                http_url=server.http_url,
                log=reports / f"{_LOADED}-demo.log",
                progress=progress.show,
            )
        finally:
            progress.clear()
    report = reports / f"{_LOADED}-demo.html"
    report.with_suffix(".json").write_text(load.to_json(), encoding="utf-8")
    write_report(load, report)
    title = f"Load: {_USERS} users for {seconds} s, server and users on the same {usable_cores()} cores"
    print()
    print(
        summarise(
            releases=releases,
            answers=answers,
            load=figure_lines(load),
            load_title=title,
            report=report,
            command=_mooring_command(),
        )
    )
    _, failures = load.count()
    agree = all(pair.agree for pairs in answers.values() for pair in pairs)
    return 0 if agree and not failures else 1


def _served_release(client: Client, repository: Path, model: str) -> ReleaseFacts:
    versions = client.metadata(model).versions
    return read_release(repository, model, max(map(int, versions)))


def _mooring_command() -> str:
    """``mooring`` if that is this environment's, else its path: nothing says that it was activated."""
    installed = Path(sys.executable).parent / "mooring"
    if shutil.which("mooring") == str(installed) or not installed.exists():
        return "mooring"
    return os.path.relpath(installed) if installed.is_relative_to(Path.cwd()) else str(installed)


if __name__ == "__main__":
    sys.exit(main())
