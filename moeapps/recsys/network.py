"""Embeddings and a model together: encoded rows in, one output per task."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.core.errors import ConfigError
from moeapps.recsys.attention import DIN, AWMoE, keep_some
from moeapps.recsys.encoder import Rows, TableEncoder
from moeapps.recsys.features import FeatureEmbedding
from moeapps.recsys.home import HoME
from moeapps.recsys.multigate import PLE, AdaTT, MMoE, SharedBottom

__all__ = ["MULTI_TASK", "MultiTaskNetwork", "SequenceNetwork", "embedding_for"]

MULTI_TASK: dict[str, Any] = {
    "shared_bottom": SharedBottom,
    "mmoe": MMoE,
    "cgc": lambda dim, num_tasks, **options: PLE(dim, num_tasks, num_levels=1, **options),
    "ple": PLE,
    "adatt": AdaTT,
    "home": HoME,
}
"""Multi-task models by name."""

SEQUENCE: dict[str, Any] = {"din": DIN, "aw_moe": AWMoE}


def embedding_for(encoder: TableEncoder, dim: int) -> FeatureEmbedding:
    """The embedding that fits an encoder's rows."""
    schema = encoder.schema
    return FeatureEmbedding(
        encoder.table_sizes, len(schema.sparse), 2 * len(schema.dense), encoder.sequence_tables, dim
    )


class MultiTaskNetwork(nn.Module):
    """Everything that is known as one vector, then a multi-task model.

    Args:
        encoder: What the rows look like.
        num_tasks: Number of tasks T.
        model: A name in ``MULTI_TASK``.
        options: Further arguments of that model.
        embedding_dim: Width of an embedding.

    Raises:
        ConfigError: If there is no such model or argument.
    """

    def __init__(
        self,
        encoder: TableEncoder,
        num_tasks: int,
        model: str = "home",
        options: Mapping[str, Any] | None = None,
        embedding_dim: int = 8,
    ) -> None:
        super().__init__()
        if model not in MULTI_TASK:
            raise ConfigError(f"model must be one of {', '.join(MULTI_TASK)}, got {model!r}")
        self.embedding = embedding_for(encoder, embedding_dim)
        try:
            self.model = MULTI_TASK[model](self.embedding.out_dim, num_tasks, **(options or {}))
        except TypeError as error:
            raise ConfigError(f"options of model={model!r}: {error}") from None

    def forward(self, rows: Rows) -> Tensor:
        """Outputs ``(N, T)``."""
        outputs: Tensor = self.model(self.embedding(rows))
        return outputs


class SequenceNetwork(nn.Module):
    """Behaviour, candidate and everything else apart, for a model that attends to behaviour.

    Args:
        encoder: What the rows look like.
        sequence: Number of the behaviour among the sequences.
        target: Number of the candidate among the sparse columns.
        model: ``"din"`` or ``"aw_moe"``.
        options: Further arguments of that model.
        embedding_dim: Width of an embedding.
    """

    def __init__(
        self,
        encoder: TableEncoder,
        sequence: int,
        target: int,
        model: str = "aw_moe",
        options: Mapping[str, Any] | None = None,
        embedding_dim: int = 8,
    ) -> None:
        super().__init__()
        if model not in SEQUENCE:
            raise ConfigError(f"model must be one of {', '.join(SEQUENCE)}, got {model!r}")
        self.sequence, self.target = sequence, target
        self.embedding = embedding_for(encoder, embedding_dim)
        profile = self.embedding.out_dim - embedding_dim * len(self.embedding.sequence_tables)
        try:
            self.model = SEQUENCE[model](embedding_dim, profile, **(options or {}))
        except TypeError as error:
            raise ConfigError(f"options of model={model!r}: {error}") from None

    def parts(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Behaviour ``(N, L, dim)``, candidate ``(N, dim)``, where there is behaviour, the rest ``(N, P)``."""
        behaviour, there = self.embedding.sequence(rows, self.sequence)
        sparse = self.embedding.sparse(rows)
        profile = torch.cat([sparse.flatten(1), rows.dense.to(sparse.dtype)], dim=1)
        return behaviour, sparse[:, self.target], there, profile

    def forward(self, rows: Rows) -> Tensor:
        """Logits ``(N, 1)``."""
        logits: Tensor = self.model(*self.parts(rows))
        return logits[:, None]

    def gate_views(self, rows: Rows, mask_probability: float) -> tuple[Tensor, Tensor]:
        """Gate vectors ``(N, E)`` of the behaviour and of the behaviour with some of it masked."""
        assert isinstance(self.model, AWMoE)
        behaviour, target, there, _ = self.parts(rows)
        masked = keep_some(there, mask_probability)
        return self.model.gate(behaviour, target, there), self.model.gate(behaviour, target, masked)
