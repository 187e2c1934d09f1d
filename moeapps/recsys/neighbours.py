"""Items that come together: the candidates among which a ranker of pairs chooses, where it cannot score every item."""

# Shapes: U users, I items, K neighbours of an item, C candidates of a user

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from moeapps.core.errors import FileFormatError

__all__ = ["Neighbours"]

NEIGHBOURS = 50
"""Neighbours K that are kept of an item."""

NEWEST = 200
"""Newest items of a user that count: pairs grow with the square of their number."""

BLOCK = 1024
"""Items whose neighbours are computed at once."""


@dataclass
class Neighbours:
    """The items most similar to each item by the cosine of their users, and how many users each item has.

    Item-based collaborative filtering (Sarwar et al., WWW 2001), which needs no training.

    Parameters
    ----------
    items : array of shape (I, K)
        Neighbours of each item, -1 for none.
    similarity : array of shape (I, K)
        Cosines, 0 for none.
    counts : array of shape (I,)
        Users of each item.
    """

    items: NDArray[np.int32]
    similarity: NDArray[np.float32]
    counts: NDArray[np.float32]

    @classmethod
    def of(cls, users: NDArray[np.int64], items: NDArray[np.int64], num_users: int, num_items: int) -> Self:
        """Learn from events, of each user in order of time."""
        order = np.argsort(users, kind="stable")
        per_user = np.bincount(users, minlength=num_users)
        from_last = np.cumsum(per_user)[users[order]] - 1 - np.arange(len(users))
        newest: NDArray[Any] = order[from_last < NEWEST]
        ones = np.ones(len(newest), dtype=np.float32)
        matrix = sparse.csr_matrix((ones, (users[newest], items[newest])), shape=(num_users, num_items))
        matrix.data[:] = 1.0  # how often does not count
        counts = np.asarray(matrix.sum(axis=0)).ravel().astype(np.float32)
        matrix = matrix @ sparse.diags(1 / np.sqrt(np.maximum(counts, 1)).astype(np.float32))
        columns = matrix.tocsc()
        k = min(NEIGHBOURS, max(num_items - 1, 0))
        found = np.full((num_items, k), -1, dtype=np.int32)
        similarity = np.zeros((num_items, k), dtype=np.float32)
        for start in range(0, num_items, BLOCK):
            block = (columns[:, start : start + BLOCK].T @ matrix).tocsr()
            for row in range(block.shape[0]):
                span = slice(block.indptr[row], block.indptr[row + 1])
                others, values = block.indices[span], block.data[span]
                mine = others != start + row
                others, values = others[mine], values[mine]
                # Ties by number, so that equal data give equal neighbours
                best: NDArray[Any] = np.lexsort((others, -values))[:k]
                found[start + row, : len(best)], similarity[start + row, : len(best)] = others[best], values[best]
        return cls(found, similarity, counts)

    def candidates(
        self, histories: list[NDArray[np.int64]], number: int, left_out: list[NDArray[np.int64]] | None = None
    ) -> NDArray[np.int64]:
        """Candidates ``(U, number)`` for users: items that they had, their neighbours, then the most popular items.

        Parameters
        ----------
        histories : list of array
            Numbers of the items that each user had.
        number : int
            Candidates per user; -1 where there are no more.
        left_out : list of array, optional
            Numbers of the items that are no candidates of each user; those of ``histories`` by default.
        """
        popular = np.argsort(-self.counts, kind="stable")
        out = np.full((len(histories), number), -1, dtype=np.int64)
        for row, (history, without) in enumerate(zip(histories, left_out or histories, strict=True)):
            near = self.items[history].ravel()
            weight = np.bincount(near[near >= 0], self.similarity[history].ravel()[near >= 0], len(self.counts))
            weight = weight.astype(float)  # of no neighbour at all it has integers
            weight[history] = np.inf
            near = np.flatnonzero(weight).astype(np.int32)
            near = near[np.lexsort((near, -weight[near]))]
            near = near[~np.isin(near, without)][:number]
            rest = popular[: number + len(without) + len(near)]
            rest = rest[~np.isin(rest, np.concatenate([near, without]))][: number - len(near)]
            out[row, : len(near) + len(rest)] = np.concatenate([near, rest])
        return out

    def tensors(self) -> dict[str, Tensor]:
        """The arrays as tensors, to be saved."""
        arrays = {"neighbours": self.items, "similarity": self.similarity, "counts": self.counts}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], num_items: int) -> Self:
        """Undo :meth:`tensors`.

        Raises
        ------
        FileFormatError
            If they do not fit.
        """
        items, similarity, counts = (tensors[name].numpy() for name in ("neighbours", "similarity", "counts"))
        good = items.ndim == 2 and items.shape == similarity.shape and len(items) == len(counts) == num_items
        if not good or (items.size and (items.min() < -1 or items.max() >= num_items)):
            raise FileFormatError("its neighbours of items contradict each other")
        return cls(items, similarity, counts)
