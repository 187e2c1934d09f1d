"""Implicit feedback: what users have bought, played or looked at, and when; nothing says what they did not like."""

# Shapes: P events, U users, I items (the catalogue), L entries of a history

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.checks import check_one_of, check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.cells import missing_texts, shown
from moeapps.core.tabledata.numbers import to_numbers
from moeapps.core.tabledata.source import Table, TableSource, listed
from moeapps.core.tabledata.vocabulary import Vocabulary, distinct_values, settle_values
from moeapps.recsys.events import Codes, Events, Pairs, as_times, column_kind, last_entries
from moeapps.recsys.negatives import SAMPLERS, NegativeSampler, Sampler

__all__ = ["INTERACTION", "ImplicitFeedback", "implicit_feedback"]

INTERACTION = "interaction"
"""Name of the target that is learned: 1 for an event, 0 for an item that was drawn instead."""


@dataclass(frozen=True)
class ImplicitFeedback:
    """Events of users and items, to learn from or to measure a ranker with; :func:`implicit_feedback` makes one.

    Parameters
    ----------
    events : Events
        What happened.
    earlier : Events
        Events that are not learned from or measured here, but belong to the histories: those of the training part,
        where this is a test part.
    users, items : DataFrame
        One row per user and per item: the id, then features. Row i is number i.
    negatives : int
        Items drawn for each event.
    sampler : {"uniform", "popularity"}
        How they are drawn.
    max_history : int
        Newest items that a history has.
    """

    events: Events
    earlier: Events
    users: pd.DataFrame
    items: pd.DataFrame
    negatives: int = 4
    sampler: Sampler = "uniform"
    max_history: int = 50
    _histories: list[Any] = field(default_factory=list, repr=False, compare=False)

    def __len__(self) -> int:
        """Number of events."""
        return len(self.events)

    def __repr__(self) -> str:
        return f"ImplicitFeedback({len(self):,} events of {len(self.users):,} users, {len(self.items):,} items)"

    @property
    def user(self) -> str:
        """Column of the users' ids."""
        return str(self.users.columns[0])

    @property
    def item(self) -> str:
        """Column of the items' ids."""
        return str(self.items.columns[0])

    @property
    def history(self) -> str:
        """Name of the column of histories."""
        return f"{self.item}_history"

    def leave_last_out(self) -> tuple[Self, Self, Self]:
        """Each user's last event to test on, the one before it to validate on, all others to train on.

        Users with fewer than three events are trained on only. Of events of the same time the last one in the table is
        the last. A user's histories do not look ahead, but the training events of one user may be later than the test
        event of another: use :meth:`time_split` where that matters.

        Returns
        -------
        tuple of three ImplicitFeedback
            To train on, to validate on, to test on; histories of later parts hold the events of earlier ones.

        Raises
        ------
        DataError
            If a part would be empty.
        """
        order = np.argsort(self.events.user, kind="stable")
        counts = np.bincount(self.events.user, minlength=len(self.users))
        from_last = np.empty(len(self), dtype=np.int64)
        ends = np.cumsum(counts)[self.events.user[order]]
        from_last[order] = ends - 1 - np.arange(len(self))
        place = np.where(counts[self.events.user] < 3, 2, np.minimum(from_last, 2))
        return self._split(2 - place, "leave_last_out: users need at least three events;")

    def time_split(self, fractions: tuple[float, float] = (0.8, 0.1)) -> tuple[Self, Self, Self]:
        """Training, validation and test events in order of time; events of the same time stay together.

        Parameters
        ----------
        fractions : tuple of two floats, default=(0.8, 0.1)
            Parts of the training and validation events; the rest is for testing.

        Returns
        -------
        tuple of three ImplicitFeedback
            As :meth:`leave_last_out`, which also has the errors.
        """
        time = self.events.time
        # inverted_cdf gives times that are there, which keeps events of one time together
        cuts = np.quantile(time, np.clip(np.cumsum(fractions), 0, 1), method="inverted_cdf")
        return self._split((time > cuts[0]).astype(int) + (time > cuts[1]), f"fractions={fractions}:")

    def _split(self, place: NDArray[Any], what: str) -> tuple[Self, Self, Self]:
        parts, earlier = [], self.earlier
        for number, name in enumerate(("training", "validation", "test")):
            own = self.events.at(place == number)
            if len(own) == 0:
                raise DataError(f"{what} there is no {name} event among {len(self)}")
            parts.append(replace(self, events=own, earlier=earlier, _histories=[]))
            earlier = own.joined(earlier)
        return parts[0], parts[1], parts[2]

    def hold_out(self, number: int, seed: int) -> tuple[Self, Self]:
        """These events without some users' last ones, and these last ones.

        Parameters
        ----------
        number : int
            Events to hold out, at most; of users with at least two events, drawn at random.
        seed : int
            Seed of the draw.

        Raises
        ------
        DataError
            If no user has two events.
        """
        last = np.zeros(len(self.users), dtype=np.int64)
        last[self.events.user] = np.arange(len(self))  # the last one of each user stays
        counts = np.bincount(self.events.user, minlength=len(self.users))
        candidates = np.flatnonzero(counts >= 2)
        if len(candidates) == 0:
            raise DataError("no user has two events, of which one could be held out to validate on")
        chosen = np.random.default_rng(seed).permutation(candidates)[:number]
        mask = np.zeros(len(self), dtype=bool)
        mask[last[chosen]] = True
        train, held_out = self.events.at(~mask), self.events.at(mask)
        return (
            replace(self, events=train, _histories=[]),
            replace(self, events=held_out, earlier=train.joined(self.earlier), _histories=[]),
        )

    def renumbered(self, numbers: Codes, names: Sequence[Any]) -> Self:
        """The same events with the items of another catalogue; those of items that it does not have are left out.

        Parameters
        ----------
        numbers : array of shape (I,)
            The new number of each item, negative for none.
        names : sequence
            Ids of the new catalogue.
        """
        items = pd.DataFrame({self.item: pd.Series(list(names), dtype=object).infer_objects()})
        parts = []
        for events in (self.events, self.earlier):
            new = numbers[events.item]
            parts.append(Events(events.user, new, events.time).at(new >= 0))
        return replace(self, events=parts[0], earlier=parts[1], items=items, _histories=[])

    def history_lengths(self) -> NDArray[np.int64]:
        """Number of earlier events ``(P,)`` of each event's user, for slices of users with short histories."""
        start, stop = self._spans()[1:]
        return stop - start

    def history_counts(self) -> NDArray[np.int64]:
        """In how many events' histories each item is, ``(I,)``."""
        entries, start, stop = self._spans()
        change = np.zeros(len(entries) + 1, dtype=np.int64)
        np.add.at(change, np.maximum(start, stop - self.max_history), 1)
        np.add.at(change, stop, -1)
        counts = np.zeros(len(self.items), dtype=np.int64)
        np.add.at(counts, entries, np.cumsum(change)[:-1])
        return counts

    def histories(self, rows: Codes | slice) -> NDArray[np.int32]:
        """Items ``(n, L)`` of the users' earlier events, newest last, -1 in front where there are fewer.

        A history has nothing of the event itself, of events of the same time, or of later ones.

        Parameters
        ----------
        rows : array or slice
            Which events.
        """
        entries, start, stop = self._spans()
        return last_entries(entries, start[rows], stop[rows], self.max_history)

    def latest(self, users: Codes) -> NDArray[np.int32]:
        """As :meth:`histories`, for users as they are after all events."""
        entries, starts = self._by_user()
        return last_entries(entries, starts[users], starts[users + 1], self.max_history)

    def _by_user(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Items of all events, user by user in order of time; where each user begins ``(U + 1,)``."""
        if not self._histories:
            every = self.events.joined(self.earlier)
            order = np.lexsort((every.item, every.time, every.user))
            counts = np.bincount(every.user, minlength=len(self.users))
            self._histories.append((every.at(order), np.concatenate([[0], np.cumsum(counts)])))
        every, starts = self._histories[0]
        return every.item, starts

    def _spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Items as :meth:`_by_user`, and the first and the end of each event's history in them."""
        entries, starts = self._by_user()
        if len(self._histories) == 1:
            every = self._histories[0][0]
            # Times as ranks, so that user and time make one number to search by
            stamps = np.unique(every.time)
            keys = every.user * len(stamps) + np.searchsorted(stamps, every.time)
            own = self.events.user * len(stamps) + np.searchsorted(stamps, self.events.time)
            self._histories.append(np.searchsorted(keys, own, side="left"))
        return entries, starts[self.events.user], self._histories[1]

    def negative_sampler(self, seed: int = 0) -> NegativeSampler:
        """What draws items that are not among the user's events here or before."""
        every = self.events.joined(self.earlier)
        return NegativeSampler(every.user, every.item, len(self.items), self.sampler, seed)

    def earlier_pairs(self) -> Pairs:
        """Users and the items that they had before the events here: what is not recommended to them any more."""
        return Pairs.of(self.earlier, len(self.users), len(self.items))

    def pairs(self) -> Pairs:
        """Users and all their items."""
        return Pairs.of(self.events.joined(self.earlier), len(self.users), len(self.items))

    def rows(self, seed: int = 0) -> pd.DataFrame:
        """The events and their negatives as one frame, for any model that learns from a table.

        Columns: those of ``users``, those of ``items``, ``<item>_history``, and ``interaction``: 1 for an event, 0
        for an item that was drawn. Each event is followed by its negatives. A ranker of ours draws other negatives in
        each epoch: give it the feedback itself.

        Parameters
        ----------
        seed : int, default=0
            Seed of the draws.
        """
        n = self.negatives
        drawn = self.negative_sampler(seed).draw(self.events.user, np.arange(len(self)), n)
        items = np.column_stack([self.events.item, drawn]).ravel()
        frame = self.joined(np.repeat(self.events.user, n + 1), items)
        histories = np.repeat(self.histories(slice(None)), n + 1, axis=0)
        frame[self.history] = self.names_of(histories)
        frame[INTERACTION] = np.tile([1, *[0] * n], len(self))
        return frame[items >= 0].reset_index(drop=True)

    def joined(self, users: Codes, items: Codes) -> pd.DataFrame:
        """Features of users and items side by side, a row for each pair."""
        left, right = self.users.iloc[users].reset_index(drop=True), self.items.iloc[items].reset_index(drop=True)
        return pd.concat([left, right], axis=1)

    def names_of(self, codes: NDArray[np.integer]) -> pd.Series:
        """Rows of item numbers, -1 for none, as lists of ids."""
        names = self.items[self.item].to_numpy(dtype=object)
        return pd.Series([names[row[row >= 0]].tolist() for row in codes], dtype=object)


def implicit_feedback(
    frame: Table,
    user: str = "user_id",
    item: str = "item_id",
    time: str | None = "timestamp",
    *,
    users: Table | None = None,
    items: Table | None = None,
    negatives: int = 4,
    sampler: Sampler = "uniform",
    max_history: int = 50,
) -> ImplicitFeedback:
    """Feedback without negatives (purchases, plays, clicks), to learn from and to recommend with.

    An event says that a user took an item. What a ranker learns is to tell it from items drawn at random, never one
    of the user's own, anew in each epoch (as in Rendle et al., BPR, UAI 2009, and He et al., NCF, WWW 2017).

    Parameters
    ----------
    frame : DataFrame or path
        One row per event; columns other than the three are not used. All events are held in memory, as three numbers
        each.
    user, item : str, default "user_id" and "item_id"
        Columns of ids: whole numbers, texts, or a file's cells. None may be missing.
    time : str or None, default="timestamp"
        Column of times: numbers, dates or times. None where the rows are in order of time.
    users, items : DataFrame or path, optional
        Features of users and of items, a row each, with the column of ids. ``items`` may have items without events;
        every user and item of ``frame`` must be there.
    negatives : int, default=4
        Items drawn for each event, at least 1.
    sampler : {"uniform", "popularity"}, default="uniform"
        Draw every other item alike, or in proportion to its number of events to the power of 0.75.
    max_history : int, default=50
        Newest items that a history has.

    Returns
    -------
    ImplicitFeedback
        With ``leave_last_out()`` and ``time_split()``; for ``fit`` and ``recommend`` of a ranker.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    DataError
        Naming file, column and row, if an id or time is missing or is none, or features are missing.

    Examples
    --------
    >>> import pandas as pd
    >>> from moeapps.recsys import implicit_feedback
    >>> frame = pd.DataFrame({"user_id": list("aaabbb"), "item_id": [1, 2, 3, 2, 3, 4], "timestamp": range(6)})
    >>> feedback = implicit_feedback(frame, negatives=1)
    >>> feedback
    ImplicitFeedback(6 events of 2 users, 4 items)
    >>> train, validation, test = feedback.leave_last_out()
    >>> len(train), test.names_of(test.histories(slice(None))).tolist()
    (2, [[1, 2], [2, 3]])
    """
    check_sizes(negatives=negatives, max_history=max_history)
    check_one_of("sampler", sampler, SAMPLERS)
    names = [name for name in (user, item, time) if name is not None]
    if len(set(names)) < len(names):
        raise ConfigError(f"user, item and time must be three columns, got {', '.join(map(repr, names))}")
    source = TableSource(frame)
    _require_events(source, {"user": user, "item": item, "time": time})
    events = _read(frame, names, [user, item])
    if len(events) == 0:
        raise DataError(f"{source.name} has no events")
    user_table, user_codes = _catalogue(events[user], source.name, users, user, "users")
    item_table, item_codes = _catalogue(events[item], source.name, items, item, "items")
    if both := [name for name in user_table.columns if name in item_table.columns]:
        raise DataError(f"users and items both have the column {both[0]!r}: rename one of them")
    for name in (f"{item}_history", INTERACTION):
        if name in (*user_table.columns, *item_table.columns):
            raise DataError(f"users or items have a column {name!r}, which is made by implicit_feedback: rename it")
    times = np.arange(len(events)) if time is None else as_times(events[time], time, source.name)
    order = np.argsort(times, kind="stable")
    nothing = Events(*(np.zeros(0, dtype=np.int64) for _ in range(3)))
    every = Events(user_codes, item_codes, times).at(order)
    return ImplicitFeedback(every, nothing, user_table, item_table, negatives, sampler, max_history)


def _require_events(source: TableSource, given: dict[str, str | None]) -> None:
    """Refuse a table of events without a column that an argument names."""
    missing = {argument: name for argument, name in given.items() if name not in (None, *source.columns)}
    if len(missing) > 1:
        absent, there = listed(missing.values()), listed(source.columns)
        arguments = ", ".join(missing)
        raise DataError(f"{source.name} lacks the columns {absent}, which {arguments} name (it has {there})")
    for argument, name in missing.items():
        source.require([str(name)], argument)


def _read(table: Table, names: Sequence[str] | None, ids: Iterable[str], argument: str = "") -> pd.DataFrame:
    """Columns of a frame or file, ids as the values that they have in a frame of the same content."""
    source = TableSource(table, kinds=dict.fromkeys(ids, "category"))
    source.require(list(ids) if names is None else names, argument)
    parts = list(source.batches(None if names is None else list(names)))
    frame = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0].reset_index(drop=True)
    frame = frame if names is None else frame[list(names)]
    if source.untyped:
        for name in ids:  # 7 and "007" are different ids, but a file's 7 is the 7 of a frame
            values = distinct_values(frame[name], missing_texts(), name)
            settled = pd.Series(settle_values(values, True, name), dtype=object)
            frame[name] = frame[name].map(dict(zip(values, settled, strict=True)))
        if names is None:
            frame = _typed(frame, [name for name in frame.columns if name not in ids])
    return frame


