"""Routers without weights of their own: scores come from the experts' first layers."""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_one_of, check_sizes, check_top_k
from moeapps.core.experts import FactoredExpertMLP, GatedFactoredExpertMLP
from moeapps.core.routers.base import Router, normalized, require_method
from moeapps.core.routing import Routing

__all__ = ["AutonomyRouter", "AvgKRouter"]


class _SelfScoring(Router):
    """Softmax over the experts' own scores, then the k most probable ones."""

    per_expert = ()
    scores_itself = False

    def __init__(self, dim: int, num_experts: int, top_k: int = 2) -> None:
        super().__init__(dim, num_experts)
        check_top_k(top_k, num_experts)
        self.top_k = top_k

    @property
    def renormalizes(self) -> bool:
        """Whether the weights are scaled to sum to 1."""
        return self.top_k > 1

    def choose(self, logits: Tensor, valid: Tensor) -> Routing:
        probabilities = logits.softmax(dim=-1)
        weight, expert = probabilities.topk(self.top_k, dim=-1)
        if self.renormalizes:
            weight = normalized(weight)
        return Routing.from_topk(expert, weight, logits=logits, probabilities=probabilities, valid=valid)


class AvgKRouter(_SelfScoring):
    r"""Average keys: the score of an expert is :math:`x \cdot \bar k_e`, the mean of its first layer's key vectors.

    No router weights (Liu et al. 2023, "Towards a Unified View of Sparse Feed-Forward Network", section 5.2). The
    keys are the columns of the first layer of :class:`~moeapps.core.experts.ExpertMLP`.

    Parameters
    ----------
    dim
        Width d of a token.
    num_experts
        Number of experts E.
    top_k
        As in :class:`~moeapps.core.routers.TopKRouter`.

    Raises
    ------
    ConfigError
        If a size is impossible, or (in forward) the experts have no keys.
    """

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """Inner products with the mean keys ``(E, d)``."""
        keys: Tensor = require_method(experts, "mean_keys", self)()
        return x @ keys.to(x.dtype).t()


class AutonomyRouter(_SelfScoring):
    r"""Autonomy of experts: each expert's narrow first factor scores every token; the largest norms win.

    The score is the norm :math:`\lVert x W_{down}^e \rVert_2` (Lv et al. 2025, "Autonomy-of-Experts Models", eq. 5-6),
    the weight the softmax of the scores of all experts, taken as it is. The experts have to have such a factor; the
    :class:`~moeapps.core.layer.MoE` makes them by itself for this router:
    :class:`~moeapps.core.experts.GatedFactoredExpertMLP`, as in the released code.

    Parameters
    ----------
    dim, num_experts : int
        Width d of a token and number of experts E.
    top_k : int, default=2
        As in :class:`~moeapps.core.routers.TopKRouter`.
    rank : int, optional
        Width of the experts' first factor, for the experts that the layer makes; d / 4 when None.
    form : {"gated", "narrow"}, default="gated"
        ``"gated"`` is the paper's. With ``"narrow"`` experts are :class:`~moeapps.core.experts.FactoredExpertMLP`,
        which see nothing of a token but its r narrow activations, and the k > 1 weights are scaled to sum to 1: fewer
        parameters, and less accurate (moeapps 0.1 had this form only).

    Raises
    ------
    ConfigError
        If a size is impossible, or (in forward) the experts have no such factor.
    """

    defaults_of_0_1: ClassVar[dict[str, Any]] = {"form": "narrow"}
    form: Literal["gated", "narrow"] = "narrow"  # as in pickles of 0.1, which have none

    def __init__(
        self,
        dim: int,
        num_experts: int,
        top_k: int = 2,
        rank: int | None = None,
        form: Literal["gated", "narrow"] = "gated",
    ) -> None:
        super().__init__(dim, num_experts, top_k)
        rank = max(dim // 4, 1) if rank is None else rank
        check_sizes(rank=rank)
        check_one_of("form", form, ("gated", "narrow"))
        self.rank, self.form = rank, form

    @property
    def renormalizes(self) -> bool:
        """Whether the weights are scaled to sum to 1."""
        return self.form == "narrow" and self.top_k > 1

    def scores(self, x: Tensor, experts: nn.Module | None, ids: Tensor | None) -> Tensor:
        """Norms of the experts' inner activations, ``(N, E)``."""
        squares: Tensor = require_method(experts, "inner_squares", self)(x)
        # the root's gradient at 0 is infinite
        return squares.clamp(min=torch.finfo(x.dtype).tiny).sqrt()

    def default_experts(self, hidden_dim: int) -> FactoredExpertMLP:
        """Experts with a narrow first factor."""
        kind = GatedFactoredExpertMLP if self.form == "gated" else FactoredExpertMLP
        return kind(self.dim, hidden_dim, self.num_experts, rank=self.rank)
