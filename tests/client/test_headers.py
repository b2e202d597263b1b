"""Headers and tokens: what travels, what is refused, and that no message shows a value."""

from __future__ import annotations

import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mooring import ConfigError
from mooring._headers import bearer, check_headers

SECRET = "s3cret-hunter2"
TOKEN_CHARACTERS = string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~"
VISIBLE = "".join(map(chr, range(0x20, 0x7F)))


@pytest.mark.parametrize(
    ("given_headers", "checked"),
    [
        ({}, ()),
        ({"X-Api-Key": "abc"}, (("x-api-key", "abc"),)),
        ({"b": "1", "A": "2"}, (("b", "1"), ("a", "2"))),
        ({TOKEN_CHARACTERS: VISIBLE}, ((TOKEN_CHARACTERS.lower(), VISIBLE),)),
        ({"empty": ""}, (("empty", ""),)),
        ({"authorization": "Basic YTpi"}, (("authorization", "Basic YTpi"),)),
    ],
)
def test_headers_are_taken_in_lower_case_and_in_order(given_headers: Any, checked: Any) -> None:
    assert check_headers(given_headers) == checked


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a b",
        "a:b",
        ":path",
        "naïve",
        "a\nb",
        "a\n",
        "(comment)",
        "trace-bin",
        "Trace-BIN",
        "Content-Length",
        "content-type",
        "Transfer-Encoding",
        "Inference-Header-Content-Length",
        1,
        None,
        b"bytes",
    ],
)
def test_names_that_cannot_be_set_are_refused_without_the_value(name: Any) -> None:
    with pytest.raises(ConfigError, match="can't be set: no header name, or one that the client") as caught:
        check_headers({name: SECRET})
    assert repr(name) in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [f"{SECRET}\r\nx: y", f"{SECRET}\n", f"{SECRET}\x00", f"{SECRET}é", f"{SECRET}\x7f", f"{SECRET}\t"],
)
def test_values_that_cannot_travel_are_refused_and_not_shown(value: str) -> None:
    said = r"header 'X-Key' has a value that is not printable ASCII text \(value not shown\)"
    with pytest.raises(ConfigError, match=said) as caught:
        check_headers({"X-Key": value})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("value", [None, 1, SECRET.encode(), [SECRET]])
def test_values_of_other_types_are_refused_and_not_shown(value: Any) -> None:
    with pytest.raises(ConfigError, match="value not shown") as caught:
        check_headers({"x-key": value})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("headers", [[("x", SECRET)], SECRET, 1, {SECRET}])
def test_what_is_no_mapping_is_refused_and_not_shown(headers: Any) -> None:
    with pytest.raises(
        ConfigError, match=f"must map names to values, got {type(headers).__name__}"
    ) as caught:
        check_headers(headers)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("token", ["a", SECRET, "eyJ.abc_-~+/=="])
def test_a_token_becomes_a_bearer_header(token: str) -> None:
    assert bearer(token) == (("authorization", f"Bearer {token}"),)


@pytest.mark.parametrize(
    "token",
    ["", f"{SECRET} x", f" {SECRET}", f"{SECRET}\n", f"{SECRET}\t", f"{SECRET}é", None, 1, SECRET.encode()],
)
def test_what_is_no_token_is_refused_and_not_shown(token: Any) -> None:
    with pytest.raises(ConfigError, match=r"token must be a str of printable ASCII.*not shown") as caught:
        bearer(token)
    assert SECRET not in str(caught.value)


# Set by the client or by the protocol itself.
OWN = {
    "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "host",
    "inference-header-content-length", "te", "transfer-encoding",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted([*OWN, "grpc-timeout", "x-anything-bin"]))
def test_headers_of_the_client_itself_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"header '{name.upper()}' can't be set"):
        check_headers({name.upper(): "1"})


@given(
    st.dictionaries(
        st.text(TOKEN_CHARACTERS, min_size=1, max_size=20).filter(
            lambda name: not (name.lower().endswith("-bin") or name.lower() in OWN)
        ),
        st.text(VISIBLE, max_size=40),
    )
)
def test_every_token_with_visible_text_is_taken(headers: dict[str, str]) -> None:
    assert check_headers(headers) == tuple((name.lower(), value) for name, value in headers.items())


@given(st.text(max_size=30))
def test_a_value_is_taken_or_refused_without_a_trace(value: str) -> None:
    if set(value) <= set(VISIBLE):
        assert check_headers({"x-key": value}) == (("x-key", value),)
        return
    with pytest.raises(ConfigError, match="not printable") as caught:
        check_headers({"x-key": value})
    assert caught.value.args == (
        "header 'x-key' has a value that is not printable ASCII text (value not shown)",
    )
