"""Chinese from real data to answers: a small encoder trained from random weights, served and asked."""

# ruff: noqa: RUF001 - fullwidth characters are part of what is tested

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from chinese_checkpoint import make_chinese_checkpoint
from mooring import Client, TextClassifier, TokenClassifier
from mooring_build.building import build
from mooring_build.data_files import read_conll
from mooring_build.datasets import Dataset, load_dataset
from mooring_build.examples import TaggedSentence
from mooring_build.metrics import token_metrics
from mooring_build.real_data import zh_resume
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.repository import read_manifest
from mooring_build.scoring import word_tags
from mooring_serve import TritonServer
from shared_data import shared_data

pytestmark = pytest.mark.integration

_SMALL = [
    "training.learning_rate=1e-3",
    "training.batch_size=16",
    'export.formats=["onnx"]',
    "serving.mixed_lengths=padded",
]
#: Name, citizenship and post in the words of the data set, between what it has none of.
MIXED = "🎉ＯＫ！王建国先生，中国国籍，1963年出生，曾任ABC集团有限公司董事长。"


@dataclass(frozen=True)
class Trained:
    repository: Path
    dataset: Dataset
    titles: Dataset


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """``ner_zh`` and ``zh_titles`` from parts of the sets, which take half a minute of one core."""
    folder = tmp_path_factory.mktemp("chinese")
    return Trained(folder / "models", _train_entities(folder), _train_titles(folder))


def _train_entities(folder: Path) -> Dataset:
    """1200 of the resumes' 3821 sentences."""
    files = zh_resume(shared_data("zh_resume_ner"), folder / "whole")
    parts = {split: folder / f"{split}.conll" for split in ("train", "evaluation")}
    for split, count in (("train", 1200), ("evaluation", 150)):
        sentences = read_conll(files[split], separator="")
        # Longer ones would be refused.
        sentences = [sentence for sentence in sentences if len(sentence.tokens) < 120][:count]
        parts[split].write_text("\n\n".join(map(_columns, sentences)) + "\n", encoding="utf-8")
    types = ("NAME", "CONT", "RACE", "TITLE", "EDU", "ORG", "PRO", "LOC")
    recipe = load_recipe(
        "ner_zh",
        [
            *_SMALL,
            *(f"data.{split}={path}" for split, path in parts.items()),
            "training.epochs=5",
            f"base.checkpoint={folder / 'base'}",
            f"labels={['O', *(f'{place}-{name}' for name in types for place in 'BI')]}",
        ],
    )
    return _build(recipe, folder)


def _train_titles(folder: Path) -> Dataset:
    """1500 news titles, and 300 to evaluate on."""
    source = shared_data("zh_news_titles")
    names = (source / "class.txt").read_text(encoding="utf-8").split()
    files = {}
    for split, name, count in (("train", "dev.txt", 1500), ("evaluation", "test.txt", 300)):
        files[split] = folder / f"titles_{split}.csv"
        lines = (source / name).read_text(encoding="utf-8").splitlines()
        with files[split].open("w", encoding="utf-8", newline="") as file:
            # One of the files is sorted by topic.
            rows = [line.rsplit("\t", 1) for line in lines[:: len(lines) // count]]
            csv.writer(file).writerows(
                [("text", "label"), *((title, names[int(number)]) for title, number in rows)]
            )
    recipe = load_recipe(
        "topic",
        [
            *_SMALL,
            *(f"data.{split}={path}" for split, path in files.items()),
            "name=zh_titles",
            "training.epochs=4",
            f"base.checkpoint={folder / 'titles_base'}",
        ],
    )
    return _build(recipe, folder)


def _build(recipe: Recipe, folder: Path) -> Dataset:
    """Train, export and publish on a new encoder."""
    dataset = load_dataset(recipe)
    make_chinese_checkpoint(Path(recipe.base.checkpoint), [example.text for example in dataset.train])
    build(recipe, repository=folder / "models", artifacts=folder / "artifacts")
    return dataset


def _columns(sentence: TaggedSentence) -> str:
    return "\n".join(f"{token} {tag}" for token, tag in zip(sentence.tokens, sentence.tags, strict=True))


@pytest.fixture(scope="module")
def server(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with TritonServer(trained.repository, log_file=tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Client]:
    with Client(str(getattr(server, f"{request.param}_url"))) as opened:
        yield opened


def test_served_entities_are_as_good_as_the_trained_ones(trained: Trained, client: Client) -> None:
    task = client.task("ner_zh")
    assert isinstance(task, TokenClassifier)
    examples = trained.dataset.evaluation
    outcomes = list(task.map([example.text for example in examples]))
    assert [outcome.error for outcome in outcomes] == [None] * len(examples)
    chosen = [
        word_tags(example, outcome.value, trained.dataset.labels)
        for example, outcome in zip(examples, outcomes, strict=True)
    ]
    served = token_metrics([list(example.tags) for example in examples], chosen)
    known = read_manifest(trained.repository, "ner_zh", 1)["metrics"]
    assert served["entity_f1"] > 0.5
    # Apart from words of several characters, which count once there and a character at a time here.
    assert served["entity_f1"] == pytest.approx(known["entity_f1"], abs=0.02)


def test_offsets_count_characters_whatever_stands_before(client: Client) -> None:
    task = client.task("ner_zh")
    entities = {entity.text: entity for entity in task(MIXED)}
    for words, label in (("中国国籍", "CONT"), ("董事长", "TITLE")):
        start = MIXED.index(words)
        assert words in entities, list(entities)
        entity = entities[words]
        assert (entity.label, entity.start, entity.end) == (label, start, start + len(words))
    # In one request with a text of another length, and tokenized by the client, they are the same.
    local = client.task("ner_zh", tokenize="client")
    for answer in (task(["中国", MIXED])[1], local(MIXED)):
        assert [(found.label, found.start, found.end) for found in answer] == [
            (entity.label, entity.start, entity.end) for entity in entities.values()
        ]


def test_titles_are_classified_by_the_recipe_of_english_ones(trained: Trained, client: Client) -> None:
    task = client.task("zh_titles")
    assert isinstance(task, TextClassifier)
    known = read_manifest(trained.repository, "zh_titles", 1)["metrics"]
    # Ten topics of equal size.
    assert known["accuracy"] > 0.3
    examples = trained.titles.evaluation
    outcomes = list(task.map([example.text for example in examples]))
    right = [
        outcome.value[0].label == example.label for outcome, example in zip(outcomes, examples, strict=True)
    ]
    assert sum(right) / len(right) == pytest.approx(known["accuracy"], abs=0.005)
