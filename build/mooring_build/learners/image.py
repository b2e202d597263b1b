"""Image classification with transformers' own vision models."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedModel, default_data_collator

from mooring import CheckpointError, DataError
from mooring._served.images import ImageDecoder, ImageError
from mooring_build.datasets import Dataset
from mooring_build.examples import Example
from mooring_build.learners._learner import Case, Exportable, Learner, Lesson, verified_batches
from mooring_build.learners._one_label import label_scores
from mooring_build.models import load_base_model, load_fine_tuned_model
from mooring_build.preparation import image_settings
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import Image

_REAL_IMAGES = 64
#: Where transformers' image processors keep how they prepare images, and what is read of it.
_PROCESSOR_FILE = "preprocessor_config.json"
_PROCESSOR_KEYS = (
    "do_normalize",
    "image_mean",
    "image_std",
    "include_top",
    "size",
    "do_center_crop",
    "crop_size",
)


class LogitsOnly(torch.nn.Module):
    """A classifier whose ``forward`` takes one tensor by position and returns the logits alone."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixel_values).logits


class PreparedImages(torch.utils.data.Dataset):
    """Images as the engine takes them, each prepared when it is asked for.

    Args:
        examples: encoded files or arrays, each with its label.
        image: how images are prepared.
        labels: in the order of the logits.
        varied: whether images are moved and mirrored as ``image`` says, by PyTorch's random numbers.
    """

    def __init__(
        self, examples: Sequence[Example], image: Image, labels: Sequence[str], *, varied: bool = False
    ) -> None:
        self._examples = examples
        self._decoder = ImageDecoder(image_settings(image))
        self._ids = {label: index for index, label in enumerate(labels)}
        self._shift = image.shift if varied else 0
        self._flip = image.flip and varied

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        example = self._examples[index]
        content = example.image
        try:
            if isinstance(content, bytes):
                pixels = self._decoder.decode_one(content, f"image {index}")
            else:
                pixels = self._decoder.prepare(content)
        except ImageError as exc:
            raise DataError(f"{exc} (its label is {example.label!r})") from exc
        return {"pixel_values": self._varied(pixels), "labels": self._ids[example.label]}

    def _varied(self, pixels: np.ndarray) -> np.ndarray:
        """``[C, H, W]``, moved and mirrored; what comes in at an edge repeats the edge."""
        if self._flip and torch.rand(()) < 0.5:
            pixels = pixels[:, :, ::-1]
        if self._shift:
            width = self._shift
            down, right = torch.randint(0, 2 * width + 1, (2,)).tolist()
            _, height, breadth = pixels.shape
            padded = np.pad(pixels, ((0, 0), (width, width), (width, width)), mode="edge")
            pixels = padded[:, down : down + height, right : right + breadth]
        return np.ascontiguousarray(pixels)


class ImageClassificationLearner(Learner):
    """One label an image."""

    headline = "accuracy"

    def lesson(
        self, recipe: Recipe, folder: Path | None, dataset: Dataset, *, fine_tuned: bool = False
    ) -> Lesson:
        labels = dataset.labels
        if folder is None:
            model = _new(recipe, labels)
        elif fine_tuned:
            model = load_fine_tuned_model(folder, recipe.task)
            _check_preparation(recipe.image, folder)
        else:
            model, _ = load_base_model(folder, recipe.task, labels)
        _check_fit(recipe, model)
        return Lesson(
            model=model,
            train=PreparedImages(dataset.train, recipe.image, labels, varied=True),
            evaluation=PreparedImages(dataset.evaluation, recipe.image, labels),
            collator=default_data_collator,
            **label_scores(labels),
        )

    def exportable(self, recipe: Recipe, folder: Path) -> Exportable:
        model = load_fine_tuned_model(folder, recipe.task)
        _check_preparation(recipe.image, folder)
        _check_fit(recipe, model)
        image = recipe.image
        return Exportable(
            module=LogitsOnly(model).eval(),
            inputs=("pixel_values",),
            output="logits",
            sample=(torch.randn(2, image.channels, image.size, image.size),),
            axes=({0: torch.export.Dim("batch", min=1, max=1024)},),
            hub_model=model,
        )

    def cases(self, recipe: Recipe, exportable: Exportable, dataset: Dataset) -> Iterator[Case]:
        """Noise in batches of sizes that were not traced, and real images."""
        image = recipe.image
        random = np.random.default_rng(20)
        for batch in verified_batches(recipe):
            pixels = random.standard_normal((batch, image.channels, image.size, image.size), np.float32)
            yield Case(name=f"[{batch}] noise", inputs=(pixels,))
        images = PreparedImages(dataset.evaluation[:_REAL_IMAGES], image, dataset.labels)
        for start in range(0, len(images), 7):
            chosen = range(start, min(start + 7, len(images)))
            pixels = np.stack([images[index]["pixel_values"] for index in chosen])
            yield Case(name=f"[{len(pixels)}] real images", inputs=(pixels,))


