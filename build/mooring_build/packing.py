"""Encoders that take texts of any lengths as one packed row, for engines with ragged inputs.

:class:`PackedTexts` wraps a module that takes ``[B, L]`` ids and mask. It leaves the module as it is but for
two places: before the encoder's layers padding is taken out of the hidden states, after them it is put back;
in between, attention alone sees texts side by side (:func:`attend`). So the linear layers, which are nearly
all of the work, run on tokens only, and what a model does before and after its layers (positions, poolers,
means over tokens, heads) needs no version of its own.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, AutoConfig, AutoModel, PreTrainedModel

from mooring import CheckpointError
from mooring_build.layouts.text import LENGTHS
from mooring_build.learners import Exportable
from mooring_build.models import quiet_transformers
from mooring_build.recipe import Recipe

_ATTENTION = "mooring_packed"


class Packing(NamedTuple):
    """Where the ``N`` tokens of a batch are in its padded form of ``B`` rows of ``L`` cells."""

    #: ``[B, L]`` bool: cells that hold a token.
    filled: torch.Tensor
    #: ``[N]``: the cell of each token, counted over all rows.
    cells: torch.Tensor
    #: ``[B * L]``: the token of each cell; some other token where there is none.
    tokens: torch.Tensor
    #: ``[B + 1]`` int32: where each row's tokens begin, and where the last one's end.
    starts: torch.Tensor

    @classmethod
    def of(cls, filled: torch.Tensor) -> Packing:
        """Of ``[B, L]`` cells, the first of them filled."""
        flat = filled.reshape(-1)
        starts = functional.pad(filled.sum(1).cumsum(0), [1, 0]).to(torch.int32)
        return cls(filled, flat.nonzero()[:, 0], flat.long().cumsum(0) - 1, starts)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """``[B, L, …]`` to ``[N, …]``."""
        return padded.flatten(0, 1)[self.cells]

    def pad(self, packed: torch.Tensor) -> torch.Tensor:
        """``[N, …]`` to ``[B, L, …]``; cells without a token hold another one's values."""
        return packed[self.tokens].unflatten(0, self.filled.shape)


class PackedTexts(nn.Module):
    """A module for texts that takes what Triton makes of a ragged batch.

    Args:
        module: takes ``input_ids`` and ``attention_mask`` ``[B, L]``; it is copied.
        max_length: longest text, in tokens.
        per_token: whether the module's output has a row for each token, ``[B, L, …]``, or for each text.

    Raises:
        CheckpointError: its attention can't be exchanged.
    """

    def __init__(self, module: nn.Module, *, max_length: int, per_token: bool) -> None:
        super().__init__()
        self.module = copy.deepcopy(module)
        self._max_length = max_length
        self._per_token = per_token
        self._packing: Packing | None = None
        layers = _exchange_attention(self.module)
        layers.register_forward_pre_hook(self._before_layers, with_kwargs=True)
        layers.register_forward_hook(self._after_layers)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Answer the texts of a batch.

        Args:
            input_ids: ``[T]`` ids of all texts, one after the other.
            attention_mask: ``[T]``: 0 on padding, which a request of several texts may hold.
            lengths: ``[B, 1]`` of each text, padding included.

        Returns:
            ``[T, …]`` or ``[B, …]``.
        """
        # Fails where masks are not as long as ids, as one of another length shifts those of its neighbours.
        input_ids = torch.where(attention_mask.bool(), input_ids, 0)
        lengths = lengths[:, 0].long()
        # Exporters take a length of which they know no more for another one than 1.
        longest = lengths.max().clamp(min=2)
        if torch.compiler.is_exporting():
            longest = longest.item()
            torch._check(longest >= 2)
            torch._check(longest <= self._max_length)
        place = torch.arange(longest, device=input_ids.device)
        given = Packing.of(place < lengths[:, None])
        # A row without a token, as in a warm-up of zeros, has nothing that could be attended to.
        mask = (given.pad(attention_mask) * given.filled).bool() | (place == 0)
        self._packing = Packing.of(mask)
        output = self.module(given.pad(input_ids), mask.long())
        self._packing = None
        return given.pack(output) if self._per_token else output

    def _before_layers(self, layers: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        name = next(iter(inspect.signature(layers.forward).parameters))
        hidden = args[0] if args else kwargs.pop(name)
        packed = self._packing.pack(hidden)[None]  # [1, N, D]
        return (packed, *args[1:]), kwargs | {"attention_mask": None, "packing": self._packing}

    def _after_layers(self, layers: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = self._packing.pad(output.last_hidden_state[0])  # [B, L, D]
        return output


def check_packable(folder: Path) -> None:
    """Refuse a checkpoint whose encoder can't be packed, by its config alone: before it costs time.

    Raises:
        CheckpointError: its attention can't be exchanged, or its config can't be read.
    """
    try:
        with torch.device("meta"), quiet_transformers():
            model = AutoModel.from_config(AutoConfig.from_pretrained(folder, local_files_only=True))
    except Exception as exc:
        # As for weights: a malformed file surfaces as whatever its parser raises.
        raise CheckpointError(f"{folder}: its config can't be used: {exc}") from exc
    _exchange_attention(model)


def packed_exportable(exportable: Exportable, recipe: Recipe) -> Exportable:
    """The same model with ragged inputs.

    Args:
        exportable: takes ``input_ids`` and ``attention_mask`` ``[B, L]``.
        recipe: gives the longest text.

    Raises:
        CheckpointError: the model's attention can't be exchanged.
    """
    per_token = recipe.task == "token-classification"
    module = PackedTexts(exportable.module, max_length=recipe.text.max_length, per_token=per_token)
    tokens, texts = torch.export.Dim("tokens", min=2), torch.export.Dim("texts", min=1, max=1024)
    # Two texts, the second with padding of its own, so that tracing meets every kind of cell.
    lengths = torch.tensor([[min(11, recipe.text.max_length)], [4]], dtype=torch.int32)
    input_ids = torch.arange(int(lengths.sum())) % 90 + 5
    attention_mask = torch.ones_like(input_ids)
    attention_mask[-1] = 0
    return replace(
        exportable,
        module=module.eval(),
        inputs=(*exportable.inputs, LENGTHS),
        sample=(input_ids, attention_mask, lengths),
        axes=({0: tokens}, {0: tokens}, {0: texts}),
        hub_model=None,
    )


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    filled: torch.Tensor,
    cells: torch.Tensor,
    tokens: torch.Tensor,
    starts: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attention of each text's tokens to one another, ``[N, heads, D]`` to ``[N, heads, D]``.

    Without padding on CUDA in 16 bits, which needs compute capability 8.0 for it; elsewhere padded to the
    longest text. Part of a TorchScript engine, which decides when it runs.

    Args:
        query: ``[N, heads, D]``; ``key`` and ``value`` likewise.
        filled: as in :class:`Packing`; ``cells``, ``tokens`` and ``starts`` likewise.
        scale: what products are multiplied by.
    """
    half = query.dtype == torch.float16 or query.dtype == torch.bfloat16
    if query.is_cuda and half and query.size(2) % 8 == 0 and query.size(2) <= 256:
        return attend_unpadded(query, key, value, starts, filled.size(1), scale)
    rows, width, heads, size = filled.size(0), filled.size(1), query.size(1), query.size(2)
    q = query[tokens].view(rows, width, heads, size).transpose(1, 2)
    k = key[tokens].view(rows, width, heads, size).transpose(1, 2)
    v = value[tokens].view(rows, width, heads, size).transpose(1, 2)
    seen = filled[:, None, None, :]  # [B, 1, 1, L]
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
    return mixed.transpose(1, 2).reshape(rows * width, heads, size)[cells]


