"""``moeapps demo``: train mixtures and their dense baselines on real data, and leave a table and a report behind.

No network, about five minutes on two cores. Each part is a function of its name in :mod:`moeapps.demo.blocks`.
"""

from typing import TYPE_CHECKING, Any

from moeapps.moved import warn_deprecated

if TYPE_CHECKING:
    from moeapps.demo.record import Row

__all__ = ["PARTS", "run"]

PARTS = ("tables", "graph", "stream", "recsys", "vision")
"""The parts, in the order in which they run. Reading them imports no torch, since ``moeapps --help`` shows them."""


def run(folder: str = "moeapps-demo", seeds: int = 2, part: str | None = None) -> "list[Row]":
    """Train, print the table, write ``results.json``, the report, pictures and a folder per run.

    Parameters
    ----------
    folder : str, default "moeapps-demo"
        Where to write; files of an earlier demo are replaced.
    seeds : int, default 2
        Number of trainings per model, with seeds 0, 1, ...
    part : str, optional
        One of :data:`PARTS`; all of them when None, the default.

    Returns
    -------
    list of Row
        The rows of the table.

    Raises
    ------
    ConfigError
        If ``seeds`` is below 1 or there is no such part.
    """
    from moeapps.demo.runner import run_parts

    return run_parts(folder, seeds, PARTS if part is None else (part,))


def __getattr__(name: str) -> Any:
    if name != "BLOCKS":
        raise AttributeError(f"module 'moeapps.demo' has no attribute {name!r}")
    from moeapps.demo import blocks

    warn_deprecated("moeapps.demo.BLOCKS is deprecated: PARTS has the names")
    return {part: getattr(blocks, part) for part in PARTS}
