"""Plots: grids of images, denoising strips, and the experts of timesteps and patches."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import ArrayLike, NDArray

from moeapps.core.errors import DataError
from moeapps.core.plots import new_figure
from moeapps.vision.images import as_images, to_float

__all__ = ["plot_images", "plot_patches", "plot_timesteps", "plot_trajectory"]


def plot_images(images: Any, columns: int = 10, titles: Sequence[Any] | None = None) -> Figure:
    """Plot a grid of images.

    Parameters
    ----------
    images : object
        Images as :func:`~moeapps.vision.images.as_images` takes them; uint8, or floats of any range.
    columns : int, default=10
        Images per line.
    titles : Sequence[object], optional
        One per image.

    Returns
    -------
    Figure
        The figure; save it with ``figure.savefig(path)``.
    """
    pixels = _pixels(images)
    if titles is not None and len(titles) != len(pixels):
        raise DataError(f"{len(pixels)} images and {len(titles)} titles")
    columns = min(columns, len(pixels))
    lines = -(-len(pixels) // columns)
    figure, grid = _grid(lines, columns, 0.25 if titles is not None else 0.0)
    for i, axes in enumerate(grid):
        if i < len(pixels):
            _show(axes, pixels[i])
            if titles is not None:
                axes.set_title(str(titles[i]), fontsize=8, pad=2)
    return figure


def plot_trajectory(frames: Any, titles: Sequence[Any] | None = None) -> Figure:
    """Plot one row per image, from noise on the left to the sample on the right.

    Parameters
    ----------
    frames : object
        ``(n, frames, ...)`` as :meth:`~moeapps.vision.SwitchDiTGenerator.trajectory` gives them.
    titles : Sequence[object], optional
        One per image, on the left.

    Returns
    -------
    Figure
        See :func:`plot_images`.
    """
    array = np.asarray(frames)
    if array.ndim < 4:
        raise DataError(f"expected (n, frames, ...) images, got {array.shape}")
    pixels = _pixels(array.reshape(-1, *array.shape[2:]))
    figure, grid = _grid(array.shape[0], array.shape[1])
    for i, axes in enumerate(grid):
        _show(axes, pixels[i])
        if titles is not None and i % array.shape[1] == 0:
            axes.set_ylabel(str(titles[i // array.shape[1]]), rotation=0, ha="right", va="center", fontsize=9)
    return figure


def plot_timesteps(table: ArrayLike) -> Figure:
    """Plot the weight of each expert at each timestep, one panel per block; unused experts are white.

    Parameters
    ----------
    table : array-like
        Gates ``(L, T, E)``, as ``gate_table()`` gives them.
    """
    gates = np.asarray(table)
    depth, timesteps, experts = gates.shape
    figure = new_figure(1, width=8.0, height=0.8 + 0.28 * experts * depth)
    figure.clf()
    panels = figure.subplots(depth, 1, sharex=True, squeeze=False)[:, 0]
    for block, axes in enumerate(panels):
        shown = np.ma.masked_equal(gates[block].T, 0)
        image = axes.imshow(
            shown, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest",
            extent=(-0.5, timesteps - 0.5, experts - 0.5, -0.5),
        )  # fmt: skip
        axes.set_yticks(range(experts))
        axes.set_ylabel(f"block {block}", fontsize=8)
        axes.tick_params(labelsize=7)
    panels[-1].set_xlabel("timestep (0: least noise)")
    figure.colorbar(image, ax=list(panels), label="weight of the expert")
    return figure


def plot_patches(images: Any, experts: ArrayLike, names: Sequence[Any] | None = None) -> Figure:
    """Plot images, and below each the experts of its patches as colours.

    Parameters
    ----------
    images : object
        Images.
    experts : array-like
        ``(n, rows, columns)`` number of a patch's expert, as :meth:`~moeapps.vision.WideNetClassifier.patch_experts`
        gives them.
    names : Sequence[object], optional
        One per image, as titles.
    """
    pixels, chosen = _pixels(images), np.asarray(experts)
    if len(pixels) != len(chosen):
        raise DataError(f"{len(pixels)} images and the experts of {len(chosen)}")
    figure, grid = _grid(2, len(pixels), 0.35)
    count = int(chosen.max()) + 1
    for i, (above, below) in enumerate(zip(grid[: len(pixels)], grid[len(pixels) :], strict=True)):
        _show(above, pixels[i])
        if names is not None:
            above.set_title(str(names[i]), fontsize=8, pad=2)
        below.imshow(chosen[i] % 10, cmap="tab10", vmin=-0.5, vmax=9.5, interpolation="nearest")
        below.set_xticks([])
        below.set_yticks([])
    handles = [Patch(color=colormaps["tab10"](e % 10), label=f"expert {e}") for e in range(count)]
    figure.legend(handles=handles, loc="outside lower center", ncols=count, fontsize=8, frameon=False)
    return figure


def _pixels(images: Any) -> NDArray[np.float32]:
    """``(N, H, W, C)`` in [0, 1]."""
    found = as_images(images)
    whole = not found.is_floating_point()
    values = to_float(found).permute(0, 2, 3, 1).numpy()
    if not whole:
        low, high = float(values.min()), float(values.max())
        values = (values - low) / max(high - low, 1e-12)
    return values


def _grid(lines: int, columns: int, extra: float = 0.0) -> tuple[Figure, list[Axes]]:
    side = max(0.7, min(1.4, 10 / columns))
    figure = new_figure(1, width=side * columns + 0.5, height=(side + extra) * lines)
    figure.clf()
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in grid:
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure, grid


def _show(axes: Axes, pixels: NDArray[np.float32]) -> None:
    if pixels.shape[2] == 1:
        axes.imshow(pixels[:, :, 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(pixels, interpolation="nearest")
