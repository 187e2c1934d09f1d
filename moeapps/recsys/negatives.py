"""Items that a user has not interacted with, drawn at random: every draw depends on (seed, epoch, event) only.

So a batch gets the same negatives in whatever order the batches come, and a training that is resumed in the middle of
an epoch goes on with those that it would have had.
"""

# Shapes: P events, U users, I items, n draws per event

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from moeapps.core.checks import check_one_of, check_seed

__all__ = ["SAMPLERS", "NegativeSampler", "Sampler", "pairs_in"]

Sampler = Literal["uniform", "popularity"]
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)

POPULARITY_POWER = 0.75
"""Power of the counts in the popularity sampler, that of word2vec (Mikolov et al., NeurIPS 2013)."""

ROUNDS = 20
"""Draws by popularity that are tried before an item is drawn uniformly: of a user who has almost everything."""

Codes = NDArray[np.int64]


class NegativeSampler:
    """Draws items for users, never one of the user's own.

    Parameters
    ----------
    users, items : array of shape (P,)
        Numbers of user and item of each event, 0 to U - 1 and 0 to I - 1.
    num_items : int
        Number of items I.
    sampler : {"uniform", "popularity"}, default="uniform"
        Every other item alike, or in proportion to its number of events to the power of 0.75.
    seed : int, default=0
        Seed of the draws.

    Raises
    ------
    ConfigError
        If the sampler is unknown, or the seed is none.
    """

    def __init__(self, users: Codes, items: Codes, num_items: int, sampler: Sampler = "uniform", seed: int = 0) -> None:
        check_one_of("sampler", sampler, SAMPLERS)
        check_seed(seed)
        self.num_items, self.sampler, self.seed = num_items, sampler, seed
        self.pairs = np.unique(users * num_items + items)
        owner = self.pairs // num_items
        number = int(users.max()) + 1 if len(users) else 0
        self.counts = np.bincount(owner, minlength=number)  # (U,) distinct items of each user
        self.starts = np.cumsum(self.counts) - self.counts
        # Item p of a user, the k-th of the user's items in order, leaves p - k other items below it
        others_below = self.pairs % num_items - (np.arange(len(self.pairs)) - self.starts[owner])
        self._others_below = owner * (num_items + 1) + others_below
        weight = np.bincount(items, minlength=num_items).astype(float) ** POPULARITY_POWER
        self._cumulative = np.cumsum(weight / max(weight.sum(), 1e-300))

    def draw(self, users: Codes, events: Codes, n: int, epoch: int = 0) -> Codes:
        """Items ``(len(events), n)``, with replacement; -1 for a user who has every item.

        Parameters
        ----------
        users : array of shape (len(events),)
            User of each event; one that is above those of training has no items.
        events : array
            Numbers of the events, which with seed and epoch decide the draws.
        n : int
            Draws per event.
        epoch : int, default=0
            Other epochs, other draws.
        """
        # One 64-bit number per draw, from its place alone
        place: NDArray[np.uint64] = (events[:, None] * n + np.arange(n)).astype(np.uint64)
        key = _mix(_mix(np.uint64(self.seed) + np.zeros(1, np.uint64)) + np.uint64(epoch))
        found = self._uniform(users, _mix(place ^ key))
        if self.sampler == "uniform":
            return found
        wrong = found >= 0
        for attempt in range(ROUNDS):
            rows, columns = np.nonzero(wrong)
            if len(rows) == 0:
                break
            u = _mix(place[rows, columns] ^ _mix(key + np.uint64(attempt + 1))) / 2.0**64
            drawn = np.minimum(np.searchsorted(self._cumulative, u, side="right"), self.num_items - 1)
            good = ~pairs_in(self.pairs, users[rows] * self.num_items + drawn)
            found[rows[good], columns[good]] = drawn[good]
            wrong[rows[good], columns[good]] = False
        return found

    def _uniform(self, users: Codes, bits: NDArray[np.uint64]) -> Codes:
        """The r-th of the items that are not the user's own, r uniform: exact, and without a second try."""
        known = users < len(self.counts)
        inside = np.where(known, users, 0)
        count = np.where(known, self.counts[inside], 0) if len(self.counts) else np.zeros_like(users)
        others = self.num_items - count  # (N,)
        r = (bits % np.maximum(others, 1).astype(np.uint64)[:, None]).astype(np.int64)  # (N, n)
        below = np.searchsorted(self._others_below, users[:, None] * (self.num_items + 1) + r, side="right")
        start = self.starts[inside] if len(self.counts) else np.zeros_like(users)
        own_below = np.where(known[:, None], below - start[:, None], 0)
        return np.where(others[:, None] > 0, r + own_below, -1)

    def expected(self) -> NDArray[np.float64]:
        """Chance ``(I,)`` with which a draw for a random event is each item; the users' own items are not left out."""
        if self.sampler == "uniform":
            return np.full(self.num_items, 1.0 / max(self.num_items, 1))
        return np.diff(self._cumulative, prepend=0.0)


def pairs_in(pairs: Codes, wanted: Codes) -> NDArray[np.bool_]:
    """Which of the wanted numbers are in a sorted array."""
    place = np.minimum(np.searchsorted(pairs, wanted), max(len(pairs) - 1, 0))
    return pairs[place] == wanted if len(pairs) else np.zeros(len(wanted), dtype=bool)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): neighbouring numbers to unrelated ones."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
