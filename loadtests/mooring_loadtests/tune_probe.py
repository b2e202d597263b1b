"""Serve a release with other settings, and load it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from mooring import ConfigError, PublishError
from mooring_loadtests.load_profile import Payload, Profile, Span
from mooring_loadtests.load_profile import Stage as ProfileStage
from mooring_loadtests.load_run import run_load
from mooring_loadtests.load_statistics import together
from mooring_loadtests.tuner import Candidate, Stage, Variant, grid

if TYPE_CHECKING:
    from mooring_build.recipe import Recipe
    from mooring_loadtests.load_result import LoadResult, StageFigures

#: Failures of a stage that do not matter.
_ERROR_RATE = 0.01
#: Answers of a stage may be fewer than its requests by this share, and by so many, beside those under way.
_BEHIND_SHARE = 0.1
_FEW_BEHIND = 2
#: A server that is asked no more is killed soon: unloading models takes it seconds.
_STOP_S = 0.5


class Build(NamedTuple):
    """A variant that was built."""

    recipe: Recipe
    repository: Path
    version: int


class Release:
    """A released pipeline whose settings may be tried out; the repository is not touched until :meth:`apply`.

    Args:
        repository: model repository.
        model: name of a pipeline with an engine.

    Raises:
        ConfigError: it is not released there, has no engine of its own, was built from a recipe that is
            refused now, or has configs that Mooring did not write.
    """

    def __init__(self, repository: Path, model: str) -> None:
        from mooring_build.recipe import Recipe
        from mooring_build.repository import (
            joining_pipelines,
            read_config,
            read_manifest,
            released_version,
        )
        from mooring_build.triton_config import as_configured, model_names

        version = released_version(repository, model)
        if version is None:
            raise ConfigError(f"{model!r} is not in {repository}: run 'mooring build {model}' first")
        self.repository = repository
        self.model = model
        self.version = version
        manifest = read_manifest(repository, model, version)
        self._labels = manifest["labels"]
        if not manifest["parity"]:
            raise ConfigError(f"{model!r} has no engine of its own: tune the models that it calls")
        try:
            built = Recipe.model_validate(manifest["recipe"])
        except ValidationError as exc:
            mistakes = ", ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in exc.errors())
            raise ConfigError(
                f"version {version} of {model!r} was built from a recipe that is refused now ({mistakes}): "
                "build it again"
            ) from exc
        configs = {name: read_config(repository, name) for name in model_names(built)}
        # Not as it was built, but as it is served: `apply` may have changed that.
        try:
            self._recipe = as_configured(
                built, {name: one for name, one in configs.items() if one is not None}
            )
        except (LookupError, StopIteration, ValueError) as exc:
            raise self._changed_by_hand(repository / model) from exc
        #: Digest of what the release was made from.
        self.digest: str = manifest["inputs_digest"]
        #: Least ``max_batch_size`` that the pipelines which join this one allow.
        self._smallest_batch = max(
            (config.max_batch_size for config in joining_pipelines(repository, model).values()), default=1
        )
        self._builds = {self._built: Build(self._recipe, repository, version)}
        self._check_configs()

    @property
    def _built(self) -> tuple[str, str]:
        """Precision and mixed lengths of the release."""
        return self._recipe.export.precision, self._recipe.serving.mixed_lengths

    @property
    def variants(self) -> list[Variant]:
        """What may be tried out: the release's engines and those of :meth:`add`."""
        from mooring_build.recipe_tables import ONLY_FORMAT

        return [
            Variant(engine, precision, mixed_lengths)
            for precision, mixed_lengths in self._builds
            for engine in self._recipe.export.formats
            if ONLY_FORMAT.get(precision, engine) == engine
        ]

    def add(self, recipe: Recipe, *, folder: Path, artifacts: Path) -> None:
        """Build a variant of the release, so that it may be tried out; what was trained is used again.

        Args:
            recipe: what the release was built from, with another precision or other mixed lengths.
            folder: gets a repository.
            artifacts: working folder of the release's build.

        Raises:
            ConfigError: the recipe differs in more than that.
            VerificationError: the variant costs more than the recipe allows.
        """
        from mooring_build.building import build

        wanted, given = (self._comparable(one) for one in (self._recipe, recipe))
        different = sorted(key for key in wanted if wanted[key] != given[key])
        if different:
            raise ConfigError(
                f"recipe {recipe.name!r} is not what version {self.version} of {self.model!r} was built from "
                f"(see {', '.join(different)}): name the recipe (--recipe) and its overrides (--set)"
            )
        precision, mixed_lengths = recipe.export.precision, recipe.serving.mixed_lengths
        if (precision, mixed_lengths) not in self._builds:
            repository = folder / f"{precision}-{mixed_lengths}"
            version = build(recipe, repository=repository, artifacts=artifacts)
            self._builds[precision, mixed_lengths] = Build(recipe, repository, version)

    def _comparable(self, recipe: Recipe) -> dict[str, Any]:
        tried = {"serving": set(self.default.serving()), "export": {"engine", "precision"}}
        return recipe.model_dump(mode="json", exclude=tried)

    def _check_configs(self) -> None:
        """Refuse configs that were changed by hand: that would be neither tried nor kept."""
        from mooring_build.repository import CONFIG, read_text

        for model, text in self.configs(self.default).items():
            path = self.repository / model / CONFIG
            if read_text(path) != text:
                raise self._changed_by_hand(path)

    def _changed_by_hand(self, path: Path) -> ConfigError:
        return ConfigError(
            f"{path} is not as Mooring writes it: build {self.model!r} again before it is tuned"
        )

    @property
    def default(self) -> Candidate:
        """The present settings."""
        serving = self._recipe.serving
        return Candidate(
            engine=self._recipe.export.engine,
            precision=self._recipe.export.precision,
            mixed_lengths=serving.mixed_lengths,
            instance_count=serving.instance_count,
            intra_op_thread_count=serving.intra_op_thread_count,
            max_batch_size=serving.max_batch_size,
            preferred_batch_size=tuple(serving.preferred_batch_size),
            max_queue_delay_microseconds=serving.max_queue_delay_microseconds,
        )

    def candidates(self, cores: int, *, engine: str | None = None) -> list[Candidate]:
        """Settings worth a thought on a machine of so many cores, the present ones first.

        Args:
            cores: of the machine.
            engine: look at this one alone.

        Raises:
            ConfigError: the release has no such engine.
        """
        variants = [variant for variant in self.variants if engine in (None, variant.engine)]
        if not variants:
            known = ", ".join(dict.fromkeys(variant.engine for variant in self.variants))
            raise ConfigError(f"{self.model!r} has no engine {engine!r}, but {known}")
        return grid(
            cores=cores,
            variants=variants,
            default=self.default,
            # A limit of tokens takes what waits.
            vary_batches=self._recipe.serving.max_batch_tokens == 0,
            smallest_batch=self._smallest_batch,
            gpu=self._recipe.serving.kind == "gpu",
        )

    def configs(self, candidate: Candidate) -> dict[str, str]:
        """Text of each model's ``config.pbtxt`` under a candidate's settings."""
        from mooring_build.triton_config import dumps_config, model_configs

        version = self._build_of(candidate).version
        configs = model_configs(self._tuned(candidate), self._labels, version)
        return {model: dumps_config(config) for model, config in configs.items()}

    def copy(self, candidate: Candidate, folder: Path) -> None:
        """Write a repository of this release with a candidate's settings; its files are links.

        Engines that the candidate does not use are left out: they would only take long to load.
        """
        from mooring_build.triton_config import engine_name

        build, tuned = self._build_of(candidate), self._tuned(candidate)
        unused = {engine_name(tuned, other) for other in tuned.export.formats if other != candidate.engine}
        for model, text in self.configs(candidate).items():
            if model in unused:
                continue
            (folder / model).mkdir(parents=True)
            (folder / model / "config.pbtxt").write_text(text, encoding="utf-8")
            version = (build.repository / model / str(build.version)).resolve()
            (folder / model / str(build.version)).symlink_to(version, target_is_directory=True)

    def is_configured(self, candidate: Candidate) -> bool:
        """Whether a candidate takes other configs alone, and no other build."""
        return (candidate.precision, candidate.mixed_lengths) == self._built

    def apply(self, candidate: Candidate, *, artifacts: Path) -> None:
        """Write a candidate's settings into the repository's configs, or publish it where it takes a build.

        Args:
            candidate: the settings.
            artifacts: working folder of the release's build.

        Raises:
            ConfigError: a config was changed by hand meanwhile.
            PublishError: another version was released meanwhile, or the repository can't be written.
        """
        from mooring_build.building import build
        from mooring_build.publish import write_configs
        from mooring_build.repository import released_version

        released = released_version(self.repository, self.model)
        if released != self.version:
            raise PublishError(
                f"{self.repository / self.model} has released version {released} meanwhile, and version "
                f"{self.version} was tuned: tune it again"
            )
        self._check_configs()
        recipe = self._tuned(candidate)
        if self.is_configured(candidate):
            write_configs(self.repository, recipe, self._labels, self.version)
        else:
            build(recipe, repository=self.repository, artifacts=artifacts)

    def _build_of(self, candidate: Candidate) -> Build:
        return self._builds[candidate.precision, candidate.mixed_lengths]

    def _tuned(self, candidate: Candidate) -> Recipe:
        recipe = self._build_of(candidate).recipe
        # An engine that is not served keeps its settings: model_configs writes those of all formats alike.
        serving = recipe.serving.model_copy(update=candidate.serving())
        export = recipe.export.model_copy(
            update={"engine": candidate.engine, "precision": candidate.precision}
        )
        return recipe.model_copy(update={"serving": serving, "export": export})


