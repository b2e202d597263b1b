"""Texts with times from CSV files and JSON lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mooring import ConfigError, DataError
from mooring._monitor.texts import parse_time
from mooring.monitor import TimedText, read_texts


def test_csv_and_json_lines_give_the_same(tmp_path: Path) -> None:
    csv_file, json_file = tmp_path / "news.csv", tmp_path / "news.JSONL"
    csv_file.write_bytes(
        "\ufefftime,source,text\r\n"
        '2024-05-01T12:00:00Z,a,"Sales fell, again"\r\n'
        '1714564801.5,b,"Two\nlines"\r\n'.encode()
    )
    json_file.write_text(
        '{"time": "2024-05-01T14:00:00+02:00", "text": "Sales fell, again"}\n\n'
        '{"text": "Two\\nlines", "time": 1714564801.5, "more": [1]}\n',
        encoding="utf-8",
    )
    expected = [TimedText(1714564800.0, "Sales fell, again"), TimedText(1714564801.5, "Two\nlines")]
    assert list(read_texts(csv_file)) == expected
    assert list(read_texts(str(json_file))) == expected


def test_columns_may_have_other_names(tmp_path: Path) -> None:
    path = tmp_path / "news.csv"
    path.write_text("published,headline\n7,Öl steigt\n", encoding="utf-8")
    assert list(read_texts(path, time_key="published", text_key="headline")) == [TimedText(7.0, "Öl steigt")]
    with pytest.raises(DataError, match=r"news\.csv: no column \['text', 'time'\] in its header"):
        list(read_texts(path))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (0, 0.0),
        (1714564800, 1714564800.0),
        ("1714564800.25", 1714564800.25),
        ("2024-05-01", 1714521600.0),
        (" 20240501", 1714521600.0),
        ("20240501T120000Z", 1714564800.0),
        ("99999999", 99999999.0),
        (20240501, 20240501.0),
        ("2024-05-01 12:00", 1714564800.0),
        ("2024-05-01T12:00:00.5Z", 1714564800.5),
        (" 2024-05-01T07:00:00-05:00 ", 1714564800.0),
    ],
)
def test_times_are_seconds_or_iso_8601(value: Any, seconds: float) -> None:
    assert parse_time(value) == seconds


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("yesterday", "'yesterday' is neither ISO-8601 nor seconds since 1970"),
        ("", "'' is neither"),
        (True, "True is neither"),
        (None, "None is neither"),
        ("nan", "'nan' is neither"),
        ([1], r"\[1\] is neither"),
        ("x" * 100, "'x{59}… is neither"),
        (-1, "-1 is not between the years 1970 and 9999$"),
        ("1969-12-31", "'1969-12-31' is not between"),
        ("inf", "'inf' is not between the years 1970 and 9999$"),
        (1714564800000, "1714564800000 is not between the years 1970 and 9999; it looks like milliseconds"),
    ],
)
def test_what_is_no_time_is_refused(value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}"):
        parse_time(value)


ROWS = [
    (b"{", "line 2 is no JSON: "),
    (b"[1]", "line 2: no JSON object"),
    (b'{"time": 7}', "line 2 has no 'text'"),
    (b'{"text": "a"}', "line 2 has no 'time'"),
    (b'{"time": null, "text": "a"}', "line 2 has no 'time'"),
    (b'{"time": 7, "text": ""}', "line 2: text must be a text that is not empty, got ''"),
    (b'{"time": 7, "text": 8}', "line 2: text must be a text that is not empty, got 8"),
    (b'{"time": "soon", "text": "a"}', "line 2: time 'soon' is neither"),
    (b'{"time": 7, "text": "\xff"}', r"line 2: text is not valid UTF-8 \(character 0\)"),
    (b'{"time": 7, "text": "\\ud800"}', r"line 2: text is not valid UTF-8 \(character 0\)"),
    (b"[" * 100_000, "line 2 is no JSON: "),
    (b'{"time": 1' + b"0" * 400 + b', "text": "a"}', "line 2: time 10+… is not between the years"),
]


@pytest.mark.parametrize(("row", "said"), ROWS, ids=range(len(ROWS)))
def test_a_bad_row_is_an_error_or_left_out(tmp_path: Path, row: bytes, said: str) -> None:
    path = tmp_path / "news.jsonl"
    good = b'{"time": 7, "text": "a"}\n'
    path.write_bytes(good + row + b"\n" + good)
    with pytest.raises(DataError, match=rf"news\.jsonl, {said}"):
        list(read_texts(path))
    errors: list[DataError] = []
    assert len(list(read_texts(path, on_error=errors.append))) == 2
    assert len(errors) == 1


def test_bad_rows_of_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "news.csv"
    path.write_bytes(b'time,text\n7,a\n8\nsoon,b\n9,"open"x\n10,\xff\n11,c\n')
    errors: list[DataError] = []
    assert list(read_texts(path, on_error=errors.append)) == [TimedText(7.0, "a"), TimedText(11.0, "c")]
    said = [str(error).partition("news.csv, ")[2] for error in errors]
    assert [text.partition(":")[0] for text in said] == ["line 3 has no 'text'", "line 4", "line 5", "line 6"]
    assert "is not valid UTF-8" in said[3]
    for content, message in ((b"", "no column"), (b'"a"b', "line 1: ")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            list(read_texts(path))


def test_a_comma_without_quotes_does_not_cut_the_text(tmp_path: Path) -> None:
    path = tmp_path / "news.csv"
    path.write_text("time,text\n7,Sales fell, again\n8,a,\n9,b, ,\n", encoding="utf-8")
    errors: list[DataError] = []
    assert list(read_texts(path, on_error=errors.append)) == [TimedText(8.0, "a"), TimedText(9.0, "b")]
    said = "line 2: more cells than the 2 of the header; put quotes around what holds a comma"
    assert [str(error) for error in errors] == [f"{path}, {said}"]


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"news\.txt: the name must end in \.csv, \.jsonl or \.ndjson"):
        list(read_texts(tmp_path / "news.txt"))
    with pytest.raises(DataError, match=r"nothing\.csv can't be read: No such file"):
        list(read_texts(tmp_path / "nothing.csv"))


def test_a_file_is_read_row_by_row(tmp_path: Path) -> None:
    path = tmp_path / "news.jsonl"
    path.write_text('{"time": 7, "text": "a"}\n' * 3 + "{\n", encoding="utf-8")
    texts = read_texts(path)
    assert [next(texts).text for _ in range(3)] == ["a", "a", "a"]
    with pytest.raises(DataError, match="line 4"):
        next(texts)
