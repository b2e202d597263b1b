"""The entry points as Triton would load them: from version folders, with a stand-in for Triton."""

from __future__ import annotations

import importlib
import io
import json
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mooring_build.recipe import Recipe, load_recipe
from mooring_build.release import Release, version_files
from tiny_release import LABELS, make_release, padded_recipe


@dataclass
class _Tensor:
    name: str
    array: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.array


@dataclass
class _TritonError:
    message: str
    code: int
    INVALID_ARG = 3


@dataclass
class _Response:
    output_tensors: list[_Tensor] = field(default_factory=list)
    error: _TritonError | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        assert self.error is None, self.error
        return {tensor.name: tensor.array for tensor in self.output_tensors}


class _Request(dict[str, _Tensor]):
    """A request's inputs by name, and the outputs that it asks for."""

    outputs: tuple[str, ...] = ()

    def requested_output_names(self) -> list[str]:
        return list(self.outputs)


def _request(*outputs: str, **arrays: Any) -> _Request:
    request = _Request({name: _Tensor(name, np.asarray(array)) for name, array in arrays.items()})
    request.outputs = outputs
    return request


def _texts(*texts: bytes) -> np.ndarray:
    return np.array([[text] for text in texts], dtype=object)


Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Write a part's version folder and load its model as Triton does: package ``1``, module ``model``."""
    triton = types.ModuleType("triton_python_backend_utils")
    vars(triton).update(
        Tensor=_Tensor,
        InferenceResponse=_Response,
        TritonError=_TritonError,
        get_input_tensor_by_name=lambda request, name: request[name],
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", triton)

    def load_model(recipe: Recipe, part: str, release: Release | None = None) -> Any:
        release = release or make_release(tmp_path / "files", recipe)
        files = version_files(recipe, release)[f"{recipe.name}_{part}"]
        folder = tmp_path / "model"
        (folder / "1").mkdir(parents=True)
        for name, source in files.items():
            content = source.read_bytes() if isinstance(source, Path) else source.encode()
            (folder / "1" / name).write_bytes(content)
        monkeypatch.syspath_prepend(str(folder))
        model = importlib.import_module("1.model").TritonPythonModel()
        model.initialize({"model_repository": str(folder), "model_version": "1"})
        return model

    yield load_model
    for name in [name for name in sys.modules if name == "1" or name.startswith("1.")]:
        del sys.modules[name]


@pytest.fixture
def ner() -> Recipe:
    return padded_recipe("ner", ["labels=" + str(LABELS["token-classification"])])


@pytest.fixture
def intent() -> Recipe:
    return padded_recipe("intent", ["text.top_k=2"])


def test_the_tokenizer_answers_each_request(load: Load, ner: Recipe) -> None:
    model = load(ner, "tokenizer")
    tokens = ("input_ids", "attention_mask", "words")
    good, bad = model.execute(
        [_request(*tokens, text=_texts(b"Anna visits Porto")), _request(*tokens, text=_texts(b"a", b""))]
    )
    arrays = good.arrays()
    assert {name: (array.dtype, array.shape) for name, array in arrays.items()} == {
        "input_ids": (np.int64, (1, 8)),
        "attention_mask": (np.int64, (1, 8)),
        "words": (np.int32, (1, 8, 2)),
    }
    assert bad.error == _TritonError("text 1 is empty", _TritonError.INVALID_ARG)
    assert bad.output_tensors == []


def test_the_tokenizer_of_a_text_classifier_has_two_outputs(load: Load, intent: Recipe) -> None:
    request = _request("input_ids", "attention_mask", text=_texts(b"where is my card"))
    (response,) = load(intent, "tokenizer").execute([request])
    assert sorted(response.arrays()) == ["attention_mask", "input_ids"]


def test_the_tokenizer_gives_its_files_to_requests_that_name_them(
    load: Load, ner: Recipe, tmp_path: Path
) -> None:
    model = load(ner, "tokenizer")
    folder = tmp_path / "model" / "1"
    both, one, refused = model.execute(
        [
            # No token is asked for, so it does not matter that the texts are unusable.
            _request("tokenizer", "settings", text=_texts(b"", b"\xff")),
            _request("settings", "input_ids", text=_texts(b"Anna")),
            _request("settings", "input_ids", text=_texts(b"")),
        ]
    )
    assert {name: array.tolist() for name, array in both.arrays().items()} == {
        "tokenizer": [[(folder / "tokenizer.json").read_bytes()], [b""]],
        "settings": [[(folder / "settings.json").read_bytes()], [b""]],
    }
    assert one.arrays()["settings"].tolist() == [[(folder / "settings.json").read_bytes()]]
    assert "tokenizer" not in one.arrays()
    assert one.arrays()["input_ids"].shape == (1, 8)
    assert refused.error == _TritonError("text 0 is empty", _TritonError.INVALID_ARG)


def test_the_entity_postprocessor_answers_each_request(load: Load, ner: Recipe) -> None:
    model = load(ner, "postprocessor")
    logits = np.zeros((1, 3, 5), np.float32)
    logits[0, 1, 3] = 50
    tokens = {"words": [[[-1, -1], [3, 8], [-1, -1]]]}
    good, bad = model.execute(
        [
            _request(text=_texts(b"in Porto"), logits=logits, **tokens),
            _request(text=_texts(b"in Porto"), logits=logits[:, :2], **tokens),
        ]
    )
    assert {name: array.tolist() for name, array in good.arrays().items()} == {
        "label": [[b"LOC"]],
        "score": [[1.0]],
        "start": [[3]],
        "end": [[8]],
        "entity": [[b"Porto"]],
    }
    assert bad.error.code == _TritonError.INVALID_ARG
    assert "do not fit 1 text(s) and 5 labels" in bad.error.message


def test_entities_of_requests_of_any_shape_are_found_together(load: Load, ner: Recipe) -> None:
    model = load(ner, "postprocessor")

    def request(*texts: bytes, width: int, value: float = 50.0) -> _Request:
        # Each text's second token is a place, and its only word.
        logits = np.zeros((len(texts), width, 5), np.float32)
        logits[:, 1, 3] = value
        words = np.full((len(texts), width, 2), -1)
        words[:, 1] = [[0, len(text)] for text in texts]
        return _request(text=_texts(*texts), logits=logits, words=words)

    requests = [request(b"Porto", width=3), request(b"Lyon", b"Rome", width=9), request(b"Oslo", width=4)]
    found = [response.arrays()["entity"].tolist() for response in model.execute(requests)]
    assert found == [[[b"Porto"]], [[b"Lyon"], [b"Rome"]], [[b"Oslo"]]]
    # What no logit says is no answer, and its neighbours have theirs.
    first, broken, last = model.execute([requests[0], request(b"Bath", width=3, value=np.nan), requests[2]])
    assert broken.error == _TritonError("the logits of text 0 are not finite", _TritonError.INVALID_ARG)
    assert [one.arrays()["entity"].tolist() for one in (first, last)] == [[[b"Porto"]], [[b"Oslo"]]]
    assert model.execute([request(b"Bath", width=3, value=np.nan)])[0].error is not None


def test_labels_of_requests_of_any_size_are_ranked_together(load: Load, intent: Recipe) -> None:
    model = load(intent, "postprocessor")
    logits = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    alone = [model.execute([_request(logits=row[None])])[0].arrays() for row in logits]
    parts = [_request(logits=logits[:1]), _request(logits=logits[1:5]), _request(logits=logits[5:])]
    together = [response.arrays() for response in model.execute(parts)]
    for name in ("label", "score", "acceptance"):
        rows = np.concatenate([arrays[name] for arrays in together])
        assert rows.tolist() == np.concatenate([arrays[name] for arrays in alone]).tolist()


def test_the_classifier_postprocessor_answers_each_request(load: Load, intent: Recipe) -> None:
    model = load(intent, "postprocessor")
    logits = np.log(np.array([[0.1, 0.7, 0.2]], np.float32))
    good, bad = model.execute([_request(logits=logits), _request(logits=logits[:, :2])])
    arrays = good.arrays()
    assert arrays["label"].tolist() == [[b"balance", b"card"]]
    assert arrays["score"] == pytest.approx(np.array([[0.7, 0.2]]))
    # Its largest logit is below those of the texts in scope.
    assert arrays["acceptance"].tolist() == [[0.0]]
    assert bad.error == _TritonError("logits [1, 2] do not fit 3 labels", _TritonError.INVALID_ARG)


def test_a_classifier_that_knows_nothing_out_of_scope_says_nothing_of_it(
    load: Load, intent: Recipe, tmp_path: Path
) -> None:
    plain = padded_recipe("intent", fine_tuned=tmp_path)
    (response,) = load(plain, "postprocessor").execute([_request(logits=np.eye(1, 3, dtype=np.float32))])
    assert sorted(response.arrays()) == ["label", "score"]


def test_the_catalogue_answers_each_request(load: Load, tmp_path: Path) -> None:
    recipe = padded_recipe("faq", ["catalogue.top_k=2", "catalogue.dimension=2"])
    np.savez(
        tmp_path / "catalogue.npz",
        vectors=np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32),
        owners=np.array([0, 1, 2]),
    )
    release = make_release(tmp_path / "files", recipe, labels=["-"])
    names = {"items": ["a", "b", "c"], "answers": ["Ä", "B", "C"]}
    files = {"catalogue.npz": tmp_path / "catalogue.npz", "catalogue.json": json.dumps(names)}
    model = load(recipe, "catalogue", replace(release, step_files={"catalogue": files}))
    good, bad = model.execute(
        [
            _request(embedding=np.array([[1, 0], [0, 1]], np.float32)),
            _request(embedding=np.ones((1, 3), np.float32)),
        ]
    )
    arrays = good.arrays()
    assert arrays["item"].tolist() == [[b"a", b"c"], [b"b", b"c"]]
    assert arrays["answer"].tolist() == [["Ä".encode(), b"C"], [b"B", b"C"]]
    assert arrays["score"] == pytest.approx(np.array([[1, 0.6], [1, 0.8]]))
    assert bad.error.code == _TritonError.INVALID_ARG
    assert "embedding [1, 3] does not fit a catalogue of 2 values each" in bad.error.message


