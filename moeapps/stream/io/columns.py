"""The kinds of the columns of a CSV stream: decided from a sample, by the model and by the user, and then held."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.cells import (
    MISSING_VALUES,
    CellKind,
    guess_kind,
    missing_texts,
    number_key,
    read_cell,
    sample_of,
    text_kind,
)
from moeapps.registry import did_you_mean

__all__ = ["TYPES", "Columns", "read_types"]

TYPES: dict[str, CellKind] = {"text": "text", "category": "text", "number": "number", "time": "time", "bool": "bool"}
"""Kinds of a column by the name that ``--types`` takes."""

_NUMBERS = ("whole", "number", "bool")
_SHARES = {"number": 0.9, "whole": 0.99, "time": 0.99}
"""Share of a sample that has to be of a kind, so that the rest are mistakes of single events and not a column of text.
Numbers with a fraction or a sign are measured; whole ones may be codes, of which some have letters."""

_LEADING_ZEROS = re.compile(r"\s*[+-]?0\d")
_WHOLE_LABEL = re.compile(r"-?(0|[1-9]\d*)(\.0+)?")
_PLAIN = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,30})?")
"""Nearly all numbers, which need no further look."""

_INFINITE = re.compile(r"\s*[+-]?inf(inity)?\s*", re.IGNORECASE)


def read_types(pairs: Iterable[str], option: str = "--types") -> dict[str, CellKind]:
    """Kinds by column, from texts such as ``"zip=text"``.

    Raises
    ------
    ConfigError
        If a text is not of this form, or there is no such kind.
    """
    types: dict[str, CellKind] = {}
    for pair in pairs:
        name, equals, kind = pair.rpartition("=")
        if not equals or not name:
            raise ConfigError(f"{option} {pair}: expected column=text, column=number, column=category or column=time")
        if kind not in TYPES:
            hint = did_you_mean(kind, TYPES, f"known are {', '.join(TYPES)}")
            raise ConfigError(f"{option} {pair}: there is no type {kind!r}{hint}")
        if types.setdefault(name, TYPES[kind]) != TYPES[kind]:
            raise ConfigError(f"{option} names column {name!r} twice, with two types")
    return types


class Columns:
    """What the columns of a CSV stream hold, and why.

    Parameters
    ----------
    names : list of str
        The header.
    sample : list of lists of str
        The first records.

    Attributes
    ----------
    kinds : dict[str, CellKind or None]
        By name: the kind; None where no value has been seen yet.
    reasons : dict[str, str]
        By name: why, for messages.
    """

    def __init__(self, names: list[str], sample: list[list[str]]) -> None:
        self.names = names
        self.missing = self._text_missing = frozenset(MISSING_VALUES)
        self.kinds: dict[str, CellKind | None] = {}
        self.reasons: dict[str, str] = {}
        self._target: str | None = None
        self._id: str | None = None
        self._impute = False
        self._types: Mapping[str, CellKind] = {}
        self._sample = sample

    def look_at(self, sample: list[list[str]]) -> None:
        """Decide from the first records."""
        self._sample = sample
        self._decide({}, {}, False)

    def declare(
        self,
        target: str,
        id_field: str | None,
        *,
        types: Mapping[str, CellKind] | None = None,
        missing: Iterable[str] = (),
        missing_values: str | Iterable[str] = "auto",
        known: Mapping[str, CellKind] | None = None,
        numbers: bool = False,
        impute: bool = False,
    ) -> None:
        """Decide with what is known besides the sample.

        Parameters
        ----------
        target : str
            Name of the label. It is text, or whole numbers if all of the sample are; numbers for a regressor.
        id_field : str or None
            Name of the id, which is text.
        types : mapping of str to CellKind, optional
            What the user says.
        missing : iterable of str
            Further texts that mean a missing value.
        missing_values : "auto" or iterable of str, default "auto"
            Those that the model takes for missing among texts; all usual ones are missing among numbers and times.
        known : mapping of str to CellKind, optional
            What the model has learned of the columns.
        numbers : bool, default False
            Whether the target is a number.
        impute : bool, default False
            Whether the model takes a bad value for missing. It gets infinity for a cell that its column cannot have,
            and counts it.

        Raises
        ------
        ConfigError
            If a column of ``types`` is not there, is the id, or is something else in the model.
        """
        self._target, self._id, self._impute = target, id_field, impute
        self.missing = missing_texts() | frozenset(missing)
        self._text_missing = missing_texts(missing_values) | frozenset(missing)
        types = dict(types or {})
        for name in types:
            if name not in self.names:
                hint = did_you_mean(name, self.names, f"it has {', '.join(self.names)}")
                raise ConfigError(f"--types {name}: the source has no such column{hint}")
        if id_field in types and types[id_field] != "text":
            raise ConfigError(f"--types {id_field}: an id is always text")
        for name, kind in (known or {}).items():
            if name in types and (types[name] == "text") != (kind == "text"):
                raise ConfigError(f"--types {name}={types[name]}: the model has learned it as {_name(kind)}")
        self._types = types
        self._decide(types, known or {}, numbers)

    def _decide(self, types: Mapping[str, CellKind], known: Mapping[str, CellKind], numbers: bool) -> None:
        for position, name in enumerate(self.names):
            cells = [record[position] for record in self._sample if record[position] not in self.missing]
            self.kinds[name], self.reasons[name] = self._kind(name, cells, types, known, numbers)

    def _kind(
        self,
        name: str,
        cells: list[str],
        types: Mapping[str, CellKind],
        known: Mapping[str, CellKind],
        numbers: bool,
    ) -> tuple[CellKind | None, str]:
        if name == self._id:
            return "text", "it is the id"
        if name == self._target:
            if numbers:
                return "number", "it is the target of a regressor"
            if name in types:  # labels never pass through a float
                return "whole" if types[name] == "number" else "text", "--types says so"
            if name in known:
                return known[name], "the labels of the model are"
            whole = bool(cells) and all(map(_WHOLE_LABEL.fullmatch, cells))
            return ("whole" if whole else "text") if cells else None, _seen(cells)
        if name in types:
            return types[name], "--types says so"
        found = _feature_kind(cells, self.missing)
        if name in known and known[name] != found:
            fits = known[name] == "number" and found in ("bool", "time")
            return (found if fits else known[name]), "it is so in the model"
        return found, _seen(cells)

    def read(self, cells: Sequence[str]) -> dict[str, Any]:
        """A record as values by name.

        Raises
        ------
        DataError
            Naming column, cell and what was expected, if a cell is not of the kind of its column.
        """
        fields: dict[str, Any] = {}
        for name, cell in zip(self.names, cells, strict=True):
            kind = self.kinds[name]
            if name == self._id:
                fields[name] = cell or None  # an id may well be "NA"
                continue
            if cell in self.missing:
                # a text that the model does not take for missing is a category
                fields[name] = cell if kind == "text" and cell not in self._text_missing else None
                continue
            if kind is None:
                kind = self._first_value(name, cell)
            if kind == "text":
                fields[name] = cell
                continue
            if kind == "number" and (plain := _PLAIN.fullmatch(cell)) is not None:
                fields[name] = int(cell) if plain[2] is None else float(cell)
                continue
            try:
                if kind in ("number", "whole") and _LEADING_ZEROS.match(cell) and number_key(cell) is not None:
                    raise DataError(f"{cell!r} has leading zeros: a code and not a number")
                fields[name] = read_cell(cell, kind, self.missing)
            except DataError as error:
                if self._impute and name != self._target:
                    fields[name] = math.inf
                    continue
                raise DataError(
                    f"column {name!r}: {error}. The column is read as {kind}, since {self.reasons[name]}; --types "
                    f"{name}=text reads it as text, --missing {cell} as missing"
                ) from None
        return fields

    def _first_value(self, name: str, cell: str) -> CellKind:
        """Decide a column that had no value before."""
        if name == self._target:
            kind: CellKind = "whole" if _WHOLE_LABEL.fullmatch(cell) else "text"
        else:
            kind = _feature_kind([cell], self.missing) or "text"
        self.kinds[name], self.reasons[name] = kind, f"its first value is {cell!r}"
        return kind

    def describe(self) -> str:
        """The kinds in a line, for the terminal."""
        groups: dict[str, list[str]] = {}
        for name in self.names:
            kind = self.kinds[name] or "not known yet"
            kind = "number" if kind == "whole" and name != self._target else kind
            groups.setdefault(kind, []).append(name)
        parts = [f"{kind}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" for kind, names in groups.items()]
        return "; ".join(parts)

    def notes(self) -> list[str]:
        """What a reader of the output should know: columns of text that are numbers for the most part."""
        found = []
        for position, name in enumerate(self.names):
            if self.kinds[name] != "text" or name in (self._id, self._target) or name in self._types:
                continue
            cells = [record[position] for record in self._sample if record[position] not in self.missing]
            others = [cell for cell in cells if text_kind(cell) not in _NUMBERS]
            if 0 < len(others) < len(cells) / 2:
                share = f"{len(others):,} of its first {len(cells):,} values are no numbers"
                found.append(
                    f"column {name!r} is text: {share}, such as {sample_of(others, 1)}; --types {name}=number rejects "
                    "these, --missing takes them for missing"
                )
        return found

    def state(self) -> dict[str, Any]:
        """Names and kinds as JSON values."""
        missing = sorted(self.missing - missing_texts())
        return {"names": self.names, "kinds": self.kinds, "reasons": self.reasons, "missing": missing}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Hold the kinds that a checkpoint has; columns that are new, or named by the user, keep theirs."""
        for name, kind in state["kinds"].items():
            if name in self.kinds and kind is not None and name not in self._types:
                self.kinds[name], self.reasons[name] = kind, state["reasons"][name]
        self.missing |= frozenset(state["missing"])
        self._text_missing |= frozenset(state["missing"])


