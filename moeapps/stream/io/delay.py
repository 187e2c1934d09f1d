"""Labels that arrive late, twice, or never."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any

from moeapps.core.checks import check_sizes

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

    def predict(self, key: Hashable, x: dict[Any, Any]) -> Any:
        """Predict an instance and remember its features under ``key``; the same key again replaces them."""
        prediction = self.model.predict_one(x)
        self._waiting.pop(key, None)
        self._waiting[key] = (dict(x), prediction)
        if len(self._waiting) > self.capacity:
            self._waiting.popitem(last=False)
            self.dropped += 1
        return prediction

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
        waiting = [[key, *entry] for key, entry in self._waiting.items()]
        return {"waiting": waiting, "dropped": self.dropped, "unknown": self.unknown}

    def restore(self, state: dict[str, Any]) -> None:
        """Undo :meth:`state`."""
        self._waiting = OrderedDict((key, (x, prediction)) for key, x, prediction in state["waiting"])
        self.dropped, self.unknown = int(state["dropped"]), int(state["unknown"])


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

    def add(self, key: Hashable) -> bool:
        """Remember an id; True if it is new."""
        if key in self._ids:
            return False
        self._ids[key] = None
        if len(self._ids) > self.size:
            self._ids.popitem(last=False)
        return True

    def state(self) -> list[Any]:
        """The ids, oldest first."""
        return list(self._ids)

    def restore(self, state: Sequence[Any]) -> None:
        """Undo :meth:`state`."""
        self._ids = OrderedDict((key, None) for key in state)
