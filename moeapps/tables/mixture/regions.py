"""Where each expert leads: rules in words of the table's columns, from a shallow tree on the gate's weights."""

# n rows, E experts, F readable features

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeRegressor

from moeapps.core.rules import Readable, leaf_rules
from moeapps.core.tabledata.columns import FIRST, MISSING
from moeapps.core.tabledata.numbers import TIME_PARTS

if TYPE_CHECKING:
    from moeapps.tables.mixture.features import TableFeatures

__all__ = ["REGION_DEPTH", "find_regions"]

REGION_DEPTH = 2
"""Conditions per rule, at most, where nobody says."""

_LEAF = 0.02
"""A region has at least this part of the rows."""


def find_regions(
    encoder: "TableFeatures",
    table: Any,
    weights: NDArray[np.float64],
    names: list[str],
    scores: dict[str, NDArray[np.float64]],
    max_depth: int,
) -> pd.DataFrame:
    """Leaves of a tree that predicts the weights from the columns.

    Parameters
    ----------
    encoder : TableFeatures
        What the columns are.
    table : DataFrame or array of shape (n, P)
        Rows.
    weights : array of shape (n, E)
        The gate's.
    names : list of str
        Of the experts.
    scores : dict of str to array of shape (n,)
        Scores of each row, to be averaged in each region.
    max_depth : int
        Depth of the tree.

    Returns
    -------
    DataFrame
        A line per region, the largest first.
    """
    readable, features = _readable(encoder, table)
    smallest = max(1, round(_LEAF * len(features)))
    tree = DecisionTreeRegressor(max_depth=max_depth, min_samples_leaf=smallest, random_state=0)
    if features.shape[1] == 0:  # nothing to tell rows apart by
        features, readable = np.zeros((len(weights), 1)), [Readable("", "number")]
    tree.fit(features, weights)
    leaves = tree.apply(features)
    rules = leaf_rules(tree.tree_, readable, np.asarray(np.isnan(features).any(axis=0)))
    records = []
    for leaf in np.unique(leaves):
        rows = leaves == leaf
        mean = weights[rows].mean(axis=0)
        record: dict[str, Any] = {
            "where": rules[leaf],
            "rows": int(rows.sum()),
            "leader": names[int(mean.argmax())],
            **{f"weight {name}": float(value) for name, value in zip(names, mean, strict=True)},
            **{f"score {name}": float(values[rows].mean()) for name, values in scores.items()},
        }
        records.append(record)
    return pd.DataFrame(records).sort_values("rows", ascending=False, kind="stable", ignore_index=True)


def _readable(features: "TableFeatures", table: Any) -> tuple[list[Readable], NDArray[np.float64]]:
    """Numbers as they are (NaN where missing), times as days since 1970, and a column per frequent category."""
    encoder = features.encoder_
    numbers, codes = encoder.transform(features.chosen(table))
    named = [Readable(encoder.names[i], "number") for i in encoder.numeric]
    columns = [numbers[:, i] for i in range(len(encoder.numeric))]
    for position, i in enumerate(encoder.times):
        named.append(Readable(encoder.names[i], "time"))
        columns.append(numbers[:, len(encoder.numeric) + position * len(TIME_PARTS)])
    for position, i in enumerate(encoder.categorical):
        for code in features.kept_[position]:
            if code >= FIRST or code == MISSING:
                named.append(Readable(encoder.names[i], "category", features.category(position, code)))
                columns.append((codes[:, position] == code).astype(np.float64))
    stacked = np.column_stack(columns) if columns else np.zeros((len(numbers), 0))
    return named, stacked
