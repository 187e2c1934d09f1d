"""Which columns matter: scikit-learn's permutation importance, within a limit of seconds."""

# n rows, P columns

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from sklearn.inspection import permutation_importance

from moeapps.report.figures import COLORS, INK, Picture, draw_chart
from moeapps.report.graph_shuffles import CONNECTIONS, EVERYTHING
from moeapps.report.judged import Judged, Target
from moeapps.report.sections import Section, listed, number, plural

__all__ = ["importance"]

ROWS = 500
"""Rows that are shuffled, at most."""

FEWEST = 50
"""Rows below which an importance would be noise: none is computed."""

REPEATS = 5
"""Shuffles per column, at most."""

SHOWN = 12
"""Columns of the chart, at most."""


def importance(judged: Judged, model: Any, seconds: float, seed: int) -> list[Section]:
    """How much worse the first target is predicted when a column is shuffled.

    Parameters
    ----------
    judged : Judged
        Rows and their targets.
    model
        The model, which scikit-learn wants to see; predictions are those of ``judged``.
    seconds : float
        What may be spent; rows and shuffles are as many as fit in.
    seed : int
        Of rows and shuffles.

    Returns
    -------
    list of Section
        One, or none where the columns cannot be shuffled one by one.
    """
    graph = judged.shuffled is not None  # which is shuffled as a whole
    frame = judged.shuffled if graph else judged.frame
    if judged.predict is None or frame is None or not frame.shape[1]:
        return []
    target, predict, truth = judged.first, judged.predict, judged.first.truth
    section = Section(f"Which columns matter{f': {target.name}' if len(judged.targets) > 1 else ''}")
    if not graph:
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.choice(len(judged), min(ROWS, len(judged)), replace=False))
        frame, truth = frame.iloc[rows], truth[rows]
    start = time.perf_counter()
    predict(frame)
    once = max(time.perf_counter() - start, 1e-4)
    calls = max(1, frame.shape[1])
    repeats = int(np.clip(seconds / (once * calls), 1, REPEATS))
    fitting = int(len(truth) * min(1.0, seconds / (once * calls * repeats)))
    if fitting < (len(truth) if graph else min(FEWEST, len(truth))):
        section.text.append(
            f"Not computed: shuffling {plural(calls, 'column')} would take about {once * calls:.0f} seconds, and "
            f"{seconds:g} are allowed (seconds=, --seconds)."
        )
        return [section]
    if not graph:
        frame, truth = frame.iloc[:fitting], truth[:fitting]

    def score(_: Any, X: Any, y: Any) -> float:
        return -float(Target(target.name, y, predict(X)[0], target.classes).losses.mean())

    found = permutation_importance(model, frame, truth, scoring=score, n_repeats=repeats, random_state=seed)
    loss = "log loss" if target.classification else "mean absolute error"
    order = np.argsort(-found.importances_mean, kind="stable")
    names = [str(name) for name in frame.columns]
    means, spreads = found.importances_mean, found.importances_std
    useful = [
        i for i in order if means[i] > max(2 * spreads[i] / np.sqrt(repeats), 1e-4 * abs(score(None, frame, truth)))
    ]
    between = (
        f"{judged.row_name}s" if not graph else "all nodes of the graph; connections, when nodes exchange neighbours"
    )
    how = (
        f"A column matters if predictions get worse when its values are shuffled between {between}. "
        f"{plural(fitting, judged.row_name)}, {plural(repeats, 'shuffle')} per column (scikit-learn's permutation "
        "importance). Of columns that say the same, each may look unimportant."
    )
    if not useful:
        section.text += [f"No column matters on its own: shuffling any of them leaves the {loss} as it is.", how]
        return [section]
    section.pictures.append(_bars(names, means, spreads, useful[:SHOWN], loss))
    section.text.append(how)
    if dominates(means, useful) and not names[useful[0]].startswith((CONNECTIONS, EVERYTHING)):
        section.text.append(
            f"Nearly everything comes from {names[useful[0]]}. If its value is known only with or after the outcome, "
            f"these scores are too good: train without it (ignore_columns=[{names[useful[0]]!r}])."
        )
    rest = [names[i] for i in useful[SHOWN:]]
    if rest:
        section.text.append(f"Less important: {listed(rest, 20)}.")
    idle = [names[i] for i in order if i not in set(useful)]
    if idle:
        section.text.append(f"Without a measurable effect: {listed(idle, 20)}.")
    return [section]


def dominates(means: Sequence[float], useful: Sequence[int]) -> bool:
    """Whether the first useful column says more than nine tenths of what all together do, as a leak would.

    Of two or three columns one often does so honestly.
    """
    return len(means) > 3 and means[useful[0]] > 0.9 * sum(means[i] for i in useful)


def _bars(names: list[str], means: Any, spreads: Any, shown: list[int], loss: str) -> Picture:
    first = names[shown[0]]
    title = f"{first} {'matter' if first.startswith((CONNECTIONS, EVERYTHING)) else 'matters'} most"
    if len(shown) > 1:
        title += f", then {names[shown[1]]}"

    def draw(axes: Axes) -> None:
        places = range(len(shown))
        axes.barh(places, means[shown], xerr=spreads[shown], color=COLORS[0], ecolor=INK, error_kw={"linewidth": 0.8})
        axes.set_yticks(places, [_short(names[i]) for i in shown])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(f"rise of the {loss} when shuffled")

    words = "; ".join(f"{names[i]}: {number(means[i])}" for i in shown[:6])
    return draw_chart(draw, title, words)


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
