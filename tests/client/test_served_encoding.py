"""Texts to token ids: limits, padding, errors, and offsets into any text."""

from __future__ import annotations

import dataclasses
import itertools
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from mooring._served.encoding import EncodedTexts, EncodingSettings, TextEncoder
from mooring._served.texts import TextError, decode_texts
from tiny_release import VOCABULARY, make_tokenizer

SETTINGS = EncodingSettings(
    task="token-classification", max_length=12, truncation=False, padded_lengths=[], pad_token_id=0
)


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))[0]


@pytest.fixture(scope="module")
def encoder(tokenizer_file: Path) -> TextEncoder:
    return TextEncoder(Tokenizer.from_file(str(tokenizer_file)), SETTINGS)


def _encoder(tokenizer_file: Path, **changes: object) -> TextEncoder:
    return TextEncoder(
        Tokenizer.from_file(str(tokenizer_file)),
        dataclasses.replace(SETTINGS, **changes),  # type: ignore[arg-type]
    )


def _arrays(result: EncodedTexts | TextError) -> EncodedTexts:
    assert isinstance(result, EncodedTexts), result
    return result


def test_rows_hold_ids_mask_and_words(encoder: TextEncoder) -> None:
    encoded = encoder.encode(["Anna visits Yorks", "Porto"])
    ids = [VOCABULARY.index(token) for token in ("[CLS]", "anna", "visits", "york", "##s", "[SEP]")]
    assert encoded.input_ids.tolist() == [ids, [ids[0], VOCABULARY.index("porto"), ids[-1], 0, 0, 0]]
    assert encoded.attention_mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    nothing = [-1, -1]
    assert encoded.words is not None
    # The last word is of two tokens.
    assert encoded.words.tolist() == [
        [nothing, [0, 4], [5, 11], [12, 17], nothing, nothing],
        [nothing, [0, 5], nothing, nothing, nothing, nothing],
    ]
    assert [array.dtype for array in vars(encoded).values()] == [np.int64, np.int64, np.int32]


def test_text_classification_gets_ids_alone(tokenizer_file: Path, encoder: TextEncoder) -> None:
    texts = ["Anna visits Yorks", "Porto"]
    encoded = _encoder(tokenizer_file, task="text-classification").encode(texts)
    assert encoded.words is None
    assert np.array_equal(encoded.input_ids, encoder.encode(texts).input_ids)


def test_padding_and_truncation_of_the_file_are_not_used(encoder: TextEncoder) -> None:
    assert encoder.encode(["my card is where my card is"]).input_ids.shape == (1, 9)


def test_padding_id_comes_from_the_settings(tokenizer_file: Path) -> None:
    encoded = _encoder(tokenizer_file, pad_token_id=9).encode(["anna", "anna smith"])
    assert encoded.input_ids[0, 3] == 9


@pytest.mark.parametrize(
    ("lengths", "width"), [([], 5), ([5, 12], 5), ([4, 8, 12], 8), ([4, 12], 12), ([4], 5)]
)
def test_rows_are_padded_to_the_first_length_that_is_long_enough(
    tokenizer_file: Path, lengths: list[int], width: int
) -> None:
    encoded = _encoder(tokenizer_file, padded_lengths=lengths).encode(["anna smith visits"])
    assert encoded.input_ids.shape == (1, width)
    assert encoded.attention_mask.sum() == 5


def test_the_limit_counts_special_tokens(tokenizer_file: Path) -> None:
    encoder = _encoder(tokenizer_file, max_length=5)
    assert encoder.encode(["anna smith visits"]).input_ids.shape == (1, 5)
    with pytest.raises(TextError) as refused:
        encoder.encode(["anna", "anna smith visits porto"])
    assert str(refused.value) == (
        "text 1 has 6 tokens, this model takes at most 5: shorten it, or build with text.truncation = true"
    )


def test_truncation_cuts_off_what_is_over(tokenizer_file: Path) -> None:
    encoded = _encoder(tokenizer_file, max_length=5, truncation=True).encode(["anna " * 500])
    last = VOCABULARY.index("[SEP]")
    assert encoded.input_ids.shape == (1, 5)
    assert encoded.input_ids[0, -1] == last


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([b"anna", b""], "text 1 is empty"),
        ([b"\n \t"], "text 0 is empty: it has only white space"),
        ([" \u3000".encode()], "text 0 is empty: it has only white space"),
        ([b"anna", b"ann\xff"], "text 1 is not valid UTF-8 (byte 3)"),
        ([b"\xed\xa0\x80"], "text 0 is not valid UTF-8 (byte 0)"),
        (["\u0301\u200d".encode()], "text 0 has no tokens: the tokenizer drops every character of it"),
        ([b"anna", b"\0\0"], "text 1 has no tokens: the tokenizer drops every character of it"),
        ([b"anna " * 20_001], "text 0 has 100,005 characters, at most 100,000 are taken: cut it up"),
    ],
)
def test_an_unusable_text_is_named(encoder: TextEncoder, raw: list[bytes], message: str) -> None:
    (result,) = encoder.encode_requests([raw])
    assert isinstance(result, TextError)
    assert str(result) == message


