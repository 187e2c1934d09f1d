"""What the compiled loops of this package share: the decorators that compile them, and a random generator."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

from moeapps.stream.compiled.parts import CAN_LINK, Entry, Part

__all__ = ["copy_row", "entry", "fill", "kernel", "nogil_entry", "poisson", "random_seed", "uniform"]

F = TypeVar("F", bound=Callable[..., Any])

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFT_30, _SHIFT_27, _SHIFT_31, _SHIFT_11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


def entry(function: F, nogil: bool = False) -> F:
    """Compile a function that Python calls when it is first called, and keep its machine code where that is possible.

    numba does not cache where it can write neither beside the source nor to the user's cache folder; then the function
    is compiled again in every process. numba's cache also checks only the file of the function itself, not those of the
    functions that it calls. So the stamp of its file is replaced by a digest of all files of this package.
    """
    compiled: Any = Entry(function, nogil)
    try:
        compiled.enable_caching()
        compiled._cache._cache_file._source_stamp = _sources()
    except (AttributeError, RuntimeError):
        compiled = Entry(function, nogil)
    return cast(F, compiled)


def nogil_entry(function: F) -> F:
    """An entry that does not hold the interpreter's lock while it runs, so it needs a lock of the caller's."""
    return entry(function, nogil=True)


def kernel(function: F) -> F:
    """Compile a function that is called by compiled functions, as a part of those."""
    return cast(F, Part(function, entry) if CAN_LINK else njit(function, error_model="numpy"))


@cache
def _sources() -> str:
    """Digest of every file of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def random_seed(seed: int) -> np.ndarray:
    """State of a generator: one uint64, which the kernels advance."""
    return np.array([np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]], dtype=np.uint64)


@kernel
def copy_row(source, target, n):  # type: ignore[no-untyped-def]
    """Copy n numbers. ``target[:n] = source[:n]`` takes seconds to compile: numba adds broadcasting and its errors."""
    for i in range(n):
        target[i] = source[i]


@kernel
def fill(target, n, value):  # type: ignore[no-untyped-def]
    """Set n numbers. ``target[:n] = value`` takes long to compile, too."""
    for i in range(n):
        target[i] = value


@kernel
def uniform(state: np.ndarray) -> float:
    """A number in [0, 1) and the next state (SplitMix64, Steele, Lea and Flood 2014)."""
    state[0] += _STEP
    z = state[0]
    z = (z ^ (z >> _SHIFT_30)) * _MIX_1
    z = (z ^ (z >> _SHIFT_27)) * _MIX_2
    z = z ^ (z >> _SHIFT_31)
    return np.float64(z >> _SHIFT_11) * (1.0 / 9007199254740992.0)


@kernel
def poisson(state: np.ndarray, rate: float) -> int:
    """A Poisson number, by inverting its distribution function with one uniform number (for rates up to about 50)."""
    u = uniform(state)
    p = np.exp(-rate)
    total, k = p, 0
    while u > total and k < 200:
        k += 1
        p *= rate / k
        total += p
    return k
