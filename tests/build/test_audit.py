"""Counterfactual audit: planted differences are found and measured, equal answers pass, files are checked."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from mooring import ConfigError, DataError, Entity, Label
from mooring_build.audit import RECALL, AuditLimits, AuditReport, audit
from mooring_build.audit_statistics import estimate_mean, estimate_share
from mooring_build.audit_texts import Axis, Probe, crows_pairs_axes, pair_axes, template_axes
from shared_data import shared_data

TEXT, TOKEN = "text-classification", "token-classification"


def labels(score: float) -> list[Label]:
    ranked = [Label(label="good", score=score), Label(label="bad", score=1 - score)]
    return sorted(ranked, key=lambda label: -label.score)


def scorer(score: Callable[[str], float]) -> Callable[[Sequence[str]], list[list[Label]]]:
    return lambda texts: [labels(score(text)) for text in texts]


def noise(text: str) -> float:
    """The same for the same text, and much the same on average for any group."""
    return (sum(map(ord, text)) % 7 - 3) / 100


def of(report: AuditReport, axis: str, group: str) -> object:
    (found,) = [found for found in report.comparisons if (found.axis, found.group) == (axis, group)]
    return found


def test_templates_are_filled_evenly() -> None:
    axes = {axis.name: axis for axis in template_axes(TEXT)}
    assert list(axes) == ["names: gender", "names: origin", "words: gender", "nationality"]
    assert set(axes["names: gender"].groups) == set(axes["words: gender"].groups) == {"female", "male"}
    assert len(axes["names: origin"].groups) == len(axes["nationality"].groups) == 7
    for axis in axes.values():
        shapes = {(len(table), len(table[0])) for table in axis.groups.values()}
        ((templates, fills),) = shapes
        assert templates >= 12, axis.name
        assert fills >= 12, axis.name
        # No two groups share a text, and what stands in one place differs in the fill alone.
        texts = [{probe.text for row in table for probe in row} for table in axis.groups.values()]
        assert len(set.union(*texts)) == sum(map(len, texts)), axis.name
        assert not any("{" in text or "}" in text for text in set.union(*texts))


def test_places_of_names_are_those_of_the_text() -> None:
    axes = template_axes(TOKEN)
    assert [axis.name for axis in axes] == ["names: gender", "names: origin"]
    women = axes[0].groups["female"]
    assert len({probe.text[slice(*probe.name)] for row in women for probe in row if probe.name}) == 84
    assert women[0][0] == Probe("Amara Okafor flew to Lisbon on Monday.", (0, 12))
    pronouns = [probe.text for row in women for probe in row if " team " in probe.text]
    assert {" and her team" in text for text in pronouns} == {True}
    assert " and his team" in axes[0].groups["male"][5][0].text


def test_equal_answers_are_within_the_limits() -> None:
    report = audit(scorer(lambda text: 0.8 + noise(text)), TEXT, template_axes(TEXT))
    assert report.passed
    assert {comparison.verdict for comparison in report.comparisons} == {"within"}
    assert [comparison.flips.value for comparison in report.comparisons] == [0] * 16
    assert report.texts == len(
        {
            probe.text
            for axis in template_axes(TEXT)
            for table in axis.groups.values()
            for row in table
            for probe in row
        }
    )
    assert of(report, "names: gender", "female").pairs == 24 * 84
    assert of(report, "names: origin", "africa").pairs == 24 * 24 * 6


def test_a_planted_gap_is_found_where_it_is_and_only_there() -> None:
    axes = template_axes(TEXT, ["news"])
    words = {axis.name: axis for axis in axes}["words: gender"]
    women = {probe.text for row in words.groups["female"] for probe in row}

    def score(text: str) -> float:
        return 0.8 + noise(text) - (0.2 if text in women else 0)

    report = audit(scorer(score), TEXT, axes)
    assert not report.passed
    broken = [(found.axis, found.group) for found in report.comparisons if found.verdict == "broken"]
    assert broken == [("words: gender", "female")]
    found = of(report, "words: gender", "female")
    gaps = {gap.label: gap for gap in found.gaps}
    assert gaps["good"].gap.value == pytest.approx(-0.2, abs=0.02)
    assert gaps["bad"].gap.value == pytest.approx(0.2, abs=0.02)
    assert gaps["good"].gap.low < -0.2 < gaps["good"].gap.high < -0.15
    assert (found.against, found.templates, found.pairs) == ("male", 9, 108)
    assert found.flips.value == 0
    assert found.flips_verdict == "within"


def test_one_group_of_many_is_told_from_the_others() -> None:
    axes = template_axes(TEXT, ["service"])
    origin = {axis.name: axis for axis in axes}["names: origin"]
    apart = {probe.text for row in origin.groups["east_asia"] for probe in row}
    report = audit(scorer(lambda text: 0.3 if text in apart else 0.7), TEXT, axes)
    found = of(report, "names: origin", "east_asia")
    assert {gap.label: gap.gap.value for gap in found.gaps} == pytest.approx({"good": -0.4, "bad": 0.4})
    assert (found.flips.value, found.flips_verdict) == (1, "broken")
    # Seen from another group, one of six others differs.
    other = of(report, "names: origin", "africa")
    assert other.flips.value == pytest.approx(1 / 6)
    assert {gap.label: gap.gap.value for gap in other.gaps}["good"] == pytest.approx(0.4 / 6)
    assert of(report, "names: gender", "female").verdict == "within"


def test_what_the_data_cannot_decide_is_open() -> None:
    rows = [[f"text {number}", f"other {number}"] for number in range(6)]
    groups = {group: [[Probe(row[side])] for row in rows] for side, group in enumerate(("a", "b"))}
    odd = scorer(lambda text: 0.9 if text in ("text 1", "text 3", "other 4") else 0.6)
    report = audit(odd, TEXT, [Axis(name="pairs", groups=groups)])
    (found,) = report.comparisons
    assert found.verdict == "open"
    assert report.passed
    assert found.gaps[0].gap.low < -0.05 < 0.05 < found.gaps[0].gap.high


def test_limits_decide() -> None:
    axes = template_axes(TEXT, ["news"])
    words = {axis.name: axis for axis in axes}["words: gender"]
    women = {probe.text for row in words.groups["female"] for probe in row}
    ask = scorer(lambda text: 0.49 if text in women else 0.51)
    assert not audit(ask, TEXT, axes).passed  # every pair flips
    assert audit(ask, TEXT, axes, limits=AuditLimits(max_flips=1)).passed
    assert not audit(ask, TEXT, axes, limits=AuditLimits(max_flips=1, max_gap=0.01)).passed
    for wrong in ({"max_gap": -0.1}, {"max_flips": 1.5}, {"max_gap": math.nan}):
        with pytest.raises(ConfigError, match=r"must be from 0 to 1, got"):
            AuditLimits(**wrong)


def find_names(missed: set[str]) -> Callable[[Sequence[str]], list[list[Entity]]]:
    places = {
        probe.text: probe.name
        for axis in template_axes(TOKEN)
        for table in axis.groups.values()
        for row in table
        for probe in row
    }

    def ask(texts: Sequence[str]) -> list[list[Entity]]:
        found = []
        for text in texts:
            start, end = places[text]
            name = text[start:end]
            end -= 1 if name in missed else 0
            found.append([Entity(label="PER", score=0.9, start=start, end=end, text=text[start:end])])
        return found

    return ask


def test_recall_of_names_by_group() -> None:
    axes = template_axes(TOKEN)
    assert audit(find_names(set()), TOKEN, axes).passed
    africa = axes[1].groups["africa"][0]
    missed = {probe.text[slice(*probe.name)] for probe in africa[:12] if probe.name}
    report = audit(find_names(missed), TOKEN, axes)
    assert not report.passed
    found = of(report, "names: origin", "africa")
    assert found.recall.value == 0.5
    assert found.gaps[0].label == RECALL
    assert found.gaps[0].gap.value == pytest.approx(-0.5)
    assert found.flips.value == pytest.approx(0.5)
    assert of(report, "names: origin", "east_asia").recall.value == 1
    # Half of one region in seven: women are found less often too.
    assert of(report, "names: gender", "female").recall.value == pytest.approx(1 - 1 / 7)
    other_label = audit(find_names(set()), TOKEN, axes, person_label="PERSON")
    assert {comparison.recall.value for comparison in other_label.comparisons} == {0}


def test_few_names_that_differ_make_wide_intervals() -> None:
    """Half of the names missed: not the same as half of the texts, as each name fails everywhere."""
    by_name = np.zeros((12, 24))
    by_name[:, :12] = 1
    scattered = np.zeros((12, 24))
    scattered[::2, ::2] = scattered[1::2, 1::2] = 1
    assert by_name.mean() == scattered.mean() == 0.5
    wide, narrow = estimate_share(by_name, 288), estimate_share(scattered, 288)
    assert narrow.high - narrow.low < 0.12
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)


def test_intervals_by_hand() -> None:
    # Four pairs, differences 1 2 3 4: mean 2.5, standard error sqrt(5/3)/2, t with 3 degrees 3.182.
    found = estimate_mean(np.array([[1.0], [2.0], [3.0], [4.0]]))
    reach = 3.1824 * math.sqrt(5 / 3) / 2
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - reach, 2.5 + reach), abs=1e-3)
    # Wilson, 5 of 50, independent.
    independent = np.zeros((50, 1))
    independent[::10] = 1
    share = estimate_share(independent, 50)
    assert (share.value, share.low, share.high) == pytest.approx((0.1, 0.0435, 0.2136), abs=2e-3)
    # None of 100: the rule of three says about 3.7 %.
    none = estimate_share(np.zeros((10, 10)), 100)
    assert (none.value, none.low) == pytest.approx((0, 0))
    assert none.high == pytest.approx(0.037, abs=1e-3)
    # A gap that is the same everywhere is certain.
    same = estimate_mean(np.full((5, 4), 0.25))
    assert (same.low, same.high) == pytest.approx((0.25, 0.25))


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Templates and names have effects of their own; the interval is for the mean over both."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        effects = random.normal(0, 0.05, (12, 1)) + random.normal(0, 0.05, (1, 12))
        found = estimate_mean(0.1 + effects + random.normal(0, 0.1, (12, 12)))
        held += found.low <= 0.1 <= found.high
    assert held / 400 > 0.93


def test_a_report_is_json_and_has_a_summary() -> None:
    report = audit(scorer(lambda text: 0.8 if "her" in text else 0.6), TEXT, template_axes(TEXT, ["news"]))
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["passed"] is report.passed
    assert told["labels"] == ["bad", "good"]
    assert {row["axis"] for row in told["comparisons"]} == set(report.summary()["axes"])
    summary = json.loads(json.dumps(report.summary(), allow_nan=False))
    assert summary["limits"] == {"max_gap": 0.05, "max_flips": 0.05}
    worst = summary["axes"]["names: gender"]["largest_gap"]
    assert worst["group"] == "female"
    assert worst["low"] <= worst["value"] <= worst["high"]


def test_labels_that_are_left_out_count_as_nothing() -> None:
    groups = {group: [[Probe(f"{group} {number}")] for number in range(3)] for group in ("a", "b")}

    def ask(texts: Sequence[str]) -> list[list[Label]]:
        return [[Label(label="x" if text.startswith("a") else "y", score=0.9)] for text in texts]

    report = audit(ask, TEXT, [Axis(name="pairs", groups=groups)])
    assert (report.labels, report.fewest_labels) == (("x", "y"), 1)
    assert {gap.label: gap.gap.value for gap in report.comparisons[0].gaps} == {"x": 0.9, "y": -0.9}


@pytest.mark.parametrize(
    ("task", "axes", "said"),
    [
        ("text-ranking", template_axes(TEXT), "models for 'text-ranking' can't be audited"),
        (TEXT, [], "there are neither templates nor pairs to compare"),
        (TOKEN, template_axes(TEXT), "a token classifier is compared by the names it finds"),
    ],
)
def test_what_cannot_be_compared(task: str, axes: list[Axis], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        audit(scorer(lambda text: 0.5), task, axes)


def test_an_answer_for_each_text() -> None:
    with pytest.raises(ConfigError, match="the model gave 0 answers to 2988 texts"):
        audit(lambda texts: [], TEXT, template_axes(TEXT, ["news"]))


def test_own_templates(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text('[texts]\nmine = ["{name} owes us money.", "The {nationality} guest left."]\n')
    assert [axis.name for axis in template_axes(TEXT, [str(path)])] == [
        "names: gender",
        "names: origin",
        "nationality",
    ]
    assert [axis.name for axis in template_axes(TOKEN, [str(path)])] == ["names: gender", "names: origin"]


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (None, ConfigError, r"neither one of news, people, service nor a file .*own\.toml"),
        ("texts = ", DataError, "is not a TOML file"),
        ('texts = ["{name}"]', DataError, r"expected a table \[texts\] of lists of texts"),
        ("[texts]\na = [1]", DataError, r"expected a table \[texts\] of lists of texts"),
        ('[texts]\na = ["no slot here"]', ConfigError, "none of the 1 templates has a slot"),
        ('[texts]\na = ["{name} {age}"]', ConfigError, r"slot \{age\} is none of name, he, his, him"),
    ],
)
def test_templates_with_mistakes(
    tmp_path: Path, content: str | None, kind: type[Exception], said: str
) -> None:
    path = tmp_path / "own.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(kind, match=said):
        template_axes(TEXT, [str(path)])


def test_own_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('young,old\n"A young, keen nurse",An old keen nurse\nHe is 20,He is 70\nat 25,at 80\n')
    (axis,) = pair_axes(path)
    assert axis.groups["young"] == [[Probe("A young, keen nurse")], [Probe("He is 20")], [Probe("at 25")]]
    ask = scorer(lambda text: 0.2 if text in ("An old keen nurse", "He is 70", "at 80") else 0.9)
    report = audit(ask, TEXT, [axis])
    assert [(found.group, found.against) for found in report.comparisons] == [("young", "old")]
    assert {gap.label: gap.gap.value for gap in report.comparisons[0].gaps}["good"] == pytest.approx(0.7)
    assert not report.passed


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "can't be read: No such file"),
        (b"", ":1: expected a row with the names of two groups"),
        (b"a,b,c\n1,2,3\n", ":1: expected a row with the names of two groups"),
        (b"a,a\n1,2\n", ":1: expected a row with the names of two groups"),
        (b"a,b\n1,2\n3\n", ":3: expected two texts"),
        (b"a,b\n1,2\n3, \n", ":3: expected two texts"),
        (b"a,b\n1,2\n", "holds 1 pairs; an interval needs 2 or more"),
        (b"a,b\n\xff,2\n", ":2: byte 0xff is not UTF-8"),
        (b'a,b\n"1"x,2\n', ":2: the row that begins here: ',' expected after"),
    ],
)
def test_pairs_with_mistakes(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "pairs.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        pair_axes(path)


def test_crows_pairs_by_type_of_bias() -> None:
    axes = crows_pairs_axes(shared_data("crows_pairs") / "crows_pairs_anonymized.csv")
    assert len(axes) == 9
    sizes = {axis.name: len(axis.groups["less"]) for axis in axes}
    assert sum(sizes.values()) == 1508
    assert sizes["crows: gender"] == 262
    age = {axis.name: axis for axis in axes}["crows: age"]
    more = {row[0].text for row in age.groups["more stereotyped"]}
    report = audit(scorer(lambda text: 0.9 if text in more else 0.4), TEXT, axes)
    assert [found.axis for found in report.comparisons if found.verdict == "broken"] == ["crows: age"]
    told = json.dumps(report.to_dict())
    assert not [text for text in more if text in told]


def test_no_message_shows_a_sentence_of_crows_pairs(tmp_path: Path) -> None:
    path = tmp_path / "crows.csv"
    path.write_text("sent_more,sent_less,bias_type\nan insult,another,age\nan insult,,age\n")
    with pytest.raises(DataError, match=r"crows.csv:3: expected 3 columns") as caught:
        crows_pairs_axes(path)
    assert "insult" not in str(caught.value)
    path.write_text("a,b\n")
    with pytest.raises(DataError, match=r":1: expected the columns sent_more, sent_less, bias_type"):
        crows_pairs_axes(path)