def test_requests_keep_their_own_padding_and_their_own_errors(encoder: TextEncoder) -> None:
    requests = [[b"anna", b"my card"], [b"", b"anna"], [b"anna " * 20], [b"anna smith visits porto"]]
    first, empty, long, last = encoder.encode_requests(requests)
    assert _arrays(first).input_ids.shape == (2, 4)
    assert str(empty) == "text 0 is empty"
    assert str(long).startswith("text 0 has 22 tokens, this model takes at most 12")
    assert _arrays(last).input_ids.shape == (1, 6)
    for result, request in ((first, requests[0]), (last, requests[3])):
        alone = encoder.encode(decode_texts(request))
        for name, array in vars(_arrays(result)).items():
            assert np.array_equal(array, getattr(alone, name)), name


def test_all_requests_may_fail(encoder: TextEncoder) -> None:
    assert [str(result) for result in encoder.encode_requests([[b""], [b" "]])] == [
        "text 0 is empty",
        "text 0 is empty: it has only white space",
    ]


def test_an_encoder_loads_from_a_version_folder(tokenizer_file: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    (tmp_path / "settings.json").write_text(json.dumps({**vars(SETTINGS), "max_length": 4}))
    with pytest.raises(TextError, match="has 5 tokens, this model takes at most 4"):
        TextEncoder.load(tmp_path).encode(["anna smith visits"])


@settings(deadline=None)
@given(text=st.text(min_size=1, max_size=60))
def test_words_are_characters_of_the_original_text(tokenizer_file: Path, text: str) -> None:
    encoder = _encoder(tokenizer_file, max_length=400)
    (result,) = encoder.encode_requests([[text.encode()]])
    if isinstance(result, TextError):
        assert "is empty" in str(result) or "has no tokens" in str(result)
        return
    assert result.words is not None
    ids, words = result.input_ids[0].tolist(), result.words[0].tolist()
    first = [place for place, (start, _) in enumerate(words) if start >= 0]
    assert first[0] == 1
    end = 0
    for place, following in itertools.pairwise([*first, len(ids) - 1]):
        start, stop = words[place]
        assert end <= start < stop <= len(text)
        assert words[place + 1 : following] == [[-1, -1]] * (following - place - 1)
        end = stop
        token = "".join(VOCABULARY[token_id].removeprefix("##") for token_id in ids[place:following])
        if "[UNK]" not in token:
            plain = unicodedata.normalize("NFD", text[start:stop].lower())
            assert token == "".join(c for c in plain if unicodedata.category(c)[0] not in "MC")


def _pieces() -> models.WordPiece:
    """A model that takes the longest piece that it knows."""
    words = [
        "Paris",
        "Köln",
        "Anna",
        "O",
        "Brien",
        "北",
        "京",
        "是",
        "中国",
        "กรุง",
        "เทพ",
        "re\u0301",
        "sume\u0301",
    ]
    pieces = [*words, *"▁(),.'/\"«»", *(f"▁{word}" for word in words), "▁(", '▁"']
    names = {piece: index for index, piece in enumerate(["<unk>", *pieces])}
    return models.WordPiece(names, unk_token="<unk>", continuing_subword_prefix="")


def _metaspace() -> Tokenizer:
    """As XLM-R's: white space alone parts words."""
    backend = Tokenizer(_pieces())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    return backend


def _one_word() -> Tokenizer:
    """As Gemma's: nothing parts words."""
    backend = Tokenizer(_pieces())
    backend.normalizer = normalizers.Replace(Regex(" "), "▁")
    return backend


@pytest.mark.parametrize("made", [_metaspace, _one_word], ids=["metaspace", "one word"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Anna (Paris)", ["Anna", "(", "Paris", ")"]),
        ('«Köln», "Paris".', ["«", "Köln", "»", ",", '"', "Paris", '"', "."]),
        ("Paris/Köln O'Brien", ["Paris", "/", "Köln", "O", "'", "Brien"]),
        ("北京是中国", ["北", "京", "是", "中国"]),
        ("กรุงเทพ", ["กรุง", "เทพ"]),
        ("AnnaBrien", ["AnnaBrien"]),
        ("re\u0301sume\u0301", ["re\u0301sume\u0301"]),
    ],
)
def test_words_are_parted_whatever_the_tokenizer_parts(
    made: Callable[[], Tokenizer], text: str, words: list[str]
) -> None:
    encoded = TextEncoder(made(), dataclasses.replace(SETTINGS, max_length=40)).encode([text, "Anna"])
    assert encoded.words is not None
    spans = encoded.words[0][encoded.words[0, :, 0] >= 0]
    assert [text[start:end].strip() for start, end in spans] == words


def test_bytes_of_one_character_are_one_word() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoded = TextEncoder(backend, dataclasses.replace(SETTINGS, max_length=40)).encode(["京是"])
    assert encoded.words is not None
    assert [span for span in encoded.words[0].tolist() if span[0] >= 0] == [[0, 1], [1, 2]]
