"""A router over merged experts: it chooses among the experts there were before."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moeapps.core.errors import ConfigError
from moeapps.core.losses import load_balance_loss
from moeapps.core.routers.base import Router
from moeapps.core.routing import Routing

__all__ = ["MergedRouter", "MergedRouting"]


@dataclass(frozen=True, eq=False)
class MergedRouting(Routing):
    """Routing over merged experts, with the one over the experts there were before.

    Attributes
    ----------
    before : Routing, optional
        What the old router said.
    """

    before: Routing | None = None


class MergedRouter(Router):
    """Route among the old experts, then send each assignment to the expert that the old one was merged into.

    The weights of a token stay what they were (M-SMoE, Li et al. 2024, section 3.2). In training the old router's
    losses and :meth:`update` go on, over the old experts; only ``balance``, where it has the common one, is that of the
    merged ones.

    Parameters
    ----------
    router : Router
        The old router, over E experts.
    groups : Sequence[sequence of int]
        For each new expert the old ones that it was made of; together they are 0 to E - 1.

    Raises
    ------
    ConfigError
        If the groups are not a partition, or the router is not :attr:`~Router.mergeable`.
    """

    group: Tensor
    router: Router
    determined_buffers = ("group",)

    def __init__(self, router: Router, groups: Sequence[Sequence[int]]) -> None:
        super().__init__(router.dim, len(groups))
        if sorted(e for group in groups for e in group) != list(range(router.num_experts)):
            raise ConfigError(f"groups must hold each of the {router.num_experts} experts once, got {groups}")
        if not all(groups):
            raise ConfigError(f"groups must hold at least one expert each, got {groups}")
        if not router.mergeable:
            why = "it does not choose by scores of its own" if router.token_choice else "its tokens choose no experts"
            raise ConfigError(f"experts behind {type(router).__name__} cannot be merged: {why}")
        self.router = router
        new = [next(g for g, group in enumerate(groups) if e in group) for e in range(router.num_experts)]
        self.register_buffer("group", torch.tensor([*new, len(groups)]))

    @property
    def always_on(self) -> int:
        """Those of the old router, where they were not merged with others and still come first."""
        shared, group = self.router.always_on, self.group[:-1].tolist()
        alone = group[:shared] == list(range(shared)) and all(new >= shared for new in group[shared:])
        return shared if alone else 0

    @property
    def consistency_weight(self) -> float:  # type: ignore[override]
        """That of the old router."""
        return self.router.consistency_weight

    def forward(
        self, x: Tensor, *, experts: nn.Module | None = None, ids: Tensor | None = None, sample_size: int = 1
    ) -> Routing:
        """Route tokens ``(N, d)`` over the merged experts."""
        old: Routing = self.router(x, experts=experts, ids=ids, sample_size=sample_size)
        choices = self.group[old.choices]
        summed = old.probabilities.new_zeros(old.num_tokens, self.num_experts)
        merged = Routing.from_topk(
            choices,
            old.weight[old.position],
            logits=old.logits,
            probabilities=summed.index_add(1, self.group[:-1], old.probabilities),
            valid=old.valid,
            keep=choices < self.num_experts,
            dropped=old.dropped,
            details=old.details,
        )
        return MergedRouting(**vars(merged), before=old)

    def losses(self, routing: Routing, token_weight: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of the old router; ``balance``, where it has the common one, over the merged experts."""
        losses = self.router.losses(_before(routing), token_weight)
        if "balance" in losses and not self.router.balances_itself:
            losses["balance"] = load_balance_loss(routing, token_weight)
        return losses

    def update(self, routing: Routing, progress: float) -> None:
        """Update what the old router learns without gradients."""
        self.router.update(_before(routing), progress)

    def update_by_calls(self, routings: Sequence[Routing], progress: float) -> None:
        """The same after several calls."""
        self.router.update_by_calls([_before(routing) for routing in routings], progress)


def _before(routing: Routing) -> Routing:
    assert isinstance(routing, MergedRouting), "made by forward"
    assert routing.before is not None
    return routing.before
