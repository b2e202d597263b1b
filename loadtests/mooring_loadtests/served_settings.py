"""How a model is served: what its configs say, in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mooring import Client, ModelConfig

#: Longer parameters describe the model, such as its labels, and not how it is served.
_LONGEST = 40


def pipeline_models(client: Client, model: str) -> list[ModelConfig]:
    """Config of the model and of all that it calls, each once, in the order of the steps.

    Raises:
        MooringError: as the client does.
    """
    configs = {model: client.config(model)}
    waiting = [model]
    for name in waiting:
        for step in configs[name].steps:
            if step.model not in configs:
                configs[step.model] = client.config(step.model)
                waiting.append(step.model)
    return list(configs.values())


def served_settings(client: Client, model: str) -> dict[str, str]:
    """Settings of the model and of all that it calls, by model.

    Raises:
        MooringError: as the client does.
    """
    return {config.name: ", ".join(_words(config)) for config in pipeline_models(client, model)}


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Which models are served with other settings than before, in words."""
    return [
        f"{model} was served as {before.get(model, 'nothing')!r} before the run and as "
        f"{after.get(model, 'nothing')!r} after it"
        for model in sorted({*before, *after})
        if before.get(model) != after.get(model)
    ]


def _words(config: ModelConfig) -> Iterator[str]:
    yield config.backend or "backend of the server's choice"
    if config.instance_count:
        yield f"{config.instance_count} instance{'s' if config.instance_count > 1 else ''}"
    if config.instance_kinds:
        yield f"on {' and '.join(kind.removeprefix('KIND_') for kind in config.instance_kinds)}"
    if config.max_batch_size and config.backend != "ensemble":
        yield f"batches up to {config.max_batch_size}"
    batching = config.dynamic_batching
    if batching is not None:
        if batching.preferred_batch_sizes:
            yield f"preferred {' or '.join(map(str, batching.preferred_batch_sizes))}"
        yield f"queue delay {batching.max_queue_delay_us} us"
        if batching.max_queue_size:
            yield f"at most {batching.max_queue_size} waiting"
        if batching.queue_timeout_us:
            yield f"waiting for at most {batching.queue_timeout_us} us"
    for name, count in sorted(config.resources.items()):
        yield f"{count} of resource {name}"
    if config.response_cache:
        yield "response cache"
    for key, value in sorted(config.parameters.items()):
        if len(value) <= _LONGEST:
            yield f"{key}={value}"
