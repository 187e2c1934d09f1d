"""Streams made on river's generators: those of the DriftMoE paper, concepts that return, and noise in the labels."""

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from river.datasets import synth
from river.datasets.base import SyntheticDataset
from scipy.special import expit

from moeapps.core.checks import check_below_one, check_one_of, check_seed, check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.labels import plain

__all__ = [
    "RECURRING_STREAMS",
    "SYNTHETIC_STREAMS",
    "SyntheticStream",
    "recurring_stream",
    "synthetic_stream",
    "with_label_noise",
]

ABRUPT = ((0.249975, 0.499975, 0.749975), 50e-6)
GRADUAL = ((0.225, 0.475, 0.725), 0.05)
"""Where the drifts are and how wide they are, as fractions of the stream (the paper's are of 1,000,000 instances)."""

_LED_DRIFTING = (1, 3, 5, 7)
_SEA_FUNCTIONS = (0, 1, 3, 0)  # functions 1, 2, 4, 1 of Street and Kim, counted from 0 in river


class SyntheticStream:
    """A stream of a fixed length that knows where its drifts are; iterating it again gives the same instances.

    Attributes
    ----------
    name : str
        Name of the stream.
    n : int
        Number of instances.
    drifts : tuple[int, ...]
        Positions of its drifts, in instances; empty where it drifts all the time.
    n_classes : int
        Number of classes.
    concepts : tuple[int, ...]
        Number of the concept before the first drift, between the drifts, and after the last; empty where there are no
        separate concepts.
    """

    def __init__(
        self,
        name: str,
        source: Iterable[Any],
        n: int,
        drifts: tuple[int, ...],
        n_classes: int,
        concepts: tuple[int, ...] = (),
    ) -> None:
        self.name, self.n, self.drifts, self.n_classes, self.concepts = name, n, drifts, n_classes, concepts
        self._source = source

    def __iter__(self) -> Iterator[tuple[dict[Any, Any], Any]]:
        return islice(iter(self._source), self.n)

    def __len__(self) -> int:
        return self.n

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """All instances at once: features ``(n, F)`` and labels ``(n,)``."""
        rows, labels = zip(*self, strict=True)
        features = np.array([list(row.values()) for row in rows], dtype=np.float64)
        return features, np.array(labels, dtype=np.int64)


def synthetic_stream(
    name: Literal["led_abrupt", "led_gradual", "sea_abrupt", "sea_gradual", "rbf_moderate", "rbf_fast"],
    n: int = 1_000_000,
    seed: int = 0,
) -> SyntheticStream:
    """A stream of the DriftMoE paper (section 4): LED and SEA with three drifts, RBF that drifts all the time.

    ``led_*``: 24 binary features, 17 of them irrelevant, 10 classes, 10 % noise; 1, then 3, 5 and 7 features change
    places. ``sea_*``: 3 features, 2 classes, 10 % noise; functions 1, 2, 4, 1. ``rbf_*``: 10 features, 5 classes, 50
    centroids that all move, by 0.0001 ("moderate") or 0.001 ("fast") an instance.

    Parameters
    ----------
    name : {"led_abrupt", "led_gradual", "sea_abrupt", "sea_gradual", "rbf_moderate", "rbf_fast"}
        Which one.
    n : int, default 1000000
        Number of instances; the positions and widths of the drifts scale with it (the paper has 1,000,000).
    seed : int, default 0
        Seed of concept and sample.

    Raises
    ------
    ConfigError
        If the name is not one of these, or ``n`` is not a whole number of at least 1.

    Examples
    --------
    >>> stream = synthetic_stream("sea_abrupt", n=1000, seed=1)
    >>> len(list(stream)), stream.drifts
    (1000, (250, 500, 750))
    """
    check_one_of("name", name, SYNTHETIC_STREAMS)
    check_sizes(n=n)
    check_seed(seed)
    if name.startswith("rbf"):
        speed = 1e-3 if name == "rbf_fast" else 1e-4
        source: SyntheticDataset = synth.RandomRBFDrift(
            seed_model=seed, seed_sample=seed + 1, n_classes=5, n_features=10, n_centroids=50,
            change_speed=speed, n_drift_centroids=50,
        )  # fmt: skip
        return SyntheticStream(name, source, n, (), 5)
    places, width = ABRUPT if name.endswith("abrupt") else GRADUAL
    concepts: list[SyntheticDataset]
    if name.startswith("led"):
        concepts = [
            synth.LEDDrift(seed=seed, noise_percentage=0.1, irrelevant_features=True, n_drift_features=drifting)
            for drifting in _LED_DRIFTING
        ]
    else:
        concepts = [synth.SEA(variant=function, noise=0.1, seed=seed + i) for i, function in enumerate(_SEA_FUNCTIONS)]
    positions = tuple(round(place * n) for place in places)
    return SyntheticStream(
        name, _Drifting(concepts, positions, max(1.0, width * n), seed), n, positions, 10 if name[0] == "l" else 2
    )


