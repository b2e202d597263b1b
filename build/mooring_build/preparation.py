"""What becomes of images and rows before the engine sees them, the same in training and in the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mooring._served.images
from mooring._served.images import ImageSettings
from mooring_build.digests import file_sha256
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import Image

_DECODER = Path(mooring._served.images.__file__)


def image_settings(image: Image) -> ImageSettings:
    """What the server's decoder needs of ``[image]``."""
    return ImageSettings(**{name: getattr(image, name) for name in ImageSettings.__dataclass_fields__})


def preparation(recipe: Recipe) -> dict[str, Any]:
    """What a model depends on of it, as JSON values; limits and the number of answers are left out."""
    if recipe.task == "image-classification":
        image = recipe.image.model_dump(exclude={"max_pixels", "max_bytes", "top_k"})
        return {"image": image, "decoder": file_sha256(_DECODER)}
    if recipe.task == "recommendation":
        return {"catalogue": recipe.catalogue.model_dump(include={"dimension", "max_history"})}
    if recipe.features is not None:
        return {"features": recipe.features.count}
    return {}
