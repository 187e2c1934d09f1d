"""Settings that are worth a search: what estimators and modules publish, for scikit-learn, Optuna and Ray Tune."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from moeapps.core.errors import ConfigError

__all__ = ["Choice", "Distribution", "Float", "Int", "Searchable", "distributions", "read_space", "suggest"]


@dataclass(frozen=True)
class Float:
    """A number between two others.

    Parameters
    ----------
    low, high : float
        Least and greatest value.
    log : bool, default=False
        Whether its logarithm is uniform.

    Raises
    ------
    ConfigError
        If ``low`` is not below ``high``, or not above 0 with ``log``.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or not math.isfinite(self.high - self.low):
            raise ConfigError(f"low must be below high, got low={self.low} and high={self.high}")
        if self.log and self.low <= 0:
            raise ConfigError(f"low must be above 0 where log is true, got {self.low}")


@dataclass(frozen=True)
class Int(Float):
    """A whole number from ``low`` to ``high``, both included."""

    low: int
    high: int
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """One of several values.

    Parameters
    ----------
    values : tuple
        The values.
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ConfigError("a choice needs at least one value, got none")


Distribution = Float | Int | Choice
"""What a setting is drawn from."""


class Searchable:
    """Adds :meth:`search_space` to a class whose constructor takes the settings."""

    _search_space: ClassVar[Mapping[str, Distribution]] = {}

    @classmethod
    def search_space(cls) -> dict[str, Distribution]:
        """Settings that are worth a search, by the name of the argument, in a range around its default.

        Use it with :func:`~moeapps.core.search.suggest` (Optuna), :func:`~moeapps.core.search.distributions`
        (scikit-learn) or :func:`moeapps.scale.tune_space` (Ray Tune). What they draw are arguments of the constructor.
        """
        return dict(cls._search_space)


def suggest(trial: Any, space: Mapping[str, Distribution]) -> dict[str, Any]:
    """Values that a trial of Optuna tries.

    Parameters
    ----------
    trial : optuna.Trial
        The trial.
    space : mapping of str to Distribution
        What ``search_space()`` returns, or a part of it.

    Returns
    -------
    dict
        Arguments of the constructor.
    """
    values = {}
    for name, kind in space.items():
        if isinstance(kind, Choice):
            values[name] = trial.suggest_categorical(name, kind.values)
        else:
            draw = trial.suggest_int if isinstance(kind, Int) else trial.suggest_float
            values[name] = draw(name, kind.low, kind.high, log=kind.log)
    return values


def distributions(space: Mapping[str, Distribution]) -> dict[str, Any]:
    """What scikit-learn's ``RandomizedSearchCV`` and ``HalvingRandomSearchCV`` take as ``param_distributions``.

    Parameters
    ----------
    space : mapping of str to Distribution
        What ``search_space()`` returns, or a part of it.

    Returns
    -------
    dict
        Lists, and distributions of scipy.
    """
    from scipy import stats

    def distribution(kind: Distribution) -> Any:
        if isinstance(kind, Choice):
            return list(kind.values)
        if isinstance(kind, Int):
            # scipy has no logarithmic whole numbers; each is then drawn as often as its neighbours
            return stats.randint(kind.low, kind.high + 1)
        return stats.loguniform(kind.low, kind.high) if kind.log else stats.uniform(kind.low, kind.high - kind.low)

    return {name: distribution(kind) for name, kind in space.items()}


def read_space(content: Any) -> dict[str, Distribution]:
    """A space from what a YAML file says: ``{model.lr: {low: 1.0e-4, high: 0.01, log: true}, model.top_k: [1, 2]}``.

    Raises
    ------
    ConfigError
        Naming the setting, if it is neither a list of values nor has ``low`` and ``high``.
    """
    if not isinstance(content, Mapping) or not content:
        raise ConfigError("a space maps names of settings to a list of values, or to low, high and log")
    space: dict[str, Distribution] = {}
    for name, entry in content.items():
        try:
            if isinstance(entry, list):
                space[str(name)] = Choice(tuple(entry))
            elif isinstance(entry, Mapping) and {"low", "high"} <= set(entry) <= {"low", "high", "log"}:
                whole = all(isinstance(entry[end], int) and not isinstance(entry[end], bool) for end in ("low", "high"))
                numbers = {end: int(entry[end]) if whole else float(entry[end]) for end in ("low", "high")}
                space[str(name)] = (Int if whole else Float)(**numbers, log=bool(entry.get("log", False)))  # type: ignore[arg-type]
            else:
                raise ConfigError(f"expected a list of values, or low, high and log, got {entry!r}")
        except (ConfigError, TypeError, ValueError) as error:
            raise ConfigError(f"{name}: {error}") from None
    return space
