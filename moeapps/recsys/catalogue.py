"""The items that can be recommended, encoded once, and the rows of users with items that are made of them."""

# Shapes: U users, I items, N rows, S sparse columns, L entries of a history, K neighbours of an item

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from moeapps.core.errors import FileFormatError
from moeapps.core.saved_arguments import fits
from moeapps.core.tabledata.source import require_columns
from moeapps.core.tabledata.vocabulary import Vocabulary
from moeapps.recsys.encoder import PAD, Rows, TableEncoder
from moeapps.recsys.neighbours import Neighbours

__all__ = ["ItemCatalogue", "pair_rows"]


@dataclass
class ItemCatalogue:
    """Items by number, with their encoded features; the columns of users are zero in their rows.

    Parameters
    ----------
    user, item : str
        Columns of the ids.
    history : str or None
        Feature that holds the history, None where the schema has none.
    names : list
        Ids of the items.
    user_features : list of str
        Features that come with a user, without the history.
    rows : Rows
        I encoded rows.
    neighbours : Neighbours
        Items that come together, to choose candidates by.
    """

    user: str
    item: str
    history: str | None
    names: list[Any]
    user_features: list[str]
    rows: Rows
    neighbours: Neighbours

    def __len__(self) -> int:
        """Number of items I."""
        return len(self.names)

    @classmethod
    def of(
        cls, encoder: TableEncoder, user: str, items: pd.DataFrame, user_features: Sequence[str], neighbours: Neighbours
    ) -> Self:
        """The catalogue of a table of items, whose first column is the id."""
        item = str(items.columns[0])
        history = next((s.name for s in encoder.schema.sequences if s.shares == item), None)
        features = [name for name in items.columns if name in feature_names(encoder)]
        rows = encode_part(encoder, items, features, warn=False)
        return cls(user, item, history, items[item].tolist(), list(user_features), rows, neighbours)

    def numbers_of(self, ids: pd.Series) -> NDArray[np.int64]:
        """Number of each id, negative for one that is not in the catalogue."""
        return Vocabulary(self.names, None, self.item).codes(ids).astype(np.int64)

    def codes(self, encoder: TableEncoder) -> Tensor:
        """Code of each item in the encoder's tables, ``(I + 1,)``, at last that of padding."""
        place = encoder.schema.sparse_names.index(self.item)
        return torch.cat([self.rows.sparse[:, place], torch.tensor([PAD], dtype=torch.int32)])

    def user_rows(self, encoder: TableEncoder, users: pd.DataFrame, histories: NDArray[np.integer] | None) -> Rows:
        """Encode users; the columns of items are zero in their rows.

        Parameters
        ----------
        encoder : TableEncoder
            The fitted encoder.
        users : DataFrame
            Their features; with the history as lists of ids, where ``histories`` is None.
        histories : array of shape (U, L), optional
            Histories as numbers of items, newest last, -1 for none.

        Raises
        ------
        DataError
            Naming a feature that is missing, or a cell.
        """
        needed = [*self.user_features, *([self.history] if self.history is not None and histories is None else [])]
        require_columns(needed, users.columns, "the table of users")
        rows = encode_part(encoder, users, self.user_features, warn=histories is None)
        if histories is not None:
            return self.with_histories(encoder, rows, histories)
        if self.history is None:
            return rows
        return with_sequence(encoder, rows, self.history, encoder.encode_sequence(users[self.history], self.history))

    def with_histories(self, encoder: TableEncoder, rows: Rows, histories: NDArray[np.integer]) -> Rows:
        """Encoded users with histories ``(U, L)`` of item numbers, newest last, -1 for none."""
        if self.history is None:
            return rows
        entries = self.codes(encoder)[torch.from_numpy(histories.astype(np.int64))]
        return with_sequence(encoder, rows, self.history, entries)

    def state(self) -> dict[str, Any]:
        """What is no array, as JSON values."""
        names = ("user", "item", "history", "names", "user_features")
        return {name: getattr(self, name) for name in names}

    def tensors(self) -> dict[str, Tensor]:
        """The arrays."""
        sequences = {f"sequence{i}": part for i, part in enumerate(self.rows.sequences)}
        return {"sparse": self.rows.sparse, "dense": self.rows.dense, **sequences, **self.neighbours.tensors()}

    @classmethod
    def from_state(cls, state: dict[str, Any], tensors: dict[str, Tensor], encoder: TableEncoder) -> Self:
        """Undo :meth:`state` and :meth:`tensors`.

        Raises
        ------
        FileFormatError
            If they contradict each other.
        """
        kinds = {"user": str, "item": str, "history": str | None, "names": list[Any], "user_features": list[str]}
        if set(state) != set(kinds) or not all(fits(state[name], kind) for name, kind in kinds.items()):
            raise FileFormatError("its catalogue is malformed")
        sequences = tuple(tensors[f"sequence{i}"] for i in range(len(encoder.schema.sequences)))
        rows = Rows(tensors["sparse"], tensors["dense"], sequences)
        names, sizes = state["names"], encoder.table_sizes
        widths = (len(encoder.schema.sparse), 2 * len(encoder.schema.dense))
        good = (
            all(len(part) == len(names) for part in (rows.sparse, rows.dense, *sequences))
            and (rows.sparse.shape[1], rows.dense.shape[1]) == widths
            and rows.sparse.dtype == torch.int32
            and all(_within(rows.sparse[:, s], sizes[s]) for s in range(widths[0]))
            and all(_within(part, sizes[t]) for part, t in zip(sequences, encoder.sequence_tables, strict=True))
            and state["item"] in encoder.schema.sparse_names
        )
        if not good:
            raise FileFormatError("its catalogue contradicts its columns")
        return cls(**state, rows=rows, neighbours=Neighbours.from_tensors(tensors, len(names)))


