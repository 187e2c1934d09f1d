"""Recommending from the whole catalogue, and measuring it: what rankers that learned from implicit feedback can do."""

# Shapes: U users, I items, P events, L entries of a history, C candidates

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import nn

from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.estimator import resolve_device
from moeapps.core.tabledata.cells import missing_texts
from moeapps.core.tabledata.frames import as_frame
from moeapps.core.tabledata.numbers import list_column
from moeapps.core.tabledata.source import Table, TableSource, require_columns
from moeapps.core.tabledata.writer import TableWriter
from moeapps.recsys.catalogue import ItemCatalogue
from moeapps.recsys.encoder import Rows, TableEncoder
from moeapps.recsys.implicit import ImplicitFeedback, implicit_feedback
from moeapps.recsys.recommend import ALL_ITEMS, Scorer, ranks_of, recommendation_table, top_items

__all__ = ["RecommendMixin", "measure"]

CANDIDATES = 300
"""Items that it scores of a larger catalogue."""


class RecommendMixin:
    """``recommend`` and ``evaluate_recommendations`` of a ranker."""

    model_: nn.Module
    encoder_: TableEncoder
    catalogue_: ItemCatalogue | None
    accelerator: str

    def recommend(
        self,
        users: Any,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        exclude: pd.Series | list[Any] | None = None,
        candidates: int | Literal["auto", "all"] = "auto",
        by_row: bool = False,
    ) -> pd.DataFrame:
        """The k best items of the catalogue for each user.

        Parameters
        ----------
        users : ImplicitFeedback or DataFrame
            Feedback: every user in it, with the items of all events as history. A frame: one row per user, with the
            users' features and ``<item>_history``, a list of ids (oldest first).
        k : int, default=10
            Items per user, at least 1; fewer where the catalogue has no more.
        exclude_seen : bool, default=True
            Whether items of the history are left out.
        exclude : Series or list of lists, optional
            Further items to leave out, a list of ids per row of the frame.
        candidates : int, "auto" or "all", default="auto"
            Items to score of each user, besides those that are left out: the history's items, their neighbours (by
            common users), then the most popular ones. "auto" takes 300 where there are more than 1,000 items and the
            network reads user and item together (DIN, AW-MoE, the multi-gate models), and all items otherwise.
        by_row : bool, default=False
            Whether the result has a column ``row`` first, the number of the user's row: ids may occur twice, or be none
            of the features.

        Returns
        -------
        DataFrame
            The column of users, ``rank`` from 1, the column of items, and ``score``: the logit that the user takes the
            item and not one drawn at random. Users in their order, the best item first.

        Raises
        ------
        ConfigError
            If the ranker did not learn from implicit feedback, or ``k`` or ``candidates`` is impossible.
        DataError
            Naming a column or cell.
        """
        catalogue = self._catalogue()
        check_sizes(k=k)
        feedback = users if isinstance(users, ImplicitFeedback) else None
        if feedback is not None:
            if exclude is not None:
                raise ConfigError("exclude is for a frame of users: of a feedback, exclude_seen leaves out its events")
            ids, rows, seen = self._of_feedback(feedback)
        else:
            ids, rows, seen = self._of_frame(as_frame(users, "users"), exclude, exclude_seen)
        leave_out = seen if exclude_seen or exclude is not None else None
        number = self._number_to_score(candidates, k)
        chosen = None
        if number is not None:
            histories = seen if feedback is not None else self._histories_of(users)
            chosen = self._candidates(number, histories, leave_out)
        nothing = np.zeros(0, dtype=np.int64)
        found = [(nothing, nothing, nothing, np.zeros(0, dtype=np.float32))]  # what a table without users has
        with self._scoring() as (network, device), torch.inference_mode():
            score = Scorer(network, catalogue, rows, device)
            for part, items, scores in top_items(score, len(ids), len(catalogue), k, leave_out, chosen):
                row, column = np.nonzero(items >= 0)
                found.append((row + part.start, column + 1, items[row, column], scores[row, column]))
        user, rank, item, value = (np.concatenate(parts) for parts in zip(*found, strict=True))
        names = pd.Series(catalogue.names, dtype=object).infer_objects().to_numpy()
        columns = {"row": user, catalogue.user: ids.to_numpy()[user], "rank": rank, catalogue.item: names[item]}
        table = pd.DataFrame({**columns, "score": value})
        return table if by_row else table.drop(columns="row")

    def recommend_file(
        self,
        source: str | os.PathLike[str],
        output: str | os.PathLike[str],
        k: int = 10,
        *,
        time: str | None = "timestamp",
        users: Table | None = None,
        exclude_seen: bool = True,
    ) -> int:
        """The k best items for each user of a file, written to another file.

        Parameters
        ----------
        source : path
            One row per event, with user, item and time, of which histories are made; or one row per user, with the
            users' features and ``<item>_history``.
        output : path
            ``.csv`` or ``.parquet`` file; it replaces an older one only when it is complete.
        k : int, default=10
            Items per user.
        time : str or None, default="timestamp"
            Column of the events' times; None where they are in order of time.
        users : DataFrame or path, optional
            Features of the users of the events.
        exclude_seen : bool, default=True
            As in :meth:`recommend`.

        Returns
        -------
        int
            Number of rows written.

        Raises
        ------
        ConfigError, DataError
            As :meth:`recommend` and :func:`~moeapps.recsys.implicit_feedback`.
        """
        catalogue = self._catalogue()
        history = catalogue.history or f"{catalogue.item}_history"
        table = TableSource(source, kinds=self.encoder_.column_kinds(), missing=self.encoder_.missing)
        writer = TableWriter(output)
        if Path(source).exists() and Path(output).exists() and os.path.samefile(source, output):
            raise ConfigError(f"{output} is the input: write to another file")
        if history in table.columns:
            if users is not None:
                raise ConfigError(f"users is for a file of events, but {source} has a row per user ({history!r})")
            parts: Iterator[Any] = table.batches()
        else:
            if catalogue.item not in table.columns:
                raise DataError(f"{source} has neither {history!r} (a row per user) nor {catalogue.item!r} (events)")
            parts = iter([implicit_feedback(source, catalogue.user, catalogue.item, time, users=users)])
        with writer:
            for part in parts:
                writer.write(self.recommend(part, k, exclude_seen=exclude_seen))
        return writer.rows

    def evaluate_recommendations(
        self,
        feedback: ImplicitFeedback,
        k: int = 10,
        *,
        negatives: int | None = None,
        slices: Mapping[str, ArrayLike] | None = None,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Hit rate, NDCG, reciprocal rank, AUC and coverage on later events.

        The item of each event is ranked among all items that its user had not had before.

        Parameters
        ----------
        feedback : ImplicitFeedback
            Events to measure by, with the earlier ones of their users: a part that ``leave_last_out`` or ``time_split``
            made.
        k : int, default=10
            Length of a list.
        negatives : int, optional
            Number of items, drawn at random, to rank among instead of all: the hit rate is then higher, and comparable
            only with the same number. For a large catalogue and a network that reads user and item together.
        slices : dict, optional
            Name to a mask of the events, which are measured separately, too.
        seed : int, default=0
            Seed of the draw.

        Returns
        -------
        DataFrame
            See :func:`~moeapps.recsys.recommendation_table`.

        Raises
        ------
        ConfigError
            If the ranker did not learn from implicit feedback.
        DataError
            If an event's item is not in the catalogue.
        """
        catalogue = self._catalogue()
        with self._scoring() as (network, device):
            return measure(network, self.encoder_, catalogue, feedback, k, negatives, slices, seed, device)

    def _catalogue(self) -> ItemCatalogue:
        check_is_fitted(self, "model_")
        if self.catalogue_ is None:
            raise ConfigError("this ranker knows no catalogue: fit it on implicit_feedback(...), or use rank()")
        return self.catalogue_

    @contextmanager
    def _scoring(self) -> Iterator[tuple[nn.Module, torch.device]]:
        """The network on the device that the accelerator means; afterwards it is on the CPU again."""
        device = resolve_device(self.accelerator)
        try:
            yield self.model_.to(device), device
        finally:
            self.model_.cpu()

    def _of_feedback(self, feedback: ImplicitFeedback) -> tuple[pd.Series, Any, Any]:
        """Ids, encoded rows and seen items of all users of a feedback, the last two by slice."""
        catalogue = self._catalogue()
        known = in_catalogue(feedback, catalogue)
        pairs = known.pairs()
        static = catalogue.user_rows(self.encoder_, known.users, np.full((len(known.users), 0), -1))

        def rows(part: slice) -> Rows:
            own = known.latest(np.arange(part.start, part.stop))
            return catalogue.with_histories(self.encoder_, static.at(part), own)

        return known.users[known.user], rows, lambda part: pairs.of_users(np.arange(part.start, part.stop))

    def _of_frame(self, frame: pd.DataFrame, exclude: Any, exclude_seen: bool) -> tuple[pd.Series, Any, Any]:
        """As :meth:`_of_feedback`, of a frame with a row per user."""
        catalogue = self._catalogue()
        encoded = catalogue.user_rows(self.encoder_, frame, None)
        lists = [self._histories_of(frame)] if exclude_seen else []
        if exclude is not None:
            if len(exclude) != len(frame):
                raise DataError(f"exclude has {len(exclude)} lists, expected one for each of {len(frame)} users")
            lists.append(self._numbers(pd.Series(list(exclude), index=frame.index, dtype=object), "exclude"))
        seen = [np.unique(np.concatenate(parts)) for parts in zip(*lists, strict=True)] if lists else []

        def left_out(part: slice) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            items = seen[part]
            rows = np.repeat(np.arange(len(items)), [len(own) for own in items])
            return rows, np.concatenate([np.zeros(0, np.int64), *items])

        ids = frame[catalogue.user] if catalogue.user in frame else pd.Series(range(len(frame)), index=frame.index)
        return ids, encoded.at, left_out if lists else None

    def _histories_of(self, frame: Any) -> list[NDArray[np.int64]]:
        """Items of each row's history, those that the catalogue has."""
        catalogue = self._catalogue()
        name = catalogue.history or f"{catalogue.item}_history"
        require_columns([name], frame.columns, "the table of users")
        return self._numbers(as_frame(frame, "users")[name], name)

    def _numbers(self, column: pd.Series, name: str) -> list[NDArray[np.int64]]:
        lists = [entries or [] for entries in list_column(column, missing_texts(), name)]
        flat = pd.Series([entry for entries in lists for entry in entries], dtype=object, name=name)
        numbers = self._catalogue().numbers_of(flat)
        ends = np.cumsum([len(entries) for entries in lists])
        return [part[part >= 0] for part in np.split(numbers, ends[:-1])] if lists else []

    def _number_to_score(self, candidates: Any, k: int) -> int | None:
        """Items to score of each user; None for all."""
        catalogue = self._catalogue()
        if candidates == "auto":
            few = len(catalogue) <= ALL_ITEMS or getattr(self.model_, "factorised", False)
            candidates = "all" if few else max(CANDIDATES, 3 * k)
        if candidates == "all":
            return None
        if isinstance(candidates, str):
            raise ConfigError(f"candidates must be 'auto', 'all' or a whole number, got {candidates!r}")
        check_sizes(candidates=candidates)
        return min(int(candidates), len(catalogue))

    def _candidates(self, number: int, histories: Any, left_out: Any) -> Callable[[slice], NDArray[np.int64]]:
        """What chooses the items to score, by the items that users had: a list of them, or pairs by slice.

        Items that are left out are none of them, so that ``number`` others are scored.
        """
        catalogue = self._catalogue()

        def choose(part: slice) -> NDArray[np.int64]:
            without = (
                [np.zeros(0, np.int64)] * (part.stop - part.start) if left_out is None else by_user(left_out, part)
            )
            had = histories[part] if isinstance(histories, list) else by_user(histories, part)
            return catalogue.neighbours.candidates(had, number, without)

        def by_user(pairs: Any, part: slice) -> list[NDArray[np.int64]]:
            rows, items = pairs(part)
            return np.split(items, np.searchsorted(rows, np.arange(1, part.stop - part.start)))

        return choose


def measure(
    network: nn.Module,
    encoder: TableEncoder,
    catalogue: ItemCatalogue,
    feedback: ImplicitFeedback,
    k: int = 10,
    negatives: int | None = None,
    slices: Mapping[str, ArrayLike] | None = None,
    seed: int = 0,
    device: torch.device | None = None,
) -> pd.DataFrame:
    """What :meth:`RecommendMixin.evaluate_recommendations` returns, for a network."""
    known = in_catalogue(feedback, catalogue)
    if len(known) < len(feedback):
        raise DataError(
            f"{len(feedback) - len(known)} of {len(feedback)} events are of items that the ranker does not know: make "
            "training and test part of one implicit_feedback, or leave these events out"
        )
    users = known.events.user
    static = catalogue.user_rows(encoder, known.users, np.full((len(known.users), 0), -1))

    def rows(part: slice) -> Rows:
        return catalogue.with_histories(encoder, static.at(torch.from_numpy(users[part])), known.histories(part))

    with torch.inference_mode():
        ranks = ranks_of(Scorer(network, catalogue, rows, device), known, k, negatives, seed)
    return recommendation_table(ranks, len(catalogue), k, slices, len(known))


def in_catalogue(feedback: ImplicitFeedback, catalogue: ItemCatalogue) -> ImplicitFeedback:
    """The feedback with the catalogue's numbers of items; events of other items are left out.

    Raises
    ------
    DataError
        If the columns of ids have other names.
    """
    if (feedback.user, feedback.item) != (catalogue.user, catalogue.item):
        raise DataError(
            f"the feedback is of {feedback.user!r} and {feedback.item!r}, the ranker's of {catalogue.user!r} and "
            f"{catalogue.item!r}"
        )
    names = feedback.items[feedback.item]
    if names.tolist() == catalogue.names:
        return feedback
    return feedback.renumbered(catalogue.numbers_of(names), catalogue.names)
