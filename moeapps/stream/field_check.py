"""Whether the fields that a run was told about exist: a name that was misspelled is found in the first events."""

from collections.abc import Mapping
from typing import Any

from moeapps.core.errors import ConfigError
from moeapps.registry import nearest
from moeapps.stream.label_check import LabelCheck

__all__ = ["LOOK", "FieldCheck"]

LOOK = 200
"""Events in which every named field has to occur once."""


class FieldCheck:
    """Collects the names of the fields of the first events, of a source that has no header.

    Parameters
    ----------
    expected : mapping of str to tuple of str
        Names of fields by the option that gave them: ``{"target": ("y",)}``.
    needed : bool, default True
        Whether the target has to occur: the model has learned nothing, and no label can come late.
    late : bool, default False
        Whether labels may come late, by id. Then an absent target is told, and never refused.
    labels : LabelCheck, optional
        Looks at the labels of the same events.

    Notes
    -----
    An absent field is refused where another one has a similar name, and otherwise told: in JSON a field that is null
    may be left out. The target is refused in any case if it is needed.
    """

    def __init__(
        self,
        expected: Mapping[str, tuple[str, ...]],
        needed: bool = True,
        late: bool = False,
        labels: LabelCheck | None = None,
    ) -> None:
        self.expected, self.needed, self.late, self.labels = expected, needed, late, labels
        self.seen: dict[str, None] = {}
        self.events = 0
        self.done = False

    def see(self, fields: Mapping[Any, Any] | None) -> list[str]:
        """Note the fields of an event; the result of :meth:`finish` at the last of the first events, else nothing.

        Raises
        ------
        ConfigError
            As :meth:`finish`.
        """
        if fields is None:
            return []
        self.seen.update(dict.fromkeys(map(str, fields)))
        self.events += 1
        if self.labels is not None:
            self.labels.see(fields.get(self.labels.target))
        return self.finish() if self.events >= LOOK else []

    def finish(self) -> list[str]:
        """Compare; what has to be told.

        Raises
        ------
        ConfigError
            If a field does not occur that has to, or as :meth:`LabelCheck.finish`.
        """
        if self.done or not self.events:
            return []
        self.done = True
        notes = []
        others = [name for name in self.seen if all(name not in names for names in self.expected.values())]
        for option, names in self.expected.items():
            for name in names:
                if name in self.seen:
                    continue
                guess = nearest(name, others)
                which = (
                    "the first event does not have"
                    if self.events == 1
                    else f"none of the first {self.events} events has"
                )
                message = f"--{option} {name}: {which} this field"
                refused = guess is not None
                if option == "target":
                    refused = not self.late and (self.needed or refused)
                hint = f"did you mean {guess!r}?" if guess else f"they have {', '.join(list(self.seen)[:20])}"
                if refused:
                    raise ConfigError(f"{message}; {hint}")
                notes.append(f"{message}{f'; {hint}' if guess else ''}")
        return notes if self.labels is None else [*notes, *self.labels.finish()]
