"""The best items of a catalogue for each user, and how good they are: hit rate, NDCG, AUC, coverage."""

# Shapes: U users, I items, C candidates of a user, B users that are scored at once, N rows

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from moeapps.core.checks import check_sizes
from moeapps.recsys.catalogue import ItemCatalogue, pair_rows
from moeapps.recsys.encoder import Rows
from moeapps.recsys.implicit import ImplicitFeedback
from moeapps.recsys.metrics import slice_masks

__all__ = ["Ranks", "Scorer", "ranks_of", "recommendation_table", "top_items"]

ALL_ITEMS = 1000
"""Items up to which a network that reads user and item together scores all of them."""

CELLS = 2**24
"""Scores of users and items that are held at once."""

PAIR_ROWS = 8192
"""Rows of a user and an item that a network scores at once."""

Score = Callable[[slice, NDArray[np.int64] | None], Tensor]
"""Scores ``(B, I)`` of a slice of the users for all items, or ``(B, C)`` for candidates ``(B, C)``."""


class Scorer:
    """Scores of users for items by a ranker's network.

    Parameters
    ----------
    network : torch.nn.Module
        Encoded rows to logits ``(N, T)``, of which the first one counts. One that is
        ``factorised`` is asked for ``user_vectors`` and ``item_vectors``, whose product is the score.
    catalogue : ItemCatalogue
        The items.
    users : callable
        From a slice of the users to their encoded rows.
    device : torch.device, default=CPU
        Where the network is.
    """

    def __init__(
        self,
        network: Any,
        catalogue: ItemCatalogue,
        users: Callable[[slice], Rows],
        device: torch.device | None = None,
    ) -> None:
        self.network, self.users, self.device = network, users, device or torch.device("cpu")
        self.items = _moved(catalogue.rows, self.device)
        self.factorised = bool(getattr(network, "factorised", False))
        self._vectors = network.item_vectors(self.items) if self.factorised else None  # (I, d)

    def __call__(self, users: slice, candidates: NDArray[np.int64] | None) -> Tensor:
        """Logits ``(B, I)``, or ``(B, C)`` for candidates, of which those that are -1 have any score."""
        part = _moved(self.users(users), self.device)
        chosen = None if candidates is None else torch.from_numpy(np.maximum(candidates, 0)).to(self.device)
        if self._vectors is not None:
            vectors = self.network.user_vectors(part)  # (B, d)
            if chosen is None:
                return vectors @ self._vectors.t()
            return torch.bmm(self._vectors[chosen], vectors[:, :, None])[..., 0]
        width = len(self.items) if chosen is None else chosen.shape[1]
        scores = torch.empty(len(part) * width, device=self.device)
        # All rows of some users, so that each history is read once
        step = PAIR_ROWS // width * width if 0 < width <= PAIR_ROWS else PAIR_ROWS
        for start in range(0, len(scores), step):
            place = torch.arange(start, min(start + step, len(scores)), device=self.device)
            user, column = place // width, place % width
            item = column if chosen is None else chosen[user, column]
            scores[place] = self.network(pair_rows(part.at(user), self.items.at(item)))[:, 0].float()
        return scores.view(len(part), width)


def _moved(rows: Rows, device: torch.device) -> Rows:
    return Rows(rows.sparse.to(device), rows.dense.to(device), tuple(part.to(device) for part in rows.sequences))


