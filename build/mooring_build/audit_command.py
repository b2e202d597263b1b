"""``mooring audit``: compares a served model's answers over counterfactual texts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mooring_build.audit import AuditReport
    from mooring_build.audit_statistics import Estimate

_DESCRIPTION = """\
Put texts to a served model that differ in nothing but a name, a word or a nationality, and compare its
answers between groups: mean gap of each label's score, share of pairs whose best label differs, and for a
token classifier the recall of names, each with its 95 % confidence interval. No text is printed."""
_EPILOG = """\
Verdicts: within, the whole interval keeps the limit; open, the limit lies in the interval; broken, the whole
interval is beyond it.

Exit status: 0 no limit is shown to be broken, 1 one is, or the server said no, 2 the input was wrong."""


def add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mooring audit`` to the command line."""
    from mooring._commands import add_server_options

    parser = subparsers.add_parser(
        "audit",
        help="compare a model's answers between groups of people",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="name of a text or token classifier, such as intent")
    parser.add_argument(
        "--templates",
        action="append",
        metavar="NAME",
        help="news, service, people, a TOML file of your own, or none; may be repeated (default: all that "
        "fit the model's task)",
    )
    parser.add_argument(
        "--pairs", type=Path, metavar="FILE", help="more pairs: CSV with a column for each of two groups"
    )
    parser.add_argument(
        "--crows-pairs", type=Path, metavar="FILE", help="crows_pairs_anonymized.csv, compared by bias type"
    )
    parser.add_argument(
        "--max-gap",
        type=float,
        default=0.05,
        metavar="X",
        help="largest mean gap of a score or of recall, 0 to 1 (default: %(default)g)",
    )
    parser.add_argument(
        "--max-flips",
        type=float,
        default=0.05,
        metavar="X",
        help="largest share of pairs whose best label differs, 0 to 1 (default: %(default)g)",
    )
    parser.add_argument(
        "--person-label", default="PER", metavar="LABEL", help="a token classifier's label of people"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document with every label")
    add_server_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Audit a served model and print; returns the exit code."""
    from mooring import Client, ConfigError, TextClassifier, TokenClassifier
    from mooring._commands import client_options, server_urls
    from mooring_build.audit import AuditLimits, audit
    from mooring_build.audit_texts import crows_pairs_axes, pair_axes, template_axes

    limits = AuditLimits(max_gap=args.max_gap, max_flips=args.max_flips)
    names = args.templates if args.templates != ["none"] else []
    with Client(server_urls(args), **client_options(args)) as client:
        task = client.task(args.model)
        if not isinstance(task, TextClassifier | TokenClassifier):
            raise ConfigError(
                f"model {args.model!r} is for {task.name}: only text and token classifiers can be audited; "
                "of a pipeline that joins some, audit those"
            )
        axes = template_axes(task.name, names)
        axes += pair_axes(args.pairs) if args.pairs is not None else []
        axes += crows_pairs_axes(args.crows_pairs) if args.crows_pairs is not None else []
        report = audit(
            lambda texts: [outcome.unwrap() for outcome in task.map(texts, progress=sys.stderr.isatty())],
            task.name,
            axes,
            limits=limits,
            person_label=args.person_label,
        )
    if args.json:
        print(json.dumps({"model": args.model, **report.to_dict()}, ensure_ascii=False, indent=2))
    else:
        print(format_report(args.model, report))
    return 0 if report.passed else 1


def format_report(model: str, report: AuditReport) -> str:
    """A row for each group with the label of the largest gap, and what follows from them."""
    from mooring._commands import format_table

    headers = ("AXIS", "GROUP", "AGAINST", "PAIRS", "LABEL", "GAP", "95 %", "FLIPS", "95 % ", "RECALL")
    headers += ("95 %  ", "VERDICT")
    rows = []
    for comparison in report.comparisons:
        widest = max(comparison.gaps, key=lambda gap: (gap.verdict == "broken", abs(gap.gap.value)))
        gap, recall = widest.gap, comparison.recall
        rows.append(
            (
                comparison.axis,
                comparison.group,
                comparison.against,
                str(comparison.pairs),
                widest.label,
                f"{gap.value:+.3f}",
                f"{gap.low:+.3f} {gap.high:+.3f}",
                *_percent(comparison.flips),
                *(("", "") if recall is None else _percent(recall)),
                comparison.verdict,
            )
        )
    limits = report.limits
    lines = [format_table(headers, rows, right=("PAIRS", "GAP", "FLIPS", "RECALL")), ""]
    if report.fewest_labels < len(report.labels):
        lines.append(
            f"Answers hold as few as {report.fewest_labels} of {len(report.labels)} labels (the model's "
            "top_k); those left out count as 0."
        )
    verdicts = [comparison.verdict for comparison in report.comparisons]
    lines.append(
        f"{model}: {report.texts} texts; largest gap allowed {limits.max_gap:g}, most flips "
        f"{limits.max_flips:.1%}: {verdicts.count('broken')} of {len(verdicts)} comparisons broken, "
        f"{verdicts.count('open')} open"
    )
    return "\n".join(lines)


def _percent(estimate: Estimate) -> tuple[str, str]:
    return f"{estimate.value:.1%}", f"{estimate.low:.1%} {estimate.high:.1%}"
