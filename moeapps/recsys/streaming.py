"""Rows of a table that are encoded as they are read, to test on and to predict."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import IterableDataset

from moeapps.core.tabledata.source import Table, TableSource
from moeapps.recsys.encoder import TableEncoder
from moeapps.recsys.targets import Targets

__all__ = ["EVALUATION_ROWS", "RowStream"]

EVALUATION_ROWS = 8192
"""Rows that are evaluated at once."""


class RowStream(IterableDataset):
    """Batches that are encoded as they are read."""

    def __init__(self, table: Table, encoder: TableEncoder, targets: Targets | None, keep: Sequence[str]) -> None:
        # a column that is kept is read as it stands
        kinds = {name: kind for name, kind in encoder.column_kinds().items() if name not in keep}
        self.source, self.encoder, self.targets = (
            TableSource(table, 8 * EVALUATION_ROWS, kinds, encoder.missing),
            encoder,
            targets,
        )
        self.keep = list(keep)
        self.source.require(self.keep, "keep")

    def __iter__(self) -> Iterator[Any]:
        schema = self.encoder.schema
        features = [feature.name for feature in schema.features]
        labels = list(schema.targets) if self.targets is not None else []
        self.source.require([*features, *labels])
        names = list(dict.fromkeys([*features, *labels, *self.keep]))
        for whole in self.source.batches(names):
            for start in range(0, len(whole), EVALUATION_ROWS):
                frame = whole.iloc[start : start + EVALUATION_ROWS]
                rows = self.source.named(partial(self.encoder.transform, frame[features]))
                if self.targets is None:
                    yield rows, {name: frame[name].to_numpy() for name in self.keep}
                else:
                    yield rows, torch.from_numpy(self.targets.encode(frame))
