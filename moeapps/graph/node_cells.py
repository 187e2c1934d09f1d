"""Cells of a table of nodes that are no features: ids, labels, and the part of a split."""

# N nodes

import numpy as np
import pandas as pd

from moeapps.core.arrays import as_array
from moeapps.core.errors import DataError
from moeapps.core.tabledata.cells import category_text
from moeapps.core.tabledata.source import TableSource
from moeapps.core.tabledata.vocabulary import distinct_cells, settle_values
from moeapps.graph.node_names import exact_ids

__all__ = ["id_keys", "like_id", "read_labels", "read_split"]

SPLITS = {
    "train": "train_mask", "training": "train_mask", "val": "val_mask", "valid": "val_mask",
    "validation": "val_mask", "dev": "val_mask", "test": "test_mask",
}  # fmt: skip
"""What a column of splits may hold, and the masks that it means."""


def id_keys(ids: pd.Series, what: str) -> pd.Index:
    """Ids as exact text."""
    cells = ids.reset_index(drop=True)
    exact = pd.Series(exact_ids(cells, what))
    index, values = distinct_cells(exact, what)
    texts = np.array([category_text(value) for value in values] or [""], dtype=object)
    if (texts == "").any() and len(values):
        raise DataError(f"{what} has no node id in row {int(np.isin(index, np.flatnonzero(texts == '')).argmax())}")
    return pd.Index(texts[index] if len(index) else np.zeros(0, dtype=object), dtype=object)


def like_id(wanted: str, keys: pd.Index, otherwise: bool = True) -> str:
    """What the ids of the table look like, for the error that one is not there: the same but for its writing, or any.

    Parameters
    ----------
    wanted : str
        The id that is not there.
    keys : Index of length N
        Those that are.
    otherwise : bool, default=True
        Whether to show one of them where none is like it.
    """

    def bare(text: str) -> str:
        return text.strip().casefold().removesuffix(".0").lstrip("0")

    same = next((key for key in keys if bare(key) == bare(wanted)), None)
    if same is not None:
        return f"; did you mean {same!r}?"
    return f" (an id of it is {keys[0]!r})" if otherwise and len(keys) else ""


def read_labels(column: pd.Series, name: str, source: TableSource) -> np.ndarray:
    """Labels as objects, None where there is none; of a file those that a frame of its content has.

    Whole numbers (also written as 1.0, as pandas writes a column with a hole) are numbers, true and false bools.
    """
    cells = as_array(column.reset_index(drop=True)).astype(object)
    gone = pd.isna(cells) | np.isin(cells.astype(str), list(source.missing))
    known = cells[~gone]
    if source.untyped and len(known):
        texts = list(dict.fromkeys(known.tolist()))
        if len({type(value) for value in settle_values(texts, True, name)}) == 1:
            values = {text: settle_values([text], True, name)[0] for text in texts}
            if len({type(value) for value in values.values()}) == 1:  # 7 beside 007: both stay text
                known = np.array([values[text] for text in known.tolist()], dtype=object)
    labels = np.full(len(cells), None, dtype=object)
    labels[~gone] = known
    return labels


def read_split(column: pd.Series, name: str, source: TableSource) -> dict[str, np.ndarray]:
    """The masks that a column of splits means."""
    texts = [None if pd.isna(cell) else str(cell).strip() for cell in column]
    masks: dict[str, np.ndarray] = {}
    for row, text in enumerate(texts):
        if text is None or text in source.missing or text.lower() in ("", "none"):
            continue
        if text.lower() not in SPLITS:
            raise DataError(
                f"{source.name}: {name!r} holds {text!r} in row {row}, expected train, val, test or nothing"
            )
        masks.setdefault(SPLITS[text.lower()], np.zeros(len(texts), dtype=bool))[row] = True
    return masks
