from __future__ import annotations

from pathlib import Path

import pytest

from mooring import DataError
from mooring_build.data_files import read_conll, read_csv, read_text
from mooring_build.examples import LabelledText, TaggedSentence


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_conll_columns(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.conll",
        "-DOCSTART- -X- -X- O\n\nAnna NNP B-NP B-PER\nNovak NNP I-NP I-PER\nslept VBD B-VP O\n"
        "\n\nPorto NNP B-NP B-LOC\n",
    )
    assert read_conll(path) == [
        TaggedSentence(("Anna", "Novak", "slept"), ("B-PER", "I-PER", "O")),
        TaggedSentence(("Porto",), ("B-LOC",)),
    ]
    assert read_conll(path)[0].text == "Anna Novak slept"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("Anna B-PER\nNovak\n", r":2: 'Novak' has one column"),
        ("Anna PER\n", r":1: tag 'PER' is none of"),
        ("Anna O\nNovak I-PER\n", r":2: 'I-PER' follows 'O'; IOB2"),
        ("Anna B-LOC\nNovak I-PER\n", r":2: 'I-PER' follows 'B-LOC'"),
        ("Novak I-PER\n", r":1: 'I-PER' follows 'the start of the sentence'"),
        ("New York\tB-LOC\n", ":1: token 'New York' has a space: give each of its words a line"),
        ("Anna O\rNovak B-PER\r", ":1: lines end in carriage returns alone"),
        ("\n\n", "holds no example"),
        (b"Anna B-PER\nMu\xf1oz I-PER\n", r":2: byte 0xf1 is not UTF-8"),
    ],
)
def test_malformed_conll(tmp_path: Path, content: str | bytes, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read_conll(write(tmp_path / "a.conll", content))


def test_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\ufefftext,id,category\n"Where, is it?",1,track,,\n')
    assert read_csv(path, text_column="text", label_column="category") == [
        LabelledText("Where, is it?", "track")
    ]


def test_empty_lines_of_a_csv_file_are_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "\r\ntext,label\r\n\r\nhello,x\r\n\r\n")
    assert read_csv(path, text_column="text", label_column="label") == [LabelledText("hello", "x")]


def test_a_file_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^{tmp_path} can't be read: Is a directory$"):
        read_text(tmp_path)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            "text,category\na,b\n",
            r"data.label_column 'label' is not among its columns \['text', 'category'\]",
        ),
        ("text;label\na;b\n", r"\['text;label'\]; its cells seem to be parted by ';': save it with commas"),
        ("text\tlabel\na\tb\n", r"seem to be parted by '\\t'"),
        ("my card,pay\n", r"columns \['my card', 'pay'\], which are what its first row holds"),
        ("text,label\nhello,\n", r":2: empty label"),
        ("text,label\n ,x\n", r":2: empty text"),
        ("text,label\nhello\n", r":2: empty label"),
        ("text,label\n", "holds no row"),
        ('"text,label\na,x\n', ":1: the row that begins here: unexpected end of data"),
        (
            "text,label,text\na,x,b\n",
            r"data.text_column 'text' is the name of several of its columns \['text', 'label', 'text'\]",
        ),
        ('text,label\na,x\n"open,x\nb,x\n', ":3: the row that begins here: unexpected end of data"),
        ("text,label\nhello, you,x\n", ":2: more cells than the 2 of the header"),
    ],
)
def test_malformed_csv(tmp_path: Path, content: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read_csv(write(tmp_path / "a.csv", content), text_column="text", label_column="label")
