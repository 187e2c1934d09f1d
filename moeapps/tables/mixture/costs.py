"""What an expert costs: seconds per row, measured or given."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.errors import ConfigError
from moeapps.tables.mixture.folds import Answers, take

__all__ = ["check_costs", "measure_costs"]

_ROWS, _BATCHES = 512, 3


def check_costs(costs: Any, names: Sequence[str]) -> None:
    """Refuse costs that are neither "measured" nor a positive number for every expert.

    Raises
    ------
    ConfigError
        Naming what is missing or impossible.
    """
    if isinstance(costs, str):
        if costs != "measured":
            raise ConfigError(f"costs must be 'measured', a dictionary by name or a list of numbers, got {costs!r}")
        return
    given: dict[Any, Any]
    if isinstance(costs, Mapping | pd.Series):
        given = dict(costs)
        if missing := [name for name in names if name not in given]:
            raise ConfigError(f"costs lacks expert {missing[0]!r}; the experts are {', '.join(names)}")
        if unknown := [name for name in given if name not in names]:
            raise ConfigError(f"costs names {unknown[0]!r}, which is no expert; the experts are {', '.join(names)}")
    elif isinstance(costs, Sequence | np.ndarray):
        if len(costs) != len(names):
            raise ConfigError(f"costs must have one number per expert, {len(names)}, got {len(costs)}")
        given = dict(zip(names, costs, strict=True))
    else:
        raise ConfigError(f"costs must be 'measured', a dictionary by name or a list of numbers, got {costs!r}")
    for name, cost in given.items():
        if isinstance(cost, bool) or not isinstance(cost, int | float | np.number) or not 0 < cost < np.inf:
            raise ConfigError(f"the cost of expert {name!r} must be a number above 0, got {cost!r}")


def given_costs(costs: Any, names: Sequence[str]) -> NDArray[np.float64]:
    """Costs that :func:`check_costs` has passed, in the order of all experts."""
    if isinstance(costs, Mapping | pd.Series):
        return np.array([float(costs[name]) for name in names])
    return np.asarray(costs, dtype=np.float64)


def measure_costs(experts: Sequence[tuple[str, Any]], X: Any, answers: Answers) -> NDArray[np.float64]:
    """Seconds per row of each fitted expert: the median of a few batches of up to 512 rows, after one to warm up."""
    rows = np.arange(min(len(X), _ROWS))
    batch = take(X, rows)
    costs = np.zeros(len(experts))
    for index, (_, expert) in enumerate(experts):
        answers.read(expert, batch)
        seconds = []
        for _ in range(_BATCHES):
            start = time.perf_counter()
            answers.read(expert, batch)
            seconds.append(time.perf_counter() - start)
        costs[index] = max(float(np.median(seconds)), 1e-9) / len(rows)
    return costs
