"""Chinese: a character is a word; what is trained on is what is served; offsets count characters."""

# ruff: noqa: RUF001 - fullwidth characters are what this is about

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from chinese_checkpoint import make_chinese_checkpoint
from mooring import DataError
from mooring._served.encoding import EncodingSettings, TextEncoder
from mooring._served.entities import BioLabels
from mooring_build.data_files import read_conll
from mooring_build.datasets import load_dataset
from mooring_build.examples import TaggedSentence
from mooring_build.learners.text import IGNORED, encode_examples
from mooring_build.models import load_tokenizer
from mooring_build.real_data import zh_resume
from mooring_build.recipe import Recipe, load_recipe
from mooring_build.scoring import word_tags
from shared_data import shared_data

TEXT = "🎉小林（Ａｎｎ）１９８７年在IBM公司2019年任職，é。"
#: Spans of the text, in characters.
SPANS = [("PER", 1, 3), ("PER", 4, 7), ("ORG", 14, 19)]
LABELS = ["O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC"]


def sentence() -> TaggedSentence:
    tags = ["O"] * len(TEXT)
    for label, start, end in SPANS:
        tags[start:end] = [f"B-{label}", *[f"I-{label}"] * (end - start - 1)]
    return TaggedSentence(tuple(TEXT), tuple(tags), "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The emoji stays outside of the vocabulary.
    return make_chinese_checkpoint(tmp_path_factory.mktemp("chinese"), [TEXT[1:]])


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    settings = EncodingSettings(
        task="token-classification", max_length=128, truncation=False, padded_lengths=[], pad_token_id=0
    )
    return TextEncoder(Tokenizer.from_file(str(folder / "tokenizer.json")), settings)


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("ner_zh")


def test_the_shipped_recipe_names_the_hub_checkpoint_and_reads_its_characters(recipe: Recipe) -> None:
    assert recipe.base is not None
    assert recipe.base.checkpoint == "google-bert/bert-base-chinese"
    dataset = load_dataset(recipe)
    assert dataset.labels == LABELS
    assert len(dataset.train) > 100
    assert all(set(map(len, example.tokens)) == {1} for example in dataset.train)
    assert not any(" " in example.text for example in [*dataset.train, *dataset.evaluation])
    # Nothing that is evaluated was trained on.
    assert not {example.text for example in dataset.train} & {example.text for example in dataset.evaluation}


def test_training_sees_the_token_ids_that_the_server_makes(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast, encoder: TextEncoder
) -> None:
    (item,) = encode_examples([sentence()], tokenizer, recipe, LABELS)
    assert item["input_ids"] == encoder.encode([TEXT]).input_ids[0].tolist()


def test_a_piece_has_the_tag_of_the_character_it_begins_in(
    recipe: Recipe, tokenizer: PreTrainedTokenizerFast
) -> None:
    (item,) = encode_examples([sentence()], tokenizer, recipe, LABELS)
    pieces = tokenizer.convert_ids_to_tokens(item["input_ids"])
    found = [
        (piece, LABELS[label])
        for piece, label in zip(pieces, item["labels"], strict=True)
        if label not in (IGNORED, 0)
    ]
    assert found == [
        ("小", "B-PER"),
        ("林", "I-PER"),
        # A fullwidth word is in no vocabulary as a whole.
        ("[UNK]", "B-PER"),
        ("i", "B-ORG"),
        ("##b", "I-ORG"),
        ("##m", "I-ORG"),
        ("公", "I-ORG"),
        ("司", "I-ORG"),
    ]
    assert item["labels"][0] == item["labels"][-1] == IGNORED


def test_served_words_count_characters_of_the_text_as_it_came(encoder: TextEncoder) -> None:
    encoded = encoder.encode([TEXT])
    assert encoded.words is not None
    # The answer of a model that is never wrong.
    tags = sentence().tags
    logits = np.full((1, encoded.input_ids.shape[1], len(LABELS)), -10.0, np.float32)
    for place, (start, _) in enumerate(encoded.words[0]):
        logits[0, place, LABELS.index(tags[start]) if start >= 0 else 0] = 10.0
    (found,) = BioLabels(LABELS).decode([TEXT], logits, encoded.words)
    assert [(entity.label, entity.start, entity.end) for entity in found] == SPANS
    assert [TEXT[entity.start : entity.end] for entity in found] == ["小林", "Ａｎｎ", "IBM公司"]
    # The scorer of served models counts in the same way.
    assert word_tags(sentence(), found, LABELS) == list(tags)


def test_bmes_becomes_bio(tmp_path: Path) -> None:
    source = "林 B-NAME\n静 E-NAME\n， O\n院 S-TITLE\n\n长 M-ORG\n江 E-ORG\n口 E-ORG\n"
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.char.bmes").write_text(source, encoding="utf-8")
    files = zh_resume(tmp_path, tmp_path / "converted")
    assert set(files) == {"train", "development", "evaluation"}
    assert [(example.text, example.tags) for example in read_conll(files["train"], separator="")] == [
        ("林静，院", ("B-NAME", "I-NAME", "O", "B-TITLE")),
        # What continues nothing begins.
        ("长江口", ("B-ORG", "I-ORG", "B-ORG")),
    ]
    (tmp_path / "dev.char.bmes").write_text("林 X-NAME\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"dev\.char\.bmes:1: tag 'X-NAME' is none of O, B-"):
        zh_resume(tmp_path, tmp_path / "converted")


def test_the_resume_set_converts_whole(tmp_path: Path) -> None:
    files = zh_resume(shared_data("zh_resume_ner"), tmp_path)
    counts = {}
    for split, path in files.items():
        examples = read_conll(path, separator="")
        entities = sum(tag.startswith("B-") for example in examples for tag in example.tags)
        counts[split] = len(examples), entities
    # The two that begin without a B- are counted on top of SOURCE.txt's own numbers.
    assert counts["development"] == (463, 1497)
    assert counts["evaluation"] == (477, 1630)
    assert counts["train"][0] == 3821
    assert 13438 <= counts["train"][1] <= 13440
