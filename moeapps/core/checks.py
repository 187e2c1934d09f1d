"""Checks of constructor arguments that many classes share."""

from collections.abc import Hashable
from typing import Any

from moeapps.core.errors import ConfigError
from moeapps.registry import did_you_mean

__all__ = [
    "check_at_least_zero",
    "check_below_one",
    "check_fraction",
    "check_one_of",
    "check_proper_fraction",
    "check_seed",
    "check_sizes",
    "check_top_k",
]


def check_sizes(**sizes: Any) -> None:
    """Refuse sizes that are not whole numbers of at least one, naming the argument."""
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
        if value >= 2**63:  # torch has no larger ones
            raise ConfigError(f"{name} must be below 2**63, got a number of {value.bit_length()} bits")


def check_at_least_zero(**values: Any) -> None:
    """Refuse what is not a finite number of at least 0, naming the argument."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise ConfigError(f"{name} must be a number of at least 0, got {value!r}")


def check_below_one(**values: Any) -> None:
    """Refuse what is not a number of at least 0 and below 1, naming the argument."""
    check_at_least_zero(**values)
    for name, value in values.items():
        if value >= 1:
            raise ConfigError(f"{name} must be below 1, got {value!r}")


def check_fraction(**values: Any) -> None:
    """Refuse what is not a number above 0 and at most 1, naming the argument."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise ConfigError(f"{name} must be a number above 0 and at most 1, got {value!r}")


def check_proper_fraction(**values: Any) -> None:
    """Refuse what is not a number above 0 and below 1, naming the argument."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
            raise ConfigError(f"{name} must be a number above 0 and below 1, got {value!r}")


def check_top_k(top_k: Any, num_experts: int, name: str = "top_k") -> None:
    """Refuse a number of experts per token outside 1 to E."""
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= num_experts:
        raise ConfigError(f"{name} must be between 1 and num_experts={num_experts}, got {top_k!r}")


def check_one_of(name: str, value: Any, known: Any, what: str = "") -> None:
    """Refuse a value that is not one of the known ones, be it a list that no dict could have as a key.

    The error says ``what`` the known ones are, such as "the sparse columns", and which of them looks most like a text.
    """
    if not isinstance(value, Hashable) or value not in known:
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        choices = f"{what} {', '.join(map(str, known))}".lstrip()
        raise ConfigError(f"{name} must be one of {choices}, got {value!r}{hint}")


def check_seed(seed: Any) -> None:
    """Refuse a seed that is not a whole number of at least 0."""
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ConfigError(f"seed must be a whole number of at least 0, got {seed!r}")
