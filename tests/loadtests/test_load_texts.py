from __future__ import annotations

from itertools import islice

from mooring_loadtests.texts import SENTENCES, endless_sentences


def test_sentences_have_varied_lengths_and_stay_below_the_shipped_maximum() -> None:
    words = [len(sentence.split()) for sentence in SENTENCES]
    assert min(words) <= 3
    # A word is at most a few tokens; the recipes take 128.
    assert 60 <= max(words) <= 90
    assert len(set(words)) >= 10


def test_sentences_are_distinct_and_clean() -> None:
    assert len(set(SENTENCES)) == len(SENTENCES)
    assert all(sentence == " ".join(sentence.split()) for sentence in SENTENCES)


def test_the_same_seed_and_user_ask_the_same() -> None:
    first, again = (list(islice(endless_sentences(7, 3), 50)) for _ in range(2))
    assert first == again
    assert set(first) <= set(SENTENCES)


def test_another_user_or_seed_asks_something_else() -> None:
    sequences = [tuple(islice(endless_sentences(seed, user), 50)) for seed, user in ((7, 3), (7, 4), (8, 3))]
    assert len(set(sequences)) == 3


def test_every_sentence_is_asked_sooner_or_later() -> None:
    assert set(islice(endless_sentences(0, 0), 2000)) == set(SENTENCES)
