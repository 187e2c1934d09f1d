"""Tables of what stream_accuracy.py has measured: for a terminal, and as Markdown for docs/benchmarks/streams.md."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.table import Table
from stream_models import MOA, OURS, PREFIX, RIVER, no_capymoa
from stream_sets import REAL, STREAMS

__all__ = ["COLUMNS", "SHORT", "comparison", "comparisons", "difference", "first", "pages", "table"]

SHORT = ("DriftMoE", "DriftMoE, use_router=False", "DriftMoE(10)")
"""Models of ours that are also measured on the instances that river's get."""

COLUMNS = ("DriftMoE", "DriftMoE, use_router=False", "MOA ARF(10)", "MOA LevBag(10)", "MOA SRP(10)", "MOA SGBT(10)",
           "MOA HAT", "MOA kNN", "MOA SAM-kNN")  # fmt: skip
"""Of the table in docs/benchmarks/streams.md."""


def first(label: str) -> str:
    """Name of the result on the first instances only."""
    return f"{label}, first {PREFIX:,}"


def scores_of(runs: dict[str, Any], name: str, learner: str) -> dict[int, float]:
    """Accuracy in % by seed."""
    found = {int(key.rpartition(" ")[2]): run for key, run in runs.items() if key.rpartition(",")[0] == name}
    return {seed: 100 * run[learner]["accuracy"] for seed, run in found.items() if learner in run}


def names_of(runs: dict[str, Any]) -> list[str]:
    """Streams that have been run."""
    return [name for name in STREAMS if any(key.rpartition(",")[0] == name for key in runs)]


def table(runs: dict[str, Any]) -> Table:
    """Mean accuracy and speed over the seeds of each stream."""
    names = names_of(runs)
    known = [*OURS, *MOA, *RIVER, *map(first, SHORT)]
    found = list(dict.fromkeys(learner for run in runs.values() for learner in run))
    rows = [*(label for label in known if label in found), *(label for label in found if label not in known)]
    absent = no_capymoa() is not None and not any(label in MOA for label in rows)
    if absent and any(label in OURS for label in rows):
        rows += list(MOA)
    shown = Table(title="prequential accuracy in %, mean +- sd over seeds (number of seeds) | instances/s")
    shown.add_column("learner")
    for name in names:
        shown.add_column(name, justify="right")
    for learner in rows:
        cells = []
        for name in names:
            scores = np.array(list(scores_of(runs, name, learner).values()))
            if not len(scores):
                cells.append("absent" if absent and learner in MOA else "")
                continue
            speed = np.mean([run[learner]["per_second"] for key, run in runs.items()
                             if key.rpartition(",")[0] == name and learner in run])  # fmt: skip
            cells.append(f"{scores.mean():.2f} +- {scores.std():.2f} ({len(scores)}) | {speed:,.0f}")
        shown.add_row(learner, *cells)
    return shown


def difference(ours: dict[int, float], theirs: dict[int, float], fixed: bool = False) -> tuple[float, float]:
    """Mean difference over the seeds that both have, and its standard error (0 with one seed).

    Where the instances are the same for every seed (``fixed``), one run of a rival without randomness stands for all.
    """
    if fixed and len(theirs) == 1:
        theirs = dict.fromkeys(ours, next(iter(theirs.values())))
    gaps = np.array([ours[seed] - theirs[seed] for seed in ours if seed in theirs])
    return float(gaps.mean()), float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else 0.0


def comparison(runs: dict[str, Any], ours: str, rival: str) -> dict[str, list[str]]:
    """Streams on which ours is ahead of a rival or behind it by more than one standard error, or neither, with gaps."""
    found: dict[str, list[str]] = {"ahead": [], "within one s.e.": [], "behind": []}
    for name in names_of(runs):
        mine, theirs = scores_of(runs, name, ours), scores_of(runs, name, rival)
        if not set(mine) & set(theirs):
            continue
        gap, error = difference(mine, theirs, name in REAL)
        verdict = "ahead" if gap > error else "behind" if gap < -error else "within one s.e."
        found[verdict].append(f"{name} {gap:+.2f}")
    return found


def comparisons(runs: dict[str, Any]) -> Iterator[str]:
    """Ours against each rival, stream by stream."""
    whole = [label for label, rival in RIVER.items() if rival.first is None]
    rest = [label for label in RIVER if label not in whole]
    for ours, rivals in (("DriftMoE", ["DriftMoE, use_router=False", *MOA, *whole]), (first("DriftMoE"), rest)):
        for rival in rivals:
            found = comparison(runs, ours, rival)
            if any(found.values()):
                parts = (f"{verdict} on {len(streams)} ({', '.join(streams)})" for verdict, streams in found.items())
                yield f"{ours} and {rival}: {', '.join(parts)}"


def pages(runs: dict[str, Any]) -> Iterator[str]:
    """The tables in docs/benchmarks/streams.md: accuracies by stream, then verdicts by rival."""
    yield f"| stream | {' | '.join(column.removeprefix('DriftMoE, ') for column in COLUMNS)} |"
    yield "| --- " * (len(COLUMNS) + 1) + "|"
    for name in names_of(runs):
        cells = []
        for column in COLUMNS:
            scores = np.array(list(scores_of(runs, name, column).values()))
            spread = f" ± {scores.std():.2f}" if len(scores) > 1 else ""
            cells.append(f"{scores.mean():.2f}{spread}" if len(scores) else "")
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""
    yield "| DriftMoE beside | ahead | within one s.e. | behind |"
    yield "| --- | --- | --- | --- |"
    for rival in COLUMNS[1:]:
        found = comparison(runs, COLUMNS[0], rival)
        cells = [f"{len(streams)}: {', '.join(streams)}" if streams else "0" for streams in found.values()]
        yield f"| {rival} | {' | '.join(cells)} |"
