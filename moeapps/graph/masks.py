"""Nodes named by the user: a mask with one entry per node, or node numbers."""

# N nodes

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moeapps.core.arrays import as_array, missing
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.labels import plain

__all__ = ["MASKS", "check_split", "has_splits", "node_index", "read_mask"]

MASKS = ("train_mask", "val_mask", "test_mask")


def has_splits(mask: Any) -> bool:
    """Whether a mask has one column per split, and more than one."""
    shape = getattr(mask, "shape", None) or np.shape(as_array(mask))
    return len(shape) == 2 and shape[1] > 1


def check_split(split: Any, masks: Iterable[Any]) -> None:
    """Refuse a split that no mask has: every number would give the same model.

    Parameters
    ----------
    split
        Number of the split.
    masks : iterable
        The masks, None where there is none.

    Raises
    ------
    ConfigError
        If it is no number of a split, or none of the masks has several.
    """
    if isinstance(split, bool) or not isinstance(split, int | np.integer) or split < 0:
        raise ConfigError(f"split must be the number of a column of the masks, at least 0, got {split!r}")
    if split and not any(has_splits(mask) for mask in masks if mask is not None):
        raise ConfigError(f"split={split}, but no mask has several splits: they are given as (N, splits)")


def read_mask(name: str, mask: Any, num_nodes: int, split: int = 0) -> Tensor:
    """Make a bool mask of what the user has.

    Parameters
    ----------
    name : str
        Name of the mask, for errors.
    mask
        ``(N,)`` of bool or of 0 and 1 of any type, or distinct node numbers; or a column per split of either.
    num_nodes : int
        Number of nodes N.
    split : int, default=0
        Which column to take of several.

    Returns
    -------
    bool Tensor of shape (N,)

    Raises
    ------
    DataError
        If it can be read in two ways or in none.
    """
    given = as_array(mask)
    if given.ndim == 2:
        if given.shape[1] == num_nodes != given.shape[0]:
            raise DataError(
                f"{name} must have one row per node ({num_nodes}) and one column per split, got {given.shape}; "
                "transpose it"
            )
        if given.shape[1] == 1:
            given = given[:, 0]
        elif not 0 <= split < given.shape[1]:
            raise DataError(f"split={split} is outside the {given.shape[1]} splits of {name}")
        else:
            given = given[:, split]
    if num_nodes <= 2 and given.dtype.kind in "iu" and given.shape == (num_nodes,) and _distinct_zero_one(given):
        raise DataError(
            f"{name} is {given.tolist()} for {num_nodes} nodes: a mask of 0 and 1, or node numbers? Give it as bool"
        )
    chosen = _chosen(name, given, num_nodes)
    if chosen.dtype != bool:
        values, count = np.unique(chosen, return_counts=True)
        if len(values) < len(chosen):
            raise DataError(
                f"{name} has the node number {values[count.argmax()]} {count.max()} times: a node is in a mask once or "
                "not at all; numpy.unique removes the others"
            )
        numbers, chosen = chosen, np.zeros(num_nodes, dtype=bool)
        chosen[numbers] = True
    return torch.from_numpy(chosen)


def node_index(nodes: Any, num_nodes: int) -> np.ndarray:
    """Node numbers from node numbers (kept as they are, also repeated) or a mask.

    Raises
    ------
    DataError
        If a mask has another length, or a number is outside the graph.
    """
    given = as_array(nodes)
    if given.ndim == 2 and len(given) == num_nodes:
        raise DataError(
            f"nodes must be a list of node numbers or one bool per node, got {given.dtype} {given.shape}; take one "
            "column, as in nodes=data.test_mask[:, 0]"
        )
    chosen = _chosen("nodes", given, num_nodes)
    return np.flatnonzero(chosen) if chosen.dtype == bool else chosen


def _chosen(name: str, given: np.ndarray, num_nodes: int) -> np.ndarray:
    """A bool mask ``(N,)``, or int64 node numbers."""
    if given.shape == (0,) and given.dtype != bool:
        return given.astype(np.int64)
    if given.ndim != 1 or (given.dtype.kind not in "biuf" and not missing(given).any()):
        raise DataError(
            f"{name} must be bool per node or a list of node numbers, got {given.dtype} {tuple(given.shape)}"
        )
    gaps = missing(given)
    if gaps.any():
        raise DataError(f"{name} has a missing value in row {int(gaps.argmax())}, expected bool or node numbers")
    flags = bool(((given == 0) | (given == 1)).all())
    # node numbers are given once each: where all are 0 or 1 and some come twice, it is a mask
    if given.dtype == bool or (flags and (given.dtype.kind == "f" or not _distinct_zero_one(given))):
        if len(given) != num_nodes:
            what = "" if given.dtype == bool else " of 0 and 1 (node numbers are given once each)"
            raise DataError(f"{name} must have one entry per node ({num_nodes}), got {len(given)}{what}")
        return given.astype(bool)
    if given.dtype.kind == "f":
        raise DataError(
            f"{name} must be bool per node or a list of node numbers, got {given.dtype} {tuple(given.shape)} with "
            f"{plain(given[(given != 0) & (given != 1)][0])!r}; node numbers are integers"
        )
    low, high = given.min(), given.max()
    if low < 0 or high >= num_nodes:
        raise DataError(f"{name} must not have node numbers outside 0..{num_nodes - 1}, got {low}..{high}")
    return given.astype(np.int64)


def _distinct_zero_one(given: np.ndarray) -> bool:
    return len(given) <= 2 and len(np.unique(given)) == len(given) and bool(np.isin(given, (0, 1)).all())
