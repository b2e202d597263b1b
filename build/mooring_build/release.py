"""What a release is made of: checked inputs, and the content of each version folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mooring import PublishError
from mooring._served.encoding import EncodingSettings, TextEncoder
from mooring._served.entities import BioLabels
from mooring_build.batch_strategy import STRATEGY_FILE
from mooring_build.engines import ENGINE_FILES, Engine, open_engine
from mooring_build.layouts import PythonStep, layout_of
from mooring_build.layouts.text import padded_lengths
from mooring_build.preparation import image_settings
from mooring_build.recipe import LABELLED_TASKS, Recipe
from mooring_build.recipe_tables import ExportFormat
from mooring_build.stages import SHARED_SOURCES
from mooring_build.triton_config import engine_name, model_configs, step_name

#: What Triton runs: the Python models of pipelines.
_ENTRY_POINTS = Path(__file__).resolve().parent / "served"


@dataclass(frozen=True, kw_only=True)
class EngineFiles:
    """An exported engine and the proof that it answers as the PyTorch model does."""

    #: ``model.onnx`` or ``model.pt``.
    path: Path
    #: What verification measured; ``passed`` must be true.
    parity: Mapping[str, Any]
    #: Digest of everything that the file came from.
    key: str


@dataclass(frozen=True, kw_only=True)
class Release:
    """What is published beside the recipe."""

    #: In the order of the logits.
    labels: Sequence[str]
    #: One for each of the recipe's export formats.
    engines: Mapping[ExportFormat, EngineFiles]
    #: ``tokenizer.json``, where the pipeline has a tokenizer; padding and truncation inside it are not used.
    tokenizer_file: Path | None = None
    #: ``tokenizer_config.json``: names the padding token.
    tokenizer_config_file: Path | None = None
    #: Library beside each engine that forms its batches; see :mod:`mooring_build.batch_strategy`.
    batch_strategy: Path | None = None
    #: More files for the version folders of Python steps: by suffix and file name, the file to copy or the
    #: text to write.
    step_files: Mapping[str, Mapping[str, Path | str]] = field(default_factory=dict)
    #: Digest of everything that went into the release; the same digest is not published twice.
    inputs_digest: str
    #: More for the manifest, as JSON values: recipe, base checkpoint, data, metrics, libraries, commit.
    facts: Mapping[str, Any]


def version_files(recipe: Recipe, release: Release) -> dict[str, dict[str, Path | str]]:
    """Content of each part's version folder: by model and file name, the file to copy or the text to write.

    Raises:
        PublishError: an engine has no passed verification, or a file, label or fact can't be used.
    """
    _check_labels(recipe, release.labels)
    _check_facts(release)
    layout = layout_of(recipe, release.labels)
    files: dict[str, dict[str, Path | str]] = {}
    for step in layout.python_steps:
        files[step_name(recipe, step.suffix)] = {
            **_sources(step),
            **_common_files(recipe, release, step),
            **release.step_files.get(step.suffix, {}),
        }
    if layout.engine is not None:
        for export_format in recipe.export.formats:
            path = _verified_engine(recipe, release, export_format)
            engine: dict[str, Path | str] = {ENGINE_FILES[export_format]: path}
            if release.batch_strategy is not None:
                engine[STRATEGY_FILE] = release.batch_strategy
            files[engine_name(recipe, export_format)] = engine
    return files


def _common_files(recipe: Recipe, release: Release, step: PythonStep) -> dict[str, Path | str]:
    """Files that the shipped steps read, made of the recipe and the release."""
    labels = json.dumps(list(release.labels), ensure_ascii=False)
    if step.entry_point == "tokenizer_model.py":
        if release.tokenizer_file is None or release.tokenizer_config_file is None:
            raise PublishError(
                f"recipe {recipe.name!r} has a tokenizer, but the release brings no file of one"
            )
        settings = encoding_settings(recipe, release.tokenizer_file, release.tokenizer_config_file)
        return {
            "tokenizer.json": release.tokenizer_file,
            "settings.json": json.dumps(vars(settings), indent=2),
        }
    if step.entry_point == "entities_model.py":
        return {"labels.json": labels}
    if step.entry_point == "image_decoder_model.py":
        return {"settings.json": json.dumps(vars(image_settings(recipe.image)), indent=2)}
    if step.entry_point == "heads_model.py":
        heads = {name: head.labels for name, head in (recipe.heads or {}).items()}
        return {
            "heads.json": json.dumps(heads, ensure_ascii=False),
            "settings.json": json.dumps({"top_k": recipe.top_k}),
        }
    if step.entry_point == "classifier_model.py":
        return {"labels.json": labels, "settings.json": json.dumps({"top_k": recipe.top_k})}
    if step.entry_point == "catalogue_model.py":
        return {"settings.json": json.dumps({"top_k": recipe.top_k})}
    return {}


def encoding_settings(recipe: Recipe, tokenizer_file: Path, config_file: Path) -> EncodingSettings:
    """How the recipe's texts become token ids.

    Raises:
        PublishError: a file can't be used, or names no padding token.
    """
    return EncodingSettings(
        task=recipe.task,
        max_length=recipe.text.max_length,
        truncation=recipe.text.truncation,
        padded_lengths=padded_lengths(recipe),
        pad_token_id=_pad_token_id(tokenizer_file, config_file),
    )


def open_engine_and_tokenizer(
    recipe: Recipe, engine: EngineFiles, labels: Sequence[str], checkpoint: Path
) -> tuple[Engine, TextEncoder]:
    """The engine that the pipeline will call, in this process, and its tokenizer.

    A text that is too long for the model is cut off, whatever the recipe says.

    Args:
        recipe: of texts.
        engine: of ``export.engine``.
        labels: in the order of the logits.
        checkpoint: has ``tokenizer.json`` and its configuration.
    """
    files = checkpoint / "tokenizer.json", checkpoint / "tokenizer_config.json"
    settings = replace(encoding_settings(recipe, *files), truncation=True)
    config = model_configs(recipe, labels, 1)[engine_name(recipe, recipe.export.engine)]
    opened = open_engine(engine.path, recipe.export.engine, config)
    return opened, TextEncoder(Tokenizer.from_file(str(files[0])), settings)


def _sources(step: PythonStep) -> dict[str, Path | str]:
    shared = {name: SHARED_SOURCES / name for name in step.shared}
    return {"model.py": _ENTRY_POINTS / step.entry_point, **shared}


def _check_labels(recipe: Recipe, labels: Sequence[str]) -> None:
    if not labels and recipe.task in LABELLED_TASKS:
        raise PublishError(f"recipe {recipe.name!r} has no labels")
    if recipe.task == "token-classification":
        try:
            BioLabels(labels)
        except ValueError as exc:
            raise PublishError(f"recipe {recipe.name!r}: {exc}") from exc


def _check_facts(release: Release) -> None:
    parity = {name: dict(engine.parity) for name, engine in release.engines.items()}
    try:
        json.dumps([dict(release.facts), parity], allow_nan=False)
    except (TypeError, ValueError) as exc:
        raise PublishError(f"the facts of the release can't go into a manifest: {exc}") from exc


def _verified_engine(recipe: Recipe, release: Release, export_format: ExportFormat) -> Path:
    name = engine_name(recipe, export_format)
    engine = release.engines.get(export_format)
    if engine is None:
        raise PublishError(f"{name} is not in the release, but the recipe exports {export_format}")
    if engine.parity.get("passed") is not True:
        raise PublishError(
            f"{name} has not passed verification ({dict(engine.parity)}): nothing is published"
        )
    if not engine.path.is_file():
        raise PublishError(f"{name}: {engine.path} is not a file")
    return engine.path


def _pad_token_id(path: Path, config_path: Path) -> int:
    if not path.is_file():
        raise PublishError(f"{path} is not a file: a tokenizer.json of a fast tokenizer is needed")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as exc:  # the library raises nothing narrower
        raise PublishError(f"{path} is not a tokenizer.json: {exc}") from exc
    token = _pad_token(config_path)
    if token is None and (path.parent / "config.json").is_file():
        # Older checkpoints leave it to transformers, which knows it by the kind of model.
        from mooring_build.models import load_tokenizer

        return int(load_tokenizer(path.parent).pad_token_id)
    pad_token_id = tokenizer.token_to_id(token) if token else None
    if pad_token_id is None:
        raise PublishError(f"{config_path} names no pad_token of {path} (got {token!r})")
    return int(pad_token_id)


def _pad_token(config_path: Path) -> Any:
    try:
        token = json.loads(config_path.read_text(encoding="utf-8")).get("pad_token")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise PublishError(f"{config_path} can't be read: {exc}") from exc
    return token.get("content") if isinstance(token, dict) else token
