"""A BERT of a few thousand weights with a tokenizer of its own, made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

WORDS = [
    "anna",
    "works",
    "for",
    "brightwater",
    "in",
    "porto",
    "and",
    "lisbon",
    "the",
    "river",
    "is",
    "wide",
    "who",
    "pays",
    "my",
    "refund",
    "now",
]


def make_tiny_checkpoint(
    folder: Path, task: str, labels: Sequence[str], *, seed: int = 0, initializer_range: float = 0.5
) -> Path:
    """Write a randomly initialised checkpoint for ``task`` into ``folder``.

    The default ``initializer_range`` makes answers far apart, and rounding errors about ten times those of
    trained encoders, whose weights are nearer to 0.1.
    """
    import torch
    from tokenizers import BertWordPieceTokenizer
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        BertForTokenClassification,
        PreTrainedTokenizerFast,
    )

    torch.manual_seed(seed)
    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *letters,
        *(f"##{c}" for c in letters),
        *WORDS,
    ]
    backend = BertWordPieceTokenizer({token: index for index, token in enumerate(vocabulary)}, lowercase=True)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend._tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    model_class = (
        BertForTokenClassification if task == "token-classification" else BertForSequenceClassification
    )
    model = model_class(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            initializer_range=initializer_range,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
