"""Batches of events and of items that were drawn instead, other ones in each epoch."""

# Shapes: P events, U users, I items, n negatives per event, N = P (1 + n) rows, L entries of a history

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from moeapps.core.checks import check_below_one, check_one_of, check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.loading import ResumableLoader, identity_collate, make_loader
from moeapps.core.tabledata.cells import missing_texts
from moeapps.core.tabledata.kinds import Column, ColumnKind, check_column_types
from moeapps.core.tabledata.source import TableSource
from moeapps.recsys.catalogue import ItemCatalogue, feature_names, pair_rows, with_sequence
from moeapps.recsys.encoder import Rows, TableEncoder
from moeapps.recsys.implicit import INTERACTION, ImplicitFeedback, implicit_feedback
from moeapps.recsys.negatives import Sampler
from moeapps.recsys.neighbours import Neighbours
from moeapps.recsys.recommend import ALL_ITEMS
from moeapps.recsys.recommender import measure
from moeapps.recsys.schema import Schema, SequenceFeature, as_schema
from moeapps.recsys.targets import Targets

__all__ = ["ImplicitData", "SampledRows"]

VALIDATION_EVENTS = 10_000
"""Events to validate on, at most."""

VALIDATION_NEGATIVES = 9
"""Items drawn for each of them, the same ones in every epoch."""

EVENT_ROWS = 65_536
"""Events that are joined with their features at once, to learn the categories."""

Split = Literal["none", "leave_last_out", "time"]


