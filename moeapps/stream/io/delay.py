"""Labels that arrive late, twice, or never."""

import heapq
import random
from base64 import b64decode, b64encode
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from river.base import Regressor

from moeapps.core.checks import check_below_one, check_seed, check_sizes
from moeapps.core.errors import ConfigError
from moeapps.core.labels import plain, value_from_json, value_to_json
from moeapps.stream.pairs import Stream, pairs_of

__all__ = ["Arrival", "LateLabels", "PendingLabels", "RecentIds", "learn_late", "votes_of"]


VOTES_BYTES = 2**26
"""Most memory of what the experts predicted for waiting instances: 10,000 of 79 classes and 21 experts."""


class PendingLabels:
    """Keeps the features of predicted instances until their labels arrive, in bounded memory.

    Also what the experts of a :class:`DriftMoEClassifier` predicted is kept, at most 64 MiB of it; where classes are so
    many that this is not enough, the oldest instances are learned as if their label had come with them.

    Parameters
    ----------
    model : object
        Any model with ``predict_one`` and ``learn_one``.
    capacity : int, default 10000
        Largest number of waiting instances; beyond that the oldest is dropped and counted.
    with_probabilities : bool, default False
        Whether to keep the class probabilities, too, which :meth:`probabilities` gives.

    Attributes
    ----------
    dropped : int
        Instances that were dropped before their label arrived.
    unknown : int
        Labels that matched no waiting instance.

    Examples
    --------
    >>> from moeapps.stream import DriftMoEClassifier
    >>> waiting = PendingLabels(DriftMoEClassifier(seed=0), capacity=100)
    >>> waiting.predict("order-1", {"price": 3.0})
    >>> waiting.label("order-1", "paid")
    True
    >>> waiting.predict("order-2", {"price": 2.0})
    'paid'
    """

    def __init__(self, model: Any, capacity: int = 10_000, with_probabilities: bool = False) -> None:
        check_sizes(capacity=capacity)
        self.model, self.capacity, self.with_probabilities = model, capacity, with_probabilities
        self.dropped = self.unknown = 0
        self._waiting: OrderedDict[Hashable, tuple[dict[Any, Any], Any]] = OrderedDict()
        self._votes: OrderedDict[Hashable, NDArray[np.float32]] = OrderedDict()
        self._votes_bytes = 0
        self._probabilities: dict[Hashable, dict[Any, float]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._waiting

    def discard(self, key: Hashable) -> None:
        """Forget a waiting instance, if there is one."""
        self._waiting.pop(key, None)
        self._forget(key)

    def get(self, key: Hashable) -> tuple[dict[Any, Any], Any] | None:
        """Features and prediction of a waiting instance, which goes on waiting; None if there is none."""
        return self._waiting.get(key)

    def votes(self, key: Hashable) -> NDArray[np.float32] | None:
        """What the experts predicted for a waiting instance; None if that is not known."""
        return self._votes.get(key)

    def probabilities(self, key: Hashable) -> dict[Any, float] | None:
        """Class probabilities that were predicted for a waiting instance; None if they are not known."""
        return self._probabilities.get(key)

    def predict(self, key: Hashable, x: dict[Any, Any]) -> Any:
        """Predict an instance and remember its features under ``key``; the same key again replaces them."""
        prediction = self.model.predict_one(x)
        self.discard(key)
        self._waiting[key] = (dict(x), prediction)
        self._keep_votes(key, votes_of(self.model, x))
        if self.with_probabilities:
            self._probabilities[key] = self.model.predict_proba_one(x)
        self._drop()
        return prediction

    def _keep_votes(self, key: Hashable, votes: NDArray[np.float32] | None) -> None:
        if votes is not None:
            self._votes[key] = votes
            self._votes_bytes += votes.nbytes
        while self._votes_bytes > VOTES_BYTES:
            self._votes_bytes -= self._votes.popitem(last=False)[1].nbytes

    def _forget(self, key: Hashable) -> None:
        """Forget what the model said of an instance."""
        self._probabilities.pop(key, None)
        votes = self._votes.pop(key, None)
        self._votes_bytes -= 0 if votes is None else votes.nbytes

    def _drop(self) -> None:
        while len(self._waiting) > self.capacity:
            key, _ = self._waiting.popitem(last=False)
            self._forget(key)
            self.dropped += 1

    def take(self, key: Hashable) -> tuple[dict[Any, Any], Any] | None:
        """Remove a waiting instance and return its features and prediction; None if there is none."""
        found = self._waiting.pop(key, None)
        self._forget(key)
        if found is None:
            self.unknown += 1
        return found

    def label(self, key: Hashable, y: Any) -> bool:
        """Learn the label of a waiting instance, with the features that it was predicted from.

        Returns
        -------
        bool
            Whether there was one. A label that the model refuses raises, and the instance keeps waiting.
        """
        if key not in self._waiting:
            self.unknown += 1
            return False
        learn_late(self.model, self._waiting[key][0], y, self._votes.get(key))
        self.discard(key)
        return True

    def state(self) -> dict[str, Any]:
        """Everything but the model, as JSON values."""
        waiting = [[key, *_entry_to_json(*entry)] for key, entry in self._waiting.items()]
        votes = [[key, *votes.shape, b64encode(votes.tobytes()).decode()] for key, votes in self._votes.items()]
        state = {"waiting": waiting, "votes": votes, "dropped": self.dropped, "unknown": self.unknown}
        if self._probabilities:
            state["probabilities"] = [
                [key, [[value_to_json(label), share] for label, share in shares.items()]]
                for key, shares in self._probabilities.items()
            ]
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        self._waiting = OrderedDict(
            (key, (dict(x) if isinstance(x, dict) else {value_from_json(name): value for name, value in x}, prediction))
            for key, x, prediction in state["waiting"]
        )
        self._votes, self._votes_bytes = OrderedDict(), 0
        for key, experts, classes, text in state.get("votes", []):  # 0.1 had none
            if key in self._waiting:
                self._keep_votes(key, np.frombuffer(b64decode(text), dtype=np.float32).reshape(experts, classes))
        self._probabilities = {
            key: {value_from_json(label): share for label, share in shares}
            for key, shares in state.get("probabilities", [])
            if key in self._waiting
        }
        self.dropped, self.unknown = int(state["dropped"]), int(state["unknown"])
        self._drop()


def votes_of(model: Any, x: dict[Any, Any]) -> NDArray[np.float32] | None:
    """What the experts of a model predict now, None for a model that does not say it.

    Numbers (float64, ``(E, 1)``) come as the two halves of their bits, so that all waiting votes are of one type.
    """
    votes_one = getattr(model, "votes_one", None)
    votes = None if votes_one is None else votes_one(x)
    return votes.view(np.float32) if votes is not None and votes.dtype == np.float64 else votes


def learn_late(model: Any, x: dict[Any, Any], y: Any, votes: NDArray[np.float32] | None) -> None:
    """Let a model learn a late label, with what its experts predicted when the instance came."""
    if votes is None:
        model.learn_one(x, y)
        return
    if isinstance(model, Regressor):
        votes = np.ascontiguousarray(votes).view(np.float64)
    model.learn_one(x, y, votes=votes)


def _entry_to_json(x: dict[Any, Any], prediction: Any) -> tuple[Any, Any]:
    """Features and prediction as JSON values; names that are not text, which JSON would turn into text, as pairs."""
    if all(type(name) is str for name in x):
        return x, plain(prediction)
    return [[value_to_json(name), value] for name, value in x.items()], plain(prediction)


class RecentIds:
    """Remembers the last ids, so that an event that is delivered twice is learned once.

    Parameters
    ----------
    size : int, default 10000
        Number of ids that are remembered; an event repeated later than that counts as new.
    """

    def __init__(self, size: int = 10_000) -> None:
        check_sizes(size=size)
        self.size = size
        self._ids: OrderedDict[Hashable, None] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._ids

    def add(self, key: Hashable) -> bool:
        """Remember an id; True if it is new."""
        if key in self._ids:
            return False
        self._ids[key] = None
        self._forget()
        return True

    def _forget(self) -> None:
        while len(self._ids) > self.size:
            self._ids.popitem(last=False)

    def state(self) -> list[Any]:
        """The ids, oldest first."""
        return list(self._ids)

    def restore(self, state: Sequence[Any]) -> None:
        """Undo :meth:`state`."""
        self._ids = OrderedDict((key, None) for key in state)
        self._forget()


class Arrival(NamedTuple):
    """What arrives: the features of an instance, or later its label.

    Attributes
    ----------
    key : int
        Number of the instance.
    x : dict[Any, Any] or None
        Its features; None where this is its label.
    y : Any
        Its label; None where this is its features.
    """

    key: int
    x: dict[Any, Any] | None
    y: Any


class LateLabels:
    """A stream whose labels arrive late, out of order, or never.

    Iterating gives an :class:`Arrival` for the features of every instance, and one for its label after ``delay``
    further instances. Labels that are still out at the end of the stream arrive then. :func:`prequential` takes such a
    stream, and scores a prediction when its label arrives.

    Parameters
    ----------
    stream : Iterable[tuple[dict[Any, Any], Any]] or tuple[DataFrame, Any]
        Pairs of features and label, or a frame and its labels.
    delay : int or tuple[int, int]
        Number of instances by which a label is late, or the least and the largest, between which it is drawn.
    never : float, default 0.0
        Share of labels that never arrive, at least 0 and below 1.
    seed : int, default 0
        Seed of the delays; each iteration gives the same.

    Raises
    ------
    ConfigError
        If an argument is impossible.

    Examples
    --------
    >>> late = LateLabels([({"a": 1}, "no"), ({"a": 2}, "yes")], delay=1)
    >>> [(key, x, y) for key, x, y in late]
    [(0, {'a': 1}, None), (1, {'a': 2}, None), (0, None, 'no'), (1, None, 'yes')]
    """

    def __init__(
        self,
        stream: Stream,
        delay: int | tuple[int, int],
        *,
        never: float = 0.0,
        seed: int = 0,
    ) -> None:
        bounds = tuple(delay) if isinstance(delay, tuple | list) else (delay, delay)
        whole = all(isinstance(bound, int) and not isinstance(bound, bool) for bound in bounds)
        if len(bounds) != 2 or not whole or not 0 <= bounds[0] <= bounds[1]:
            raise ConfigError(f"delay must be a whole number of at least 0, or two in their order, got {delay!r}")
        check_below_one(never=never)
        check_seed(seed)
        self.low, self.high = bounds
        self.stream, self.never, self.seed = stream, never, seed

    def arrivals(self, n: int | None = None) -> Iterator[Arrival]:
        """Features and labels of the first ``n`` instances (all when None), in the order in which they arrive."""
        rng = random.Random(self.seed)
        out: list[tuple[int, int, Any]] = []  # (due, key, label); keys differ, so labels are never compared
        for key, (x, y) in enumerate(islice(pairs_of(self.stream), n)):
            yield Arrival(key, x, None)
            late, lost = rng.randint(self.low, self.high), rng.random() < self.never
            if not lost:
                heapq.heappush(out, (key + late, key, y))
            while out and out[0][0] <= key:
                _, earlier, label = heapq.heappop(out)
                yield Arrival(earlier, None, label)
        while out:
            _, earlier, label = heapq.heappop(out)
            yield Arrival(earlier, None, label)

    def __iter__(self) -> Iterator[Arrival]:
        return self.arrivals()

    def records(self, id: str = "id", target: str = "target") -> Iterator[dict[Any, Any]]:
        """The arrivals as events of ``moeapps stream run --id id --target target``.

        Parameters
        ----------
        id, target : str, default "id" and "target"
            Names of these fields; a feature of this name is refused.

        Raises
        ------
        ConfigError
            If a feature has one of the names.
        """
        for key, x, y in self:
            if x is None:
                yield {id: key, target: y}
                continue
            for name in (id, target):
                if name in x:
                    raise ConfigError(f"{'id' if name == id else 'target'}={name!r} is the name of a feature")
            yield {id: key, **x}
