"""Whether the first labels are what the run was told: classes and not numbers, with the positive one of the metrics."""

from collections.abc import Mapping
from typing import Any

from moeapps.core.errors import ConfigError
from moeapps.core.tabledata.cells import number_key, shown
from moeapps.registry import nearest
from moeapps.stream.named_metrics import is_positive

__all__ = ["LabelCheck"]

MOST_CLASSES = 50
"""Different labels among the first events from which on they look like numbers or ids, not classes."""


class LabelCheck:
    """Collects the first labels of a classifier that has learned nothing yet.

    Parameters
    ----------
    target : str
        Name of the field with the label.
    positive : mapping of str to tuple of str, optional
        Labels that are positive by the metric of two classes that counts them: ``{"F1=up": ("up",)}``.
    classes : bool, default True
        Whether to look at the labels themselves: not where the user has said what they are.
    """

    def __init__(
        self, target: str, positive: Mapping[str, tuple[str, ...]] | None = None, classes: bool = True
    ) -> None:
        self.target, self.positive, self.classes = target, dict(positive or {}), classes
        self.labels: dict[str, None] = {}
        self.seen = 0
        self._found: set[str] = set()  # metrics of which a positive label has come

    def see(self, label: Any) -> None:
        """Note a label; None is none, and neither is an empty text."""
        if label is not None and not (isinstance(label, str) and not label):
            self.seen += 1
            # Python does not write out huge whole numbers
            text = shown(label) if isinstance(label, int) and label.bit_length() > 1000 else str(label)
            if text not in self.labels:
                self.labels[text] = None
                self._found |= {name for name, labels in self.positive.items() if is_positive(label, labels)}

    def finish(self) -> list[str]:
        """Judge what came; what has to be told.

        Raises
        ------
        ConfigError
            If the labels are numbers with a fraction, nearly each with its own: every one would become a class, and
            memory grows with each class. If labels came, and none is positive for a metric without a named one.
        """
        return [*self._classes(), *self._metrics()]

    def _classes(self) -> list[str]:
        labels = list(self.labels)
        if not self.classes or len(labels) <= MOST_CLASSES or 2 * len(labels) < self.seen:
            return []
        told = (
            f"--target {self.target}: {len(labels)} different labels among the first {self.seen}, such as {labels[0]}; "
            "a classifier takes each of them for a class"
        )
        numbers = all(number_key(label) is not None for label in labels)
        if numbers and any(not float(label).is_integer() for label in labels):
            raise ConfigError(
                f"{told}. --model driftmoe-regressor predicts numbers; --types {self.target}=text says that they are "
                "classes"
            )
        return [f"{told}{'. --model driftmoe-regressor predicts numbers' if numbers else ''}"]

    def _metrics(self) -> list[str]:
        labels, notes = list(self.labels), []
        for name in self.positive:
            # of a rare class the first events may have none: one label alone says nothing
            if len(labels) < 2 or name in self._found:
                continue
            base, equals, given = name.partition("=")
            if not equals:
                raise ConfigError(
                    f"--metric {name}: none of the labels {', '.join(labels[:5])} is 1, true or yes; name the positive "
                    f"one, as in --metric {base}={labels[0]}"
                )
            guess = nearest(given, labels)
            hint = f"did you mean {guess!r}?" if guess else f"there are {', '.join(labels[:5])}"
            notes.append(f"--metric {name}: none of the first {self.seen} labels is {given!r}; {hint}")
        return notes
