"""What the tabular estimators' arguments are where nobody says: "auto" by the number of rows, and in files of 0.1."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError
from moeapps.core.search import Choice, Distribution, Float, Int

__all__ = ["BEFORE", "ONE_BATCH", "SEARCH", "automatic", "batch_rows", "check_automatic", "route_column"]

ONE_BATCH = 200
"""Largest number of rows for which "auto" means one batch, float64 and no early stopping."""

BEFORE: dict[str, Any] = {
    "numeric_embedding": "piecewise",
    "numeric_dim": 8,
    "scaling": "standard",
    "num_members": 1,
    "warmup": 0.0,
    "final_lr": 0.1,
    "beta2": 0.999,
    "label_smoothing": 0.0,
    "ema_decay": 0.0,
    "loss": "squared",
}
"""What arguments that 0.1 did not have are in what it saved."""

SEARCH: dict[str, Distribution] = {
    "num_experts": Int(4, 32, log=True),
    "top_k": Int(1, 4),
    "dim": Int(32, 128, log=True),
    "num_blocks": Int(1, 4),
    "numeric_embedding": Choice(("periodic", "piecewise", "linear")),
    "balance_weight": Float(1e-3, 1e-1, log=True),
    "lr": Float(5e-4, 1e-2, log=True),
    "weight_decay": Float(1e-4, 1e-1, log=True),
}
"""Settings of the networks for tables that are worth a search."""


def check_automatic(num_members: Any, max_epochs: Any, dropout: Any) -> None:
    """Refuse what is neither "auto" nor possible, naming the argument."""
    if num_members != "auto":
        check_sizes(num_members=num_members)
    if max_epochs != "auto" and (isinstance(max_epochs, bool) or not isinstance(max_epochs, int) or max_epochs < 1):
        raise ConfigError(f"max_epochs must be 'auto' or a whole number of at least 1, got {max_epochs!r}")
    if isinstance(dropout, str) and dropout != "auto":
        raise ConfigError(f"dropout must be 'auto' or a number of at least 0 and below 1, got {dropout!r}")


def automatic(n: int) -> dict[str, int | float]:
    """What "auto" means for a table of n rows.

    Dropout is 0 while all rows make one batch: a whole weight then equals repeating the row.
    """
    if n <= ONE_BATCH:
        return {"num_members": 4, "dropout": 0.0, "max_epochs": 60}
    members = next(number for most, number in _MEMBERS if n <= most)
    return {"num_members": members, "dropout": 0.1, "max_epochs": 100 if n <= MANY_ROWS else 8}


def batch_rows(n: int) -> int:
    """Rows per step: all of them while they are few, about 20 batches while there are thousands, then 512 or 1,024."""
    if n <= ONE_BATCH:
        return n
    return int(2 ** np.clip(np.floor(np.log2(n / 20)), 5, 9)) if n <= MANY_ROWS else 1024


_MEMBERS = ((30_000, 4), (60_000, 2), (np.inf, 1))
"""Members up to so many rows: their cost is that of the blocks times their number."""

MANY_ROWS = 60_000
"""Above so many rows 8 epochs are hundreds of large steps."""


def route_column(route_by: Any, names: Sequence[Any], categorical: Sequence[int]) -> int | None:
    """``route_by`` as a position among the categorical columns, which are given by their positions in ``names``."""
    if route_by is None:
        return None
    known = [names[i] for i in categorical]
    if route_by not in known:
        raise ConfigError(
            f"route_by must be one of the categorical columns {', '.join(map(str, known)) or '(none)'}, "
            f"got {route_by!r}"
        )
    return known.index(route_by)
