"""What the columns of two tables mean, one of nodes and one of edges; and how such a table is opened."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from moeapps.core.errors import DataError
from moeapps.core.tabledata.files import ENDINGS, file_ending
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.core.tabledata.source import Table, TableSource, listed
from moeapps.registry import did_you_mean

__all__ = ["GraphTables", "check_column", "is_table_path", "open_table"]


@dataclass(frozen=True)
class GraphTables:
    """What the columns of two tables mean.

    Parameters
    ----------
    id : str, optional
        Column of ``nodes`` with a different id in each row. When None, a column called ``id``, ``node`` or ``node_id``,
        or else the index of a frame.
    target : str, optional
        Column of ``nodes`` with the labels; empty where the label is to be predicted.
    split : str, optional
        Column of ``nodes`` that says ``train``, ``val`` or ``test``; empty for none of them.
    edge_source, edge_target : str, optional
        Columns of ``edges`` with the ids at both ends. When None, columns called ``source`` and ``target`` (or ``src``
        and ``dst``, ``from`` and ``to``), or else the first two.
    edge_weight : str, optional
        Column of ``edges`` with weights. When None, a column called ``weight``.
    undirected : bool, default=True
        Whether every edge goes both ways.
    missing_nodes : {"error", "ignore"}, default="error"
        What to do with an edge that names a node which ``nodes`` does not have: refuse it, or leave it out with a
        warning.
    ignore_columns : list of str, default=()
        Columns of ``nodes`` that are not used.
    column_types : dict, optional
        What columns are, where it shall not be inferred: ``{"zip": "category"}``; one of "number", "category", "id",
        "time".
    missing_values : "auto" or list of str, default="auto"
        Texts that mean a missing value; "auto" takes those of ``pandas.read_csv``.
    """

    id: str | None = None
    target: str | None = None
    split: str | None = None
    edge_source: str | None = None
    edge_target: str | None = None
    edge_weight: str | None = None
    undirected: bool = True
    missing_nodes: Literal["error", "ignore"] = "error"
    ignore_columns: Sequence[str] = ()
    column_types: Mapping[str, ColumnKind] | None = None
    missing_values: Literal["auto"] | Sequence[str] = "auto"


def is_table_path(given: Any) -> bool:
    """Whether this is the path of a file that holds a table."""
    return isinstance(given, str | os.PathLike) and file_ending(given) in ENDINGS


def open_table(
    table: Table, argument: str, missing: frozenset[str], kinds: Mapping[str, ColumnKind] | None = None
) -> TableSource:
    """Open a table of nodes, edges or pairs.

    Parameters
    ----------
    table : DataFrame or path
        The table.
    argument : str
        What an error calls a frame.
    missing : frozenset of str
        Texts that mean a missing value.
    kinds : dict, optional
        What columns are, as a model knows.

    Raises
    ------
    DataError, FileNotFoundError, FileFormatError
        As :class:`~moeapps.core.tabledata.source.TableSource`.
    """
    try:
        source = TableSource(table, kinds=kinds, missing=missing)
    except DataError as error:
        raise DataError(str(error).replace("frame must", f"{argument} must", 1)) from None
    if not source.is_file:
        source.name = argument
    return source


def check_column(source: TableSource, name: str, because: str) -> None:
    """Refuse a table without a column.

    Raises
    ------
    DataError
        Naming the column, ``because`` of what it is needed, and those that are there.
    """
    if name not in source.columns:
        near = did_you_mean(name, source.columns)
        raise DataError(f"{source.name} has no column {name!r}, {because}; it has {listed(source.columns)}{near}")