def test_the_reply_step_answers_each_request(load: Load) -> None:
    recipe = load_recipe("customer_service")
    replies = {
        "templates": {"cancel": {"text": "You cancel.\n{answer}", "needs_answer": True, "handover": False}},
        "answer": "Perhaps: {answer}",
        "handover": "Ein Mensch schaut nach ö.",
        "intents": ["cancel", "x"],
        "intent_threshold": 0.2,
        "answer_threshold": 0.5,
    }
    files = {"reply": {"replies.json": json.dumps(replies)}}
    release = Release(labels=[], engines={}, step_files=files, inputs_digest="a", facts={})
    two, one = load(recipe, "reply", release).execute(
        [
            _request(
                intent_labels=np.array([[b"cancel", b"x"], [b"cancel", b"x"]], object),
                intent_scores=np.array([[0.75, 0.25], [0.5, 0.5]], np.float32),
                acceptance=np.array([[0.5], [0.1]], np.float32),
                answer=np.array([[b"Press it.", b"Wait."]] * 2, object),
                item_score=np.array([[0.75, 0.5]] * 2, np.float32),
            ),
            _request(
                intent_labels=np.array([[b"cancel"]], object),
                intent_scores=np.array([[1]], np.float32),
                acceptance=np.array([[0.1]], np.float32),
                answer=np.array([[b"Press it."]], object),
                item_score=np.array([[0.25]], np.float32),
            ),
        ]
    )
    assert {name: array.tolist() for name, array in two.arrays().items()} == {
        "intent": [[b"cancel"], [b"cancel"]],
        "intent_score": [[0.75], [0.5]],
        "reply": [[b"You cancel.\nPress it."], [b"Perhaps: Press it."]],
        "handover": [[False], [False]],
    }
    assert one.arrays()["reply"].tolist() == [["Ein Mensch schaut nach ö.".encode()]]
    assert one.arrays()["handover"].tolist() == [[True]]
    assert one.arrays()["handover"].dtype == np.bool_