def encode_part(encoder: TableEncoder, frame: pd.DataFrame, names: Sequence[str], warn: bool = True) -> Rows:
    """Encode some features of a frame; the others are zeros. ``warn`` of many categories that training has not seen."""
    schema, n = encoder.schema, len(frame)
    sparse = torch.zeros(n, len(schema.sparse), dtype=torch.int32)
    numbers = torch.zeros(n, 2 * len(schema.dense))
    sequences = [torch.zeros(n, feature.max_len, dtype=torch.int32) for feature in schema.sequences]
    if names:
        part = encoder.part(names)
        if not warn:
            part.new_rates = {}
        encoded = part.transform(frame[[feature.name for feature in part.schema.features]])
        sparse[:, _places(schema.sparse, names)] = encoded.sparse
        dense = _places(schema.dense, names)
        numbers[:, [*dense, *(d + len(schema.dense) for d in dense)]] = encoded.dense
        for place, entries in zip(_places(schema.sequences, names), encoded.sequences, strict=True):
            sequences[place] = entries
    return Rows(sparse, numbers, tuple(sequences))


def with_sequence(encoder: TableEncoder, rows: Rows, name: str, entries: Tensor) -> Rows:
    """Rows with one sequence set; the newest entries, padded in front."""
    (place,) = _places(encoder.schema.sequences, [name])
    length = encoder.schema.sequences[place].max_len
    entries = entries[:, -length:].to(torch.int32)
    entries = torch.nn.functional.pad(entries, (length - entries.shape[1], 0), value=PAD)
    sequences = [entries if i == place else part for i, part in enumerate(rows.sequences)]
    return Rows(rows.sparse, rows.dense, tuple(sequences))


def pair_rows(users: Rows, items: Rows) -> Rows:
    """Rows of a user and an item each: of a feature, one side has the value and the other one zero."""
    sequences = tuple(a + b for a, b in zip(users.sequences, items.sequences, strict=True))
    return Rows(users.sparse + items.sparse, users.dense + items.dense, sequences)


def feature_names(encoder: TableEncoder) -> list[str]:
    """Names of the encoder's features."""
    return [feature.name for feature in encoder.schema.features]


def _places(features: Sequence[Any], names: Sequence[str]) -> list[int]:
    return [place for place, feature in enumerate(features) if feature.name in names]


def _within(codes: Tensor, size: int) -> bool:
    return codes.numel() == 0 or (int(codes.min()) >= 0 and int(codes.max()) < size)
