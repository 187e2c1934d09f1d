"""What the compiled loops of this package share: the decorator that compiles them, and a random generator."""

import hashlib
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit, types
from numba.experimental import structref

__all__ = ["copy_row", "is_compiled", "kernel", "poisson", "random_seed", "structref_class", "uniform"]

F = TypeVar("F", bound=Callable[..., Any])

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFT_30, _SHIFT_27, _SHIFT_31, _SHIFT_11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)


def kernel(function: F) -> F:
    """Compile a function when it is first called, and keep the machine code on disk where that is possible.

    numba does not cache where it can write neither beside the source nor to the user's cache folder; then the function
    is compiled again in every process. numba's cache also checks only the file of the function itself, not those of the
    functions that were inlined into it. So the stamp of its file is replaced by a digest of all files of this package.
    """
    try:
        compiled: Any = njit(function, cache=True, error_model="numpy")
        compiled._cache._cache_file._source_stamp = _sources()
    except (AttributeError, RuntimeError):
        compiled = njit(function, error_model="numpy")
    return cast(F, compiled)


def is_compiled(function: Any) -> bool:
    """Whether machine code of a kernel is in memory or on disk; False where that cannot be told."""
    try:
        return bool(function.signatures) or bool(function._cache._cache_file._load_index())
    except (AttributeError, OSError):
        return False


@cache
def _sources() -> str:
    """Digest of every file of this package."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def structref_class(fields: type) -> Any:
    """Class of references to the content of a NamedTuple, for compiled code.

    Compiled code hands a tuple of arrays on by value, and counts a reference to each array in every call; a reference
    to all of them is one pointer, which made these loops two to three times faster. ``structref_class(State)(*state)``,
    inside a kernel, makes one; its attributes have the names of the tuple, and its arrays are shared with it.
    """
    name = f"{fields.__name__}Ref"
    kind = structref.register(type(f"{name}Type", (types.StructRef,), {"preprocess_fields": _plain_fields}))
    proxy = type(name, (structref.StructRefProxy,), {})
    structref.define_proxy(proxy, kind, list(fields._fields))  # type: ignore[attr-defined]
    for part in (kind, proxy):  # the cache on disk finds them by name
        part.__module__ = fields.__module__
        part.__qualname__ = part.__name__
        setattr(sys.modules[fields.__module__], part.__name__, part)
    return proxy


def _plain_fields(self: Any, fields: Any) -> Any:
    return tuple((name, types.unliteral(kind)) for name, kind in fields)


def random_seed(seed: int) -> np.ndarray:
    """State of a generator: one uint64, which the kernels advance."""
    return np.array([np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]], dtype=np.uint64)


@kernel
def copy_row(source, target, n):  # type: ignore[no-untyped-def]
    """Copy n numbers. ``target[:n] = source[:n]`` takes seconds to compile: numba adds broadcasting and its errors."""
    for i in range(n):
        target[i] = source[i]


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
