"""``mooring load``: run a profile against a model, write the report, and say whether it kept its bounds."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mooring import ConfigError, MooringError
from mooring._commands import Credentials, add_credential_options, add_folder_option
from mooring._toml_files import add_override_option
from mooring_loadtests.arrivals import arrival_times
from mooring_loadtests.load_profile import Profile, load_profile, shipped_profiles
from mooring_loadtests.load_result import INVALID, LoadResult
from mooring_loadtests.progress import Progress
from mooring_loadtests.slo import Bound, bounds

if TYPE_CHECKING:
    from mooring_loadtests.load_run import Workers


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``load`` to the command line."""
    parser = subparsers.add_parser(
        "load",
        help="load-test a model and hold it against its bounds",
        description="Run a load profile against a served model. Writes a report and the result as JSON. Exit "
        "code: 0 the bounds were kept, 1 one was broken or the run failed, 2 the input was wrong, 3 no "
        "verdict: the generator did not keep up, or the model was served otherwise at the end.",
    )
    parser.add_argument("model", metavar="MODEL", help="name of the model, such as ner")
    parser.add_argument(
        "--profile",
        default="smoke",
        metavar="PROFILE",
        help=f"path of a TOML file, or one of {', '.join(shipped_profiles())} (default: smoke)",
    )
    add_override_option(
        parser, "change one key of the profile, e.g. rate=40 or slo.p99_ms=50; may be repeated"
    )
    parser.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help="the server, grpc:// or http://; both may be given and share the load "
        "(default: grpc://127.0.0.1:8001)",
    )
    add_credential_options(parser)
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes that generate the load (default: 1)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="let so many Locust workers generate the load instead, on machines of their own; prints what to "
        "run there, and waits for them; --url must lead to the server from everywhere",
    )
    parser.add_argument(
        "--bind",
        default="127.0.0.1:5557",
        metavar="HOST:PORT",
        help="address of this machine at which the workers find it (default: 127.0.0.1:5557)",
    )
    parser.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="that of 'mooring serve --trace FILE': shows what the slowest 1 %% of the requests waited for",
    )
    add_folder_option(parser, "--reports", "reports", "where the report is written")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run one load test; returns the exit code."""
    from mooring_loadtests.load_report import write_report
    from mooring_loadtests.load_run import run_load
    from mooring_serve.cli import sigterm_as_ctrl_c

    if args.processes < 1:
        raise ConfigError(f"--processes {args.processes} is below 1")
    profile = load_profile(args.profile, args.overrides)
    credentials = Credentials.of(args)
    urls = _by_protocol(args.url or ["grpc://127.0.0.1:8001"])
    name = Path(args.profile).stem
    workers = None if args.workers is None else _workers(args)
    generators = args.processes if workers is None else workers.count
    _check_that_something_is_due(profile, generators * len(urls))
    if workers is not None:
        command = shlex.join(workers.command(args.model, args.profile, args.overrides, urls, credentials))
        print(f"Waiting for {workers.count} of:\n{command}\n", flush=True)
    log, document, page = (
        args.reports / f"{args.model}-{name}.{ending}" for ending in ("log", "json", "html")
    )
    # After a run that fails, the last one's would be taken for its.
    for path in (document, page):
        path.unlink(missing_ok=True)
    progress = Progress(profile.seconds)
    complaints: list[str] = []
    try:
        with sigterm_as_ctrl_c():
            result = run_load(
                model=args.model,
                name=name,
                profile=profile,
                grpc_url=urls.get("grpc"),
                http_url=urls.get("http"),
                processes=args.processes,
                workers=workers,
                credentials=credentials,
                trace=args.trace,
                log=log,
                progress=progress.show if workers is None else lambda elapsed_s: None,
                complain=complaints.append,
            )
    finally:
        progress.clear()
    if not result.count()[0]:
        raise MooringError(
            "\n".join([f"no request of the stages that count came to an end (log: {log})", *_errors(result)])
        )
    document.write_text(result.to_json(), encoding="utf-8")
    write_report(result, page)
    verdicts = bounds(result)
    if not result.answered:
        complaints.append("NOT ANSWERED: no request of the last stage was")
    print("\n".join([*figure_lines(result), *_verdict_lines(result, verdicts), *complaints, "", str(page)]))
    if result.doubts:
        return INVALID
    return 0 if result.answered and all(bound.kept for bound in verdicts) else 1


def _check_that_something_is_due(profile: Profile, sources: int) -> None:
    """Refuse an open loop of which nothing would count, whatever the server did."""
    if profile.loop == "closed":
        return
    counted = {second for span in profile.spans() if span.measured for second in span.counted}
    times = (
        due_s
        for source in range(sources)
        for due_s in arrival_times(
            profile.spans(),
            arrivals=profile.arrivals,
            seed=f"{profile.payload.seed}",
            source=source,
            sources=sources,
        )
    )
    if not any(int(due_s) in counted for due_s in times):
        raise ConfigError(
            f"at rate {profile.rate:g} no request is due in the {len(counted)} s of the stages that count: "
            "raise the rate or make the stages longer"
        )


def _workers(args: argparse.Namespace) -> Workers:
    from mooring_loadtests.load_run import Workers

    host, _, port = args.bind.rpartition(":")
    if args.workers < 1 or args.processes > 1:
        raise ConfigError(f"--workers {args.workers}: give 1 or more, and no --processes, as each is one")
    if args.url is None:
        raise ConfigError(f"--workers {args.workers} needs --url, as the workers reach the server")
    if not host or not port.isdecimal():
        raise ConfigError(f"--bind {args.bind!r} is not of the form HOST:PORT")
    return Workers(count=args.workers, host=host, port=int(port))


def _by_protocol(urls: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for url in urls:
        protocol = url.partition("://")[0].removesuffix("s")
        if protocol not in ("grpc", "http") or protocol in found:
            raise ConfigError(f"--url {url!r}: give one grpc:// and one http:// URL at most")
        found[protocol] = url
    return found


def figure_lines(result: LoadResult) -> list[str]:
    """A table of the figures, one line a protocol."""
    from mooring_loadtests.summary import table

    rows = [["", "requests", "answers/s", "p50 ms", "p95 ms", "p99 ms", "failures"]]
    for name in result.names:
        requests, failures = result.count(name)
        figures = result.figures(name)
        shown = [f"{figures[key].value:.4g}" for key in ("throughput", "p50_ms", "p95_ms", "p99_ms")]
        rows.append([name, f"{requests:,}", *shown, f"{failures:,}"])
    return table(rows, right=(1, 2, 3, 4, 5, 6)) + _errors(result)


def _errors(result: LoadResult) -> list[str]:
    return [f"{count} x {error}" for error, count in result.recorder.errors.most_common(3)]


def _verdict_lines(result: LoadResult, verdicts: list[Bound]) -> list[str]:
    lines = [""] if verdicts or result.doubts else []
    for bound in verdicts:
        low, high = bound.figure.low, bound.figure.high
        interval = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
        doubt = ", too little measured for an interval"
        if interval:
            doubt = "" if bound.sure else ", within the confidence interval"
        verdict = "no verdict" if result.doubts else f"{'kept' if bound.kept else 'BROKEN'}{doubt}"
        lines.append(f"{bound.name} {bound.figure.value:.4g}{interval}, bound {bound.limit:g}: {verdict}")
    return lines + [f"INVALID: {doubt}" for doubt in result.doubts]
