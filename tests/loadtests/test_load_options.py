from __future__ import annotations

import argparse

import pytest

from mooring_loadtests.options import add_options


def _parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(arguments)


def test_defaults_are_the_ports_of_a_local_server() -> None:
    options = _parse()
    assert (options.grpc_url, options.http_url) == ("grpc://127.0.0.1:8001", "http://127.0.0.1:8000")
    assert (options.model, options.load_profile, options.overrides) == ("ner", "smoke", [])
    assert (options.generators, options.results) == (1, None)


def test_values_are_taken_as_given() -> None:
    options = _parse(
        "--grpc-url", "grpcs://models:9", "--http-url", "http://models:8/triton", "--model", "intent",
        "--load-profile", "steady", "--set", "rate=5", "--set", "timeout_s=0.5", "--results", "r.json",
    )  # fmt: skip
    assert (options.grpc_url, options.http_url) == ("grpcs://models:9", "http://models:8/triton")
    assert (options.model, options.load_profile) == ("intent", "steady")
    assert options.overrides == ["rate=5", "timeout_s=0.5"]
    assert options.results == "r.json"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--grpc-url", "http://127.0.0.1:8001"), "does not begin with grpc://"),
        (("--http-url", "127.0.0.1:8000"), "does not begin with http://"),
        (("--grpc-url", "grpc://127.0.0.1"), "has no port"),
        (("--generators", "x"), "invalid int value: 'x'"),
    ],
)
def test_a_mistake_is_named(
    arguments: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        _parse(*arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
