"""Routers without learned weights: by hash, at random per batch, and fixed random with growing k."""

import heapq
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_at_least_zero, check_sizes, check_top_k
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.routers.base import Router, normalized
from moeapps.core.routing import Routing

__all__ = ["HashRouter", "SMoEDropoutRouter", "ThorRouter"]


class HashRouter(Router):
    """One expert by hash (Hash Layers, Roller et al. 2021): nothing to learn, nothing to balance.

    With token ids (``layer(x, ids=...)``) the expert is a hash of the id; for continuous tokens it is the argmax of a
    fixed random projection, which sends similar tokens to the same expert. The weight is always 1.

    Frequent ids make the load of a plain hash uneven. With ``vocabulary=V`` ids 0 to V - 1 are looked up in a table,
    which :meth:`balance` fills from a count of the training data, greedily, as the paper describes its balanced
    assignment. It is part of the saved state. Any other id is hashed.

    Parameters
    ----------
    dim, num_experts : int
        Width d of a token and number of experts E.
    seed : int, default=0
        Which hash; the same seed gives the same assignment everywhere.
    vocabulary : int, optional
        Number of ids V that have an entry in the table; None for no table.

    Raises
    ------
    ConfigError
        If a size is below 1.

    Examples
    --------
    >>> import torch
    >>> router = HashRouter(dim=8, num_experts=2, vocabulary=5)
    >>> router.balance([4, 3, 2, 1, 0])
    >>> router.table[:4].tolist()
    [0, 1, 1, 0]
    """

    per_expert = ("projection",)
    vocabulary: int | None = None  # pickles of 0.1 have none
    projection: Tensor
    table: Tensor
    _hashed: int  # number of experts that ids are hashed to
    _kept: tuple[int, ...] | None  # those of them that are left, None for all

    def __init__(self, dim: int, num_experts: int, seed: int = 0, vocabulary: int | None = None) -> None:
        super().__init__(dim, num_experts)
        self.seed, self.vocabulary = seed, vocabulary
        self._hashed, self._kept = num_experts, None
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("projection", torch.randn(num_experts, dim, generator=generator) * dim**-0.5)
        if vocabulary is not None:
            check_sizes(vocabulary=vocabulary)
            self.register_buffer("table", self._hash(torch.arange(vocabulary)))

    @torch.no_grad()
    def balance(self, counts: Any) -> None:
        """Fill the table: ids in the order of their frequency, each to the expert with the fewest tokens so far.

        Ids that were not counted keep the expert of their hash.

        Parameters
        ----------
        counts : array or Tensor
            ``(V,)`` how often each id occurs in the training data, at least 0.

        Raises
        ------
        ConfigError
            If the router has no table.
        DataError
            If there is not one count of at least 0 per id.
        """
        if self.vocabulary is None:
            raise ConfigError("this hash router has no table to balance: give it a vocabulary, the number of ids")
        counts = torch.as_tensor(counts, dtype=torch.float64).cpu()
        if counts.shape != (self.vocabulary,) or not bool(((counts >= 0) & counts.isfinite()).all()):
            raise DataError(f"counts must be {self.vocabulary} numbers of at least 0, one per id")
        table = self._hash(torch.arange(self.vocabulary))
        loads = [(0.0, expert) for expert in range(self.num_experts)]
        for i in counts.argsort(descending=True, stable=True)[: int((counts > 0).sum())].tolist():
            load, expert = loads[0]
            table[i] = expert
            heapq.heapreplace(loads, (load + float(counts[i]), expert))
        self.table.copy_(table)

    def check_buffers(self) -> str | None:
        """What is impossible about the table of a file; None where nothing is."""
        if self.vocabulary is None or bool(((self.table >= 0) & (self.table < self.num_experts)).all()):
            return None
        return f"its table has experts outside of 0..{self.num_experts - 1}"

    def _hash(self, ids: Tensor) -> Tensor:
        return self._bucket(_mix(ids.long() + self.seed))

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """1 for the hashed expert and 0 for the others; NaN where the token is not finite."""
        if ids is None:
            bucket = F.linear(x, self.projection.to(x.dtype)).argmax(dim=-1)
        else:
            if ids.shape != x.shape[:1] or ids.is_floating_point():
                raise DataError(
                    f"ids must be whole numbers of shape {(x.shape[0],)}, got {ids.dtype} {tuple(ids.shape)}"
                )
            bucket = self._hash(ids)
            if self.vocabulary is not None:
                known = (ids >= 0) & (ids < self.vocabulary)
                bucket = torch.where(known, self.table[torch.where(known, ids, 0)], bucket)
        # not F.one_hot, which looks at the values
        hit = (bucket[:, None] == torch.arange(self.num_experts, device=x.device)).to(x.dtype)
        return hit + x.detach().sum(dim=-1, keepdim=True) * 0

    def _bucket(self, hashed: Tensor) -> Tensor:
        """Expert of each hashed id; after experts were taken out, ids of the others keep theirs."""
        if self._kept is None:
            return hashed % self.num_experts
        number = {e: i for i, e in enumerate(self._kept)}
        table = torch.tensor([number.get(e, -1) for e in range(self._hashed)], device=hashed.device)
        bucket = table[hashed % self._hashed]
        return torch.where(bucket < 0, hashed // self._hashed % self.num_experts, bucket)

    def restricted(self, kept: Sequence[int]) -> Self:
        """Copy over some of the experts; tokens and ids of these keep them."""
        copied = super().restricted(kept)
        before = range(self.num_experts) if self._kept is None else self._kept
        copied._kept = tuple(before[e] for e in kept)
        if self.vocabulary is not None:
            number = {old: new for new, old in enumerate(kept)}
            renumbered = torch.tensor([number.get(e, -1) for e in range(self.num_experts)], device=self.table.device)
            new, hashed = renumbered[self.table], copied._hash(torch.arange(self.vocabulary, device=self.table.device))
            copied.table = torch.where(new >= 0, new, hashed)
        return copied

    def choose(self, logits: Tensor, valid: Tensor) -> Routing:
        """The hashed expert with weight 1."""
        expert = logits.argmax(dim=-1, keepdim=True)
        weight = torch.ones_like(expert, dtype=logits.dtype)
        probabilities = torch.zeros_like(logits).scatter(1, expert, weight)
        return Routing.from_topk(expert, weight, logits=logits, probabilities=probabilities, valid=valid)

    def losses(self, routing: Routing, token_weight: Tensor | None = None) -> dict[str, Tensor]:
        """None: nothing is learned."""
        return {}


def _mix(value: Tensor) -> Tensor:
    """Spread whole numbers: xor-shifts and odd multipliers, always at least 0."""
    for shift, factor in ((16, 0x45D9F3B), (15, 0x2C1B3C6D), (13, 0x297A2D39)):
        value = ((value ^ (value >> shift)) * factor) & 0x7FFFFFFF
    return value ^ (value >> 16)


class ThorRouter(Router):
    """Random experts, the same ones for a whole batch, in training; the mean of all experts in evaluation.

    No router is learned at all (THOR, Zuo et al. 2022). The experts are made alike by a consistency loss: training
    modules draw twice (:meth:`~moeapps.core.module.MoEModule.by_draws`), take the mean of the two task
    losses, and add :func:`~moeapps.core.losses.consistency_loss` of the two outputs times ``consistency_weight``. The
    released code adds the task losses up and has ``--consistency-alpha 5.0``: half of that is the default here.

    Parameters
    ----------
    dim, num_experts : int
        Width d of a token and number of experts E.
    top_k : int, default=1
        Experts drawn per batch.
    consistency_weight : float, default=2.5
        Factor of the consistency loss beside the mean of the task losses; 0 for a single draw.

    Raises
    ------
    ConfigError
        If a size is impossible.
    """

    per_expert = ()
    defaults_of_0_1: ClassVar[dict[str, Any]] = {"consistency_weight": 1.0}

    def __init__(self, dim: int, num_experts: int, top_k: int = 1, consistency_weight: float = 2.5) -> None:
        super().__init__(dim, num_experts)
        check_top_k(top_k, num_experts)
        check_at_least_zero(consistency_weight=consistency_weight)
        self.top_k, self.consistency_weight = top_k, consistency_weight

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """All zero, NaN where the token is not finite."""
        return (x.detach().sum(dim=-1, keepdim=True) * 0).expand(-1, self.num_experts)

    def choose(self, logits: Tensor, valid: Tensor) -> Routing:
        """K random experts in training, all in evaluation, with equal weights."""
        experts = torch.arange(self.num_experts, device=logits.device)
        if self.training:
            experts = torch.randperm(self.num_experts, device=logits.device)[: self.top_k]
        expert = experts.expand(logits.shape[0], -1)
        weight = torch.full_like(expert, 1 / experts.numel(), dtype=logits.dtype)
        return Routing.from_topk(expert, weight, logits=logits, probabilities=logits.softmax(dim=-1), valid=valid)

    def losses(self, routing: Routing, token_weight: Tensor | None = None) -> dict[str, Tensor]:
        """None: nothing is learned."""
        return {}


class SMoEDropoutRouter(Router):
    """A random router that is never trained, with k growing from ``start_k`` to ``end_k`` during training.

    At inference any number of experts may be used (``router.top_k = 3``): more experts, better output
    ("Sparse MoE as the New Dropout", Chen et al. 2023, section 3).

    Parameters
    ----------
    dim, num_experts : int
        Width d of a token and number of experts E.
    start_k : int, optional
        Experts per token at the beginning of training; half of E, at most ``end_k``, when None (8 of 16 in the released
        scripts).
    end_k : int, optional
        Experts per token at its end; E when None.

    Attributes
    ----------
    top_k : int
        Experts per token now. Grows linearly with the training's progress and is part of the saved state.

    Raises
    ------
    ConfigError
        If a size is impossible.
    """

    per_expert = ("projection",)
    projection: Tensor
    current_k: Tensor
    defaults_of_0_1: ClassVar[dict[str, Any]] = {"start_k": 1}

    def __init__(self, dim: int, num_experts: int, start_k: int | None = None, end_k: int | None = None) -> None:
        super().__init__(dim, num_experts)
        end_k = num_experts if end_k is None else end_k
        check_top_k(end_k, num_experts, "end_k")
        start_k = min(max(num_experts // 2, 1), end_k) if start_k is None else start_k
        check_top_k(start_k, end_k, "start_k")
        self.start_k, self.end_k = start_k, end_k
        self.register_buffer("projection", torch.randn(num_experts, dim) * dim**-0.5)
        self.register_buffer("current_k", torch.tensor(start_k))
        self._top_k = start_k

    @property
    def top_k(self) -> int:
        """Experts per token now."""
        return self._top_k

    @top_k.setter
    def top_k(self, value: int) -> None:
        check_top_k(value, self.num_experts)
        self._top_k = value
        self.current_k.fill_(value)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._top_k = int(self.current_k)

    def check_buffers(self) -> str | None:
        """What is impossible about buffers that come from a file; None where nothing is."""
        k = int(self.current_k)
        return None if self.start_k <= k <= self.end_k else f"current_k={k} is not in {self.start_k}..{self.end_k}"

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """A fixed random projection."""
        return F.linear(x, self.projection.to(x.dtype))

    def choose(self, logits: Tensor, valid: Tensor) -> Routing:
        """The k best, weights scaled to sum to 1."""
        probabilities = logits.softmax(dim=-1)
        weight, expert = probabilities.topk(self._top_k, dim=-1)
        return Routing.from_topk(expert, normalized(weight), logits=logits, probabilities=probabilities, valid=valid)

    def losses(self, routing: Routing, token_weight: Tensor | None = None) -> dict[str, Tensor]:
        """None: nothing is learned."""
        return {}

    def update(self, routing: Routing, progress: float) -> None:
        """Let k grow."""
        self.top_k = self.start_k + round((self.end_k - self.start_k) * min(max(progress, 0.0), 1.0))
