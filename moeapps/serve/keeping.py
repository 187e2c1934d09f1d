"""``POST /predict?keep=id``: cells of a row that the model does not read, copied next to its prediction."""

from collections.abc import Collection, Sequence
from typing import Any

from moeapps.registry import did_you_mean, nearest
from moeapps.serve.refusal import Refusal

__all__ = ["add_kept", "split_names", "take_kept"]

Row = dict[str, Any]


def split_names(keep: Sequence[str]) -> list[str]:
    """Names of a query's ``keep``, which may come several times, or with commas."""
    return list(dict.fromkeys(name for entry in keep for name in entry.split(",") if name))


def take_kept(
    rows: Any, keep: Sequence[str], columns: Collection[str] | None, ignored: Collection[str] = ()
) -> list[Row]:
    """Take the cells to keep out of rows, which then have what the model reads.

    Parameters
    ----------
    rows : list of dict
        The rows of a request; they are changed.
    keep : sequence of str
        Names of the cells to keep; one that the model reads stays in the row, too.
    columns : collection of str, optional
        Columns that the model reads; None of a model that reads whatever comes: what is kept is not read then.
    ignored : collection of str, default ()
        Further columns that a row may have, and that nobody reads.

    Returns
    -------
    list of dict
        The cells to keep, row by row.

    Raises
    ------
    Refusal
        If a row lacks a cell to keep, or has a cell that is neither read nor kept.
    """
    if keep and rows and not isinstance(rows[0], dict):
        raise _refuse("keep", "rows are lists of numbers, which have no names: there is nothing to keep by name")
    kept = []
    for number, row in enumerate(rows):
        if missing := [name for name in keep if name not in row]:
            hint = did_you_mean(missing[0], [str(name) for name in row])
            raise _refuse(f"rows.{number}.{missing[0]}", f"the row has no such field to keep{hint}")
        kept.append({name: row[name] for name in keep})
        if columns is None:
            for name in keep:
                del row[name]
        elif isinstance(row, dict) and (more := row.keys() - columns):
            for name in more:
                if name not in keep and name not in ignored:
                    raise _refuse(f"rows.{number}.{name}", _unknown(name, columns))
                del row[name]
    return kept


def add_kept(predictions: list[Row], kept: list[Row]) -> list[Row]:
    """Predictions with the cells that were kept in front; a prediction of such a name becomes ``prediction_<name>``."""
    if not kept or not kept[0]:
        return predictions
    return [
        {**cells, **{f"prediction_{name}" if name in cells else name: value for name, value in prediction.items()}}
        for prediction, cells in zip(predictions, kept, strict=True)
    ]


def _unknown(name: str, columns: Collection[str]) -> str:
    close = nearest(name, list(columns))
    meant = f"did you mean {close!r}? " if close else ""
    return f"the model has no such column; {meant}?keep=NAME copies a field next to the prediction"


def _refuse(field: str, fault: str) -> Refusal:
    return Refusal(422, "invalid_request", f"{field}: {fault}", faults=[{"field": field, "fault": fault}])
