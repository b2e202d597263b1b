"""What a type checker says of the typed calls. `make types` reads it; nothing here is run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_type

import numpy as np

from mooring import (
    AsyncClient,
    AsyncTextMultiClassifier,
    Client,
    CustomerService,
    CustomerServiceAnswer,
    Embedder,
    Entity,
    Label,
    Opinion,
    OpinionClassifier,
    RankedAnswer,
    RankedItem,
    Recommender,
    TabularClassifier,
    TextRanker,
    TokenClassifier,
)


def calls(client: Client) -> str:
    """One item gives one result, several give a list."""
    tag = client.task("ner", TokenClassifier)
    assert_type(tag("a text"), list[Entity])
    assert_type(tag(["a text", "another"]), list[list[Entity]])
    assert_type([outcome.unwrap() for outcome in tag.map(["a text"])], list[list[Entity]])
    assert_type(client.task("embed", Embedder)(["a text"]), np.ndarray)
    assert_type(client.task("rows", TabularClassifier)([1.0, 2.0]), list[Label])
    assert_type(client.task("faq", TextRanker)("a text"), list[RankedAnswer])
    assert_type(client.task("next", Recommender)(["book", "film"]), list[RankedItem])
    assert_type(client.task("next", Recommender)([["book"], ["film"]]), list[list[RankedItem]])
    assert_type(client.task("opinions", OpinionClassifier)("a text"), Opinion)
    assert_type(client.task("service", CustomerService)("a text"), CustomerServiceAnswer)
    # A model of any task is for the caller to know.
    label: str = client.task("intent")("a text")[0].label
    return label


async def awaited_calls(client: AsyncClient) -> dict[str, list[Label]]:
    """The same for coroutines."""
    task = await client.task("heads", AsyncTextMultiClassifier)
    return await task.only("topic")("a text")


def clients(headers: Mapping[str, str]) -> tuple[Client, ...]:
    """Headers are any mapping, as those of a call are, or what gives one."""
    return Client("grpc://h:1", headers=headers), Client("grpc://h:1", headers=lambda: headers)
