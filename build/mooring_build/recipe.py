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
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from mooring import RecipeError
from mooring._toml_files import find_file, find_override
from mooring_build.recipe_tables import (
    Adapter,
    Audit,
    Base,
    Card,
    Catalogue,
    Data,
    Export,
    Features,
    Head,
    Image,
    Quality,
    Search,
    Service,
    Serving,
    Table,
    Text,
    Tracking,
    Training,
    Verify,
)

Task = Literal[
    "token-classification",
    "text-classification",
    "text-multi-classification",
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
#: Tasks whose engine takes the tokens of a text.
TEXT_TASKS = frozenset(
    {
        "token-classification",
        "text-classification",
        "text-multi-classification",
        "feature-extraction",
        "text-ranking",
    }
)
#: Tasks whose encoder may get low-rank adapters.
ADAPTER_TASKS: frozenset[Task] = frozenset({"text-classification", "token-classification"})
#: Tasks whose answers may be kept: one way to ask, all outputs, and no other release within.
_CACHED_TASKS = LABELLED_TASKS | {"feature-extraction", "text-ranking"}
#: Tasks that join the pipelines of other recipes and have no engine.
COMPOSED_TASKS = frozenset({"customer-service", "opinion-monitoring"})
#: Of each composed task, the parts that it joins and the task of each.
PART_TASKS: dict[str, dict[str, Task]] = {
    "customer-service": {"intent": "text-classification", "faq": "text-ranking"},
    "opinion-monitoring": {"topic": "text-classification", "sentiment": "text-classification"},
}
#: Data formats that a task reads.
_FORMATS: dict[str, tuple[str, ...]] = {
    "token-classification": ("conll", "hub"),
    "text-classification": ("csv", "hub"),
    "text-multi-classification": (),
    "feature-extraction": (),
    "text-ranking": ("csv", "hub"),
    "recommendation": ("events", "hub"),
    "image-classification": ("idx", "npz", "hub"),
    "tabular-classification": ("csv", "digits", "hub"),
    "customer-service": ("csv",),
    "opinion-monitoring": ("csv",),
}

# Overrides that name a file; a file or the split of a hub data set; a folder or something on the hub.
_FILE_KEYS = re.compile(r"(data|heads\.\w+)\.out_of_scope(_train)?|catalogue\.file|service\.replies")
_SPLIT_KEYS = re.compile(r"(data|heads\.\w+)\.(train|evaluation)")
_HUB_KEYS = re.compile(r"(data|heads\.\w+)\.dataset|base\.checkpoint")

_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")

# Tables without which a task can't be built.
_NEEDED: dict[str, frozenset[str]] = {
    "features": frozenset({"tabular-classification"}),
    "catalogue": frozenset({"text-ranking", "recommendation"}),
    "heads": frozenset({"text-multi-classification"}),
    "parts": COMPOSED_TASKS,
    "service": frozenset({"customer-service"}),
}
# What else goes through a pipeline of heads.
_TENSORS = frozenset({"text", "input_ids", "attention_mask", "logits"})
# Overrides after which a recipe's [card] is no longer true.
_OTHER_DATA = re.compile(r"(data|heads|(data|heads\.\w+)\.(train|dataset)|catalogue\.file)=")


class Recipe(Table):
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
    #: Without this table all weights are trained.
    adapter: Adapter | None = None
    search: Search = Search()
    tracking: Tracking = Tracking()
    text: Text = Text()
    image: Image = Image()
    features: Features | None = None
    catalogue: Catalogue | None = None
    #: ``[heads]``: classifications that share one frozen encoder, by name.
    heads: (
        Annotated[dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Head], Field(min_length=1)] | None
    ) = None
    service: Service | None = None
    #: ``[parts]``: the recipes that a composed task joins, by what they do for it.
    parts: dict[str, Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]] | None = None
    card: Card = Card()
    audit: Audit | None = None
    export: Export = Export()
    verify: Verify = Verify()
    quality: Quality = Quality()
    serving: Serving = Serving()
    _folder: Path = PrivateAttr(default_factory=Path)

    @field_validator("base")
    @classmethod
    def _base_is_there(cls, base: Base | None, info: ValidationInfo) -> Base | None:
        if base is None and info.data.get("task") not in COMPOSED_TASKS:
            raise ValueError("is missing")
        return base

    @model_validator(mode="after")
    def _data_fit_task(self) -> Recipe:
        if self.data is not None and self.data.format not in _FORMATS[self.task]:
            fitting = " or ".join(map(repr, _FORMATS[self.task])) or "none"
            raise ValueError(
                f"data.format {self.data.format!r} does not fit task {self.task!r}: {fitting} does"
            )
        for place, data in self._data_tables().items():
            _check_hub_keys(place, data)
        if self.task == "recommendation" and self.data is not None and self.data.evaluation is not None:
            raise ValueError(
                f"data.evaluation {self.data.evaluation!r}: of events each user's last event is held out"
            )
        if self.training is not None and not self._has_training_data():
            wanted = "data.train and data.evaluation"
            if self.heads is not None:
                wanted = "train and evaluation of each head"
            elif self.task == "recommendation":
                wanted = "data.train"
            raise ValueError(f"training needs {wanted}")
        if self.data is not None and self.data.out_of_scope is not None:
            if self.task != "text-classification":
                raise ValueError(f"data.out_of_scope is for text-classification, not for {self.task}")
            if self.data.evaluation is None:
                raise ValueError("data.out_of_scope needs data.evaluation")
        elif self.data is not None and self.data.out_of_scope_train is not None:
            raise ValueError("data.out_of_scope_train needs data.out_of_scope, which says what it is worth")
        return self

    @model_validator(mode="after")
    def _tables_fit_task(self) -> Recipe:
        for table, tasks in _NEEDED.items():
            if self.task in tasks and getattr(self, table) is None:
                raise ValueError(f"task {self.task!r} needs the table [{table}]")
            if self.task not in tasks and getattr(self, table) is not None and table != "parts":
                raise ValueError(f"{table}: task {self.task!r} has no such table")
        if self.task == "feature-extraction" and self.text.dimension is None:
            raise ValueError(f"task {self.task!r} needs text.dimension, the length of an embedding")
        if self.task == "recommendation" and self.catalogue is not None and self.catalogue.dimension % 2:
            raise ValueError(
                f"catalogue.dimension {self.catalogue.dimension}: must be even, as the users' attention has "
                "two heads"
            )
        if self.parts is not None and self.parts.keys() != PART_TASKS.get(self.task, {}).keys():
            raise ValueError(
                f"parts names {sorted(self.parts)}; task {self.task!r} joins "
                f"{sorted(PART_TASKS.get(self.task, {}))}"
            )
        taken = {f"{name}_score" for name in self.heads or {}} & (self.heads or {}).keys()
        if taken:
            raise ValueError(f"heads: {sorted(taken)} are what the scores of other heads are called")
        if taken := _TENSORS & (self.heads or {}).keys():
            raise ValueError(f"heads: {sorted(taken)} are what the pipeline's own tensors are called")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError("labels names a label twice")
        return self

    @model_validator(mode="after")
    def _options_fit_task(self) -> Recipe:
        if self.audit is not None and self.task not in ("text-classification", "token-classification"):
            raise ValueError(f"audit: answers of task {self.task!r} can't be compared")
        if self.adapter is not None and self.task not in ADAPTER_TASKS:
            raise ValueError(
                f"adapter: task {self.task!r} has none; these have: {', '.join(sorted(ADAPTER_TASKS))}"
            )
        if self.export.precision != "fp32" and self.task not in LABELLED_TASKS:
            raise ValueError(
                f"export.precision {self.export.precision!r}: task {self.task!r} is served in 'fp32' only"
            )
        smoothing = self.training.label_smoothing if self.training is not None else 0.0
        if smoothing and self.task not in LABELLED_TASKS:
            raise ValueError(
                f"training.label_smoothing {smoothing}: task {self.task!r} has a loss of its own"
            )
        if self.export.precision in ("fp16", "bf16") and self.serving.kind != "gpu":
            raise ValueError(
                f"export.precision {self.export.precision!r} needs serving.kind 'gpu': on a CPU it is slower "
                "than fp32"
            )
        if self.serving.mixed_lengths != "none" and self.task not in TEXT_TASKS:
            raise ValueError(
                f"serving.mixed_lengths {self.serving.mixed_lengths!r} is for texts, and the engine of task "
                f"{self.task!r} takes none"
            )
        if self.serving.max_batch_tokens and self.task not in TEXT_TASKS:
            raise ValueError(
                f"serving.max_batch_tokens {self.serving.max_batch_tokens}: the engine of task {self.task!r} "
                "takes no tokens"
            )
        if self.serving.response_cache and self.task not in _CACHED_TASKS:
            raise ValueError(
                f"serving.response_cache: task {self.task!r} would give wrong answers, as Triton takes "
                "requests of equal bytes for the same one, whatever outputs they ask for and however their "
                "rows are cut, and keeps answers when a model that was asked is released anew; "
                f"it is for {', '.join(sorted(_CACHED_TASKS))}"
            )
        lengths = self.serving.padded_lengths
        if not isinstance(lengths, int) and max(lengths) > self.text.max_length:
            raise ValueError(
                f"serving.padded_lengths {max(lengths)} is more than text.max_length {self.text.max_length}"
            )
        return self

    def place_of(self, data: Data) -> str:
        """The key of one of the recipe's tables of data: ``data``, or ``heads.NAME``."""
        return next(place for place, table in self._data_tables().items() if table is data)

    def _data_tables(self) -> dict[str, Data]:
        tables: dict[str, Data] = {} if self.data is None else {"data": self.data}
        return tables | {f"heads.{name}": head for name, head in (self.heads or {}).items()}

    def _has_training_data(self) -> bool:
        if self.heads is not None:
            return all(None not in (head.train, head.evaluation) for head in self.heads.values())
        if self.data is None:
            return False
        if self.task == "recommendation":
            return self.data.train is not None
        return self.data.format == "digits" or None not in (self.data.train, self.data.evaluation)

    @property
    def top_k(self) -> int:
        """How many labels or items are returned, best first."""
        if self.task == "image-classification":
            return self.image.top_k
        if self.features is not None:
            return self.features.top_k
        return self.catalogue.top_k if self.catalogue is not None else self.text.top_k

    def path(self, value: str | Path) -> Path:
        """Resolve a path of the recipe: absolute as it is, otherwise from the recipe's folder."""
        return (self._folder / value).resolve()

    @property
    def folder(self) -> Path:
        """Folder that relative paths start from: the recipe's own."""
        return self._folder