def _typed(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Features of a CSV file as numbers, where a column is one of numbers."""
    for name in names:
        if column_kind(frame[name], name) == "number":
            frame[name] = to_numbers(frame[name], missing_texts(), name)
    return frame


def _catalogue(
    column: pd.Series, events: str, table: Table | None, name: str, argument: str
) -> tuple[pd.DataFrame, Codes]:
    """One row per id, and the number of each event's id; errors call the events' table ``events``."""
    missing, called = missing_texts(), argument
    if table is None:
        values = distinct_values(column, missing, name)
        frame = pd.DataFrame({name: pd.Series(values, dtype=object).infer_objects()})
    else:
        source = TableSource(table)
        called = source.name if source.is_file else argument
        frame = _read(table, None, [name], argument.removesuffix("s"))
        frame = frame[[name, *(other for other in frame.columns if other != name)]]
        values = frame[name].tolist()
        if frame[name].isna().any():
            raise DataError(f"{called}: {name!r} is missing at row {int(frame[name].isna().to_numpy().argmax())}")
        if frame[name].duplicated().any():
            twice = frame[name][frame[name].duplicated()].tolist()[0]
            raise DataError(f"{called} has {shown(twice)} of {name!r} twice: one row for each")
    codes = Vocabulary(values, missing, name).codes(column)
    if (codes < 0).any():
        row = int((codes < 0).argmax())
        cell, count = column.iloc[[row]].tolist()[0], int((codes < 0).sum())
        rows = "1 row" if count == 1 else f"{count} rows"
        if table is None or cell is None or cell != cell:
            raise DataError(f"{events}: {name!r} is missing at row {row} ({rows} in all): drop such rows")
        raise DataError(f"{called} has no row for {name}={shown(cell)}, which is in {events} ({rows} in all)")
    return frame, codes.astype(np.int64)