class _Drifting:
    """Concepts one after the other, each drift a sigmoid of the position, as in MOA's ConceptDriftStream.

    river's class of that name computes exp(4 position / width), which overflows for the paper's abrupt drifts.
    """

    def __init__(self, concepts: list[SyntheticDataset], positions: tuple[int, ...], width: float, seed: int) -> None:
        self.concepts, self.positions, self.width, self.seed = concepts, positions, width, seed

    def __iter__(self) -> Iterator[tuple[dict[Any, Any], Any]]:
        rng = random.Random(self.seed)
        sources = [iter(concept) for concept in self.concepts]
        for i in count(1):
            concept = 0
            for position in self.positions:
                if rng.random() > expit(4 * (i - position) / self.width):
                    break
                concept += 1
            yield next(sources[concept])


SYNTHETIC_STREAMS = ("led_abrupt", "led_gradual", "sea_abrupt", "sea_gradual", "rbf_moderate", "rbf_fast")
"""Names that :func:`synthetic_stream` knows."""


RECURRING_STREAMS = ("sea", "rbf", "agrawal")
"""Names that :func:`recurring_stream` knows."""

_SEA_RECURRING = (2, 3, 0, 1)  # thresholds 7, 9.5, 8 and 9: neighbours in time are as far apart as they can be
_AGRAWAL_RECURRING = (0, 3, 6, 9, 1, 4, 7, 2, 5, 8)
_RBF_MOST = 100


def recurring_stream(
    name: Literal["sea", "rbf", "agrawal"],
    n: int = 100_000,
    *,
    every: int = 10_000,
    concepts: int = 3,
    width: int = 0,
    seed: int = 0,
) -> SyntheticStream:
    """A stream whose concepts take turns, so that each comes back: A B C A B C ... .

    ``sea``: 3 features, 2 classes, 10 % noise; the threshold changes, the features' distribution does not. ``rbf``: 10
    features, 5 classes; every concept has 50 centroids of its own, so features and classes change. ``agrawal``: 9
    features, 3 of them codes, 2 classes, 5 % perturbation; the function of the class changes.

    Parameters
    ----------
    name : {"sea", "rbf", "agrawal"}
        Which generator.
    n : int, default 100000
        Number of instances.
    every : int, default 10000
        Instances between two drifts. A concept returns ``(concepts - 1) * every`` instances after it ended.
    concepts : int, default 3
        Number of concepts: at most 4 (sea), 10 (agrawal), 100 (rbf).
    width : int, default 0
        Instances over which a drift extends, at most ``every``: the probability of the new concept is a sigmoid of the
        position, as in MOA's ConceptDriftStream. 0 changes the concept from one instance to the next.
    seed : int, default 0
        Seed of concepts and sample.

    Raises
    ------
    ConfigError
        If an argument is impossible.

    Examples
    --------
    >>> stream = recurring_stream("sea", n=5000, every=1000, concepts=2, seed=1)
    >>> stream.drifts, stream.concepts
    ((1000, 2000, 3000, 4000), (0, 1, 0, 1, 0))
    """
    check_one_of("name", name, RECURRING_STREAMS)
    check_sizes(n=n, every=every, concepts=concepts)
    check_seed(seed)
    most = {"sea": len(_SEA_RECURRING), "agrawal": len(_AGRAWAL_RECURRING), "rbf": _RBF_MOST}[name]
    if not 2 <= concepts <= most:
        raise ConfigError(f"concepts must be between 2 and {most} for {name!r}, got {concepts!r}")
    if isinstance(width, bool) or not isinstance(width, int) or not 0 <= width <= every:
        raise ConfigError(f"width must be a whole number between 0 and every={every}, got {width!r}")
    sources: list[SyntheticDataset]
    if name == "sea":
        sources = [
            synth.SEA(variant=function, noise=0.1, seed=seed + i)
            for i, function in enumerate(_SEA_RECURRING[:concepts])
        ]
    elif name == "agrawal":
        sources = [
            synth.Agrawal(classification_function=function, perturbation=0.05, seed=seed + i)
            for i, function in enumerate(_AGRAWAL_RECURRING[:concepts])
        ]
    else:
        sources = [
            synth.RandomRBF(
                seed_model=1000 * seed + i, seed_sample=seed + 1 + i, n_classes=5, n_features=10, n_centroids=50
            )
            for i in range(concepts)
        ]
    drifts = tuple(range(every, n, every))
    turns = tuple(visit % concepts for visit in range(len(drifts) + 1))
    classes = 5 if name == "rbf" else 2
    return SyntheticStream(
        f"{name}_recurring", _Recurring(sources, every, width, len(drifts), seed), n, drifts, classes, turns
    )


