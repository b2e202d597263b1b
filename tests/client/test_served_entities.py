"""Logits to entities, by hand and against a plain reading of the rules."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mooring._served.entities import BioLabels, Entity, tabulate
from mooring._served.softmax import softmax

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def _decode_one(text: str, logits: np.ndarray, words: np.ndarray) -> list[Entity]:
    return BioLabels(LABELS).decode([text], logits[None], words[None])[0]


def _one_token_a_word(text: str, tags: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Logits and words of a text whose words are tokens, between two special tokens."""
    spans, start = [], 0
    for word in text.split():
        start = text.index(word, start)
        spans.append((start, start + len(word)))
        start += len(word)
    logits = np.full((len(tags) + 2, len(LABELS)), -2, np.float32)
    for position, tag in enumerate(tags, start=1):
        logits[position, LABELS.index(tag)] = 3
    return logits, np.array([(-1, -1), *spans, (-1, -1)], np.int32)


def _decode(text: str, tags: list[str]) -> list[tuple[str, str]]:
    found = _decode_one(text, *_one_token_a_word(text, tags))
    return [(entity.label, text[entity.start : entity.end]) for entity in found]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["O", "O", "O", "O"], []),
        (["B-PER", "I-PER", "O", "B-LOC"], [("PER", "a bb"), ("LOC", "dddd")]),
        (["B-PER", "B-PER", "I-PER", "O"], [("PER", "a"), ("PER", "bb ccc")]),
        (["O", "I-LOC", "I-LOC", "O"], [("LOC", "bb ccc")]),
        (["B-PER", "I-LOC", "I-PER", "O"], [("PER", "a"), ("LOC", "bb"), ("PER", "ccc")]),
        (["I-PER", "O", "I-PER", "I-PER"], [("PER", "a"), ("PER", "ccc dddd")]),
        (["B-LOC", "I-LOC", "I-LOC", "I-LOC"], [("LOC", "a bb ccc dddd")]),
    ],
)
def test_words_are_merged_by_the_rules_of_bio(tags: list[str], expected: list[tuple[str, str]]) -> None:
    assert _decode("a bb ccc dddd", tags) == expected


def test_without_a_label_to_continue_with_a_word_is_one_entity() -> None:
    only = BioLabels(["O", "B-PER"])

    def spans(text: str, words: list[tuple[int, int]]) -> list[list[int]]:
        everything = np.tile(np.array([0, 9], np.float32), (len(words), 1))
        (found,) = only.decode([text], everything[None], np.array([words]))
        return [[entity.start, entity.end] for entity in found]

    # Tokenizers part a word at its punctuation.
    assert spans("O'Brien", [(0, 1), (1, 2), (2, 7)]) == [[0, 7]]
    assert spans("O'Brien Li", [(0, 1), (1, 2), (2, 7), (8, 10)]) == [[0, 7], [8, 10]]
    # A byte-level one counts the space before a word in.
    assert spans("Ann Li", [(0, 3), (3, 6)]) == [[0, 3], [4, 6]]
    # Where there is I-PER, B-PER begins an entity.
    logits = np.tile(np.array([0, 9, 0, 0, 0], np.float32), (2, 1))
    assert len(_decode_one("O'", logits, np.array([(0, 1), (1, 2)]))) == 2


def test_the_score_is_the_mean_over_words_and_the_span_holds_them() -> None:
    logits = np.log(np.array([[0.1, 0.6, 0.1, 0.1, 0.1], [0.05, 0.05, 0.8, 0.05, 0.05]], np.float32))
    found = _decode_one("Anna  Smith", logits, np.array([[0, 4], [6, 11]]))
    assert found == [Entity("PER", pytest.approx(0.7), 0, 11)]


def test_a_word_takes_the_label_of_its_first_token_and_the_end_of_its_last() -> None:
    logits = np.zeros((5, len(LABELS)), np.float32)
    logits[[1, 2, 3], [1, 3, 0]] = 5  # B-PER, B-LOC, O
    words = np.array([[-1, -1], [0, 4], [-1, -1], [5, 6], [-1, -1]], np.int32)
    found = _decode_one("Anna is", logits, words)
    assert [tuple(entity)[::2] for entity in found] == [("PER", 0)]
    assert found[0].end == 4


