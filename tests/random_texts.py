"""Texts of every kind, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

#: What texts are made of; each pool is a script or a kind of trouble.
POOLS: tuple[Sequence[str], ...] = (
    ["Anna", "smith", "Porto", "New York", "VISITS", "my card", "refund", "John Doe", "Germany", "don't"],
    list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"),
    list(".,;:!?()[]{}'\"-\u2013—…/\\@#$%^&*_+=~`|<>€£"),
    [
        "ß",
        "é",
        "e\u0301",
        "ö",
        "o\u0308\u0323",
        "Ǆ",
        "ﬁ",
        "İ",
        "\u0131",
        "ñ",
        "Å",
        "\u1e9e",
        "½",
        "①",
        "Ⅷ",
        "µ",
    ],
    ["東京", "北京市", "カタカナ", "ひらがな", "한국어", "\u1100\u1161\u11a8", "𠮷", "々"],
    ["مرحبا", "שלום", "हिन्दी", "ไทย", "Москва", "Ελλάδα", "தமிழ்", "ქართული"],
    ["\U0001f600", "\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "👍🏽", "❤️", "#️⃣"],
    [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\x85"],
    [
        "\u200b",
        "\u200d",
        "\ufeff",
        "\u00ad",
        "\u202e",
        "\x00",
        "\x07",
        "\x1f",
        "\x7f",
        "\ufffd",
        "\U000e0001",
    ],
    ["\u0300", "\u0489", "\u20e3", "\ufe0f", "\u1ab0"],
)


def random_texts(count: int, *, seed: int) -> list[str]:
    """Make texts, none empty: some of one kind, most mixed, a few long; some have nothing but white space."""
    chance = random.Random(seed)
    texts = []
    for _ in range(count):
        pools = chance.sample(POOLS, chance.choice((1, 2, 3, len(POOLS))))
        if chance.random() < 0.4:
            pools = [POOLS[0], *pools[:1]]
        pieces = chance.choice((1, 2, 3, 5, 8, 13, 40))
        glue = chance.choice(("", " "))
        texts.append(glue.join(chance.choice(chance.choice(pools)) for _ in range(pieces)))
    return texts
