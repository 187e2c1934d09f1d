"""Embeddings and a model together: encoded rows in, one output per task."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError, DataError
from moeapps.recsys.attention import DIN, AWMoE, keep_some
from moeapps.recsys.encoder import Rows, TableEncoder
from moeapps.recsys.features import FeatureEmbedding
from moeapps.recsys.home import HoME
from moeapps.recsys.multigate import PLE, AdaTT, MMoE, SharedBottom
from moeapps.recsys.targets import Targets

__all__ = ["MULTI_TASK", "SEQUENCE", "MultiTaskNetwork", "SequenceNetwork", "build_network"]

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
"""Models of a user's behaviour by name."""


def _embedding_for(encoder: TableEncoder, dim: int, sparse_gradients: bool) -> FeatureEmbedding:
    """The embedding that fits an encoder's rows."""
    schema = encoder.schema
    return FeatureEmbedding(
        encoder.table_sizes,
        len(schema.sparse),
        2 * len(schema.dense),
        encoder.sequence_tables,
        dim,
        sparse_gradients,
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
        sparse_gradients: Whether the table's gradient holds only the rows that a batch has.
        products: Task to the task it presupposes, as buying presupposes a click (ESMM, Ma et al., SIGIR 2018): the
            probability of the first is its tower's times that of the second, so that both towers learn on all rows.

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
        sparse_gradients: bool = False,
        products: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.embedding = _embedding_for(encoder, embedding_dim, sparse_gradients)
        self.products = dict(products or {})
        self.model = _make(MULTI_TASK, model, options, self.embedding.out_dim, num_tasks)

    def forward(self, rows: Rows) -> Tensor:
        """Outputs ``(N, T)``."""
        outputs: Tensor = self.model(self.embedding(rows))
        if not self.products:
            return outputs
        columns = list(outputs.unbind(1))
        return torch.stack([self._product(columns, t) for t in range(len(columns))], dim=1)

    def _product(self, logits: list[Tensor], task: int) -> Tensor:
        r"""Logit of :math:`\sigma(a) \sigma(b)`, which is :math:`-\log(e^{-a} + e^{-b} + e^{-a-b})`."""
        if task not in self.products:
            return logits[task]
        a, b = logits[task], self._product(logits, self.products[task])
        return -torch.stack([-a, -b, -a - b]).logsumexp(0)


class SequenceNetwork(nn.Module):
    """Behaviour, candidate and everything else apart, for a model that attends to behaviour.

    Args:
        encoder: What the rows look like.
        sequence: Number of the behaviour among the sequences.
        target: Number of the candidate among the sparse columns.
        model: ``"din"`` or ``"aw_moe"``.
        options: Further arguments of that model.
        embedding_dim: Width of an embedding.
        sparse_gradients: Whether the table's gradient holds only the rows that a batch has.
    """

    def __init__(
        self,
        encoder: TableEncoder,
        sequence: int,
        target: int,
        model: str = "aw_moe",
        options: Mapping[str, Any] | None = None,
        embedding_dim: int = 8,
        sparse_gradients: bool = False,
    ) -> None:
        super().__init__()
        self.sequence, self.target = sequence, target
        self.embedding = _embedding_for(encoder, embedding_dim, sparse_gradients)
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


def build_network(
    encoder: TableEncoder,
    targets: Targets,
    model: str,
    options: Mapping[str, Any] | None = None,
    groups: Mapping[str, Sequence[str]] | None = None,
    products: Mapping[str, str] | None = None,
    embedding_dim: int = 8,
    sparse_gradients: bool = False,
) -> MultiTaskNetwork | SequenceNetwork:
    """The network for a table: a multi-task model, or one that attends to the first history of the schema.

    Args:
        encoder: Fitted encoder.
        targets: Fitted targets.
        model: A name in ``MULTI_TASK`` or ``SEQUENCE``.
        options: Further arguments of the model.
        groups: For HoME: name of a group to the names of its targets.
        products: Target to the target that it presupposes, both binary.
        embedding_dim: Width of an embedding.
        sparse_gradients: Whether the table's gradient holds only the rows that a batch has.

    Raises:
        ConfigError: If an argument is impossible.
        DataError: If a model of behaviour has no history to attend to, or more than one target.
    """
    check_one_of("model", model, {**MULTI_TASK, **SEQUENCE})
    if model in MULTI_TASK:
        options = dict(options or {})
        if groups is not None:
            if model != "home":
                raise ConfigError(f"groups are for model='home', got model={model!r}")
            options["groups"] = {
                group: [targets.place(name, f"groups: {group!r} has") for name in members]
                for group, members in groups.items()
            }
        pairs = {
            targets.place(task, "products:"): targets.place(before, "products:")
            for task, before in (products or {}).items()
        }
        _check_products(pairs, targets)
        count = len(targets.names)
        return MultiTaskNetwork(encoder, count, model, options, embedding_dim, sparse_gradients, pairs)
    if groups is not None or products:
        raise ConfigError(f"groups and products are for several targets, got model={model!r}")
    if len(targets.names) != 1 or targets.kinds[targets.names[0]] != "binary":
        raise ConfigError(f"model={model!r} ranks by one binary target, got {', '.join(targets.names)}")
    schema = encoder.schema
    found = [i for i, sequence in enumerate(schema.sequences) if sequence.shares is not None]
    if not found:
        raise DataError(
            f"there is no history: model={model!r} needs a Sequence that shares a Sparse column, such as "
            "Sequence('history', shares='item_id')"
        )
    target = [feature.name for feature in schema.sparse].index(str(schema.sequences[found[0]].shares))
    return SequenceNetwork(encoder, found[0], target, model, options, embedding_dim, sparse_gradients)


def _check_products(products: Mapping[int, int], targets: Targets) -> None:
    for task in products:
        name, seen = targets.names[task], [task]
        while seen[-1] in products:
            seen.append(products[seen[-1]])
            if seen.count(seen[-1]) > 1:
                raise ConfigError(f"products: {name!r} presupposes itself")
        for place in seen:
            if targets.kinds[targets.names[place]] != "binary":
                raise ConfigError(f"products: {targets.names[place]!r} is not a binary target")
