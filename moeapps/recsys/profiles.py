"""How the columns of a ranker's table were distributed in training; see :meth:`moeapps.recsys.ranker.Ranker.check`."""

# Shapes: N rows, D dense columns

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.core.tabledata.profile import ColumnProfile
from moeapps.core.tabledata.vocabulary import Vocabulary
from moeapps.recsys.schema import Schema

__all__ = ["category_profiles", "number_profiles", "unknown_profiles"]


def number_profiles(
    schema: Schema, numbers: NDArray[np.float64], before: list[ColumnProfile] | None
) -> list[ColumnProfile]:
    """Profiles of dense columns, with further rows ``(N, D)``; the bins are those of the first batch."""
    if before is None:
        return [
            ColumnProfile.of_numbers(feature.name, "time" if feature.time else "number", column)
            for feature, column in zip(schema.dense, numbers.T, strict=True)
        ]
    return [profile.with_numbers(column) for profile, column in zip(before, numbers.T, strict=True)]


def category_profiles(
    seen: Mapping[str, Counter[Any]], values: Mapping[str, list[Any]], schema: Schema, rows: int
) -> list[ColumnProfile]:
    """Profiles of sparse columns whose categories are known, not hashed."""
    profiles = []
    for name in (feature.name for feature in schema.sparse if feature.name in seen):
        known = Vocabulary(values[name], frozenset(), name)  # which may have settled that two texts are one category
        counts = [0] * len(values[name])
        for value, number in seen[name].items():
            if (code := known.code(value)) >= 0:
                counts[code] += int(number)
        missing = rows - sum(counts)
        profiles.append(
            ColumnProfile(name, "category", rows, missing, counts=tuple(counts), values=tuple(values[name]))
        )
    return profiles


def unknown_profiles(schema: Schema, values: Mapping[str, list[Any]]) -> list[ColumnProfile]:
    """Profiles of an older file, which knows no more than the categories."""
    sparse = [f.name for f in schema.sparse if f.name in values]
    dense: list[ColumnProfile] = [ColumnProfile(f.name, "time" if f.time else "number") for f in schema.dense]
    return [*(ColumnProfile(name, "category", values=tuple(values[name])) for name in sparse), *dense]
