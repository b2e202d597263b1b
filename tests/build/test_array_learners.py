"""Models of rows and images before they are trained, and what is refused then."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from mooring import CheckpointError, DataError
from mooring_build.datasets import Dataset
from mooring_build.examples import LabelledRow
from mooring_build.export import export_torchscript
from mooring_build.image_data import LabelledImages
from mooring_build.learners import learner_of
from mooring_build.learners.image import PreparedImages
from mooring_build.learners.tabular import DenseClassifier, DenseConfig
from mooring_build.recipe import Recipe, load_recipe

ROWS = [LabelledRow((1.0, 10.0, 5.0), "a"), LabelledRow((3.0, 30.0, 5.0), "b")]
TABLE = Dataset(train=ROWS, evaluation=ROWS, labels=["a", "b"], digest="")


def tabular(*more: str) -> Recipe:
    return load_recipe("tabular", ["features.count=3", *more])


def new_dense() -> DenseClassifier:
    model = learner_of("tabular-classification").lesson(tabular(), None, TABLE).model
    assert isinstance(model, DenseClassifier)
    return model


def test_a_dense_classifier_standardises_what_it_was_trained_on() -> None:
    model = new_dense()
    assert model.mean.tolist() == [2.0, 20.0, 5.0]
    # A feature that never changes is only shifted.
    assert model.scale.tolist() == [1.0, 10.0, 1.0]
    features = torch.tensor([[4.0, 0.0, 6.0]])
    standardised = torch.tensor([[2.0, -2.0, 1.0]])
    hidden = (standardised @ model.hidden.weight.T + model.hidden.bias).clamp(min=0)
    expected = hidden @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(model(features).logits, expected)
    loss = model(features, labels=torch.tensor([1])).loss
    torch.testing.assert_close(loss, -expected.log_softmax(-1)[0, 1])


def test_a_feature_that_never_changes_is_not_scaled_by_rounding() -> None:
    # The mean of as many 0.1 is not 0.1, so that their deviation is 2.7e-15.
    rows = [LabelledRow((0.1, float(index), 5.0), "ab"[index % 2]) for index in range(1437)]
    table = Dataset(train=rows, evaluation=ROWS, labels=["a", "b"], digest="")
    scale = learner_of("tabular-classification").lesson(tabular(), None, table).model.scale.tolist()
    assert scale == [1.0, pytest.approx(414.8, abs=0.1), 1.0]


def test_a_dense_classifier_is_saved_whole(tmp_path: Path) -> None:
    model = new_dense()
    model.save_pretrained(tmp_path)
    loaded = learner_of("tabular-classification").exportable(tabular(), tmp_path).module.model
    assert isinstance(loaded.config, DenseConfig)
    assert (loaded.config.num_features, loaded.config.id2label) == (3, {0: "a", 1: "b"})
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=0, atol=0)
    again = learner_of("tabular-classification").lesson(tabular(), tmp_path, TABLE).model
    torch.testing.assert_close(again.mean, model.mean, rtol=0, atol=0)


def test_a_full_disk_is_an_error_of_python(tmp_path: Path) -> None:
    new_dense().save_pretrained(tmp_path)
    exportable = learner_of("tabular-classification").exportable(tabular(), tmp_path)
    with pytest.raises(OSError, match="No space left on device"):
        export_torchscript(exportable, tabular(), Path("/dev/full"))


def test_a_dense_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    learner = learner_of("tabular-classification")
    new_dense().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"takes 3 features, the recipe says 4 \(features.count\)"):
        learner.exportable(tabular("features.count=4"), tmp_path)
    other = Dataset(train=ROWS, evaluation=ROWS, labels=["b", "a"], digest="")
    with pytest.raises(CheckpointError, match=r"has labels \['a', 'b'\], the data has \['b', 'a'\]"):
        learner.lesson(tabular(), tmp_path, other)
    weights = load_file(tmp_path / "model.safetensors")
    broken = {**weights, "scale": np.full(3, np.nan, np.float32)}
    save_file(broken, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="weight 'scale' holds NaN or infinity"):
        learner.exportable(tabular(), tmp_path)
    del weights["classifier.bias"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"its weights lack classifier.bias\."):
        learner.exportable(tabular(), tmp_path)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ('{ model_type = "bert" }', "base.config.model_type 'bert': a tabular model is a 'mooring_dense'"),
        ('{ model_type = "mooring_dense", hidden_size = "wide" }', "base.config .*hidden_size.*wide"),
    ],
)
def test_a_dense_config_that_can_not_be(config: str, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        learner_of("tabular-classification").lesson(tabular(f"base.config={config}"), None, TABLE)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


PICTURES = np.random.default_rng(3).integers(0, 256, (6, 28, 28), dtype=np.uint8)
LABELS = ["a", "b"]
EXAMPLES = LabelledImages(PICTURES, ["a", "b"] * 3)
IMAGES = Dataset(train=EXAMPLES, evaluation=EXAMPLES, labels=LABELS, digest="")


def test_training_prepares_images_as_the_server_does() -> None:
    image = load_recipe("image").image
    prepared = PreparedImages(EXAMPLES, image, LABELS)
    files = PreparedImages(LabelledImages([png(one) for one in PICTURES], ["a", "b"] * 3), image, LABELS)
    assert len(prepared) == 6
    for index, picture in enumerate(PICTURES):
        expected = (picture.astype(np.float32) / np.float32(255) - np.float32(0.29)) / np.float32(0.35)
        for one in (prepared[index], files[index]):
            np.testing.assert_array_equal(one["pixel_values"], expected[None])
            assert one["labels"] == index % 2


def test_only_training_images_are_moved_and_mirrored() -> None:
    plain = load_recipe("image", ["image.shift=0", "image.flip=false"]).image
    moved = load_recipe("image", ["image.shift=2", "image.flip=true"]).image
    still = PreparedImages(EXAMPLES, plain, LABELS)[0]["pixel_values"]
    np.testing.assert_array_equal(PreparedImages(EXAMPLES, moved, LABELS)[0]["pixel_values"], still)
    np.testing.assert_array_equal(
        PreparedImages(EXAMPLES, plain, LABELS, varied=True)[0]["pixel_values"], still
    )
    padded = np.pad(still, ((0, 0), (2, 2), (2, 2)), mode="edge")
    windows = {
        padded[:, down : down + 28, right : right + 28].tobytes(): (down, right)
        for down in range(5)
        for right in range(5)
    }
    mirrored = {
        np.pad(still[:, :, ::-1], ((0, 0), (2, 2), (2, 2)), mode="edge")[
            :, down : down + 28, right : right + 28
        ].tobytes()
        for down in range(5)
        for right in range(5)
    }
    torch.manual_seed(0)
    varied = PreparedImages(EXAMPLES, moved, LABELS, varied=True)
    seen = [varied[0]["pixel_values"].tobytes() for _ in range(300)]
    assert set(seen) <= set(windows) | mirrored
    assert 100 < sum(one in windows for one in seen) < 200
    assert {windows[one] for one in seen if one in windows} == set(windows.values())
    torch.manual_seed(0)
    assert [varied[0]["pixel_values"].tobytes() for _ in range(300)] == seen


def test_an_image_that_can_not_be_decoded_is_found() -> None:
    broken = LabelledImages([png(PICTURES[0]), png(PICTURES[0])[:50]], ["a", "b"])
    prepared = PreparedImages(broken, load_recipe("image").image, LABELS)
    with pytest.raises(DataError, match=r"^image 1 is damaged or cut off: .* \(its label is 'b'\)$"):
        prepared[1]


def test_a_new_image_model_is_of_the_recipes_shape() -> None:
    recipe = load_recipe("image", ["image.channels=3", "image.size=40"])
    model = learner_of("image-classification").lesson(recipe, None, IMAGES).model
    assert (model.config.num_channels, model.config.id2label) == (3, {0: "a", 1: "b"})
    with torch.inference_mode():
        assert model(pixel_values=torch.zeros(2, 3, 40, 40)).logits.shape == (2, 2)


_SMALL_VIT = (
    'base.config={model_type="vit", image_size=32, hidden_size=8, num_attention_heads=1, num_hidden_layers=1}'
)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["base.config.model_type=nothing"], "base.config .*nothing"),
        (["base.config.layer_type=odd"], "base.config .*layer_type"),
        (["base.config.model_type=bert"], "base.config .*BertConfig"),
        (["base.config.num_channels=3"], "does not take images of image.size 28 and image.channels 1: "),
        (
            [_SMALL_VIT],
            "the vit model does not take images of image.size 28",
        ),
    ],
)
def test_an_image_model_that_does_not_fit(overrides: list[str], complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        learner_of("image-classification").lesson(load_recipe("image", overrides), None, IMAGES)


_OWN = {"image_mean": [0.29], "image_std": [0.35]}


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"size": 28, **_OWN}, []),
        ({"size": {"height": 28, "width": 28}, "image_mean": 0.29, "image_std": [0.35]}, []),
        ({"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 28, **_OWN}, []),
        ({"image_processor_type": "ViTImageProcessor"}, []),
        (
            {"size": {"shortest_edge": 32}, "do_center_crop": False, "crop_size": 28, **_OWN},
            ["image.size=32"],
        ),
        ({"size": 28, "image_mean": [0.5], "image_std": [0.35]}, ["image.mean=[0.5]"]),
        ({"size": 28, **_OWN, "include_top": True}, ["image.std=[0.1225]"]),
        ({"size": 28, **_OWN, "include_top": False}, []),
        (
            {"size": 24, "do_normalize": False, **_OWN},
            ["image.size=24", "image.mean=[0.0]", "image.std=[1.0]"],
        ),
    ],
)
def test_a_checkpoint_says_how_its_images_are_prepared(
    config: dict[str, object], options: list[str], tmp_path: Path
) -> None:
    learner, recipe = learner_of("image-classification"), load_recipe("image")
    learner.lesson(recipe, None, IMAGES).model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    if options:
        words = [f"--set '{option}'" if "[" in option else f"--set {option}" for option in options]
        said = rf"preprocessor_config\.json says \{{.*{re.escape('Add ' + ' '.join(words) + ', or remove')}"
        with pytest.raises(CheckpointError, match=said):
            learner.exportable(recipe, tmp_path)
        with pytest.raises(CheckpointError, match=said):
            learner.lesson(recipe, tmp_path, IMAGES, fine_tuned=True)
    learner.exportable(load_recipe("image", options), tmp_path)
    # A base is trained anew, with what the recipe says.
    learner.lesson(recipe, tmp_path, IMAGES)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "preprocessor_config.json can't be read: JSONDecodeError"),
        ('{"size": {"height": 28, "width": 32}}', "size .* is no square"),
        ('{"size": [28]}', "can't be read: TypeError"),
        ('{"do_flip_channel_order": true}', "takes other values than red, green and blue from 0 to 1"),
        ('{"do_rescale": false}', "takes other values than"),
        ('{"rescale_factor": 0.00784313725490196}', "takes other values than"),
    ],
)
def test_a_preparation_that_can_not_be(content: str, complaint: str, tmp_path: Path) -> None:
    learner, recipe = learner_of("image-classification"), load_recipe("image")
    learner.lesson(recipe, None, IMAGES).model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=complaint):
        learner.exportable(recipe, tmp_path)


def test_a_checkpoint_gets_a_new_head_for_other_labels(tmp_path: Path) -> None:
    learner = learner_of("image-classification")
    recipe = load_recipe("image")
    first = learner.lesson(recipe, None, IMAGES).model
    first.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "a", "1": "b"}
    three = Dataset(train=EXAMPLES, evaluation=EXAMPLES, labels=["a", "b", "c"], digest="")
    second = learner.lesson(recipe, tmp_path, three).model
    assert second.config.id2label == {0: "a", 1: "b", 2: "c"}
    kept = first.base_model.state_dict()
    assert kept
    for name, tensor in second.base_model.state_dict().items():
        torch.testing.assert_close(tensor, kept[name], rtol=0, atol=0)
