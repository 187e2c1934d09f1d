"""Auxiliary losses: what is added to the task loss so that routing stays healthy."""

from torch import Tensor

from moeapps.core.routing import Routing

__all__ = ["load_balance_loss", "router_z_loss"]


def load_balance_loss(routing: Routing) -> Tensor:
    r"""Load-balance loss of Switch Transformer (Fedus et al. 2022, eq. 4-6): :math:`E \sum_e f_e P_e`.

    :math:`f_e` is the fraction of assignments that expert e got, :math:`P_e` the mean of its router probability, both
    over the valid tokens. It is 1 at uniform routing and E when one expert takes all tokens with probability 1. Only P
    carries a gradient.

    Returns:
        Scalar in the dtype of the probabilities; exactly 0 for an empty batch.
    """
    counts = routing.valid_counts()
    fraction = counts / counts.sum().clamp(min=1)
    valid = routing.valid.to(routing.probabilities.dtype)
    mean_probability = (routing.probabilities * valid[:, None]).sum(0) / valid.sum().clamp(min=1)
    return routing.num_experts * (fraction * mean_probability).sum()


def router_z_loss(routing: Routing) -> Tensor:
    r"""Router z-loss of ST-MoE (Zoph et al. 2022, eq. 5): the mean of :math:`(\log \sum_e \exp z_e)^2`.

    It keeps the router's logits small, where float arithmetic is precise.

    Returns:
        Scalar in the dtype of the logits; exactly 0 for an empty batch.
    """
    valid = routing.valid.to(routing.logits.dtype)
    return (routing.logits.logsumexp(dim=-1).square() * valid).sum() / valid.sum().clamp(min=1)
