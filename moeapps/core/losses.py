"""Auxiliary losses: what is added to the task loss so that routing stays healthy.

Every loss is made of sums over tokens, and these run over all processes of a distributed training: each process gets
the value of the whole batch (and, averaged over processes, its gradient). An empty batch gives exactly 0.

``token_weight`` ``(N,)``, where it is given, weighs each token; invalid tokens never count.

Shapes: N tokens, E experts, S samples.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from moeapps.core.distributed import global_sum
from moeapps.core.errors import DataError
from moeapps.core.routing import Routing

__all__ = [
    "consistency_loss",
    "entropy_loss",
    "importance_loss",
    "load_balance_loss",
    "localized_balance_loss",
    "mixture_loss",
    "mutual_information",
    "parameter_penalty_loss",
    "router_z_loss",
    "squared_difference",
    "squared_variation",
    "token_entropy",
]


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over the tokens of all processes; 0 without any."""
    sums = global_sum(
        torch.cat([(values * weight.view(-1, *[1] * (values.ndim - 1))).sum(0).view(-1), weight.sum()[None]])
    )
    mean = sums[:-1] / torch.where(sums[-1] > 0, sums[-1], 1)
    return mean.view(values.shape[1:])


def _load(routing: Routing, token_weight: Tensor | None) -> Tensor:
    """Fraction of all assignments that each expert got, ``(E,)``."""
    counts = global_sum(routing.valid_counts(token_weight).detach())
    return counts / torch.where(counts.sum() > 0, counts.sum(), 1)


def squared_variation(values: Tensor) -> Tensor:
    """Squared coefficient of variation (variance / mean squared) of ``(E,)`` numbers from 0; 0 for fewer than two."""
    if values.numel() < 2:
        return (values * 0).sum()
    mean = values.mean()
    return values.var(correction=0) / torch.where(mean > 0, mean, 1).square()


def load_balance_loss(routing: Routing, token_weight: Tensor | None = None) -> Tensor:
    r"""Load-balance loss of Switch Transformer (Fedus et al. 2022, eq. 4-6): :math:`E \sum_e f_e P_e`.

    :math:`f_e` is the fraction of assignments that expert e got, :math:`P_e` the mean of its router probability, both
    over the valid tokens. It is 1 at uniform routing and E when one expert takes all tokens with probability 1. Only P
    carries a gradient.

    Parameters
    ----------
    routing : Routing
        Where the tokens went.
    token_weight : Tensor, optional
        ``(N,)`` how much each token counts; one each when None.

    Returns
    -------
    Tensor
        Scalar in the dtype of the probabilities.
    """
    mean_probability = _mean(routing.probabilities, routing.token_weight(token_weight))
    return routing.num_experts * (_load(routing, token_weight) * mean_probability).sum()


def importance_loss(routing: Routing, token_weight: Tensor | None = None) -> Tensor:
    r"""Importance loss of Shazeer et al. 2017, eq. 7: the squared coefficient of variation of :math:`\sum_n w_{ne}`.

    The importance of an expert is the sum of the weights that its tokens give it. 0 when all experts matter equally.

    Parameters
    ----------
    routing : Routing
        Where the tokens went.
    token_weight : Tensor, optional
        ``(N,)`` how much each token counts; one each when None.

    Returns
    -------
    Tensor
        Scalar in the dtype of the probabilities.
    """
    weight = routing.weight.nan_to_num() * routing.token_weight(token_weight)[routing.token]
    importance = weight.new_zeros(routing.num_experts + 1).index_add(0, routing.expert, weight)[:-1]
    return squared_variation(global_sum(importance))


