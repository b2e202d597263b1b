"""Personal data in texts: what is found and where, what is left alone, and that twice is the same as once."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mooring import ConfigError, Entity
from mooring._personal_data import IBAN_LENGTHS
from mooring.redaction import Finding, Redaction, Redactor

redact = Redactor()


def wide(digits: str) -> str:
    """Digits as Chinese and Japanese keyboards write them."""
    return "".join(chr(ord(digit) + 0xFEE0) for digit in digits)


def spans(text: str) -> list[tuple[str, str]]:
    return [(part.kind, text[part.start : part.end]) for part in redact(text).findings]


def test_a_text_with_every_kind() -> None:
    text = (
        "Zoë 🎉 anna@example.com, +44 20 7946 0958, 4111 1111 1111 1111, "
        "DE89 3704 0044 0532 0130 00 and no more."
    )
    found = redact(text)
    assert found.text == "Zoë 🎉 [EMAIL], [PHONE], [CARD], [IBAN] and no more."
    assert spans(text) == [
        ("EMAIL", "anna@example.com"),
        ("PHONE", "+44 20 7946 0958"),
        ("CARD", "4111 1111 1111 1111"),
        ("IBAN", "DE89 3704 0044 0532 0130 00"),
    ]
    assert found.findings[0] == Finding(kind="EMAIL", start=6, end=22)


@pytest.mark.parametrize("text", ["", " ", "Nothing in here.", "Order 66, 3 items at 12.50 each", "🎉" * 9])
def test_a_text_without_any_comes_back_as_it_was(text: str) -> None:
    assert redact(text) == Redaction(text=text, findings=())


@pytest.mark.parametrize(
    "address",
    [
        "a@b.co",
        "anna.smith+news@mail.example.co.uk",
        "jose\u0301@example.com",
        "josé@exämple.de",
        "мария@почта.рф",
        "x_y-z@under-score.museum",
        "o'brien@example.ie",
        "a@xn--e1afmkfd.xn--p1ai",
    ],
)
@pytest.mark.parametrize(
    "around", ["{}", "<{}>", "Write to {}.", "mailto:{}?subject=x", "'{}',", "发邮件到{}谢谢"]
)
def test_addresses_are_found_whole(address: str, around: str) -> None:
    assert spans(around.format(address)) == [("EMAIL", address)]


def test_an_address_in_a_script_without_spaces() -> None:
    assert spans("用户@例子.广告") == [("EMAIL", "用户@例子.广告")]


@pytest.mark.parametrize(
    "text",
    ["@anna", "anna@", "a @ b.com", "anna@host", "anna@.com", "anna@b.c", "anna@10.0.0.1", "@@@@", "a@b@c"],
)
def test_what_only_looks_like_an_address(text: str) -> None:
    assert spans(text) == []


# Made up, with check digits that fit; lengths as the registry has them.
def make_iban(country: str, filler: str) -> str:
    body = (filler * 3)[: IBAN_LENGTHS[country] - 4]
    check = 98 - int("".join(str(int(char, 36)) for char in f"{body}{country}00")) % 97
    return f"{country}{check:02}{body}"


@pytest.mark.parametrize("country", sorted(IBAN_LENGTHS))
def test_every_country_of_the_registry(country: str) -> None:
    iban = make_iban(country, "0532A0130447")
    for written in (
        iban,
        iban.lower(),
        " ".join(re.findall(".{1,4}", iban)),
        "-".join(re.findall("..?", iban)),
    ):
        assert spans(f"to {written}, please") == [("IBAN", written)]
    wrong = f"{country}{(int(iban[2:4]) + 1) % 100:02}{iban[4:]}"
    for other in (wrong, iban + "7", iban[:-1], "X" + iban):
        assert not [kind for kind, _ in spans(f"to {other}, please") if kind == "IBAN"], other


def test_the_registry_is_whole() -> None:
    assert len(IBAN_LENGTHS) == 89
    assert all(re.fullmatch("[A-Z]{2}", country) for country in IBAN_LENGTHS)
    # Well-known examples.
    for iban in ("GB29 NWBK 6016 1331 9268 19", "FR14 2004 1010 0505 0001 3M02 606", "NO93 8601 1117 947"):
        assert spans(iban) == [("IBAN", iban)]


def luhn_digit(number: str) -> str:
    """The digit that makes a number right, by adding up as one does on paper."""
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value // 10 + value % 10
    return str(-total % 10)


cards = (
    st.integers(12, 19)
    .flatmap(lambda size: st.from_regex(rf"[1-9][0-9]{{{size - 2}}}", fullmatch=True))
    .map(lambda number: number + luhn_digit(number))
)


@given(number=cards, mark=st.sampled_from(["", " ", "-", "\u00a0", "\u2011"]))
def test_cards_of_every_length(number: str, mark: str) -> None:
    written = mark.join(re.findall(".{1,4}", number))
    if re.search(r"\D\d$", written):
        written = written[:-2] + written[-1]
    assert spans(f"card {written}, thanks") == [("CARD", written)]


@given(number=cards, mark=st.sampled_from(["", " ", "-"]))
def test_a_wrong_digit_is_no_card(number: str, mark: str) -> None:
    wrong = number[:-1] + str((int(number[-1]) + 5) % 10)
    written = mark.join(re.findall(".{1,4}", wrong))
    assert ("CARD", written) not in spans(f"card {written}.")


@pytest.mark.parametrize(
    ("text", "card"),
    [
        ("3782 822463 10005", "3782 822463 10005"),
        ("4111 1111 1111 1111 123 is card and code", "4111 1111 1111 1111"),
        ("12 4111-1111-1111-1111", "4111-1111-1111-1111"),
        ("4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1", "4 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1"),
        ("41 11 11 11 11 11 11 11", "41 11 11 11 11 11 11 11"),
        ("卡号4111111111111111。", "4111111111111111"),
        (wide("4111111111111111"), wide("4111111111111111")),
    ],
)
def test_cards_as_people_write_them(text: str, card: str) -> None:
    assert spans(text) == [("CARD", card)]


@pytest.mark.parametrize("mark", [*map(chr, range(0x2000, 0x200B)), "\u3000", "  ", " - ", " \u2013 "])
@pytest.mark.parametrize(
    ("kind", "groups"),
    [("CARD", "4111 1111 1111 1111"), ("IBAN", "DE89 3704 0044 0532 0130 00"), ("PHONE", "+44 20 7946 0958")],
)
def test_groups_are_parted_by_any_space_and_by_up_to_three_marks(kind: str, groups: str, mark: str) -> None:
    written = groups.replace(" ", mark)
    assert spans(f"this is {written}, please") == [(kind, written)]
    assert (kind, groups.replace(" ", "    ")) not in spans(groups.replace(" ", "    "))


def test_a_full_width_at_sign_and_a_glued_iban() -> None:
    assert spans("an anna\uff20example.com") == [("EMAIL", "anna\uff20example.com")]
    for word in ("IBAN", "iban", "Iban"):
        assert spans(f"{word}DE89370400440532013000") == [("IBAN", "DE89370400440532013000")]
    assert "IBAN" not in [kind for kind, _ in spans("URBANDE89370400440532013000")]


@pytest.mark.parametrize(
    "text",
    [
        "0000 0000 0000 0000",
        "key_4111111111111111",
        "a4111111111111111f",
        "4111/1111/1111/1111",
        "21 17 0 4 501 181 34",  # passes Luhn, but is a row of a table
    ],
)
def test_what_is_no_card(text: str) -> None:
    assert "CARD" not in [kind for kind, _ in spans(text)]


@pytest.mark.parametrize(
    "number",
    [
        "+442079460958",
        "+44 20 7946 0958",
        "+49 (0)30 1234567",
        "(+49) 30 1234567",
        "+1-202-555-0143",
        "+86 138 1234 5678",
        "+352 12 34 56",
        "0049 151 23456789",
        "020 7946 0958",
        "+49 30/1234567",
        "+49 171/1234567",
        "+49 (0) 30 / 123 456",
        "+49(0)30/1234567",
        "+43 1/588 01 234",
        "0049 30/1234567",
        "030/1234567",
        "0151-23456789",
        "01 42 68 53 00",
        "01.42.68.53.00",
        "+49·30·1234567",
        "01·42·68·53·00",
        "(202) 555-0143",
        "202-555-0143",
        "202.555.0143",
        "2025550143",
        "1-800-555-0199",
        "13812345678",
        "138 1234 5678",
        wide("0301234567"),
        f"\uff0b{wide('81')} {wide('90')} {wide('1234')} {wide('5678')}",
    ],
)
@pytest.mark.parametrize(
    "around", ["{}", "Call {}.", "tel:{}", "手机{}谢谢", "ring 5 {} now", "from {} to 7"]
)
def test_phone_numbers(number: str, around: str) -> None:
    # After other digits a plus or a bracket is no longer sure to open the number.
    assert spans(around.format(number))[0][0] == "PHONE"
    assert number in [part for _, part in spans(f"Call {number}, please")]


@pytest.mark.parametrize(
    "text",
    [
        "on 01.02.2023 at 10:30",
        "on 01·02·2023 1030",
        "01-02-2023 1030",
        "2023-01-15 1030 2000",
        "01/02/2023 04/05/2023",
        "EUR 1 234 567 890",
        "$2345678901",
        "€ 1.234.567,89",
        "2345678901.55",
        "0.123456789",
        "10.05 2010 2011",
        "+1/2/3 4 5 6 7",
        "+12/+34 567",
        "+5 percent, +12.5",
        "192.168.100.200",
        "1700000000",
        "555-0123",
        "v2345678901",
    ],
)
def test_numbers_that_are_no_phone(text: str) -> None:
    assert spans(text) == []


@given(number=cards)
def test_a_card_is_never_taken_for_a_phone(number: str) -> None:
    assert spans(f"{number} {number}") == [("CARD", number)] * 2


PIECES = [
    *("anna@example.com", "@", "a@b.co", "DE89370400440532013000", "DE89 3704 0044 0532 0130 00", "DE89"),
    *(
        "4111111111111111",
        "4111 1111 1111 1111",
        "4111",
        "1111",
        "378282246310005",
        "12",
        "5",
        "0",
        "00",
        "+",
        "\uff0b",
    ),
    *(
        "030 1234567",
        "+44 20 7946 0958",
        "202-555-0143",
        "13812345678",
        "01.02.2023",
        wide("2"),
        "Anna",
        "x",
        "_",
    ),
    *(
        " ",
        "  ",
        " - ",
        "\u2009",
        "·",
        "IBAN",
        "\uff20",
        "-",
        ".",
        "/",
        "(",
        ")",
        ", ",
        "\n",
        "[EMAIL]",
        "[NAME]",
        "[",
        "]",
        "é",
        "e\u0301",
        "🎉",
        "谢",
        "$",
    ),
]
texts = st.lists(st.sampled_from(PIECES), max_size=25).map("".join) | st.text(max_size=200)


@settings(max_examples=1500, deadline=None)
@given(texts)
def test_twice_is_the_same_as_once(text: str) -> None:
    once = redact(text)
    assert redact(once.text) == Redaction(text=once.text, findings=())


@settings(max_examples=500, deadline=None)
@given(texts)
def test_places_are_right_and_nothing_else_changes(text: str) -> None:
    found = redact(text)
    rebuilt, at = "", 0
    for part in found.findings:
        assert at <= part.start < part.end <= len(text)
        rebuilt += text[at : part.start] + f"[{part.kind}]"
        at = part.end
    assert found.text == rebuilt + text[at:]


@given(
    st.lists(
        st.sampled_from(["DE89 3704 0044 0532 0130 00", "a@b.co", "4111111111111111", "🎉é谢"]), min_size=1
    )
)
def test_neighbours_do_not_hide_one_another(parts: list[str]) -> None:
    kinds = {"D": "IBAN", "a": "EMAIL", "4": "CARD"}
    expected = [(kinds[part[0]], part) for part in parts if part[0] in kinds]
    assert spans(", ".join(parts)) == expected


SLOW = {
    "digits": "1" * 300_000,
    "digits with spaces": "1 " * 150_000,
    "cards in one row": "4111 1111 1111 1111 " * 15_000,
    "phones in one row": "020 7946 0958 " * 20_000,
    "country codes": "DE89 " * 60_000,
    "letters": "a" * 300_000,
    "at signs": "a@" * 150_000,
    "dots": "a@" + "b." * 150_000,
    "hyphens": "a@b" + "-" * 300_000,
    "addresses without an end": ("a." * 100 + "@") * 1500,
    "brackets": "(" * 150_000 + "1" + ")" * 150_000,
    "replacements": "[EMAIL]" * 40_000,
    "marks": "1" + " -" * 150_000,
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", SLOW)
def test_long_texts_take_time_in_proportion(name: str) -> None:
    # Quadratic work would be 10^10 steps and more, which ends at the time limit.
    assert redact(SLOW[name] + " anna@example.com").text.endswith(" [EMAIL]")


def ner(*found: tuple[str, str]) -> Redactor:
    """A redactor whose model finds each of these words, once."""

    def names(text: str) -> list[Entity]:
        return [
            Entity(
                label=label, score=0.9, start=text.index(word), end=text.index(word) + len(word), text=word
            )
            for label, word in found
            if word in text
        ]

    return Redactor(names=names)


def test_names_are_replaced_where_a_model_finds_them() -> None:
    found = ner(("PER", "Zoë Ähtäri"), ("LOC", "Lisbon"))("🎉 Zoë Ähtäri lives in Lisbon")
    assert found.text == "🎉 [NAME] lives in Lisbon"
    assert found.findings == (Finding(kind="NAME", start=2, end=12),)


def test_other_labels_can_be_names() -> None:
    entity = Entity(label="PERSON", score=0.9, start=0, end=4, text="Anna")
    assert Redactor(name_labels=["PERSON"]).redact("Anna came", [entity]).text == "[NAME] came"
    assert Redactor().redact("Anna came", [entity]).text == "Anna came"
    with pytest.raises(ConfigError, match="name_labels is the str 'PER'"):
        Redactor(name_labels="PER")


def test_a_name_keeps_clear_of_what_is_certain() -> None:
    text = "Anna anna@example.com Smith"
    assert ner(("PER", text))(text).text == "[NAME] [EMAIL] [NAME]"
    assert ner(("PER", "DE89 3704"))("DE89 3704 0044 0532 0130 00").text == "[IBAN]"


def test_a_number_glued_to_a_name_is_found_too() -> None:
    assert ner(("PER", "Anna"))("Anna4111111111111111").text == "[NAME][CARD]"


def test_names_are_not_asked_of_nothing_and_their_errors_are_kept() -> None:
    def fail(text: str) -> Sequence[Entity]:
        raise ConfigError("no")

    assert Redactor(names=fail)(" ").text == " "
    with pytest.raises(ConfigError, match="no"):
        Redactor(names=fail)("Anna")
    outside = Entity(label="PER", score=0.9, start=2, end=9, text="x")
    with pytest.raises(ConfigError, match="names gave an entity at 2:9 of a text of 4 characters"):
        redact.redact("Anna", [outside])


@settings(max_examples=500, deadline=None)
@given(text=texts, seed=st.integers(0, 2**16))
def test_twice_is_the_same_with_names_too(text: str, seed: int) -> None:
    draw = random.Random(seed)
    ends = [sorted(draw.sample(range(len(text) + 1), 2)) for _ in range(3)] if text else []
    entities = [Entity(label="PER", score=1.0, start=a, end=b, text=text[a:b]) for a, b in ends]
    once = redact.redact(text, entities)
    assert redact(once.text).findings == ()
    for entity in entities:
        for at in range(entity.start, entity.end):
            inside = any(part.start <= at < part.end for part in once.findings)
            assert inside or not text[at].isalnum() or _in_replacement(text, at)


def _in_replacement(text: str, at: int) -> bool:
    return any(match.start() <= at < match.end() for match in re.finditer(r"\[(EMAIL|NAME)\]", text))
