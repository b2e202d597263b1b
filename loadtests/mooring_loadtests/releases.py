"""What a release's manifest says of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mooring import ConfigError, DataError

#: Figures worth showing, best known first, with the words for them.
_METRICS = {
    "entity_f1": "entity F1",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "token_micro_f1": "token micro F1",
}


@dataclass(frozen=True, kw_only=True)
class EngineParity:
    """How far an exported engine is from the PyTorch model."""

    #: The engine's model name, such as ``ner_onnx_ragged``.
    model: str
    #: Largest difference of any logit.
    max_abs_difference: float
    tolerance: float
    #: Batches that were compared.
    cases: int


@dataclass(frozen=True, kw_only=True)
class ReleaseFacts:
    """One release of one recipe."""

    name: str
    version: int
    #: Name of the checkpoint that the training began with.
    base_checkpoint: str
    train_examples: int
    #: Quality on the evaluation examples: words and figure.
    metrics: tuple[tuple[str, float], ...]
    engines: tuple[EngineParity, ...]


def check_built(repository: Path, *names: str) -> None:
    """Refuse a repository without a release of each recipe; the config alone may be committed.

    Raises:
        ConfigError: names one that is missing.
    """
    for name in names:
        if not any((repository / name).glob("[0-9]*/manifest.json")):
            raise ConfigError(
                f"{repository} has no built model {name!r}: run 'mooring build {' '.join(names)}' first"
            )


def read_release(repository: Path, name: str, version: int) -> ReleaseFacts:
    """Read a release's ``manifest.json``.

    Raises:
        DataError: there is none, or it is none.
    """
    path = repository / name / str(version) / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        # As the build names them (``mooring_build.triton_config.engine_name``).
        ragged = "_ragged" if manifest["recipe"]["serving"]["mixed_lengths"] == "ragged" else ""
        return ReleaseFacts(
            name=name,
            version=version,
            base_checkpoint=manifest["base_checkpoint"]["name"],
            train_examples=manifest["data"]["train_examples"],
            metrics=tuple(
                (words, float(manifest["metrics"][key]))
                for key, words in _METRICS.items()
                if key in manifest["metrics"]
            ),
            engines=tuple(
                EngineParity(
                    model=f"{name}_{export_format}{ragged}",
                    max_abs_difference=parity["max_abs_difference"],
                    tolerance=parity["tolerance"],
                    cases=parity["cases"],
                )
                for export_format, parity in manifest["parity"].items()
            ),
        )
    except FileNotFoundError as exc:
        raise DataError(f"{path} is missing: 'mooring build {name}' writes it") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise DataError(f"{path} is no manifest of a release ({exc!r})") from exc