def test_the_decoder_answers_each_request(load: Load) -> None:
    model = load(load_recipe("image", ["image.size=8"]), "decoder")
    file = io.BytesIO()
    np.save(file, np.full((4, 4), 255, np.uint8))
    image = file.getvalue()
    good, bad = model.execute([_request(image=_texts(image, image)), _request(image=_texts(image, b"no"))])
    (pixels,) = good.arrays().values()
    assert (pixels.shape, pixels.dtype) == ((2, 1, 8, 8), np.float32)
    assert pixels == pytest.approx((1 - 0.29) / 0.35)
    assert bad.error.code == _TritonError.INVALID_ARG
    assert bad.error.message == "image 1 is none of JPEG, PNG and .npy: it starts with b'no'"


def test_the_classifier_postprocessor_refuses_what_is_not_finite(load: Load) -> None:
    model = load(load_recipe("tabular"), "postprocessor")
    good, bad = model.execute(
        [_request(logits=np.zeros((2, 2), np.float32)), _request(logits=np.float32([[0, 1], [np.nan, 0]]))]
    )
    assert good.arrays()["label"].tolist() == [[b"little", b"much"]] * 2
    assert bad.error == _TritonError(
        "the logits of row 1 are not finite: its input isn't, or is too large", _TritonError.INVALID_ARG
    )


def test_heads_refuse_what_is_not_finite(load: Load, tmp_path: Path) -> None:
    recipe = load_recipe("opinion_heads")
    width = sum(len(head.labels) for head in (recipe.heads or {}).values())
    model = load(recipe, "postprocessor", release=make_release(tmp_path / "heads", recipe, labels=["a"]))
    bad = np.zeros((2, width), np.float32)
    bad[1, -1] = np.inf
    good, refused = model.execute([_request(logits=np.zeros((1, width), np.float32)), _request(logits=bad)])
    assert good.error is None
    assert refused.error == _TritonError("the logits of row 1 are not finite", _TritonError.INVALID_ARG)