class SampledRows(Dataset[tuple[Rows, Tensor]]):
    """Events and their negatives as encoded rows; a batch is made when it is asked for.

    Parameters
    ----------
    feedback : ImplicitFeedback
        The events.
    encoder : TableEncoder
        The fitted encoder.
    catalogue : ItemCatalogue
        The encoded items.
    negatives : int
        Items drawn for each event.
    seed : int
        Seed of the draws.
    epoch : callable
        The epoch, when a batch is made.
    """

    def __init__(
        self,
        feedback: ImplicitFeedback,
        encoder: TableEncoder,
        catalogue: ItemCatalogue,
        negatives: int,
        seed: int,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.feedback, self.encoder, self.catalogue = feedback, encoder, catalogue
        self.negatives, self.epoch = negatives, epoch
        self.sampler = feedback.negative_sampler(seed)
        nobody = np.full((len(feedback.users), 0), -1)
        self.users = catalogue.user_rows(encoder, feedback.users, nobody)  # (U, ...), without histories
        self.codes = catalogue.codes(encoder)

    def __len__(self) -> int:
        """Number of events."""
        return len(self.feedback)

    def take(self, rows: Tensor | slice) -> tuple[Rows, Tensor]:
        """Rows and labels ``(N, 1)`` of some events: each event, then its negatives.

        An item that could not be drawn, for a user who has every item, has the label NaN, which no loss counts.
        """
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else rows.numpy()
        users, positives = self.feedback.events.user[numbers], self.feedback.events.item[numbers]
        drawn = self.sampler.draw(users, numbers, self.negatives, self.epoch())
        items = np.column_stack([positives, drawn])  # (P, 1 + n)
        labels = np.where(items < 0, np.nan, 0.0).astype(np.float32)
        labels[:, 0] = 1.0
        repeated = torch.from_numpy(users).repeat_interleave(self.negatives + 1)
        left = self.users.at(repeated)
        if self.catalogue.history is not None:
            entries = self.codes[torch.from_numpy(self.feedback.histories(numbers).astype(np.int64))]
            entries = entries.repeat_interleave(self.negatives + 1, dim=0)
            left = with_sequence(self.encoder, left, self.catalogue.history, entries)
        right = self.catalogue.rows.at(torch.from_numpy(np.maximum(items, 0).ravel()))
        return pair_rows(left, right), torch.from_numpy(labels.reshape(-1, 1))

    @property
    def rows_each(self) -> int:
        """Rows of an event: itself and its negatives."""
        return 1 + self.negatives

    def labels(self) -> Tensor:
        """Labels ``(N, 1)`` of all events and negatives, as :meth:`take` gives them."""
        full = self.sampler.counts[np.minimum(self.feedback.events.user, len(self.sampler.counts) - 1)]
        labels = np.zeros((len(self), self.negatives + 1), dtype=np.float32)
        labels[full >= len(self.catalogue), 1:] = np.nan
        labels[:, 0] = 1.0
        return torch.from_numpy(labels.reshape(-1, 1))


class ImplicitData(L.LightningDataModule):
    """Training, validation and test batches of implicit feedback.

    The target is called ``interaction``: 1 for an event, 0 for an item that was drawn. Features of users and items are
    encoded once each; a batch joins them, so that memory does not grow with the negatives.

    Parameters
    ----------
    train : DataFrame, path or ImplicitFeedback, optional
        One row per event, as :func:`implicit_feedback` reads it.
    val, test : ImplicitFeedback, optional
        Later parts of the same feedback; made by ``split`` otherwise.
    user, item : str, default "user_id" and "item_id"
        Columns of ids.
    time : str or None, default="timestamp"
        Column of times; None where the rows are in order of time.
    users, items : DataFrame or path, optional
        Features of users and items.
    split : {"none", "leave_last_out", "time"}, default="none"
        Whether the last events of each user, or the latest of all, are kept for validation and test. "none" trains on
        all events except the last ones of some users, which validate.
    negatives : int, default=4
        Items drawn for each event.
    sampler : {"uniform", "popularity"}, default="uniform"
        How they are drawn.
    max_history : int, default=50
        Newest items of a history.
    schema : Schema or list, optional
        The features, of which the item and ``<item>_history`` are two; inferred by default.
    column_types : dict, optional
        What columns are, where that shall not be inferred.
    missing_values : "auto" or list of str, default="auto"
        Texts that mean a missing value.
    batch_size : int, default=1024
        Rows per step: events and negatives.
    validation_fraction : float, default=0.1
        Part of the events to validate on where there are no validation events, at most 10,000; 0 for none.
    seed : int, default=0
        Seed of order, draws and validation events.

    Attributes
    ----------
    feedback : dict
        The parts ``"train"``, ``"val"`` and ``"test"``, after ``setup``; ``"val"`` and ``"test"`` may be None.
    encoder, targets, catalogue
        What was learned, after ``setup("fit")``.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    DataError
        In ``setup``, naming file, column and row.
    """

    encoder: TableEncoder
    targets: Targets
    catalogue: ItemCatalogue

    def __init__(
        self,
        train: Any = None,
        val: Any = None,
        test: Any = None,
        user: str = "user_id",
        item: str = "item_id",
        time: str | None = "timestamp",
        users: Any = None,
        items: Any = None,
        split: Split = "none",
        negatives: int = 4,
        sampler: Sampler = "uniform",
        max_history: int = 50,
        schema: Any = None,
        column_types: dict[str, ColumnKind] | None = None,
        missing_values: Literal["auto"] | list[str] = "auto",
        batch_size: int = 1024,
        validation_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_sizes(batch_size=batch_size, negatives=negatives, max_history=max_history)
        check_below_one(validation_fraction=validation_fraction)
        check_one_of("split", split, ("none", "leave_last_out", "time"))
        for name, part in (("val", val), ("test", test)):
            if part is not None and not isinstance(part, ImplicitFeedback):
                raise ConfigError(f"{name} must be a part of the same ImplicitFeedback (leave_last_out, time_split)")
        if split != "none" and (val is not None or test is not None):
            raise ConfigError(f"split={split!r} makes val and test: give one of them only")
        self.source, self.given = train, {"val": val, "test": test}
        self.reading = {"user": user, "item": item, "time": time, "users": users, "items": items}
        self.sampling: dict[str, Any] = {"negatives": negatives, "sampler": sampler, "max_history": max_history}
        self.split, self.schema = split, as_schema(schema)
        self.column_types = check_column_types(column_types)
        self.missing = missing_texts(missing_values)
        self.batch_size, self.validation_fraction, self.seed = batch_size, validation_fraction, seed
        self.feedback: dict[str, ImplicitFeedback | None] = {}
        self._rows: dict[str, SampledRows] = {}

    @property
    def has_validation(self) -> bool:
        """Whether there are validation events."""
        return self.feedback.get("val") is not None

    def val_groups(self, feature: str) -> NDArray[np.int64] | None:
        """Code of a column of users in each validation row, if there are any."""
        if not self.has_validation:
            return None
        rows = self._sampled("val")
        place = [sparse.name for sparse in self.encoder.schema.sparse].index(feature)
        codes = rows.users.sparse[:, place].numpy()[rows.feedback.events.user]
        return np.repeat(codes, rows.rows_each)

    def val_labels(self) -> Tensor | None:
        """Labels ``(N, 1)`` of the validation rows, if there are any."""
        return self._sampled("val").labels() if self.has_validation else None

    def label_counts(self, feature: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rows of training with label 1, and rows expected with label 0, for each code of a sparse feature.

        Parameters
        ----------
        feature : str
            A column of users or items.
        """
        rows = self._sampled("train")
        place = [sparse.name for sparse in self.encoder.schema.sparse].index(feature)
        size, events = self.encoder.table_sizes[place], rows.feedback.events
        if feature in self.catalogue.user_features:
            codes = rows.users.sparse[:, place].numpy()
            positive = np.bincount(codes[events.user], minlength=size).astype(float)
            return positive, positive * rows.negatives
        codes = self.catalogue.rows.sparse[:, place].numpy()
        expected = rows.sampler.expected() * len(events) * rows.negatives
        return (
            np.bincount(codes[events.item], minlength=size).astype(float),
            np.bincount(codes, weights=expected, minlength=size).astype(float),
        )

    def counted_rows(self) -> list[tuple[Rows, Tensor]]:
        """Rows whose codes are those of training, and how often each of them is expected in an epoch.

        Users, items and, as rows that have nothing but one entry of a history, items again.
        """
        rows, items = self._sampled("train"), self.catalogue.rows
        events, each = rows.feedback.events, rows.rows_each
        users = np.bincount(events.user, minlength=len(rows.users)) * each
        taken = np.bincount(events.item, minlength=len(items)) + rows.sampler.expected() * len(events) * rows.negatives
        found = [(rows.users, torch.from_numpy(users)), (items, torch.from_numpy(taken))]
        if self.catalogue.history is not None:
            nothing = Rows(torch.zeros_like(items.sparse), items.dense, tuple(map(torch.zeros_like, items.sequences)))
            entries = with_sequence(self.encoder, nothing, self.catalogue.history, rows.codes[: len(items), None])
            found.append((entries, torch.from_numpy(rows.feedback.history_counts() * each)))
        return found

    def mean_history(self) -> float:
        """Entries of a training event's history on average."""
        feedback = self._sampled("train").feedback
        return float(np.minimum(feedback.history_lengths(), feedback.max_history).mean())

    def setup(self, stage: str | None = None) -> None:
        """Read and split the events, and learn categories and numbers; other stages need a trained model.

        Raises
        ------
        ConfigError
            If there is nothing to learn from.
        DataError
            Naming file, column and row, if it cannot be learned from.
        """
        if self.feedback:
            return
        self.feedback = self._parts()
        if stage != "fit":
            return
        train = self.feedback["train"]
        assert train is not None
        self.encoder, user_features = _learn(train, self.schema, self.column_types, self.missing)
        self.targets = Targets([INTERACTION], {INTERACTION: "binary"}, self.missing)
        self.targets.mean, self.targets.scale = [0.0], [1.0]
        near = Neighbours.of(train.events.user, train.events.item, len(train.users), len(train.items))
        self.catalogue = ItemCatalogue.of(self.encoder, train.user, train.items, user_features, near)

    def _parts(self) -> dict[str, ImplicitFeedback | None]:
        if self.source is None:
            raise ConfigError("train is not set: events as a frame, a file or an ImplicitFeedback are needed to learn")
        whole = self.source
        if not isinstance(whole, ImplicitFeedback):
            whole = implicit_feedback(whole, **self.reading, **self.sampling)
        if self.split != "none":
            train, val, test = whole.leave_last_out() if self.split == "leave_last_out" else whole.time_split()
            return {"train": train, "val": _few(val, self.seed), "test": test}
        val = self.given["val"]
        number = min(round(len(whole) * self.validation_fraction), VALIDATION_EVENTS)
        if val is None and self.validation_fraction:
            whole, val = whole.hold_out(max(1, number), self.seed)
        return {"train": whole, "val": None if val is None else _few(val, self.seed), "test": self.given["test"]}

    def _sampled(self, part: str) -> SampledRows:
        if part not in self._rows:
            feedback = self.feedback[part]
            if feedback is None:
                raise ConfigError(f"there are no {part} events: give {part}, or a split that makes them")
            encoder, catalogue = self._learned()
            negatives = feedback.negatives if part == "train" else VALIDATION_NEGATIVES
            self._rows[part] = SampledRows(feedback, encoder, catalogue, negatives, self.seed)
        return self._rows[part]

    def _learned(self) -> tuple[TableEncoder, ItemCatalogue]:
        """Encoder and catalogue of this training, or of the trained model that is tested."""
        if hasattr(self, "catalogue"):
            return self.encoder, self.catalogue
        module: Any = self.trainer.lightning_module if self.trainer is not None else None
        if getattr(module, "catalogue", None) is None:
            raise ConfigError("the items are not known: give the checkpoint of a trained model with --ckpt_path")
        return module.encoder, module.catalogue

    def train_dataloader(self) -> ResumableLoader:
        """Shuffled events with this epoch's negatives; an incomplete last batch is dropped if there is a full one."""
        data = self._sampled("train")
        events = max(1, self.batch_size // (1 + data.negatives))
        loader = make_loader(
            data, events, shuffle=True, seed=self.seed, drop_last=len(data) >= events, collate_fn=identity_collate
        )
        sampler: Any = loader.sampler
        data.epoch = lambda: int(sampler.epoch)
        return loader

    def val_dataloader(self) -> Any:
        """Events with nine negatives each, the same ones in every epoch."""
        return self._in_order("val") if self.has_validation else []

    @property
    def has_test_data(self) -> bool:
        """Whether there are test events, after ``setup``."""
        return self.feedback.get("test") is not None

    def test_dataloader(self) -> ResumableLoader:
        """Events with nine negatives each."""
        return self._in_order("test")

    def test_metrics(self, module: Any) -> dict[str, float]:
        """Hit rate, NDCG, reciprocal rank, AUC and coverage of the test events, to be logged.

        Among all items; among 100 that are drawn for each event where there are more than 1,000 and the network reads
        user and item together.

        Parameters
        ----------
        module : RankingModule
            A trained module.
        """
        feedback, network = self.feedback["test"], module.network
        assert feedback is not None
        every = len(feedback.items) <= ALL_ITEMS or getattr(network, "factorised", False)
        rivals, device = None if every else 100, next(network.parameters()).device
        table = measure(network, module.encoder, module.catalogue, feedback, negatives=rivals, device=device)
        row = table.drop(columns=["slice", "events"]).iloc[0].dropna()
        return {str(name) if every else f"{name}_of_101": float(value) for name, value in row.items()}

    def _in_order(self, part: str) -> ResumableLoader:
        events = max(1, 8192 // (1 + VALIDATION_NEGATIVES))
        return make_loader(self._sampled(part), events, collate_fn=identity_collate)


def _few(feedback: ImplicitFeedback, seed: int) -> ImplicitFeedback:
    """At most as many events as are validated on, drawn at random."""
    if len(feedback) <= VALIDATION_EVENTS:
        return feedback
    chosen = np.sort(np.random.default_rng(seed).permutation(len(feedback))[:VALIDATION_EVENTS])
    rest = np.ones(len(feedback), dtype=bool)
    rest[chosen] = False
    # The others stay in the histories: those of a user that come before
    earlier = feedback.events.at(rest).joined(feedback.earlier)
    return replace(feedback, events=feedback.events.at(chosen), earlier=earlier, _histories=[])


def _learn(
    feedback: ImplicitFeedback, schema: Schema | None, types: dict[str, ColumnKind] | None, missing: frozenset[str]
) -> tuple[TableEncoder, list[str]]:
    """The fitted encoder, and the names of the features that come with a user."""
    columns: list[Column] = []
    if schema is None:
        schema, columns = _infer(feedback, types, missing)
    elif types:
        raise ConfigError("column_types has no effect beside a schema, which says what the columns are: give one")
    tables = {*feedback.users.columns, *feedback.items.columns}
    unknown = [f.name for f in schema.features if f.name not in tables and f.name != feedback.history]
    if unknown:
        raise DataError(f"the schema has {unknown[0]!r}, which is no column of users or items")
    if feedback.item not in schema.sparse_names:
        raise ConfigError(f"the schema needs SparseFeature({feedback.item!r}), the item that is recommended")
    histories = [s for s in schema.sequences if s.name == feedback.history]
    if any(s.shares != feedback.item for s in histories):
        raise ConfigError(f"SequenceFeature({feedback.history!r}) must have shares={feedback.item!r}")
    # The history adds nothing to learn: its items are in the catalogue
    without = Schema(tuple(f for f in schema.features if f.name != feedback.history))
    encoder = TableEncoder(without, missing).fit_batches(_event_frames(feedback, without))
    encoder.schema = Schema(schema.features, (INTERACTION,))
    encoder.columns = columns
    return encoder, [name for name in feedback.users.columns if name in feature_names(encoder)]


def _infer(
    feedback: ImplicitFeedback, types: dict[str, ColumnKind] | None, missing: frozenset[str]
) -> tuple[Schema, list[Column]]:
    columns: list[Column] = []
    for table, key in ((feedback.users, feedback.user), (feedback.items, feedback.item)):
        chosen: dict[str, ColumnKind] = {name: kind for name, kind in (types or {}).items() if name in table.columns}
        source = TableSource(table, missing=missing)
        columns += source.infer([str(name) for name in table.columns], {**chosen, key: "category"}).values()
    unknown = [name for name in types or {} if name not in [column.name for column in columns]]
    if unknown:
        raise ConfigError(f"column_types: {unknown[0]!r} is no column of users or items")
    features = Schema.from_columns(columns).features
    history = SequenceFeature(feedback.history, shares=feedback.item, max_len=feedback.max_history)
    return Schema((*features, history)), columns


def _event_frames(feedback: ImplicitFeedback, schema: Schema) -> Iterator[pd.DataFrame]:
    """The events with their features, in parts.

    Users and items without events are left out: they have the code of an unseen category, whose embedding is trained,
    and not one of their own, which would not be.
    """
    names = [feature.name for feature in schema.features]
    events = feedback.events
    for start in range(0, len(events), EVENT_ROWS):
        span = slice(start, start + EVENT_ROWS)
        yield feedback.joined(events.user[span], events.item[span])[names]
