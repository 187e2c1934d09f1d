"""The diffusion prior of Switch-DiT: neighbouring timesteps share experts, distant ones do not."""

# Shapes: N timesteps of a batch, T timesteps of the diffusion, L blocks, E experts per block, k experts per timestep
# and block, U = L E units (all experts of all blocks)

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
    # 0 log 0 is 0; the clamp keeps the gradient of the masked entries finite
    tiny = torch.finfo(p.dtype).tiny
    return torch.where(p > 0, p * (p.clamp_min(tiny).log() - q.clamp_min(tiny).log()), 0.0).sum(dim=-1)


class TimestepPrior(nn.Module):
    r"""Diffusion prior loss (Park et al., ECCV 2024): which experts a timestep should use, and the distance from that.

    1. The experts of all blocks are numbered as U = L E units. The prior of timestep t is a window of k L units, whose
       start slides from 0 to U - k L with :math:`(t / (T - 1))^\alpha`: neighbouring timesteps share most of their
       window, the first and the last as little as possible.
    2. :meth:`match` assigns units to columns of the window matrix such that the experts that are chosen now agree with
       it as far as possible: a bipartite matching on the CPU, by scipy. It is called every few steps, not at every one,
       since it synchronises with the device.
    3. :meth:`forward` normalises the gates of a batch's timesteps and their windows to sum 1, and returns the mean
       Jensen-Shannon divergence. The released code gives it the probabilities of all experts, chosen or not, which sum
       to L; so does :class:`~moeapps.vision.DiffusionModule` unless ``prior_gates="chosen"``.

    Parameters
    ----------
    depth : int
        Number of blocks L.
    num_experts : int, default=3
        Number of experts E per block.
    top_k : int, default=2
        Experts k per timestep and block.
    timesteps : int, default=1000
        Number of timesteps T.
    alpha : float, default=4.0
        Exponent, above 0; the larger, the more of the slide falls on the noisy timesteps.

    Attributes
    ----------
    windows : Tensor
        ``(T, U)``, 1 inside the window.
    place : Tensor
        ``(U,)`` column of ``windows`` of each unit (so called in saved files).

    Raises
    ------
    ConfigError
        If an argument is impossible.
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
        start = (torch.linspace(0, 1, timesteps, dtype=torch.float64) ** alpha * (units - width)).round()
        unit = torch.arange(units)
        windows = ((unit >= start[:, None]) & (unit < start[:, None] + width)).float()
        self.register_buffer("windows", windows, persistent=False)
        self.register_buffer("place", torch.arange(units))

    def check_buffers(self) -> str | None:
        """What is impossible about buffers that come from a file; None where nothing is."""
        units = torch.arange(len(self.place), device=self.place.device)
        return None if torch.equal(self.place.sort().values, units) else "place is not a matching"

    @torch.no_grad()
    def match(self, table: Tensor, seed: int = 0) -> None:
        """Match units to columns of ``windows`` so that the experts chosen now agree with it as far as possible.

        Parameters
        ----------
        table : Tensor
            Gates ``(L, T, E)`` of all timesteps.
        seed : int, default=0
            Seed of the choice among equal matchings.

        Raises
        ------
        DataError
            If the table has another shape.
        """
        used = (self._units(table) > 0).float().cpu()  # (T, U)
        if used.shape != self.windows.shape:
            raise DataError(f"table must be of {self.windows.shape[0]} timesteps and {self.windows.shape[1]} units")
        agreement = used.t() @ self.windows.cpu()  # (U units, U columns): timesteps where both are 1
        # Shuffled, as scipy's choice among equal matchings depends on the order of rows and columns.
        rng = np.random.default_rng(seed)
        rows, columns = rng.permutation(len(agreement)), rng.permutation(len(agreement))
        unit, column = linear_sum_assignment(agreement.numpy()[np.ix_(rows, columns)], maximize=True)
        matched = np.empty(len(agreement), dtype=np.int64)
        matched[rows[unit]] = columns[column]
        self.place.copy_(torch.from_numpy(matched))

    def forward(self, gates: Tensor, t: Tensor) -> Tensor:
        """Mean divergence between gates ``(L, N, E)`` and the windows of their timesteps ``(N,)``; a scalar."""
        units = self._units(gates).float()  # (N, U)
        wanted = self.windows[t].index_select(1, self.place)  # (N, U)
        return js_divergence(units / units.sum(1, keepdim=True), wanted / wanted.sum(1, keepdim=True)).mean()

    @staticmethod
    def _units(gates: Tensor) -> Tensor:
        """``(L, N, E)`` to ``(N, U)``."""
        return gates.transpose(0, 1).flatten(1)
