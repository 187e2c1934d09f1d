"""Prediction intervals for streams: adaptive conformal inference on the residuals of predictions made before learning.

Gibbs and Candes, "Adaptive conformal inference under distribution shift", NeurIPS 2021, equation 2. For a level 1 - a:

1. The interval is the prediction plus and minus the quantile of the last 500 absolute residuals at 1 - a_t.
2. Once the target is known, a_t becomes a_t + g (a - missed), where missed is 1 if it was outside, else 0.

The share of targets outside converges to a on any stream, since a_t stays within [-g, 1 + g] (proposition 4.1). After a
drift, when many targets are outside, a_t falls and the intervals become wider until the model has caught up.
"""

# K levels, W residuals in the window

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.stream.compiled.jit import entry

__all__ = ["ConformalIntervals"]

WINDOW = 500
"""W: residuals that are remembered."""

RATE = 0.005
"""g of the paper, and its value there."""

LEVELS = np.array([0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99])
"""Levels that are adapted; those between are interpolated, so a prediction with any level changes nothing."""


@entry
def _update(new, ring, ordered, alphas, levels, rate, seen):  # type: ignore[no-untyped-def]
    """Add residuals (n,) to the window (W,), which is kept in order of time and in order of size, and adapt (K,)."""
    size = ring.shape[0]
    for residual in new:
        if not np.isfinite(residual):
            continue
        n = min(seen, size)
        for k in range(levels.shape[0]):
            rank = np.ceil((n + 1) * (1.0 - alphas[k]))
            missed = rank < 1.0 or (rank <= n and residual > ordered[int(rank) - 1])
            alphas[k] += rate * (1.0 - levels[k] - (1.0 if missed else 0.0))
        if n == size:  # the oldest leaves
            place = np.searchsorted(ordered, ring[seen % size])
            for i in range(place, n - 1):
                ordered[i] = ordered[i + 1]
            n -= 1
        place = n
        while place > 0 and ordered[place - 1] > residual:
            ordered[place] = ordered[place - 1]
            place -= 1
        ordered[place] = residual
        ring[seen % size] = residual
        seen += 1
    return seen


class ConformalIntervals:
    """The last residuals, and one adapted miscoverage per level.

    Attributes
    ----------
    seen : int
        Residuals so far.
    residuals : array of shape (W,)
        The last absolute residuals; number i is at place i modulo W.
    alphas : array of shape (K,)
        a_t of each level.
    """

    def __init__(self) -> None:
        self.seen = 0
        self.residuals = np.zeros(WINDOW)
        self.alphas = 1.0 - LEVELS
        self._ordered = np.zeros(WINDOW)

    def update(self, residuals: NDArray[np.float64]) -> None:
        """Add absolute residuals (n,) in their order; those that are not finite are left out."""
        self.seen = int(_update(residuals, self.residuals, self._ordered, self.alphas, LEVELS, RATE, self.seen))

    def half_width(self, level: float) -> float:
        """Half the width of an interval; infinity where the residuals do not suffice for the level.

        Raises
        ------
        ConfigError
            If the level is not a number above 0 and below 1.
        """
        if isinstance(level, bool) or not isinstance(level, int | float | np.number) or not 0 < level < 1:
            raise ConfigError(f"level must be a number above 0 and below 1, got {level!r}")
        n = min(self.seen, WINDOW)
        rank = int(np.ceil((n + 1) * (1.0 - self._alpha(float(level)))))
        return np.inf if rank > n else float(self._ordered[rank - 1]) if rank > 0 else 0.0

    def _alpha(self, level: float) -> float:
        """a_t of any level; a higher level never has a larger one, so its interval contains those of lower levels."""
        alphas = np.minimum.accumulate(self.alphas)
        if level > LEVELS[-1]:
            return float(min(alphas[-1] / (1.0 - LEVELS[-1]), 1.0) * (1.0 - level))
        shift = np.interp(level, LEVELS, alphas - (1.0 - LEVELS))
        return 1.0 - level + float(shift)

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """What a file holds of them, beside ``seen``."""
        return {"interval_residuals": self.residuals, "interval_alphas": self.alphas}

    @classmethod
    def restored(cls, arrays: dict[str, NDArray[Any]], seen: Any) -> "ConformalIntervals":
        """Undo :meth:`arrays`.

        Raises
        ------
        FileFormatError
            If they are not what :meth:`arrays` wrote.
        """
        found = cls()
        residuals, alphas = arrays["interval_residuals"], arrays["interval_alphas"]
        good = (
            isinstance(seen, int)
            and not isinstance(seen, bool)
            and seen >= 0
            and (residuals.shape, alphas.shape) == (found.residuals.shape, found.alphas.shape)
            and residuals.dtype == alphas.dtype == np.float64
            and bool(np.isfinite(residuals).all() and (residuals >= 0).all())
            and bool((np.abs(alphas - 0.5) <= 0.5 + 2 * RATE).all())
        )
        if not good:
            raise FileFormatError("the residuals of its intervals are impossible")
        found.seen, found.residuals, found.alphas = seen, residuals.copy(), alphas.copy()
        n = min(seen, WINDOW)
        found._ordered[:n] = np.sort(residuals[:n])
        return found
