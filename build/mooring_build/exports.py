"""Engines of a fine-tuned model: exported, verified, in the recipe's precision; only what is out of date."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tritonclient.grpc import model_config_pb2 as pb

from mooring import MooringError, VerificationError
from mooring_build.datasets import Dataset
from mooring_build.engines import ENGINE_FILES, engine_precision, open_engine
from mooring_build.learners import Exportable, learner_of, learner_sources
from mooring_build.preparation import preparation
from mooring_build.recipe import Recipe
from mooring_build.recipe_tables import ExportFormat
from mooring_build.release import EngineFiles
from mooring_build.stages import Stage, library_versions, source_digest
from mooring_build.triton_config import dumps_config, engine_name, model_configs

#: Distributions whose versions a release depends on.
LIBRARIES = ("numpy", "onnx", "onnxruntime", "onnxscript", "tokenizers", "torch", "transformers")


class Exports:
    """Exports and verifies every format; loads the PyTorch model only when one is out of date.

    Args:
        recipe: formats, precision, tolerance.
        folder: the fine-tuned checkpoint.
        key: digest of everything it came from.
        dataset: its evaluation split gives real examples to verify with.
        artifacts: working folder.
        say: receives one line a format.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        key: str,
        dataset: Dataset,
        artifacts: Path,
        say: Callable[[str], None],
    ) -> None:
        self._recipe = recipe
        self._folder = folder
        self._key = key
        self._dataset = dataset
        self._artifacts = artifacts
        self._say = say
        self._configs = model_configs(recipe, dataset.labels, 1)
        self._loaded: Exportable | None = None

    def make(self) -> dict[ExportFormat, EngineFiles]:
        return {export_format: self._make(export_format) for export_format in self._recipe.export.formats}

    def _make(self, export_format: ExportFormat) -> EngineFiles:
        recipe, config = self._recipe, self._config(export_format)
        stage = Stage(
            self._artifacts,
            recipe.name,
            export_format,
            {
                "checkpoint": self._key,
                "export": {
                    "precision": engine_precision(recipe, export_format),
                    "opset": recipe.export.opset,
                },
                "verify": recipe.verify.model_dump(),
                "quality": recipe.quality.model_dump(),
                "max_length": recipe.text.max_length,
                **preparation(recipe),
                "max_batch_size": recipe.serving.max_batch_size,
                "takes": dumps_config(
                    pb.ModelConfig(
                        input=config.input,
                        output=config.output,
                        batch_input=config.batch_input,
                        batch_output=config.batch_output,
                    )
                ),
                "data": self._dataset.digest,
                "libraries": library_versions(*LIBRARIES),
                "sources": source_digest(
                    "export.py",
                    "verification.py",
                    "engines.py",
                    "metrics.py",
                    "packing.py",
                    "precision.py",
                    "ragged_engine.py",
                    "learners/_learner.py",
                    *learner_sources(recipe.task),
                ),
            },
        )
        parity = stage.result()
        state = " (up to date)"
        if parity is None:
            parity, state = self._export_and_verify(export_format, stage.folder), ""
            stage.finish(parity)
        self._say(
            f"{export_format:<11} largest difference {parity['max_abs_difference']:.2g} "
            f"over {parity['cases']} batches, {parity['tolerance']:.0e} allowed{state}"
        )
        return EngineFiles(path=stage.folder / ENGINE_FILES[export_format], parity=parity, key=stage.key)

    def _export_and_verify(self, export_format: ExportFormat, folder: Path) -> dict[str, Any]:
        from mooring_build.export import export_engine
        from mooring_build.verification import verify_engine

        exportable = self._exportable()
        try:
            path = export_engine(self._exported_form(), self._recipe, export_format, folder)
            engine = open_engine(path, export_format, self._config(export_format))
            cases = learner_of(self._recipe.task).cases(self._recipe, exportable, self._dataset)
            parity = verify_engine(engine, exportable, self._recipe, cases).to_dict()
            if engine_precision(self._recipe, export_format) != "fp32":
                parity |= self._lower(path, export_format)
        except OSError:
            raise
        except Exception as exc:
            # Exporters and runtimes raise whatever they have; none of it may lead to a release.
            engine = engine_name(self._recipe, export_format)
            way_out = "" if isinstance(exc, MooringError) else _without(export_format)
            raise VerificationError(f"{engine} is not published: {exc}{way_out}") from exc
        return parity

    def _lower(self, path: Path, export_format: ExportFormat) -> dict[str, Any]:
        """Replace a verified engine by one in a lower precision that costs no more than the recipe allows."""
        from mooring_build.precision import check_cost, lower_engine, measure_cost, open_halved
        from mooring_build.verification import verify_engine

        recipe, exportable = self._recipe, self._exportable()
        learner = learner_of(recipe.task)
        lower_engine(path, self._exported_form(), recipe, export_format)
        engine = open_engine(path, export_format, self._config(export_format))
        engines = [engine]
        if (export_format, recipe.export.precision) == ("onnx", "fp16"):
            engines.insert(0, open_halved(exportable))
        for checked in engines:
            cases = learner.cases(recipe, exportable, self._dataset)
            parity = verify_engine(checked, exportable, recipe, cases, lowered=True).to_dict()
        lesson = learner.lesson(recipe, self._folder, self._dataset, fine_tuned=True)
        cost = measure_cost(
            engine, exportable, lesson, precision=recipe.export.precision, metric=learner.headline
        )
        check_cost(cost, recipe)
        self._say(
            f"{recipe.export.precision:<11} {cost.metric} {cost.fp32:.4f} becomes {cost.lowered:.4f}, "
            f"{cost.label_flips:.2%} of the labels change"
        )
        return parity | {"precision": cost.to_dict()}

    def _exportable(self) -> Exportable:
        if self._loaded is None:
            self._loaded = learner_of(self._recipe.task).exportable(self._recipe, self._folder)
        return self._loaded

    def _exported_form(self) -> Exportable:
        """What is exported; the PyTorch model that it is compared with takes padded texts."""
        if self._recipe.serving.mixed_lengths != "ragged":
            return self._exportable()
        from mooring_build.packing import packed_exportable

        return packed_exportable(self._exportable(), self._recipe)

    def _config(self, export_format: ExportFormat) -> pb.ModelConfig:
        return self._configs[engine_name(self._recipe, export_format)]


def _without(export_format: ExportFormat) -> str:
    """The way out where an exporter or a runtime can't take a model, which says so in its authors' words."""
    other = next(one for one in ENGINE_FILES if one != export_format)
    return (
        f" (if {export_format} can't hold this model: --set 'export.formats=[\"{other}\"]' "
        f"--set export.engine={other} tries {other} alone)"
    )
