"""Labels that arrive late, twice, or never."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

from moeapps.core.checks import check_sizes
from moeapps.core.labels import plain, value_from_json, value_to_json

__all__ = ["PendingLabels", "RecentIds"]


class PendingLabels:
    """Keeps the features of predicted instances until their labels arrive, in bounded memory.

    Parameters
    ----------
    model : object
        Any model with ``predict_one`` and ``learn_one``.
    capacity : int, default 10000
        Largest number of waiting instances; beyond that the oldest is dropped and counted.

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

    def __init__(self, model: Any, capacity: int = 10_000) -> None:
        check_sizes(capacity=capacity)
        self.model, self.capacity = model, capacity
        self.dropped = self.unknown = 0
        self._waiting: OrderedDict[Hashable, tuple[dict[Any, Any], Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._waiting

    def discard(self, key: Hashable) -> None:
        """Forget a waiting instance, if there is one."""
        self._waiting.pop(key, None)

    def get(self, key: Hashable) -> tuple[dict[Any, Any], Any] | None:
        """Features and prediction of a waiting instance, which goes on waiting; None if there is none."""
        return self._waiting.get(key)

    def predict(self, key: Hashable, x: dict[Any, Any]) -> Any:
        """Predict an instance and remember its features under ``key``; the same key again replaces them."""
        prediction = self.model.predict_one(x)
        self._waiting.pop(key, None)
        self._waiting[key] = (dict(x), prediction)
        self._drop()
        return prediction

    def _drop(self) -> None:
        while len(self._waiting) > self.capacity:
            self._waiting.popitem(last=False)
            self.dropped += 1

    def take(self, key: Hashable) -> tuple[dict[Any, Any], Any] | None:
        """Remove a waiting instance and return its features and prediction; None if there is none."""
        found = self._waiting.pop(key, None)
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
        self.model.learn_one(self._waiting[key][0], y)
        del self._waiting[key]
        return True

    def state(self) -> dict[str, Any]:
        """Everything but the model, as JSON values."""
        waiting = [[key, *_entry_to_json(*entry)] for key, entry in self._waiting.items()]
        return {"waiting": waiting, "dropped": self.dropped, "unknown": self.unknown}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        self._waiting = OrderedDict(
            (key, (dict(x) if isinstance(x, dict) else {value_from_json(name): value for name, value in x}, prediction))
            for key, x, prediction in state["waiting"]
        )
        self.dropped, self.unknown = int(state["dropped"]), int(state["unknown"])
        self._drop()


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
