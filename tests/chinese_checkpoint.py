"""A small encoder that reads Chinese, with random weights: what stands in for a pre-trained one in tests."""

from __future__ import annotations

import string
from collections.abc import Iterable
from pathlib import Path

_MARKS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_chinese_checkpoint(folder: Path, texts: Iterable[str]) -> Path:
    """Write a RoFormer whose vocabulary are the characters of ``texts``.

    As for Google's Chinese BERT, a Chinese character is a word, and Latin words and numbers are of pieces.
    A RoFormer is a BERT with rotary positions, which see neighbours from the start: from random weights it
    learns from a thousand sentences what a BERT did not.
    """
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import PreTrainedTokenizerFast, RoFormerConfig, RoFormerModel

    torch.manual_seed(0)
    alphabet = [*string.ascii_lowercase, *string.digits]
    characters = {character for text in texts for character in text.lower() if not character.isspace()}
    vocabulary = [*_MARKS, *alphabet, *(f"##{c}" for c in alphabet), *sorted(characters - {*alphabet})]
    backend = BertWordPieceTokenizer({token: index for index, token in enumerate(vocabulary)}, lowercase=True)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend._tokenizer, **dict(zip(names, _MARKS, strict=True))
    )
    config = RoFormerConfig(
        vocab_size=len(vocabulary),
        embedding_size=128,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=128,
        initializer_range=0.05,
    )
    RoFormerModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
