"""The diffusion prior of Switch-DiT: neighbouring timesteps share experts, distant ones do not."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from moeapps.core.checks import check_sizes, check_top_k
from moeapps.core.errors import ConfigError, DataError

__all__ = ["TimestepPrior", "js_divergence"]


def js_divergence(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of distributions ``(N, U)``, in nats: ``(N,)``, 0 to log 2."""
    middle = (p + q) / 2
    return (_kl(p, middle) + _kl(q, middle)) / 2


def _kl(p: Tensor, q: Tensor) -> Tensor:
    tiny = torch.finfo(p.dtype).tiny
    return torch.where(p > 0, p * (p.clamp_min(tiny).log() - q.clamp_min(tiny).log()), 0.0).sum(dim=-1)


class TimestepPrior(nn.Module):
    r"""Which of all blocks' experts a timestep should use, and how far its gates are from that.

    The L E experts of all blocks are units. Timestep t should use a window of k L of them, whose start slides with
    :math:`(t / T)^\alpha`. Which unit stands at which place of the window is a matching between the units' present use
    and the places, computed by :meth:`match` from time to time (on the CPU, by scipy), not at every step.

    Parameters
    ----------
    depth : int
        Blocks L.
    num_experts : int, default 3
        Experts per block E.
    top_k : int, default 2
        Experts per timestep and block k.
    timesteps : int, default 1000
        Number of timesteps T.
    alpha : float, default 4.0
        Exponent of the slide; larger means that the late timesteps differ most.

    Attributes
    ----------
    windows : Tensor
        ``(T, L E)``, 1 where the window is.
    """

    place: Tensor
    windows: Tensor

    def __init__(
        self, depth: int, num_experts: int = 3, top_k: int = 2, timesteps: int = 1000, alpha: float = 4.0
    ) -> None:
        super().__init__()
        check_sizes(depth=depth, num_experts=num_experts, timesteps=timesteps)
        check_top_k(top_k, num_experts)
        if not alpha > 0:
            raise ConfigError(f"alpha must be above 0, got {alpha!r}")
        units, width = depth * num_experts, depth * top_k
        start = ((torch.arange(timesteps) / timesteps) ** alpha * (units - width)).round()
        unit = torch.arange(units)
        windows = ((unit >= start[:, None]) & (unit < start[:, None] + width)).float()
        self.register_buffer("windows", windows, persistent=False)
        self.register_buffer("place", torch.arange(units))

    @torch.no_grad()
    def match(self, table: Tensor, seed: int = 0) -> None:
        """Match units to places so that what is used now agrees with the windows as far as possible.

        Parameters
        ----------
        table : Tensor
            Gates ``(L, T, E)`` of all timesteps.
        seed : int, default 0
            Of the order in which equals are taken.
        """
        used = (self._units(table) > 0).float().cpu()  # (T, U)
        if used.shape != self.windows.shape:
            raise DataError(f"table must be of {self.windows.shape[0]} timesteps and {self.windows.shape[1]} units")
        agreement = used.t() @ self.windows.cpu()  # (U units, U places)
        rng = np.random.default_rng(seed)
        rows, columns = rng.permutation(len(agreement)), rng.permutation(len(agreement))
        unit, place = linear_sum_assignment(agreement.numpy()[np.ix_(rows, columns)], maximize=True)
        found = np.empty(len(agreement), dtype=np.int64)
        found[rows[unit]] = columns[place]
        self.place.copy_(torch.from_numpy(found))

    def forward(self, gates: Tensor, t: Tensor) -> Tensor:
        """Mean divergence between gates ``(L, N, E)`` and the windows of their timesteps ``(N,)``; a scalar."""
        units = self._units(gates).float()
        wanted = self.windows[t].index_select(1, self.place)
        return js_divergence(units / units.sum(1, keepdim=True), wanted / wanted.sum(1, keepdim=True)).mean()

    @staticmethod
    def _units(gates: Tensor) -> Tensor:
        """``(L, N, E)`` to ``(N, L E)``."""
        return gates.transpose(0, 1).flatten(1)