class Prober:
    """Loads candidates one after the other, each on a server of its own.

    Args:
        release: what is served.
        payload: what is asked.
        timeout_s: time budget of a request.
        folder: for logs.
        resources: that the server has, as ``name:count``.
    """

    def __init__(
        self,
        release: Release,
        *,
        payload: Payload,
        timeout_s: float,
        folder: Path,
        resources: Sequence[str] = (),
    ) -> None:
        self._release = release
        self._payload = payload
        self._timeout_s = timeout_s
        self._folder = folder
        self._resources = resources

    def run(self, candidate: Candidate, rates: Sequence[float], seconds: int, seed: int = 0) -> list[Stage]:
        """Latency at rates, each for so many seconds, after a second of warm-up.

        Args:
            candidate: the settings.
            rates: in requests a second.
            seconds: of each rate.
            seed: of arrivals and texts.

        Returns:
            With an infinite percentile where more than 1 % failed, and where answers fell behind: within
            seconds, a queue that grows and grows breaks no bound of seconds.

        Raises:
            MooringError: the server did not start, did not answer, or died.
        """
        warm_up = ProfileStage(seconds=1, load=rates[0], measured=False)
        stages = (warm_up, *(ProfileStage(seconds=seconds, load=rate) for rate in rates))
        result = self.load(candidate, loop="open", rate=1.0, stages=stages, seed=seed)
        measured = result.stages()
        behind = _behind(result, measured)
        return [
            Stage(
                rate=stage.span.amount,
                p99_ms=stage.figures["p99_ms"].value
                if stage.figures["error_rate"].value <= _ERROR_RATE and stage.span not in behind
                else float("inf"),
            )
            for stage in measured
        ]

    def load(self, candidate: Candidate, *, seed: int = 0, **profile: Any) -> LoadResult:
        """Serve a candidate and run a profile against it, with the usual time budget if it names none."""
        from mooring_serve import TritonServer
        from mooring_serve.cli import resource_arguments

        with tempfile.TemporaryDirectory(prefix="mooring-tune-") as folder:
            self._release.copy(candidate, Path(folder))
            server = TritonServer(
                Path(folder),
                log_file=self._folder / "tritonserver.log",
                stop_timeout_s=_STOP_S,
                extra_args=resource_arguments(self._resources),
            )
            with server:
                return run_load(
                    model=self._release.model,
                    name="tune",
                    profile=Profile(
                        payload=self._payload.model_copy(update={"seed": seed}),
                        **{"timeout_s": self._timeout_s, **profile},
                    ),
                    grpc_url=server.grpc_url,
                    log=self._folder / "locust.log",
                )


def _behind(result: LoadResult, stages: Sequence[StageFigures]) -> set[Span]:
    """Stages in which answers came clearly slower than requests."""
    behind: set[Span] = set()
    before = stages[0].span.amount if stages else 0.0
    for stage in stages:
        second = together(result.seconds(spans=[stage.span]))
        sent = second.latencies_ms.total() + second.failures_ms.total()
        # Of a rate that rises more are under way at the end, and chance has some more.
        rate, answer_s = stage.span.amount, min(stages[0].figures["p50_ms"].value / 1000, 1.0)
        under_way = (rate - before) * answer_s + 2 * math.sqrt(rate * answer_s)
        if sent - second.answers > _BEHIND_SHARE * sent + under_way + _FEW_BEHIND:
            behind.add(stage.span)
        before = rate
    return behind
