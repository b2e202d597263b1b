"""What a release is made of: checked inputs, and the content of each version folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

import mooring._served
from mooring import PublishError
from mooring._served.encoding import EncodingSettings
from mooring._served.entities import BioLabels
from mooring_build.engines import ENGINE_FILES
from mooring_build.recipe import ExportFormat, Recipe, Task
from mooring_build.triton_config import engine_name, postprocessor_name, tokenizer_name

#: Modules that the client runs too, for callers that tokenize themselves.
SHARED_SOURCES = Path(mooring._served.__file__).resolve().parent
_ENTRY_POINTS = Path(__file__).resolve().parent / "served"
# Entry point of each Python model, and the shared modules that it needs.
_TOKENIZER_SOURCES = ("tokenizer_model.py", ("encoding.py", "texts.py"))
_POSTPROCESSOR_SOURCES: dict[Task, tuple[str, tuple[str, ...]]] = {
    "token-classification": ("entities_model.py", ("entities.py", "softmax.py", "texts.py")),
    "text-classification": ("classifier_model.py", ("classification.py", "softmax.py")),
}


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
    #: ``tokenizer.json``; padding and truncation inside it are not used.
    tokenizer_file: Path
    #: ``tokenizer_config.json``: names the padding token.
    tokenizer_config_file: Path
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
    labels = json.dumps(list(release.labels), ensure_ascii=False)
    settings = EncodingSettings(
        task=recipe.task,
        max_length=recipe.text.max_length,
        truncation=recipe.text.truncation,
        pad_to_multiple_of=recipe.text.pad_to_multiple_of,
        pad_token_id=_pad_token_id(release),
    )
    files: dict[str, dict[str, Path | str]] = {
        tokenizer_name(recipe): {
            **_sources(*_TOKENIZER_SOURCES),
            "tokenizer.json": release.tokenizer_file,
            "settings.json": json.dumps(vars(settings), indent=2),
        }
    }
    for export_format in recipe.export.formats:
        path = _verified_engine(recipe, release, export_format)
        files[engine_name(recipe, export_format)] = {ENGINE_FILES[export_format]: path}
    files[postprocessor_name(recipe)] = {
        **_sources(*_POSTPROCESSOR_SOURCES[recipe.task]),
        "labels.json": labels,
    }
    if recipe.task == "text-classification":
        files[postprocessor_name(recipe)]["settings.json"] = json.dumps({"top_k": recipe.text.top_k})
    return files


def _sources(entry_point: str, shared: Sequence[str]) -> dict[str, Path | str]:
    return {"model.py": _ENTRY_POINTS / entry_point, **{name: SHARED_SOURCES / name for name in shared}}


def _check_labels(recipe: Recipe, labels: Sequence[str]) -> None:
    if not labels:
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


def _pad_token_id(release: Release) -> int:
    path = release.tokenizer_file
    if not path.is_file():
        raise PublishError(f"{path} is not a file: a tokenizer.json of a fast tokenizer is needed")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as exc:  # the library raises nothing narrower
        raise PublishError(f"{path} is not a tokenizer.json: {exc}") from exc
    try:
        token = json.loads(release.tokenizer_config_file.read_text(encoding="utf-8")).get("pad_token")
    except (OSError, ValueError) as exc:
        raise PublishError(f"{release.tokenizer_config_file} can't be read: {exc}") from exc
    if isinstance(token, dict):
        token = token.get("content")
    pad_token_id = tokenizer.token_to_id(token) if token else None
    if pad_token_id is None:
        raise PublishError(f"{release.tokenizer_config_file} names no pad_token of {path} (got {token!r})")
    return int(pad_token_id)
