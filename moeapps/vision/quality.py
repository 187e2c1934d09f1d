"""Quality of generated images in a feature space of your choice, for example ``WideNetClassifier.transform``.

The argument ``drawn`` of both functions is the features of generated images.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigvalsh
from sklearn.neighbors import NearestNeighbors

from moeapps.core.checks import check_sizes
from moeapps.core.errors import DataError

__all__ = ["frechet_distance", "precision_recall"]


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
    k : int, default 3
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