def test_rows_of_a_batch_do_not_touch() -> None:
    logits, words = _one_token_a_word("a b", ["O", "B-PER"])
    more, _ = _one_token_a_word("a b", ["I-PER", "O"])
    # No special tokens: the last word of one row is followed by the first word of the next.
    batch = np.stack([logits, more])[:, 1:3], np.stack([words] * 2)[:, 1:3]
    found = BioLabels(LABELS).decode(["a b", "a b"], *batch)
    assert [[(entity.start, entity.end) for entity in row] for row in found] == [[(2, 3)], [(0, 1)]]


@pytest.mark.parametrize(
    ("text", "span", "surface"),
    [
        ("Cafe\u0301 x", (0, 4), "Cafe\u0301"),
        ("x \u0928\u092e\u0938\u094d\u0924\u0947 y", (2, 7), "\u0928\u092e\u0938\u094d\u0924\u0947"),
        ("in Porto", (2, 8), "Porto"),
        ("in \u3000Porto", (2, 9), "Porto"),
        ("\U0001f469\u200d\U0001f469 \u5317\u4eac", (4, 6), "\u5317\u4eac"),
    ],
)
def test_a_span_holds_whole_characters_and_no_space_before(
    text: str, span: tuple[int, int], surface: str
) -> None:
    logits = np.array([[0, 9, 0, 0, 0]], np.float32)
    (entity,) = _decode_one(text, logits, np.array([span]))
    assert text[entity.start : entity.end] == surface


def test_a_word_of_white_space_is_no_entity() -> None:
    logits = np.array([[0, 9, 0, 0, 0]], np.float32)
    assert _decode_one("a  b", logits, np.array([[1, 3]])) == []


@pytest.mark.parametrize("label", ["PER", "B-", "LABEL_0", "S-PER", ""])
def test_a_label_outside_of_bio_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match=f"label '{label}' is not O, B-<type> or I-<type>"):
        BioLabels(["O", label])


