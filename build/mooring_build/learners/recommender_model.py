"""A recommender that knows items by their texts: a frozen text encoder, a projection of its vectors, and a
causal transformer over a user's history.

An item's vector is the projection of its text's vector and, where users chose it in training, a part that is
the item's own. In training that part is left out now and then, so that items without one are ranked well too
(DropoutNet; Volkovs, Yu and Poutanen, NIPS 2017). The transformer is SASRec's (Kang and McAuley, ICDM 2018)
with a full softmax over the items and a first state that stands before any item.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from mooring_build.checkpoints import Pooling
from mooring_build.learners.embedding import EmbeddingConfig, EmbeddingModel

#: Label of a state that nothing follows.
IGNORED = -100


class RecommenderConfig(PreTrainedConfig):
    """Shape of a :class:`RecommenderModel`.

    Args:
        encoder: the text encoder's own configuration, as a table.
        dimension: length of the vectors of items and users.
        max_history: longest history, in items.
        known_count: items whose texts the checkpoint has; the first ``trained_count`` of them were chosen in
            training.
        trained_count: items that have a part of their own.
        layers: of the transformer.
        heads: of its attention.
        dropout: share of the values that training leaves out.
        item_dropout: share of the items whose own part training leaves out.
        pooling: of the encoder's tokens, as of an :class:`EmbeddingConfig`.
    """

    model_type = "mooring_recommender"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        dimension: int = 64,
        max_history: int = 50,
        known_count: int = 0,
        trained_count: int = 0,
        layers: int = 1,
        heads: int = 2,
        dropout: float = 0.2,
        item_dropout: float = 0.1,
        pooling: Pooling = "mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.encoder = encoder or {}
        self.pooling = pooling
        self.dimension = dimension
        self.max_history = max_history
        self.known_count = known_count
        self.trained_count = trained_count
        self.layers = layers
        self.heads = heads
        self.dropout = dropout
        self.item_dropout = item_dropout


class RecommenderModel(PreTrainedModel):
    """Histories of items to the vectors of users, and texts of items to the vectors of items."""

    config_class = RecommenderConfig

    def __init__(self, config: RecommenderConfig) -> None:
        super().__init__(config)
        self.text_encoder = EmbeddingModel(EmbeddingConfig(encoder=config.encoder, pooling=config.pooling))
        self.text_encoder.requires_grad_(False)
        text_dimension = self.text_encoder.config.hidden_size
        self.register_buffer("text_vectors", torch.zeros(config.known_count, text_dimension))
        self.projection = nn.Linear(text_dimension, config.dimension)
        self.text_bias = nn.Linear(text_dimension, 1)
        self.own_vectors = nn.Parameter(torch.randn(config.trained_count, config.dimension) * 0.02)
        self.own_biases = nn.Parameter(torch.zeros(config.trained_count))
        self.tower = UserTower(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Torch's own initial weights stay: these layers are no part of a language model."""

    def item_vectors(
        self, text_vectors: torch.Tensor, places: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors and biases of items.

        Args:
            text_vectors: ``[N, T]`` of the items' texts.
            places: ``[N]`` of each item's own part; -1 where it has none.

        Returns:
            ``[N, D]`` and ``[N]``.
        """
        known = places >= 0
        if self.training:
            known = known & (torch.rand(len(places), device=places.device) >= self.config.item_dropout)
        share = known.to(text_vectors.dtype)
        rows = places.clamp(min=0)
        vectors = self.projection(text_vectors) + share[:, None] * self.own_vectors[rows]
        return vectors, self.text_bias(text_vectors)[:, 0] + share * self.own_biases[rows]

    def known_items(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors and biases of the items that the checkpoint knows, in its order."""
        places = torch.arange(self.config.known_count, device=self.text_vectors.device)
        return self.item_vectors(
            self.text_vectors, torch.where(places < self.config.trained_count, places, -1)
        )

    def forward(
        self,
        history: torch.Tensor,
        labels: torch.Tensor | None = None,
        seen: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Compare each state with the item that was chosen next.

        Args:
            history: ``[B, H]`` places of known items, oldest first; the padding at the end is any.
            labels: ``[B, H + 1]`` place of the item that followed the first 0 to ``H`` items; ``IGNORED``
                where it does not count.
            seen: ``[B, S]`` places of items that can't follow, padded with ``known_count``; with it, each
                row has one label, and the answer says how many items are ranked above that.

        Returns:
            ``loss`` and, with ``seen``, ``ranks`` ``[B]``.
        """
        vectors, biases = self.known_items()
        states = self.tower.states(vectors[history])  # [B, H + 1, D]
        if labels is None:
            return {"states": states}
        counts = labels != IGNORED
        scores = states[counts] @ vectors.T + biases  # [labels, N]
        if seen is None:
            # What was never chosen in training would only learn that it is never chosen.
            scores = scores[:, : self.config.trained_count]
        loss = functional.cross_entropy(scores, labels[counts])
        if seen is None:
            return {"loss": loss}
        own = scores.gather(1, labels[counts][:, None])
        padded = functional.pad(scores, (0, 1)).scatter(1, seen, float("-inf"))[:, :-1]
        return {"loss": loss, "ranks": (padded > own).sum(1)}


class UserTower(nn.Module):
    """Vectors of a history's items to the user's vector: the part that is served as an engine."""

    def __init__(self, config: RecommenderConfig) -> None:
        super().__init__()
        size = config.dimension
        self.start = nn.Parameter(torch.randn(1, 1, size) * 0.02)
        self.positions = nn.Parameter(torch.randn(config.max_history + 1, size) * 0.02)
        self.norm_in = nn.LayerNorm(size)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(size)

    def states(self, vectors: torch.Tensor) -> torch.Tensor:
        """``[B, H, D]`` to the states after 0 to ``H`` items, ``[B, H + 1, D]``."""
        start = self.start.expand(vectors.shape[0], 1, -1)
        hidden = self.norm_in(torch.cat([start, vectors], dim=1))
        hidden = self.dropout(hidden + self.positions[: hidden.shape[1]])
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm_out(hidden)

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Users' vectors ``[B, D]``.

        Args:
            vectors: ``[B, H, D]`` of items, oldest first.
            mask: ``[B, H]`` int64: 1 on items, then 0 on padding, which no item's state sees.
        """
        states = self.states(vectors)
        last = mask.sum(1)[:, None, None].expand(-1, 1, states.shape[-1])
        return states.gather(1, last)[:, 0]


class _Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each normalised first."""

    def __init__(self, config: RecommenderConfig) -> None:
        super().__init__()
        size = config.dimension
        self.heads = config.heads
        self.rate = config.dropout
        self.norm_attention = nn.LayerNorm(size)
        self.queries_keys_values = nn.Linear(size, 3 * size)
        self.attended = nn.Linear(size, size)
        self.norm_feed = nn.LayerNorm(size)
        self.feed = nn.Sequential(
            nn.Linear(size, 2 * size),
            nn.GELU(),
            nn.Dropout(config.dropout),
            nn.Linear(2 * size, size),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        parts = self.queries_keys_values(self.norm_attention(hidden)).chunk(3, dim=-1)
        queries, keys, values = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, dropout_p=self.rate if self.training else 0.0
        )  # [B, heads, L, D / heads]
        hidden = hidden + self.dropout(self.attended(mixed.transpose(1, 2).flatten(2)))
        return hidden + self.dropout(self.feed(self.norm_feed(hidden)))


AutoConfig.register(RecommenderConfig.model_type, RecommenderConfig)
AutoModel.register(RecommenderConfig, RecommenderModel)