def top_items(
    score: Score,
    num_users: int,
    num_items: int,
    k: int,
    seen: Callable[[slice], tuple[NDArray[np.int64], NDArray[np.int64]]] | None = None,
    candidates: Callable[[slice], NDArray[np.int64]] | None = None,
) -> Iterator[tuple[slice, NDArray[np.int64], NDArray[np.float32]]]:
    """The k items with the highest scores for each user, some users at a time.

    Parameters
    ----------
    score : callable
        Gives scores.
    num_users, num_items : int
        Users U and items I.
    k : int
        Items per user.
    seen : callable, optional
        From users to pairs (place of the user among them, item) that are left out.
    candidates : callable, optional
        From users to the only items that are scored, ``(B, C)``, -1 for none.

    Yields
    ------
    slice, array of shape (B, k), array of shape (B, k)
        Users, numbers of items (-1 where there are no more), scores. Equal scores are in the order of the numbers.
    """
    width = max(num_items, 1)
    step = max(1, CELLS // width)
    for start in range(0, num_users, step):
        users = slice(start, min(start + step, num_users))
        chosen = None if candidates is None else candidates(users)
        scores = score(users, chosen)
        if chosen is not None:
            scores[torch.from_numpy(chosen < 0).to(scores.device)] = -torch.inf
        if seen is not None:
            _leave_out(scores, chosen, *seen(users), num_items)
        place, values = _top(scores, k)
        items = place if chosen is None else np.take_along_axis(chosen, np.maximum(place, 0), axis=1)
        yield users, np.where(np.isneginf(values), -1, items), values


def _leave_out(
    scores: Tensor, chosen: NDArray[np.int64] | None, rows: NDArray[np.int64], items: NDArray[np.int64], num_items: int
) -> None:
    if chosen is None:
        scores[torch.from_numpy(rows), torch.from_numpy(items)] = -torch.inf
        return
    pairs = np.arange(len(chosen))[:, None] * num_items + chosen
    scores[torch.from_numpy(np.isin(pairs, rows * num_items + items))] = -torch.inf


def _top(scores: Tensor, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Places and values ``(B, k)`` of the highest scores, in order; filled up with -inf."""
    number = min(k, scores.shape[1])
    values, place = (part.cpu().numpy() for part in scores.topk(number, dim=1))
    # topk's order of equal scores is not defined
    order = np.lexsort((place, -values), axis=1)
    found, best = np.take_along_axis(place, order, 1), np.take_along_axis(values, order, 1)
    short = ((0, 0), (0, k - number))
    return np.pad(found, short, constant_values=-1), np.pad(best, short, constant_values=-np.inf).astype(np.float32)


@dataclass(frozen=True)
class Ranks:
    """Where the item of each event stands among the items that its user has not had before.

    Parameters
    ----------
    rank : array of shape (P,)
        From 1; of equal scores the middle.
    others : array of shape (P,)
        Number of other items.
    covered : int
        Number of items that are among the first k of any event.
    events : array of shape (P,)
        Numbers of the events: those whose item the user had before are left out.
    """

    rank: NDArray[np.float64]
    others: NDArray[np.int64]
    covered: int
    events: NDArray[np.int64]


def ranks_of(
    score: Score, feedback: ImplicitFeedback, k: int = 10, negatives: int | None = None, seed: int = 0
) -> Ranks:
    """Rank the item of each event among all others of the catalogue, or among some drawn at random.

    Items that the user had before the event are no rivals, and an event whose own item is one of these is left out.

    Parameters
    ----------
    score : callable
        From events (a slice of them, as "users") to scores of items.
    feedback : ImplicitFeedback
        Events to measure by.
    k : int, default=10
        Length of a list, for the coverage.
    negatives : int, optional
        Rivals that are drawn uniformly for each event; all items by default. The hit rate is higher among few rivals
        (Krichene and Rendle, KDD 2020), so that it says little by itself.
    seed : int, default=0
        Seed of the draw.
    """
    check_sizes(k=k)
    earlier = feedback.earlier_pairs()
    truth, users, number = feedback.events.item, feedback.events.user, len(feedback.items)
    had = earlier.contains(users, truth)
    rank, others = np.zeros(len(truth)), np.zeros(len(truth), dtype=np.int64)
    covered = np.zeros(number, dtype=bool)
    sampler = None if negatives is None else feedback.negative_sampler(seed)
    step = max(1, CELLS // (number if negatives is None else negatives + 1))
    for start in range(0, len(truth), step):
        events = slice(start, min(start + step, len(truth)))
        own, place = truth[events], np.arange(min(step, len(truth) - start))
        if sampler is not None and negatives is not None:
            drawn = sampler.draw(users[events], np.arange(start, start + len(own)), negatives)
            chosen = np.column_stack([own, drawn])
            scores = score(events, chosen).clone()
            scores[torch.from_numpy(chosen < 0)] = -torch.inf
            target = scores[:, :1]
            rivals = scores[:, 1:]
            others[events] = (drawn >= 0).sum(axis=1)
        else:
            scores = score(events, None).clone()
            target = scores[torch.from_numpy(place), torch.from_numpy(own)][:, None]
            rows, items = earlier.of_users(users[events])
            scores[torch.from_numpy(rows), torch.from_numpy(items)] = -torch.inf
            covered[_top(scores, k)[0][~had[events]].ravel()] = True
            scores[torch.from_numpy(place), torch.from_numpy(own)] = -torch.inf
            rivals = scores
            others[events] = torch.isfinite(scores).sum(1).numpy()
        above, equal = (rivals > target).sum(1), (rivals == target).sum(1)
        rank[events] = (1 + above + equal / 2).numpy()
    kept = np.flatnonzero(~had)
    return Ranks(rank[kept], others[kept], int(covered.sum()) if negatives is None else -1, kept)


def recommendation_table(
    ranks: Ranks, num_items: int, k: int = 10, slices: Mapping[str, ArrayLike] | None = None, num_events: int = 0
) -> pd.DataFrame:
    """Hit rate, NDCG, reciprocal rank and AUC by events, and the coverage of the catalogue.

    Parameters
    ----------
    ranks : Ranks
        Of :func:`ranks_of`.
    num_items : int
        Items I.
    k : int, default=10
        Length of a list.
    slices : dict, optional
        Name to a mask over all events, which are measured separately, too.
    num_events : int, default=0
        Number of all events, for the masks.

    Returns
    -------
    DataFrame
        One row per slice: ``slice``, ``events``, ``hr@k`` (share of events whose item is among the first k),
        ``ndcg@k`` (mean of 1 / log2(1 + rank) of these), ``mrr``, ``auc`` (chance that the item is above a random
        other one, mean over events) and ``coverage`` (share of items in any list; NaN for slices and for drawn rivals).

    Raises
    ------
    DataError
        If a mask has another length.
    """
    masks = {"all": np.ones(num_events, dtype=bool), **slice_masks(slices, num_events, "one per event, ")}
    rows = []
    for name, mask in masks.items():
        chosen = mask[ranks.events]
        rank, others = ranks.rank[chosen], ranks.others[chosen]
        hit = rank <= k
        rows.append(
            {
                "slice": name,
                "events": int(chosen.sum()),
                f"hr@{k}": _mean(hit),
                f"ndcg@{k}": _mean(np.where(hit, 1 / np.log2(1 + rank), 0.0)),
                "mrr": _mean(1 / np.maximum(rank, 1)),
                "auc": _mean(1 - (rank - 1)[others > 0] / others[others > 0]),
                "coverage": ranks.covered / num_items if name == "all" and ranks.covered >= 0 else np.nan,
            }
        )
    return pd.DataFrame(rows)


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else float("nan")