def _name(kind: CellKind) -> str:
    return "number" if kind == "whole" else kind


def _seen(cells: list[str]) -> str:
    return f"the first values are {sample_of(cells)}" if cells else "it has had no value"


def _feature_kind(cells: list[str], missing: frozenset[str]) -> CellKind | None:
    """The kind of a feature by its first cells, missing ones left out; None where there are none."""
    if not cells:
        return None
    finite = [cell for cell in cells if not _INFINITE.fullmatch(cell)] or ["0"]
    kind = guess_kind(finite, missing)
    if kind == "text" and len(finite) >= 100:  # a few mistakes in a column of numbers do not make it text
        count = Counter(text_kind(cell) for cell in finite)
        signed = count["number"] + sum(cell.startswith("-") and text_kind(cell) == "whole" for cell in finite)
        share = _SHARES["number" if signed > 0.01 * len(finite) else "whole"]
        if count["whole"] + count["number"] >= share * len(finite) and not any(map(_is_code, finite)):
            return "number"
        if count["time"] >= _SHARES["time"] * len(finite):
            return "time"
    if kind == "list":
        return "text"  # a category; the models of streams have no lists
    return "number" if kind == "whole" else kind


def _is_code(cell: str) -> bool:
    return _LEADING_ZEROS.match(cell) is not None and number_key(cell) is not None
