from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from load_results import STEPS, load_result, server_times
from mooring_loadtests.load_plots import ACCENT, _points, batch_sizes
from mooring_loadtests.load_profile import Profile, Slo, Stage
from mooring_loadtests.load_report import _show, write_report
from mooring_loadtests.load_result import LoadResult
from mooring_loadtests.load_statistics import Estimate

#: Elements that have no end.
VOID = {"meta", "link", "br", "img"}
SHORT = [Stage(seconds=2, measured=False), Stage(seconds=20)]


class _Page(HTMLParser):
    """Texts, attributes, and whether every element ends where it should."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.text: list[str] = []
        self.tags: list[str] = []
        self.plots: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "svg":
            self.plots.append(dict(attrs)["aria-label"] or "")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def _page(result: LoadResult, folder: Path) -> _Page:
    path = folder / "report.html"
    write_report(result, path)
    return _Page(path.read_text(encoding="utf-8"))


def test_a_run_that_broke_a_bound(tmp_path: Path) -> None:
    slo = Slo(p50_ms=500.0, p99_ms=20.0, min_throughput=10.0)
    result = load_result(stall=(30, 31.2), failures=0.002, slo=slo, names=("ner grpc", "ner http"))
    page = _page(result, tmp_path)
    assert page.plots == [
        "Throughput and latency over time",
        "Distribution of latency",
        "Mean time of a request by step",
        "Batch sizes",
    ]
    assert "1 of 3 bounds broken" in page.words
    p99 = result.figures()["p99_ms"].value
    assert f"p99 latency is {p99:,.0f} ms, at most 20 ms allowed" in page.words
    for said in ("✓ kept", "✗ broken", "ner grpc", "ner http", "Overloaded: the queue is full", "2.51.0"):
        assert said in page.words
    # Steps and stages are named in the plots.
    for said in ("client and network", "tokenizer", "onnx", "postprocessor", "warm-up"):
        assert said in page.words


@pytest.mark.parametrize(
    ("slo", "verdict"),
    [
        (Slo(), "No bounds were set"),
        (Slo(p99_ms=5000.0), "The bound was kept"),
        (Slo(p99_ms=5000.0, error_rate=0.5), "2 of 2 bounds kept"),
        (Slo(p50_ms=0.1), "The bound was broken"),
    ],
)
def test_the_verdict_comes_first(slo: Slo, verdict: str, tmp_path: Path) -> None:
    words = _page(load_result(stages=SHORT, slo=slo), tmp_path).words
    assert verdict in words[: words.index("p50 latency")]


@pytest.mark.parametrize("slo", [Slo(), Slo(p50_ms=5000.0)])
def test_a_server_that_died_keeps_no_bound(slo: Slo, tmp_path: Path) -> None:
    words = _page(load_result(stages=STEPS, stall=(65.0, 1000.0), slo=slo), tmp_path).words
    assert "No request of the last stage was answered" in words[: words.index("p50 latency")]


def test_a_saturated_generator_has_no_verdict(tmp_path: Path) -> None:
    page = _page(load_result(stages=SHORT, cpu=0.97, slo=Slo(p99_ms=5000.0)), tmp_path)
    assert "Invalid: the load generator did not keep up" in page.words
    assert "a generating process used 97% of a core" in page.words
    assert "no verdict" in page.words
    assert "✓ kept" not in page.words


def test_a_model_that_changed_meanwhile_has_no_verdict(tmp_path: Path) -> None:
    change = "ner was version 3 before the run and 4 after it"
    result = load_result(stages=SHORT, slo=Slo(p99_ms=5000.0), changes=(change,), anew=("ner_onnx",))
    words = _page(result, tmp_path).words
    assert "Invalid: the model was served otherwise at the end" in words
    assert change in words
    assert "✓ kept" not in words
    assert (
        "The server began anew during the run: times of its steps and sizes of its batches (ner_onnx)"
        in words
    )


@pytest.mark.parametrize(("requests", "said"), [(1000, False), (5000, True)])
def test_requests_of_others_are_told(requests: int, said: bool, tmp_path: Path) -> None:
    words = _page(load_result(stages=SHORT, server=server_times(8.0, requests)), tmp_path).words
    assert bool(re.search(r"The server answered 3,8\d\d requests of others meanwhile, which", words)) == said


def test_answers_that_the_server_did_not_count_are_told(tmp_path: Path) -> None:
    result = load_result(stages=SHORT, server=server_times(8.0, 500))
    assert 500 < result.uncounted < 700
    assert f"{result.uncounted} answers are not in what the server counted" in _page(result, tmp_path).words


def test_steps_are_drawn_against_load(tmp_path: Path) -> None:
    result = load_result(stages=STEPS, rate=80.0, slowest=server_times(60.0, 30))
    page = _page(result, tmp_path)
    assert {"Latency against load", "Mean time of the slowest requests by step"} <= set(page.plots)
    for load in ("16/s", "32/s", "48/s", "64/s", "80/s", "96/s"):
        assert load in page.words


def test_stages_of_the_same_load_have_a_row_each(tmp_path: Path) -> None:
    stages = [Stage(seconds=5, measured=False), *(Stage(seconds=20, load=load) for load in (1.0, 2.0, 1.0))]
    page = _page(load_result(stages=stages, rate=20.0), tmp_path)
    for row in ("2: 20/s", "3: 40/s", "4: 20/s"):
        assert row in page.words


@pytest.mark.parametrize(
    "changes",
    [
        {"failures": 1.0},
        {"server": None},
        {"server": replace(server_times(8.0, 0), steps=())},
        {"rate": 1.0},
        {"service_ms": 0.02},
        {"stages": [Stage(seconds=1)]},
        {"stages": [Stage(seconds=600)], "rate": 3.0},
        {"stages": [Stage(seconds=12), Stage(seconds=12, load=3.0)], "failures": 0.5},
        {"versions": {}, "machine": {}, "version": ""},
    ],
)
def test_unusual_runs_have_a_page(changes: dict[str, Any], tmp_path: Path) -> None:
    page = _page(load_result(**{"stages": SHORT, **changes}), tmp_path)
    assert "Throughput and latency over time" in page.plots
    assert "nan" not in page.words


def test_a_closed_loop_has_users(tmp_path: Path) -> None:
    stages = (Stage(seconds=12), Stage(seconds=12, load=3.0))
    result = replace(load_result(stages=stages), profile=Profile(loop="closed", users=2, stages=stages))
    page = _page(result, tmp_path)
    assert "Latency against load" in page.plots
    assert "12 s at 6 users, of which the first 2 s do not count" in page.words
    assert "What is shaded does not count" in page.words
    # Users wait for answers: nothing is due at a set time.
    assert "should" not in page.words


def test_the_page_needs_nothing_else(tmp_path: Path) -> None:
    page = _page(load_result(stages=STEPS, failures=0.01), tmp_path)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(page.tags)
    for name, value in page.attributes:
        # Markers and clips of a plot are in the page itself.
        if name in ("href", "xlink:href", "src"):
            assert value.startswith("#"), value
        assert not name.startswith("on")
    assert not re.search(r"url\((?!#)|@import", page.source)


def test_what_plots_refer_to_is_there_once(tmp_path: Path) -> None:
    source = _page(load_result(stages=STEPS, slowest=server_times(60.0, 30)), tmp_path).source
    given = re.findall(r' id="([^"]*)"', source)
    assert len(given) == len(set(given))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', source))
    assert used
    assert used <= set(given)


def test_every_colour_comes_from_the_page(tmp_path: Path) -> None:
    source = _page(load_result(stages=STEPS, failures=0.01), tmp_path).source
    plots = source[source.index("<svg") :]
    assert "var(--accent)" in plots
    assert not re.search(r"#[0-9a-f]{6}\b", plots)
    used = set(re.findall(r"var\((--[a-z-]+)\)", source))
    light, dark = source.split("prefers-color-scheme: dark")
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark


def test_texts_are_escaped(tmp_path: Path) -> None:
    evil = "</title><script>alert('$x$ & \"y\"')</script>"
    steps = tuple(replace(step, model=f"{evil}{step.model}") for step in server_times(8.0, 1000).steps)
    result = load_result(
        stages=SHORT,
        model=evil,
        version=evil,
        name=evil,
        names=(evil, "other"),
        machine={evil: evil},
        versions={evil: evil},
        server=replace(server_times(8.0, 1000), steps=steps),
    )
    result.recorder.errors[evil] = 1
    page = _page(result, tmp_path)
    assert "script" not in page.tags
    # As a title, twice in the header, as names of requests, facts, errors, steps and panels.
    assert page.words.count(evil) >= 10


def test_the_largest_panel_is_of_the_step_that_computes_most(tmp_path: Path) -> None:
    words = _page(load_result(stages=SHORT), tmp_path).words
    titles = re.findall(r"(\w+): mean", words)
    assert titles == ["onnx", "tokenizer", "postprocessor"]
    assert batch_sizes([]) == ""


def test_an_interval_that_ends_among_failures_is_drawn() -> None:
    axes = Figure().subplots()
    certain = Estimate(value=20.0, low=19.0, high=21.0)
    uncertain = Estimate(value=20.0, low=15.0, high=math.inf)
    _points(axes, [1.0, 2.0], [certain, uncertain], ACCENT, "p99")
    (low, high), (low_unsure, high_unsure) = (line.get_ydata() for line in axes.lines[1:])
    assert (low, high, low_unsure) == (19.0, 21.0, 15.0)
    assert high_unsure > 1e9


def test_the_page_says_what_was_asked_and_from_where(tmp_path: Path) -> None:
    words = _page(
        load_result(stages=SHORT, urls=("grpc://models:8001", "http://models:8000")), tmp_path
    ).words
    assert "server grpc://models:8001, http://models:8000" in words
    assert "Machine of the generator" in words


@pytest.mark.parametrize(
    ("value", "shown"),
    [(999.4, "999 /s"), (999.7, "1,000 /s"), (12345.6, "12,346 /s"), (0.01234, "0.0123 /s")],
)
def test_figures_are_written_out(value: float, shown: str) -> None:
    assert _show("throughput", value) == shown


def test_a_page_repeats(tmp_path: Path) -> None:
    result = load_result(stages=SHORT)
    assert _page(result, tmp_path).source == _page(result, tmp_path).source