def localized_balance_loss(
    routing: Routing,
    sample_groups: Tensor,
    expert_groups: Sequence[int],
    delta: float = 0.1,
    token_weight: Tensor | None = None,
) -> Tensor:
    r"""Localized balancing constraint of LoRAMoE (Dou et al. 2024, section 3.4).

    The squared coefficient of variation of :math:`Z_{se} = I_{se} Q_{se}` over samples and experts. :math:`Q_{se}` is
    the mean weight that the tokens of sample s give to expert e; :math:`I_{se}` is :math:`1 - \delta` where both are of
    the same group, and :math:`1 + \delta` elsewhere. It is 0 where the experts of a sample's own group get
    :math:`(1 + \delta) / (1 - \delta)` times the weight of the others, equally much within each group.

    Parameters
    ----------
    routing : Routing
        Where the tokens went; the tokens of a sample follow each other, equally many of each.
    sample_groups : Tensor
        ``(S,)`` int64 group of each sample.
    expert_groups : sequence of int
        Group of each expert, E numbers.
    delta : float, default=0.1
        How far the groups are apart, 0 to below 1; 0 balances all experts alike.
    token_weight : Tensor, optional
        ``(N,)`` how much each token counts; one each when None. Samples without any do not count.

    Returns
    -------
    Tensor
        Scalar in the dtype of the probabilities.

    Raises
    ------
    DataError
        If the tokens do not divide among the samples.
    """
    count, tokens, num_experts = len(sample_groups), routing.num_tokens, routing.num_experts
    if count == 0 or tokens % count:
        raise DataError(
            f"sample_groups has {count} samples for {tokens} tokens, which do not divide among them: give one group "
            "per sample of the last forward pass"
        )
    counts_as = routing.token_weight(token_weight)
    weight = routing.weight.nan_to_num() * counts_as[routing.token]
    # expert E is that of assignments that were dropped
    cell = routing.token // max(tokens // count, 1) * (num_experts + 1) + routing.expert
    summed = weight.new_zeros(count * (num_experts + 1)).index_add(0, cell, weight).view(count, -1)[:, :-1]  # (S, E)
    size = counts_as.view(count, -1).sum(1, keepdim=True).to(summed.dtype)  # (S, 1)
    groups = torch.as_tensor(expert_groups, device=summed.device)
    own = sample_groups.to(summed.device)[:, None] == groups
    z = torch.where(own, 1 - delta, 1 + delta) * summed / torch.where(size > 0, size, 1)
    counted = (size > 0).to(z.dtype).expand_as(z)
    number = global_sum(counted.sum())
    number = torch.where(number > 0, number, 1)
    mean = global_sum(z.sum()) / number
    variance = global_sum(((z - mean).square() * counted).sum()) / number
    return variance / torch.where(mean > 0, mean, 1).square()


def router_z_loss(routing: Routing, token_weight: Tensor | None = None) -> Tensor:
    r"""Router z-loss of ST-MoE (Zoph et al. 2022, eq. 5): the mean of :math:`(\log \sum_e \exp z_e)^2`.

    It keeps the router's logits small, where float arithmetic is precise.

    Parameters
    ----------
    routing : Routing
        Where the tokens went.
    token_weight : Tensor, optional
        ``(N,)`` how much each token counts; one each when None.

    Returns
    -------
    Tensor
        Scalar in the dtype of the probabilities.
    """
    return _mean(routing.logits.logsumexp(dim=-1).square(), routing.token_weight(token_weight))


def entropy_loss(routing: Routing, token_weight: Tensor | None = None) -> Tensor:
    """Mean entropy of the router's probabilities in nats (dynamic loss of Huang et al. 2024, eq. 6).

    Confident routers need fewer experts to reach top-p's share of the probability.

    Parameters
    ----------
    routing : Routing
        Where the tokens went.
    token_weight : Tensor, optional
        ``(N,)`` how much each token counts; one each when None.

    Returns
    -------
    Tensor
        Scalar in the dtype of the probabilities.
    """
    return _mean(token_entropy(routing.probabilities), routing.token_weight(token_weight))


def mutual_information(routing: Routing, token_weight: Tensor | None = None) -> Tensor:
    r"""Mutual information of tokens and experts, :math:`H(\bar p) - \overline{H(p)}` (ModuleFormer, Shen et al. 2023).

    To be *maximised*: all experts are used, and each token has a clear expert. 0 to log E nats.

    Parameters
    ----------
    routing : Routing
        Where the tokens went.
    token_weight : Tensor, optional
        ``(N,)`` how much each token counts; one each when None.

    Returns
    -------
    Tensor
        Scalar in the dtype of the probabilities.
    """
    weight = routing.token_weight(token_weight)
    return token_entropy(_mean(routing.probabilities, weight)) - _mean(token_entropy(routing.probabilities), weight)


