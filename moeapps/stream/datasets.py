"""Data sets of streams: Electricity, and the synthetic streams of the DriftMoE paper on river's generators."""

import random
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from river import datasets
from river.datasets import synth
from river.datasets.base import SyntheticDataset
from scipy.special import expit

from moeapps.core.checks import check_one_of, check_sizes
from moeapps.core.errors import DataError

__all__ = ["SYNTHETIC_STREAMS", "SyntheticStream", "electricity", "synthetic_stream"]

COLUMNS = ("date", "day", "period", "nswprice", "nswdemand", "vicprice", "vicdemand", "transfer")


def electricity(folder: str | Path | None = None) -> tuple[pd.DataFrame, pd.Series]:
    """Electricity (Elec2, Harries 1999): 45,312 half hours of the New South Wales market, 8 features, in time order.

    The label says whether the price rises above its mean of the last 24 hours: 1 for up, 0 for down.

    Parameters
    ----------
    folder : str or Path, optional
        Folder with ``elec2_data.dat`` and ``elec2_label.dat`` (space-separated, as in the repository
        vlosing/driftDatasets, where label 0 is up). Without one, river's copy is used, which it downloads at the
        first use.

    Raises
    ------
    DataError
        If the files are not there, do not have 8 columns and as many labels, or river cannot download.

    Returns
    -------
    features : DataFrame of shape (45312, 8)
    labels : Series of shape (45312,)
    """
    if folder is None:
        source = datasets.Elec2()
        if not source.is_downloaded:
            try:
                source.download(verbose=False)
            except OSError as error:
                raise DataError(
                    f"Electricity could not be downloaded ({error}): give electricity(folder) a folder with "
                    "elec2_data.dat and elec2_label.dat"
                ) from None
        rows, labels = zip(*source, strict=True)
        return pd.DataFrame(rows), pd.Series(labels, name="up").astype(int)
    data, label = (Path(folder) / name for name in ("elec2_data.dat", "elec2_label.dat"))
    for file in (data, label):
        if not file.is_file():
            raise DataError(f"{file} does not exist, expected the Electricity files elec2_data.dat and elec2_label.dat")
    features, down = np.loadtxt(data, ndmin=2), np.loadtxt(label, ndmin=1)
    if features.shape[1] != len(COLUMNS) or len(features) != len(down):
        raise DataError(f"{data} has shape {features.shape} and {label} {len(down)} labels, expected n x 8 and n")
    return pd.DataFrame(features, columns=list(COLUMNS)), pd.Series(down == 0, name="up").astype(int)


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
    """

    def __init__(self, name: str, source: Iterable[Any], n: int, drifts: tuple[int, ...], n_classes: int) -> None:
        self.name, self.n, self.drifts, self.n_classes = name, n, drifts, n_classes
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