def _new(recipe: Recipe, labels: Sequence[str]) -> PreTrainedModel:
    """A model of random weights as ``base.config`` describes it."""
    values = {"num_channels": recipe.image.channels, **recipe.base.config}
    try:
        config = AutoConfig.for_model(
            values.pop("model_type"),
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            **values,
        )
        return AutoModelForImageClassification.from_config(config)
    except Exception as exc:
        # transformers checks the values, each model in its own way.
        raise CheckpointError(f"base.config {recipe.base.config}: {exc}") from exc


def _check_fit(recipe: Recipe, model: PreTrainedModel) -> None:
    """Run the model once on an image of the recipe's shape: some take any size, some only their own."""
    image = recipe.image
    try:
        with torch.inference_mode():
            model.eval()(pixel_values=torch.zeros(1, image.channels, image.size, image.size))
    except Exception as exc:
        # Each model complains in its own way.
        raise CheckpointError(
            f"the {model.config.model_type} model does not take images of image.size {image.size} and "
            f"image.channels {image.channels}: {exc}"
        ) from exc


def _check_preparation(image: Image, folder: Path) -> None:
    """Refuse a checkpoint that says of itself that its images are prepared in another way."""
    path = folder / _PROCESSOR_FILE
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        wanted = _prepared_by(config)
        scale = float(config.get("rescale_factor") or 1 / 255)
        others = {name: value for name, value in wanted.items() if not _is_prepared_so(image, name, value)}
    except (AttributeError, TypeError, ValueError) as exc:
        raise CheckpointError(f"{path} can't be read: {exc!r}") from exc
    if config.get("do_flip_channel_order") or config.get("do_rescale") is False or not 254 < 1 / scale < 256:
        raise CheckpointError(
            f"{path}: the model takes other values than red, green and blue from 0 to 1, which Mooring "
            "gives it (do_flip_channel_order, do_rescale, rescale_factor)"
        )
    if others:
        says = json.dumps({key: config[key] for key in _PROCESSOR_KEYS if key in config})
        options = " ".join(
            f"--set 'image.{name}={value}'" if isinstance(value, list) else f"--set image.{name}={value}"
            for name, value in others.items()
        )
        raise CheckpointError(
            f"{path} says {says}, and the recipe's [image] prepares images otherwise: the answers would be "
            f"others. Add {options}, or remove the file if it is not true of the model"
        )


def _prepared_by(config: dict[str, Any]) -> dict[str, Any]:
    """``size``, ``mean`` and ``std`` as an image processor has them, as far as it says."""
    wanted: dict[str, Any] = {}
    size = (config.get("do_center_crop") and config.get("crop_size")) or config.get("size")
    if isinstance(size, dict):
        if size.get("height") != size.get("width"):
            raise ValueError(f"size {size} is no square, and images are scaled to no other shape")
        size = size.get("shortest_edge", size.get("height"))
    if size is not None:
        wanted["size"] = int(size)
    if config.get("do_normalize") is False:
        return wanted | {"mean": [0.0], "std": [1.0]}
    for name in ("mean", "std"):
        values = config.get(f"image_{name}")
        if values is not None:
            wanted[name] = [float(value) for value in (values if isinstance(values, list) else [values])]
    if config.get("include_top") and "std" in wanted:
        # EfficientNet's processor divides by it twice, and its checkpoints hold the root of what is meant.
        wanted["std"] = [round(value**2, 6) for value in wanted["std"]]
    return wanted


def _is_prepared_so(image: Image, name: str, value: Any) -> bool:
    own = getattr(image, name)
    if not isinstance(value, list):
        return bool(own == value)
    if len(value) not in (1, image.channels):
        return False
    return np.allclose(
        *(np.broadcast_to(values, image.channels) for values in (own, value)), rtol=0, atol=1e-4
    )
