"""Tags of words become labels of the pieces that the server will see."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mooring_build.examples import TaggedSentence
from mooring_build.learners.text import IGNORED, encode_examples
from mooring_build.recipe import load_recipe

LABELS = ["O", "B-PER", "I-PER"]
SENTENCE = TaggedSentence(("Anna", "Lind", "lives"), ("B-PER", "I-PER", "O"))
BYTE_LEVEL = ["Anna", "ĠL", "ind", "Ġlives", "L", "lives"]
METASPACE = ["▁Anna", "▁L", "ind", "▁", "lives"]


def tokenizer(pieces: list[str], backend: Tokenizer) -> PreTrainedTokenizerFast:
    vocabulary = ["<s>", "</s>", "<pad>", "<unk>", *pieces]
    # WordPiece without a prefix of its own takes the longest piece that fits, which is enough of a BPE here.
    backend.model = models.WordPiece(
        {piece: index for index, piece in enumerate(vocabulary)},
        unk_token="<unk>",
        continuing_subword_prefix="",
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def byte_level() -> PreTrainedTokenizerFast:
    """As RoBERTa's: a space belongs to the word after it, also in the offsets."""
    backend = Tokenizer(models.WordPiece({}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return tokenizer(BYTE_LEVEL, backend)


def metaspace() -> PreTrainedTokenizerFast:
    """As XLM-R's; the mark of a space may be a piece by itself."""
    backend = Tokenizer(models.WordPiece({}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer(METASPACE, backend)


@pytest.mark.parametrize(
    ("made", "pieces", "tags"),
    [
        (byte_level, BYTE_LEVEL[:4], ["B-PER", "I-PER", "I-PER", "O"]),
        (metaspace, METASPACE, ["B-PER", "I-PER", "I-PER", "O", "O"]),
    ],
    ids=["byte-level", "metaspace"],
)
def test_pieces_are_those_of_the_whole_text(made: object, pieces: list[str], tags: list[str]) -> None:
    one = made()  # type: ignore[operator]
    recipe = load_recipe("ner")
    (item,) = encode_examples([SENTENCE], one, recipe, LABELS)
    assert item["input_ids"] == one(SENTENCE.text).input_ids
    assert one.convert_ids_to_tokens(item["input_ids"]) == ["<s>", *pieces, "</s>"]
    assert item["labels"] == [IGNORED, *(LABELS.index(tag) for tag in tags), IGNORED]
    (scored,) = encode_examples([SENTENCE], one, recipe, LABELS, first_pieces_only=True)
    # One position a word counts.
    assert [label for label in scored["labels"] if label != IGNORED] == [1, 2, 0]


def test_white_space_at_the_end_belongs_to_the_last_token() -> None:
    # Of characters, one of which is a space; nothing stands between them.
    sentence = TaggedSentence(("L", "\u00a0"), ("B-PER", "I-PER"), separator="")
    backend = Tokenizer(models.WordPiece({}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("L", behavior="isolated")
    (item,) = encode_examples([sentence], tokenizer(["L", "\u00a0"], backend), load_recipe("ner"), LABELS)
    assert item["labels"] == [IGNORED, 1, 2, IGNORED]
