"""A stream in any of its forms as pairs of features and target."""

from collections.abc import Iterable, Iterator
from typing import Any

import pandas as pd

from moeapps.core.errors import DataError
from moeapps.core.labels import plain
from moeapps.core.tabledata.cells import shown
from moeapps.core.tabledata.frames import as_frame, is_table

__all__ = ["Stream", "pairs_of"]

Stream = Iterable[tuple[dict[Any, Any], Any]] | tuple[pd.DataFrame, Any]
"""Pairs of features and target, or a frame and its targets."""

EXPECTED = "a stream is pairs of features and target, or a DataFrame and as many targets"

_ROWS = 10_000
"""Rows of a frame that become dicts at once."""


def pairs_of(stream: Stream) -> Iterator[tuple[dict[Any, Any], Any]]:
    """Features and target of one instance after the other.

    Raises
    ------
    DataError
        If the stream has neither form, or the targets are not as many as the rows.
    """
    if isinstance(stream, tuple) and len(stream) == 2 and is_table(stream[0]):
        frame, targets = as_frame(stream[0], "the frame of the stream"), stream[1]
        if not hasattr(targets, "__len__") or len(targets) != len(frame):
            number = f"{len(targets)} targets" if hasattr(targets, "__len__") else shown(targets)
            raise DataError(f"{EXPECTED}; got {len(frame)} rows and {number}")
        labels = [plain(target) for target in targets]
        for start in range(0, len(frame), _ROWS):
            part = frame.iloc[start : start + _ROWS].to_dict("records")
            yield from zip(part, labels[start : start + _ROWS], strict=True)
        return
    if not isinstance(stream, Iterable) or is_table(stream) or isinstance(stream, str | dict):
        raise DataError(f"{EXPECTED}; got {type(stream).__name__}")
    for place, pair in enumerate(stream):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(f"{EXPECTED}; its instance {place} is {shown(pair)}")
        yield pair[0], pair[1]