@pytest.mark.parametrize(
    ("logits", "words"),
    [
        ((1, 3, 4), (1, 3, 2)),
        ((2, 3, 5), (1, 3, 2)),
        ((1, 3, 5), (1, 4, 2)),
        ((1, 3, 5), (1, 3)),
        ((1, 5), (1, 3, 2)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(logits: tuple[int, ...], words: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"do not fit 1 text\(s\) and 5 labels"):
        BioLabels(LABELS).decode(["abc"], np.zeros(logits), np.zeros(words))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_say_nothing_are_refused(value: float) -> None:
    logits, words = _one_token_a_word("a b", ["O", "B-PER"])
    broken = logits.copy()
    broken[2, 4] = value
    with pytest.raises(ValueError, match="the logits of text 1 are not finite"):
        BioLabels(LABELS).decode(["a b", "a b"], np.stack([logits, broken]), np.stack([words, words]))


def test_words_that_are_not_in_the_text_are_refused() -> None:
    logits, words = _one_token_a_word("a b", ["O", "B-PER"])
    with pytest.raises(ValueError, match="a word of text 0 ends at 9, of 3 characters"):
        BioLabels(LABELS).decode(["a b"], logits[None], np.where(words == 3, 9, words)[None])


def test_answers_are_padded_to_the_longest_row() -> None:
    texts = ["Zo\u00eb in Porto", "nothing"]
    arrays = tabulate(texts, [[Entity("PER", 0.5, 0, 3), Entity("LOC", 0.25, 7, 12)], []])
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "label": [[b"PER", b"LOC"], [b"", b""]],
        "score": [[0.5, 0.25], [0, 0]],
        "start": [[0, 7], [-1, -1]],
        "end": [[3, 12], [-1, -1]],
        "entity": [["Zo\u00eb".encode(), b"Porto"], [b"", b""]],
    }
    assert [array.dtype for array in arrays.values()] == [object, np.float32, np.int32, np.int32, object]


def test_no_entity_at_all_gives_rows_of_no_columns() -> None:
    assert {array.shape for array in tabulate(["a", "b"], [[], []]).values()} == {(2, 0)}


def test_softmax_does_not_overflow() -> None:
    assert softmax(np.array([[1e4, 0], [-1e4, -1e4]])).tolist() == [[1, 0], [0.5, 0.5]]


def _by_the_rules(text: str, logits: np.ndarray, offsets: np.ndarray, word_ids: np.ndarray) -> list[Entity]:
    """The rules read aloud, one word after the other."""
    found: list[Entity] = []
    scores: list[float] = []
    previous, word = "", -1
    for position, word_id in enumerate(word_ids):
        if word_id < 0:
            continue
        start, end = map(int, offsets[position])
        if word_id == word:
            if previous:
                found[-1] = found[-1]._replace(end=end)
            continue
        word = word_id
        probabilities = np.exp(logits[position]) / np.exp(logits[position]).sum()
        label = LABELS[int(probabilities.argmax())]
        if label == "O":
            previous = ""
            continue
        if not (label.startswith("I-") and previous == label[2:]):
            scores = []
            found.append(Entity(label[2:], 0, start, end))
        scores.append(float(probabilities.max()))
        found[-1] = found[-1]._replace(end=end, score=float(np.mean(scores)))
        previous = label[2:]
    return found


@st.composite
def _texts(draw: st.DrawFn) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """A text with its words cut into tokens, as a tokenizer would, and any logits."""
    words = draw(
        st.lists(st.text(st.characters(categories=["Lu", "Ll", "Lo", "So"]), min_size=1), max_size=8)
    )
    text = " ".join(words)
    tokens, start = [(-1, -1, -1)], 0
    for index, word in enumerate(words):
        cuts = sorted(draw(st.sets(st.integers(1, len(word)), max_size=3)) | {0, len(word)})
        tokens += [(start + a, start + b, index) for a, b in itertools.pairwise(cuts)]
        start += len(word) + 1
    tokens += [(-1, -1, -1)] * draw(st.integers(1, 3))
    table = np.array(tokens, np.int32)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = random.normal(size=(len(tokens), len(LABELS))).astype(np.float32) * 3
    return text, logits, table[:, :2], table[:, 2]


def _words_of(offsets: np.ndarray, word_ids: np.ndarray) -> np.ndarray:
    """What the tokenizer hands on, read aloud: begin and end of each word on its first token."""
    words = np.full_like(offsets, -1)
    for word in set(word_ids.tolist()) - {-1}:
        places = np.flatnonzero(word_ids == word)
        words[places[0]] = offsets[places[0], 0], offsets[places[-1], 1]
    return words


@settings(deadline=None)
@given(_texts())
def test_any_text_is_decoded_by_the_rules(
    example: tuple[str, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    text, logits, offsets, word_ids = example
    found = _decode_one(text, logits, _words_of(offsets, word_ids))
    expected = _by_the_rules(text, logits, offsets, word_ids)
    assert [entity._replace(score=0) for entity in found] == [entity._replace(score=0) for entity in expected]
    assert [entity.score for entity in found] == pytest.approx(
        [entity.score for entity in expected], abs=1e-5
    )


@settings(deadline=None)
@given(st.lists(_texts(), min_size=1, max_size=5))
def test_a_batch_is_decoded_as_its_texts_alone(
    examples: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
) -> None:
    rows = [(text, logits, _words_of(*tokens)) for text, logits, *tokens in examples]
    alone = [_decode_one(*row) for row in rows]
    width = max(len(logits) for _, logits, _ in rows)

    def padded(arrays: Iterable[np.ndarray]) -> np.ndarray:
        return np.stack(
            [np.pad(array, [(0, width - len(array)), (0, 0)], constant_values=-1) for array in arrays]
        )

    texts = [text for text, _, _ in rows]
    logits, words = padded(logits for _, logits, _ in rows), padded(words for _, _, words in rows)
    labels = BioLabels(LABELS)
    assert labels.decode(texts, logits, words) == alone
    # As Triton joins requests: each of its own length.
    assert labels.decode_requests(texts, [(one[None], its[None]) for _, one, its in rows]) == alone