def parameter_penalty_loss(routing: Routing, sizes: Sequence[int], token_weight: Tensor | None = None) -> Tensor:
    r"""Parameter penalty of HMoE (Wang et al. 2024, eq. 8): :math:`E \sum_e \frac{D_e}{\bar D} f_e P_e`.

    The load-balance loss with each expert weighted by its size, so that small experts are preferred.

    Parameters
    ----------
    routing : Routing
        Where the tokens went.
    sizes : sequence of int
        Size D of each expert (its hidden width or its parameter count), E numbers.
    token_weight : Tensor, optional
        ``(N,)`` how much each token counts.
    """
    size = torch.as_tensor(sizes, dtype=routing.probabilities.dtype, device=routing.probabilities.device)
    mean_probability = _mean(routing.probabilities, routing.token_weight(token_weight))
    return routing.num_experts * (size / size.mean() * _load(routing, token_weight) * mean_probability).sum()


def consistency_loss(first: Tensor, second: Tensor, token_weight: Tensor | None = None) -> Tensor:
    r"""Consistency of two random draws of experts (THOR, Zuo et al. 2022, eq. 5): their symmetric KL divergence.

    Parameters
    ----------
    first : Tensor
        ``(N, K)`` class logits of the first draw.
    second : Tensor
        ``(N, K)`` class logits of the second draw.
    token_weight : Tensor, optional
        ``(N,)`` how much each row counts.

    Returns
    -------
    Tensor
        Scalar: mean over rows of :math:`\frac12 (KL(p_1, p_2) + KL(p_2, p_1))`.
    """
    p, q = F.log_softmax(first, dim=-1), F.log_softmax(second, dim=-1)
    rows = 0.5 * ((p.exp() - q.exp()) * (p - q)).sum(dim=-1)
    return _mean(rows, torch.ones_like(rows) if token_weight is None else token_weight.to(rows.dtype))


def mixture_loss(weights: Tensor, log_likelihood: Tensor, token_weight: Tensor | None = None) -> Tensor:
    r"""Negative log-likelihood of a mixture of experts (Jacobs et al. 1991, eq. 1.3).

    .. math:: L = -\overline{\log \sum_e w_{ne}\, p_e(y_n \mid x_n)}

    Parameters
    ----------
    weights : Tensor
        ``(N, E)`` mixture weights, rows sum to 1. A weight of exactly 0 has no gradient.
    log_likelihood : Tensor
        ``(N, E)`` what each expert gives the row's target, as a logarithm.
    token_weight : Tensor, optional
        ``(N,)`` how much each row counts.

    Returns
    -------
    Tensor
        Scalar.
    """
    used = weights > 0  # the logarithm's gradient at 0 would be NaN after the sum, even times 0
    log_weights = torch.where(used, torch.where(used, weights, 1).log(), -torch.inf)
    rows = -(log_weights + log_likelihood).logsumexp(dim=-1)
    return _mean(rows, torch.ones_like(rows) if token_weight is None else token_weight.to(rows.dtype))


def squared_difference(first: Tensor, second: Tensor, token_weight: Tensor | None = None) -> Tensor:
    """What :func:`consistency_loss` is for numbers ``(N, T)``: the mean over rows of their mean squared difference.

    It is twice the symmetric KL divergence of normal distributions of variance 1, as the squared error, beside which it
    stands, is twice their negative log-likelihood.
    """
    rows = (first - second).square().flatten(1).mean(dim=1)
    return _mean(rows, torch.ones_like(rows) if token_weight is None else token_weight.to(rows.dtype))


def token_entropy(p: Tensor) -> Tensor:
    """Entropy in nats of probabilities along the last axis, ``(..., E)`` to ``(...)``."""
    # not torch.special.entr: its gradient at p = 0 is infinite
    return -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(dim=-1)