def attend_for_onnx(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scale: float
) -> torch.Tensor:
    """The same spelled out, as what exporters make of PyTorch's own looks for rows that see nothing: a packed
    batch has none."""
    q, k, v = (packing.pad(packed).transpose(1, 2) for packed in (query, key, value))  # [B, heads, L, D]
    unseen = torch.where(packing.filled[:, None, None, :], 0.0, torch.finfo(q.dtype).min)  # [B, 1, 1, L]
    # Scaled first, so that products stay within fp16's range.
    mixed = torch.softmax((q * scale) @ k.transpose(2, 3) + unseen, -1) @ v
    return packing.pack(mixed.transpose(1, 2))


def attend_unpadded(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    scale: float,
) -> torch.Tensor:
    """The same on CUDA: texts, ``longest`` tokens at most, are told apart by where they begin."""
    mixed, _, _, _, _ = torch.ops.aten._flash_attention_forward(
        query, key, value, starts, starts, longest, longest, 0.0, False, False, scale=scale
    )
    return mixed


@cache
def _scripted_attend() -> Any:
    # Tracing alone would keep the way that the CPU takes.
    return torch.jit.script(attend)


def _packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    packing: Packing | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls for each layer's attention, with ``[1, heads, N, D]`` each."""
    if packing is None:
        raise CheckpointError(f"{type(module).__name__} hands nothing on to its attention")
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # [N, heads, D]
    scale = query.size(-1) ** -0.5 if scaling is None else scaling
    if torch.compiler.is_exporting():
        return attend_for_onnx(*rows, packing, scale)[None], None
    run = _scripted_attend() if torch.jit.is_tracing() else attend
    return run(*rows, *packing, scale)[None], None


AttentionInterface.register(_ATTENTION, _packed_attention)


def _exchange_attention(module: nn.Module) -> nn.Module:
    """Let the encoder in a module attend as above; returns what holds its layers."""
    for model in module.modules():
        if not isinstance(model, PreTrainedModel):
            continue
        for layers in model.children():
            if isinstance(getattr(layers, "layer", None), nn.ModuleList):
                with quiet_transformers():
                    model.set_attn_implementation(_ATTENTION)
                if model.config._attn_implementation == _ATTENTION:
                    return layers
    models = [part for part in module.modules() if isinstance(part, PreTrainedModel)]
    kind = models[-1].config.model_type if models else type(module).__name__
    raise CheckpointError(
        f"serving.mixed_lengths 'ragged': {kind!r} models have no exchangeable attention; use 'padded' "
        "(--set serving.mixed_lengths=padded)"
    )
