"""Leaves of a shallow decision tree as rules in words: "age <= 30 and city is Ulm"."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Readable", "leaf_rules", "readable_number"]


def readable_number(value: float) -> str:
    """A number in at most four significant digits, as a rule shows it."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


@dataclass(frozen=True)
class Readable:
    """A feature that a rule can name: a number, a time, or whether a category is this one.

    Parameters
    ----------
    name : str
        Name of the column.
    kind : str
        "number", "time" (days since 1970) or "category" (1 where the column has the value, else 0).
    value : str, default=""
        The category.
    """

    name: str
    kind: str
    value: str = ""

    def rule(self, threshold: float, below: bool, missing: bool) -> str:
        """Condition in words; ``missing`` says whether missing values are on this side, too."""
        if self.kind == "category":
            return f"{self.name} is {'not ' if below else ''}{self.value}"
        shown = readable_number(threshold)
        if self.kind == "time":
            shown = str(np.datetime64("1970-01-01") + np.timedelta64(round(threshold * 86_400), "s"))
            shown = shown.removesuffix("T00:00:00").replace("T", " ")
        return f"{self.name} {'<=' if below else '>'} {shown}{' or missing' if missing else ''}"


def leaf_rules(tree: Any, readable: Sequence[Readable], holes: NDArray[np.bool_]) -> dict[int, str]:
    """For each leaf the conditions on the way to it.

    Parameters
    ----------
    tree : sklearn.tree._tree.Tree
        Of a fitted scikit-learn tree (``tree_``).
    readable : sequence of Readable
        The tree's F features.
    holes : bool array of shape (F,)
        Which features have missing values.

    Returns
    -------
    dict of int to str
        Rule by the number of the leaf; "everywhere" for a tree without conditions.
    """
    rules: dict[int, str] = {}
    ways: list[tuple[int, list[str]]] = [(0, [])]
    while ways:
        node, conditions = ways.pop()
        if tree.children_left[node] == -1:
            rules[node] = " and ".join(conditions) or "everywhere"
            continue
        index, threshold = tree.feature[node], float(tree.threshold[node])
        left = bool(tree.missing_go_to_left[node])
        for child, below in ((tree.children_left[node], True), (tree.children_right[node], False)):
            missing = bool(holes[index]) and left == below
            ways.append((int(child), [*conditions, readable[index].rule(threshold, below, missing)]))
    return rules
