"""Embeddings and a model together: encoded rows in, one output per task."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_one_of
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


def _make(known: dict[str, Any], name: str, options: Mapping[str, Any] | None, *sizes: int) -> Any:
    """Model by name."""
    check_one_of("model", name, known)
    try:
        return known[name](*sizes, **(options or {}))
    except TypeError as error:
        raise ConfigError(f"options of model={name!r}: {error}") from None


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
        self.embedding = embedding_for(encoder, embedding_dim)
        self.model = _make(MULTI_TASK, model, options, self.embedding.out_dim, num_tasks)

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
        self.sequence, self.target = sequence, target
        self.embedding = embedding_for(encoder, embedding_dim)
        profile = self.embedding.out_dim - embedding_dim * len(self.embedding.sequence_tables)
        self.model = _make(SEQUENCE, model, options, embedding_dim, profile)

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

    def with_views(self, rows: Rows, mask_probability: float) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``(N, 1)``, and gate vectors ``(N, E)`` of the behaviour and of it with some masked."""
        assert isinstance(self.model, AWMoE)
        behaviour, target, there, profile = self.parts(rows)
        gate, view = self.model.gates(behaviour, target, there, keep_some(there, mask_probability))
        return self.model.score(gate, behaviour, target, there, profile)[:, None], gate, view