class _Recurring:
    """Concepts that take turns every ``every`` instances; a concept that returns continues its own sample."""

    def __init__(self, concepts: Sequence[SyntheticDataset], every: int, width: int, drifts: int, seed: int) -> None:
        self.concepts, self.every, self.width, self.drifts, self.seed = concepts, every, width, drifts, seed

    def __iter__(self) -> Iterator[tuple[dict[Any, Any], Any]]:
        rng = random.Random(self.seed)
        sources = [iter(concept) for concept in self.concepts]
        for i in count():
            visit = i // self.every
            if self.width:
                drift = min(round(i / self.every), self.drifts)  # the nearest; 0 is the beginning, which is none
                if drift > 0:
                    after = rng.random() < expit(4 * (i - drift * self.every) / self.width)
                    visit = drift if after else drift - 1
            yield next(sources[visit % len(sources)])


def with_label_noise(stream: Any, share: float, *, labels: Sequence[Any] | None = None, seed: int = 0) -> Any:
    """The same stream with wrong labels: each is replaced, with probability ``share``, by another one at random.

    Parameters
    ----------
    stream : SyntheticStream, tuple[DataFrame, Series], or Iterable[tuple[dict[Any, Any], Any]]
        The stream; it is not changed.
    share : float
        Share of labels that are wrong, at least 0 and below 1.
    labels : Sequence[Any], optional
        All labels. When None, those of the targets of a frame, or ``0, ..., n_classes - 1`` of a synthetic stream;
        needed for other iterables.
    seed : int, default 0
        Seed of the noise: the same labels are wrong each time.

    Returns
    -------
    SyntheticStream, tuple[DataFrame, Series], or Iterable[tuple[dict[Any, Any], Any]]
        What was given, with noise. An iterable can be iterated again if the given one can.

    Raises
    ------
    ConfigError
        If ``share`` is impossible, or ``labels`` are needed or fewer than two.
    DataError
        If a target is not among ``labels``.

    Examples
    --------
    >>> clean = synthetic_stream("sea_abrupt", n=1000, seed=1)
    >>> noisy = with_label_noise(clean, 0.2, seed=5)
    >>> changed = sum(y != noise for (_, y), (_, noise) in zip(clean, noisy))
    >>> 150 < changed < 250
    True
    """
    check_below_one(share=share)
    check_seed(seed)
    if isinstance(stream, tuple):
        frame, targets = stream
        values = [plain(target) for target in targets]
        noisy = _Noisy(zip(range(len(values)), values, strict=True), share, _labels(labels or values), seed)
        changed = [label for _, label in noisy]
        index = targets.index if isinstance(targets, pd.Series) else None
        name = targets.name if isinstance(targets, pd.Series) else None
        dtype = getattr(targets, "dtype", None)
        return frame, pd.Series(changed, index=index, name=name, dtype=dtype)
    if isinstance(stream, SyntheticStream):
        noise = _Noisy(stream, share, _labels(labels or range(stream.n_classes)), seed)
        return SyntheticStream(stream.name, noise, stream.n, stream.drifts, stream.n_classes, stream.concepts)
    if labels is None:  # they would be known only at the stream's end
        raise ConfigError("labels must be given for a stream that does not know its labels, for example labels=[0, 1]")
    return _Noisy(stream, share, _labels(labels), seed)


def _labels(labels: Sequence[Any]) -> list[Any]:
    if len(set(labels)) < 2:
        raise ConfigError(f"labels must be at least two different ones, got {list(labels)!r}")
    return list(dict.fromkeys(labels))


class _Noisy:
    """Pairs with wrong labels; every pair takes two random numbers, so the noise does not depend on the labels."""

    def __init__(self, stream: Iterable[tuple[Any, Any]], share: float, labels: list[Any], seed: int) -> None:
        self.stream, self.share, self.labels, self.seed = stream, share, labels, seed

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        rng = random.Random(self.seed)
        places = {label: place for place, label in enumerate(self.labels)}
        for x, y in self.stream:
            hit, step = rng.random() < self.share, rng.randrange(1, len(self.labels))
            if y not in places:
                raise DataError(f"y is {y!r}, expected one of labels={self.labels!r}")
            if hit:
                other = self.labels[(places[y] + step) % len(self.labels)]
                y = bool(other) if isinstance(y, bool) else other  # SEA has bools, for which 0 and 1 stand in `labels`
            yield x, y