def _check_hub_keys(place: str, data: Data) -> None:
    if data.format == "hub":
        if data.dataset is None:
            raise ValueError(f"{place}.dataset goes with {place}.format 'hub', and is missing")
        return
    for key in ("dataset", "configuration", "revision"):
        value = getattr(data, key)
        if value != Data.model_fields[key].default:
            raise ValueError(
                f"{place}.{key} goes with {place}.format 'hub', not with {data.format!r} (got {value!r})"
            )


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
            relative paths given here start from the current folder; no value takes the key away.
        fine_tuned: a fine-tuned checkpoint, a folder or ``ORG/NAME`` on the hub, that takes the place of the
            recipe's base, labels, data, training, audit and card. Other training data or another catalogue by
            an override take the card away too, and another ``base.checkpoint`` the wheel and revision of the
            recipe's.

    Raises:
        RecipeError: the file is missing or not TOML, or has unknown keys or wrong values; the message
            lists every mistake with its key.
    """
    path = find_file("recipe", recipe, shipped_recipes(), RecipeError)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise RecipeError(f"{path} is not a TOML file: {exc}") from exc
    if any(_OTHER_DATA.match(override) for override in overrides):
        table.pop("card", None)
    if any(override.startswith("base.checkpoint=") for override in overrides):
        # Wheel and revision are of the recipe's own checkpoint, and a wheel that is here goes before the hub.
        table["base"] = {}
    if fine_tuned is not None:
        # What the recipe says of them is of another checkpoint; overrides may say it anew.
        kept = table.keys() - {"training", "labels", "data", "audit", "card"}
        table = {key: table[key] for key in kept}
        place = _at_home(fine_tuned)
        on_the_hub = _HUB_NAME.fullmatch(str(fine_tuned)) and not place.exists()
        table["base"] = {"checkpoint": str(fine_tuned if on_the_hub else place.absolute())}
    # Formats first: they say whether train and evaluation are files or splits.
    for override in sorted(overrides, key=lambda one: not one.partition("=")[0].endswith(".format")):
        _apply_override(table, override)
    try:
        recipe = Recipe.model_validate(table)
    except ValidationError as exc:
        mistakes = "\n".join(f"  {_key(error['loc'])}: {_mistake(error)}" for error in exc.errors())
        raise RecipeError(f"{path} has {exc.error_count()} mistake(s):\n{mistakes}") from exc
    recipe._folder = path.resolve().parent
    return recipe


def _apply_override(table: dict[str, Any], override: str) -> None:
    table, last, value = find_override(table, override, RecipeError)
    key, _, text = override.partition("=")
    if text == "":
        table.pop(last, None)
        return
    path = _at_home(value)
    names_file = _FILE_KEYS.fullmatch(key) or (_SPLIT_KEYS.fullmatch(key) and table.get("format") != "hub")
    if names_file or (_HUB_KEYS.fullmatch(key) and path.exists()):
        value = str(path.absolute())
    if key == "audit.templates" and isinstance(value, list):
        value = [str(Path(name).absolute()) if Path(str(name)).is_file() else name for name in value]
    table[last] = value


def _at_home(value: object) -> Path:
    """A path whose ``~`` no shell replaced, as in ``--set data.train=~/my.csv``."""
    path = Path(str(value))
    return path.expanduser() if path.parts[:1] == ("~",) else path


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(map(str, location)) or "recipe"


def _mistake(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "unknown key"
    if error["type"] == "missing":
        return "is missing"
    message = error["msg"].removeprefix("Value error, ")
    if isinstance(error["input"], dict | Recipe | Table):
        return message
    return f"{message} (got {error['input']!r})"
