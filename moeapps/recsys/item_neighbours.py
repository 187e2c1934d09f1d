"""What the nearest items say: an item-based neighbourhood model beside a network, weighed on validation events."""

# Shapes: N rows, R histories of N / R neighbouring rows each, L entries of a history (padded), C codes of items,
# K neighbours of an item

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize
from scipy.special import expit
from torch import Tensor, nn

from moeapps.recsys.encoder import FIRST
from moeapps.recsys.neighbours import Neighbours

__all__ = ["ItemNeighbours", "weigh_neighbours"]

CELLS = 2**22
"""Numbers that are computed at once."""

ALONE = (1.0, 0.0, 0.0)
"""Scale of the logit, weight of the sum and shift, where neighbours have no weight."""

LARGEST = 100.0
"""Largest weight: where sums tell the rows apart without an error, there is no best one."""


class ItemNeighbours(nn.Module):
    r"""Similarity of a candidate to a history, by the users that items have in common, beside the logit of a network.

    The sum of the cosines of the candidate to the entries of the history, of which it is among the nearest items
    (Sarwar et al., WWW 2001). The logit z of a network that was trained without it becomes
    :math:`a z + w \sum_j \cos(j, i) + b`; a is 1, w and b are 0 until they are set.
    """

    neighbours: Tensor
    cosines: Tensor
    terms: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Made from the catalogue, with which they are saved
        self.register_buffer("neighbours", torch.zeros(0, 0, dtype=torch.int32), persistent=False)
        self.register_buffer("cosines", torch.zeros(0, 0), persistent=False)
        self.register_buffer("terms", torch.tensor(ALONE))

    def learn(self, found: Neighbours, codes: Tensor, size: int) -> None:
        """Take the neighbours of a catalogue.

        Parameters
        ----------
        found : Neighbours
            Neighbours by number of the item.
        codes : Tensor of shape (I,)
            Code of each item. Items whose code is not theirs alone (unseen ones, hashed ones) have no neighbours.
        size : int
            Number of codes C.
        """
        items = codes.numpy().astype(np.int64)
        own = (items >= FIRST) & (np.bincount(items, minlength=size)[items] == 1)
        near = np.where(found.items >= 0, found.items, 0)
        good = (found.items >= 0) & own[near] & own[:, None]
        neighbours = np.zeros((size, found.items.shape[1]), dtype=np.int32)
        cosines = np.zeros(neighbours.shape, dtype=np.float32)
        neighbours[items[own]] = np.where(good, items[near], 0)[own]
        cosines[items[own]] = np.where(good, found.similarity, 0.0)[own]
        device = self.terms.device
        self.neighbours = torch.from_numpy(neighbours).to(device)
        self.cosines = torch.from_numpy(cosines).to(device)

    @property
    def known(self) -> bool:
        """Whether there are neighbours."""
        return self.neighbours.shape[1] > 0

    @property
    def active(self) -> bool:
        """Whether they have a weight. A traced program cannot look at it, and computes them in any case."""
        return self.known and (torch.compiler.is_compiling() or bool(self.terms[1]))

    def set(self, scale: float, weight: float, shift: float) -> None:
        """Set a, w and b."""
        self.terms.copy_(torch.tensor([scale, weight, shift]))

    def sums(self, histories: Tensor, candidates: Tensor) -> Tensor:
        """Sum of cosines ``(N,)`` of candidates, codes ``(N,)``, to histories of codes ``(R, L)``."""
        number, length = histories.shape[0], histories.shape[1] * self.neighbours.shape[1]
        chosen = candidates.view(number, -1) if number else candidates.view(0, 1)
        if torch.compiler.is_compiling():
            return self._compared(histories, chosen).flatten()
        size = self.neighbours.shape[0]
        # Sums over places would differ from run to run on a GPU
        spread = histories.device.type == "cpu" and size < chosen.shape[1] * length
        step = max(1, CELLS // max(1, size if spread else chosen.shape[1] * length))
        sums = self._spread if spread else self._compared
        parts = [sums(h, c) for h, c in zip(histories.split(step), chosen.split(step), strict=True)]
        return torch.cat(parts).flatten() if parts else self.cosines.new_zeros(0)

    def _spread(self, histories: Tensor, candidates: Tensor) -> Tensor:
        """By a sum for every item: less than comparing where a history has many candidates."""
        near, cosines = self._near(histories)
        sums = cosines.new_zeros(len(near), self.neighbours.shape[0]).scatter_add_(1, near.long(), cosines)
        return sums.gather(1, candidates.long())

    def _compared(self, histories: Tensor, candidates: Tensor) -> Tensor:
        near, cosines = self._near(histories)
        return ((near[:, None] == candidates[..., None]) * cosines[:, None]).sum(-1)

    def _near(self, histories: Tensor) -> tuple[Tensor, Tensor]:
        """Neighbours of all entries, and their cosines, ``(R, L K)``."""
        place = histories.long()
        return self.neighbours[place].flatten(1), self.cosines[place].flatten(1)

    def forward(self, logits: Tensor, sums: Tensor) -> Tensor:
        """Logits ``(N,)`` with their neighbours: logits ``(N,)`` without, and :meth:`sums` ``(N,)``."""
        scale, weight, shift = self.terms
        return scale * logits + weight * sums + shift


def weigh_neighbours(logits: NDArray[Any], sums: NDArray[Any], labels: NDArray[Any]) -> tuple[float, float, float]:
    """Scale of a network's logits, weight of the neighbours' sums and shift, from validation rows.

    A logistic regression on logits and sums, with slopes of at least 0: a network that was trained for long is too sure
    of itself, and its logits shrink beside the sums. All is as without neighbours unless the sums lower the log loss by
    more than one standard error. The shift keeps the mean probability, since validation rows may have another share of
    positive ones than those of training.

    Parameters
    ----------
    logits, sums, labels : array of shape (N,)
        Of the validation rows; rows with the label NaN do not count.

    Returns
    -------
    float, float, float
        Scale above 0, weight of at least 0 (at most 100), shift; :data:`ALONE` where the sums bring nothing.
    """
    known = np.isfinite(labels)
    logits, sums, labels = (part[known].astype(np.float64) for part in (logits, sums, labels))
    if not sums.any() or labels.min() == labels.max():
        return ALONE
    slopes, with_sums = _logistic([logits, sums], labels)
    gain = _logistic([logits], labels)[1] - with_sums
    if gain.mean() <= gain.std() / np.sqrt(len(gain)):
        return ALONE
    scale, weight = float(slopes[0]), float(slopes[1])
    together, mean = scale * logits + weight * sums, expit(logits).mean()
    widest = np.abs(logits).max() + np.abs(together).max() + 1.0
    shift = brentq(lambda b: expit(together + b).mean() - mean, -widest, widest)
    return scale, weight, float(shift)


def _logistic(columns: list[NDArray[Any]], labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Slopes of at least 0 (of the first column, above 0), and the log loss of each row."""
    design = np.column_stack([*columns, np.ones(len(labels))])

    def losses(slopes: NDArray[Any]) -> NDArray[Any]:
        x: NDArray[Any] = design @ slopes
        return np.logaddexp(0.0, x) - labels * x

    found = minimize(
        lambda slopes: losses(slopes).mean(),
        np.array([1.0] + [0.0] * len(columns)),
        jac=lambda slopes: (expit(design @ slopes) - labels) @ design / len(labels),
        bounds=[(1e-3, None), *[(0.0, LARGEST)] * (len(columns) - 1), (None, None)],
        method="L-BFGS-B",
    )
    return found.x, losses(found.x)
