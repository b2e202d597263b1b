"""``mooring models`` and ``mooring stats``: what servers have, and what they counted."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from mooring._commands import (
    add_server_options,
    ask_each_server,
    first_line,
    format_table,
    printable,
    report,
    server_urls,
)
from mooring._errors import MooringError, ServerError
from mooring._models import ModelStatistics, ModelStatus
from mooring._sync._client import Client

_TIMES = ("queue", "compute_input", "compute_infer", "compute_output")


def add_commands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``models`` and ``stats`` to the command line."""
    models = subparsers.add_parser(
        "models",
        help="list a server's models and their state",
        description="List every model of a server's repository: its versions, their state, its task, the "
        "largest batch of a request, and why it is not ready where it is not.",
    )
    stats = subparsers.add_parser(
        "stats",
        help="print what a server counted for a model",
        description="Print what a server counted for each version of a model since it was loaded: requests, "
        "mean batch, and the mean times of a request in milliseconds.",
    )
    stats.add_argument("model", metavar="MODEL", help="name of the model, such as ner")
    for parser, run in ((models, run_models), (stats, run_stats)):
        parser.add_argument("--json", action="store_true", help="print one JSON document")
        add_server_options(parser)
        parser.set_defaults(run=run)


def run_models(args: argparse.Namespace) -> int:
    """Answer ``mooring models`` and print; returns the exit code."""
    found, code = _ask_each(args, _models)
    if args.json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
    elif found:
        headers = ("SERVER", "NAME", "VERSION", "STATE", "TASK", "MAX BATCH", "REASON")
        several = len(server_urls(args)) > 1
        rows = [
            (
                entry["server"] if several else "",
                entry["name"],
                entry["version"],
                entry["state"] or "not loaded",
                entry["task"] or "",
                "" if entry["max_batch_size"] is None else str(entry["max_batch_size"]),
                first_line(entry["reason"]),
            )
            for entry in found
        ]
        print(format_table(headers, rows, right=("VERSION", "MAX BATCH")))
    elif code == 0:
        print("no models")
    return code


def run_stats(args: argparse.Namespace) -> int:
    """Answer ``mooring stats`` and print; returns the exit code."""
    found, code = _ask_each(args, lambda url, client: _statistics(url, client, args.model))
    if args.json:
        print(json.dumps(found, ensure_ascii=False, indent=2))
    elif found:
        print("\n\n".join(_format_statistics(entry) for entry in found))
    return code


def _ask_each(
    args: argparse.Namespace, ask: Callable[[str, Client], list[dict[str, Any]]]
) -> tuple[list[dict[str, Any]], int]:
    """What all servers say, and the exit code; one that says nothing is reported and left out."""
    found: list[dict[str, Any]] = []
    code = 0
    for url, client in ask_each_server(args):
        try:
            found += ask(url, client)
        except MooringError as error:
            if len(server_urls(args)) == 1:
                raise
            report(str(error) if url in str(error) else f"{url}: {error}")
            code = 1
    return found, code


def _models(url: str, client: Client) -> list[dict[str, Any]]:
    def order(status: ModelStatus) -> tuple[str, int]:
        return status.name, int(status.version) if status.version.isdecimal() else 0

    return [
        {
            "server": url,
            "name": status.name,
            "version": status.version,
            "state": status.state,
            **_about(client, status),
            "reason": "" if status.state == "READY" else status.reason,
        }
        for status in sorted(client.models(), key=order)
    ]


def _about(client: Client, status: ModelStatus) -> dict[str, Any]:
    """Task and largest batch, where the server tells: it does for models that are ready."""
    if status.state == "READY":
        try:
            config = client.config(status.name, version=status.version)
        except ServerError:
            # Unloaded a moment ago.
            return {"task": None, "max_batch_size": None}
        return {"task": config.parameters.get("task"), "max_batch_size": config.max_batch_size}
    return {"task": None, "max_batch_size": None}


def _statistics(url: str, client: Client, model: str) -> list[dict[str, Any]]:
    return [_as_json(url, counted) for counted in client.statistics(model)]


def _as_json(url: str, counted: ModelStatistics) -> dict[str, Any]:
    last = datetime.fromtimestamp(counted.last_inference_ms / 1000, UTC)
    runs = counted.execution_count
    return {
        "server": url,
        "name": counted.name,
        "version": counted.version,
        "answered": counted.success.count,
        "failed": counted.fail.count,
        "items": counted.inference_count,
        "runs": runs,
        "mean_batch": counted.inference_count / runs if runs else 0.0,
        "mean_ms": {
            "total": counted.success.mean_ms,
            **{name: getattr(counted, name).mean_ms for name in _TIMES},
        },
        "cache_hits": counted.cache_hit.count,
        "cache_misses": counted.cache_miss.count,
        "last_inference": last.isoformat(timespec="milliseconds") if counted.last_inference_ms else None,
    }


def _format_statistics(counted: dict[str, Any]) -> str:
    """One version's numbers, a line each."""
    ms = counted["mean_ms"]
    lines = [
        f"{printable(counted['name'])} version {counted['version']} on {counted['server']}",
        f"  requests    {counted['answered']} answered, {counted['failed']} failed",
        f"  mean batch  {counted['mean_batch']:.2f}  ({counted['items']} items in {counted['runs']} runs)",
    ]
    if counted["cache_hits"] or counted["cache_misses"]:
        lines.append(f"  cache       {counted['cache_hits']} hits, {counted['cache_misses']} misses")
    if counted["last_inference"]:
        last = datetime.fromisoformat(counted["last_inference"]).astimezone()
        lines.append(f"  last asked  {last:%Y-%m-%d %H:%M:%S}")
    names = {"total": "total", "queue": "in the queue", "compute_input": "reading inputs"}
    names |= {"compute_infer": "inference", "compute_output": "writing outputs"}
    width = max(len(f"{value:.3f}") for value in ms.values())
    lines.append("  mean time of a request, in ms")
    lines += [f"    {words:<15}  {ms[name]:>{width}.3f}" for name, words in names.items()]
    return "\n".join(lines)
