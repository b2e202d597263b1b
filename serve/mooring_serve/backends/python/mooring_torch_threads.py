"""How the threads of PyTorch wait for each other; decided before PyTorch is imported."""

from __future__ import annotations

from collections.abc import MutableMapping

from mooring_model_config import ModelConfig

#: What libgomp takes itself where a process has more threads than cores (``initialize_env`` in its env.c).
_SPINS = "100"


def shorten_waiting(config: ModelConfig, *, cores: int, environment: MutableMapping[str, str]) -> None:
    """Let waiting threads sleep soon, where a model's instances have more threads than there are cores.

    OpenMP's threads spin for some 3 ms before they sleep, which pays where each has a core, and takes the
    cores from who has work where not: two instances of two threads on two cores answered 0.3 of the texts.
    libgomp sees to it within a process; here every instance is a process of its own. What the environment
    says already stays.

    Args:
        config: of the model.
        cores: cores that this process may use.
        environment: of this process; libgomp reads it when PyTorch is imported.

    Raises:
        BackendError: ``INTRA_OP_THREAD_COUNT`` is not a whole number.
    """
    threads = config.integer("INTRA_OP_THREAD_COUNT")
    if (
        config.cpu_instances * (threads if threads > 0 else cores) > cores
        and "OMP_WAIT_POLICY" not in environment
    ):
        environment.setdefault("GOMP_SPINCOUNT", _SPINS)
