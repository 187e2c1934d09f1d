"""Quality of generated images in a feature space of your choice, for example ``WideNetClassifier.transform``.

The argument ``drawn`` of all functions is the features of generated images.
"""

# Shapes: n real images, m generated ones, d features, p images per class

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigvalsh
from sklearn.neighbors import NearestNeighbors

from moeapps.core.checks import check_sizes
from moeapps.core.errors import DataError

__all__ = ["ImageQuality", "class_quality", "frechet_distance", "precision_recall"]


def frechet_distance(real: ArrayLike, drawn: ArrayLike) -> float:
    r"""Fréchet distance between Gaussians fitted to two sets of features (FID, Heusel et al. 2017).

    :math:`|\mu_1 - \mu_2|^2 + \mathrm{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})`. It depends on the
    feature space and falls with the number of images: compare only values of the same space and numbers of images.

    Parameters
    ----------
    real : array-like
        Features ``(n, d)``.
    drawn : array-like
        Features ``(m, d)``.

    Raises
    ------
    DataError
        If they do not fit together, or there are fewer than two of one.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(1000, 3))
    >>> round(frechet_distance(x, x + 2), 6)
    12.0
    """
    first, second = _features(real, drawn)
    covariances = [np.atleast_2d(np.cov(features, rowvar=False)) for features in (first, second)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    # the eigenvalues of S1 S2 are those of S1^(1/2) S2 S1^(1/2), which is symmetric
    cross = np.sqrt(eigvalsh(root @ covariances[1] @ root).clip(min=0)).sum()
    distance = np.square(first.mean(0) - second.mean(0)).sum()
    return float(distance + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * cross)


def precision_recall(real: ArrayLike, drawn: ArrayLike, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019).

    Parameters
    ----------
    real, drawn : array-like
        Features ``(n, d)`` and ``(m, d)``, as for :func:`frechet_distance`; more than k of each.
    k : int, default=3
        The ball around a point reaches to its k-th nearest neighbour of the same set.

    Returns
    -------
    tuple[float, float]
        Precision, the fraction of generated images inside a ball around a real one, and recall, the fraction of real
        images inside a ball around a generated one.
    """
    first, second = _features(real, drawn)
    check_sizes(k=k)
    if min(len(first), len(second)) <= k:
        raise DataError(f"k={k} neighbours need more than {k} points, got {len(first)} and {len(second)}")
    return _inside(second, first, k), _inside(first, second, k)


@dataclass(frozen=True)
class ImageQuality:
    """How like real images others are, at equal numbers of each class.

    Parameters
    ----------
    per_class : int
        Images p of each class on both sides.
    fid : float
        Fréchet distance of all classes together.
    precision, recall : float
        As :func:`precision_recall` has them.
    by_class : dict
        Fréchet distance of each class by itself; empty where p is not above the number of features.
    """

    per_class: int
    fid: float
    precision: float
    recall: float
    by_class: dict[Any, float]


def class_quality(
    real: ArrayLike,
    real_labels: ArrayLike,
    drawn: ArrayLike,
    drawn_labels: ArrayLike,
    *,
    k: int = 3,
    repeats: int = 5,
    seed: int = 0,
) -> tuple[ImageQuality, ImageQuality]:
    """Class-balanced quality of generated images, and what real images get in their place.

    A Fréchet distance falls with the number of images, and depends on how often each class occurs. So

    1. of each class p real images are drawn, p other real images, and p generated ones, where p is half the real
       images of the rarest class, or its generated images if there are fewer;
    2. the generated ones, and then the other real ones, are compared to the first; both comparisons have the same small
       sample on each side, and with it the same bias. The second is what a perfect generator would get, about;
    3. all figures are means over ``repeats`` such choices.

    A class by itself has a covariance of full rank only if p is above d: with fewer images there is no distance by
    class.

    Parameters
    ----------
    real : array-like
        Features ``(n, d)``.
    real_labels : array-like
        Their classes ``(n,)``; at least four images of each.
    drawn : array-like
        Features ``(m, d)``.
    drawn_labels : array-like
        The classes that they were generated for ``(m,)``, the same as of the real images.
    k : int, default=3
        As in :func:`precision_recall`.
    repeats : int, default=5
        Number of choices.
    seed : int, default=0
        Seed of the choices.

    Returns
    -------
    tuple[ImageQuality, ImageQuality]
        Of the generated images, and of the real ones.

    Raises
    ------
    DataError
        If features and labels do not fit together, or a class has too few images.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(200) % 2
    >>> drawn, other = class_quality(rng.normal(size=(200, 3)), y, rng.normal(2, size=(200, 3)), y)
    >>> drawn.fid > 10 > 1 > other.fid
    True
    """
    check_sizes(repeats=repeats)
    first, second = _features(real, drawn)
    groups = [_by_class(*pair) for pair in (("real", first, real_labels), ("drawn", second, drawn_labels))]
    if set(groups[0]) != set(groups[1]):
        odd = ", ".join(sorted(str(label) for label in set(groups[0]) ^ set(groups[1])))
        raise DataError(f"real and drawn must have the same classes; only one of them has {odd}")
    count = min(min(len(rows) // 2 for rows in groups[0].values()), min(len(rows) for rows in groups[1].values()))
    if count < 2:
        raise DataError("each class needs at least four real and two generated images")
    rng = np.random.default_rng(seed)
    found: tuple[list[ImageQuality], list[ImageQuality]] = ([], [])
    for _ in range(repeats):
        chosen: tuple[dict[Any, Any], ...] = ({}, {}, {})  # features of reference, generated, other real images
        for label, rows in groups[0].items():
            mixed = rng.permutation(rows)
            parts = (first[mixed[:count]], second[rng.permutation(groups[1][label])[:count]], first[mixed[-count:]])
            for part, features in zip(chosen, parts, strict=True):
                part[label] = features
        for qualities, part in zip(found, chosen[1:], strict=True):
            qualities.append(_quality(chosen[0], part, k, count))
    drawn_quality, other_quality = (_mean(qualities) for qualities in found)
    return drawn_quality, other_quality


def _by_class(name: str, features: NDArray[np.float64], labels: ArrayLike) -> dict[Any, NDArray[np.int64]]:
    """Rows of each class."""
    given = np.asarray(labels)
    if given.shape != (len(features),):
        raise DataError(f"{name}_labels must be one per row of {name}, ({len(features)},), got {given.shape}")
    return {label: np.flatnonzero(given == label) for label in np.unique(given).tolist()}


def _quality(real: dict[Any, Any], other: dict[Any, Any], k: int, count: int) -> ImageQuality:
    together, others = (np.concatenate(list(part.values())) for part in (real, other))
    enough = count > together.shape[1]
    by_class = {label: frechet_distance(real[label], other[label]) for label in real} if enough else {}
    return ImageQuality(count, frechet_distance(together, others), *precision_recall(together, others, k), by_class)


def _mean(found: list[ImageQuality]) -> ImageQuality:
    fid, precision, recall = (float(np.mean([getattr(q, n) for q in found])) for n in ("fid", "precision", "recall"))
    by_class = {label: float(np.mean([q.by_class[label] for q in found])) for label in found[0].by_class}
    return ImageQuality(found[0].per_class, fid, precision, recall, by_class)


def _inside(points: NDArray[np.float64], centres: NDArray[np.float64], k: int) -> float:
    radius = (
        NearestNeighbors(n_neighbors=k + 1).fit(centres).kneighbors(centres)[0][:, -1]
    )  # the first neighbour is the point itself
    inside = [bool((np.linalg.norm(centres - point, axis=1) <= radius).any()) for point in points]
    return float(np.mean(inside))


def _features(real: ArrayLike, drawn: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    first, second = np.asarray(real, dtype=np.float64), np.asarray(drawn, dtype=np.float64)
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise DataError(f"expected features (n, d) and (m, d), got {first.shape} and {second.shape}")
    if min(len(first), len(second)) < 2:
        raise DataError(f"at least two of each are needed, got {len(first)} and {len(second)}")
    for name, features in (("real", first), ("drawn", second)):
        if not np.isfinite(features).all():
            raise DataError(f"{name} has a feature that is NaN or infinite")
    return first, second
