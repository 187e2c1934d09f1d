"""Warnings about a fitted model on rows that it has not seen, each with what to try, by what kind of model it is."""

# n rows, K classes, E experts

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moeapps.core.errors import ConfigError, DataError
from moeapps.report.judged import Judged, Target
from moeapps.report.measures import Measure
from moeapps.report.sections import listed, number, percent

__all__ = ["model_hints"]

IGNORED = 0.01
"""Mean weight below which an expert counts as ignored."""

CAPTURED = 0.95
"""Mean weight above which the others count as ignored together."""

DEAD = 0.01
"""Share of the assignments of a layer over an equal share, below which an expert is called dead."""

CHANGED = 0.3
"""Difference between the accuracies of parts of a stream from which on they are of different concepts."""

PARTS, PART_ROWS = 10, 50
"""Parts of a stream that are compared, and their rows, at least."""

ROWS = 300
"""Rows that the layers are asked about, at most."""


def model_hints(model: Any, X: Any, judged: Judged, measures: Sequence[Measure]) -> list[str]:
    """Warnings about a model.

    Parameters
    ----------
    model
        The model.
    X
        Rows as its ``predict`` takes them.
    judged : Judged
        What it made of them.
    measures : sequence of Measure
        Scores of the first target.

    Returns
    -------
    list of str
        One sentence each; empty for a healthy model.
    """
    return [
        *_not_better(judged.first, measures),
        *_collapsed(model, judged),
        *_layers(model, X),
        *_gate(model, judged),
        *_stream(model, judged),
        *judged.hints,
    ]


def _not_better(target: Target, measures: Sequence[Measure]) -> Iterator[str]:
    score = next((one for one in measures if one.name in ("log loss", "R2")), None)
    if score is None or score.beats_baseline:
        return
    name = target.name or "the target"
    than = f"({score.name} {number(score.value, 4)}, the constant {number(score.baseline, 4)})"
    ranked = [one for one in measures if one.name in ("accuracy", "ROC AUC")]
    if any(one.beats_baseline for one in ranked):  # what is right is known, how surely is not
        yield (
            f"the probabilities of {name} are no better than those of one constant {than}, though its classes are told "
            "apart: use the order of the rows and not the probabilities; calibrate (scikit-learn's "
            "CalibratedClassifierCV), or train on more"
        )
        return
    yield (
        f"{name} is not predicted better than by one constant {than}: train longer, or nothing here says anything "
        "about it"
    )


def _collapsed(model: Any, judged: Judged) -> Iterator[str]:
    """Experts that by themselves predict no better than the most frequent class."""
    target = judged.first
    if not target.classification or not judged.opinions:
        return
    majority = float(np.bincount(target.truth).max() / len(target.truth))
    noise = 2 * np.sqrt(majority * (1 - majority) / len(target.truth))
    for name, opinion in judged.opinions.items():
        accuracy = float((opinion.argmax(axis=1) == target.truth).mean())
        if accuracy > majority + noise:
            continue
        found = (
            f"by itself it gets {percent(accuracy)} right, always naming the most frequent class {percent(majority)}"
        )
        if hasattr(model, "champion_"):
            what = f"{name} expert collapsed" if name in ("weak", "strong") else f"expert {name} collapsed"
            remedy = (
                "variant='mixture' trains every expert alone, a larger own_loss keeps its own loss in joint training"
            )
            if getattr(model, "variant", "") not in ("mowst", "mowst_star", "auto") or not _joint(model):
                remedy = "give it more epochs or features of its own, or leave it out"
            yield f"{what}: {found}; {remedy}"
        else:
            yield f"expert {name} is no better than a constant: {found}; leave it out, or tune it"


def _champion(model: Any) -> str:
    """The expert that predicts alone, instead of the mixture; empty where there is none."""
    champion = str(getattr(model, "champion_", "mix"))
    if hasattr(model, "read_graph"):  # of links: the candidates are gates, and experts as "expert:gcn"
        return champion.removeprefix("expert:") if champion.startswith("expert:") else ""
    return "" if champion == "mix" else champion


def _joint(model: Any) -> bool:
    return not getattr(model, "_is_mixture", lambda: False)()


def _gate(model: Any, judged: Judged) -> Iterator[str]:
    """Experts without weight, in words that fit who decides about weights."""
    weights = judged.weights
    if weights is None or weights.shape[1] < 2 or _has_layers(model):
        return
    champion = _champion(model)
    if champion:
        yield (
            f"the mixture is not used: {champion} alone was better on the validation {judged.row_name}s, and "
            "predicts; fit it alone, or give the other experts other features"
        )
        return
    means = weights.mean()
    if hasattr(model, "learn_many"):
        yield from _kinds(means)
        return
    light = [str(name) for name in means.index[means < IGNORED]]
    which = f"expert{'s' * (len(light) > 1)} {listed(light)}"
    if not light:
        return
    alone = f", {means.idxmax()} has {percent(float(means.max()))}" if means.max() > CAPTURED else ""
    yield (
        f"the gate ignores {which} (less than {IGNORED:.0%} of the weight{alone}): the mixture predicts nearly the "
        "same without, and faster"
    )


def _kinds(means: Any) -> Iterator[str]:
    """Of a stream's experts of several kinds ("tree 0", "bayes 1") kinds are compared, not those of one kind."""
    kinds = means.groupby([str(name).rpartition(" ")[0] for name in means.index], sort=False).sum()
    idle = [str(name) for name in kinds.index if kinds[name] < IGNORED]
    if len(kinds) > 1 and idle:
        which = f"experts of the kind{'s' * (len(idle) > 1)} {listed(idle)}"
        yield f"{which} had almost no weight on these rows: experts= can leave them out"


def _has_layers(model: Any) -> bool:
    """Whether its experts are parts of layers that route, not models of their own."""
    return hasattr(model, "expert_load") and not hasattr(model, "mixture_")


def _layers(model: Any, X: Any) -> Iterator[str]:
    """Experts that get nothing in a layer; of a layer that several blocks share, in all of them together."""
    if not _has_layers(model) or isinstance(X, str):
        return
    few = X.iloc[:ROWS] if hasattr(X, "iloc") else X[:ROWS]
    loads: list[NDArray[np.float64]] = []
    together = np.zeros(len(few), dtype=np.int64)
    try:
        while len(loads) < 64:
            loads.append(model.expert_load(few, groups=together, layer=len(loads)).to_numpy()[0])
    except (ConfigError, DataError, IndexError):  # no further layer
        pass
    from moeapps.core.statistics import routed_layers

    shared = len(routed_layers(model.model_)) == 1 and len(loads) > 1
    named = {f"the experts that {len(loads)} blocks share": np.mean(loads, axis=0)} if shared else {
        f"block {number} of {len(loads)} with experts": load for number, load in enumerate(loads, start=1)
    }  # fmt: skip
    for where, load in named.items():
        dead = [str(e) for e in np.flatnonzero(load < DEAD / len(load))]
        if dead and len(load) > 1:
            yield (
                f"{where}: expert{'s' * (len(dead) > 1)} {listed(dead)} got almost none of these rows: raise the "
                "balance weight, use a router with noise (noisy_topk) or a bias that balances (shared), or fewer "
                "experts"
            )


def _stream(model: Any, judged: Judged) -> Iterator[str]:
    if not hasattr(model, "learn_many"):
        return
    target, rows = judged.first, len(judged)
    if target.classification and rows >= PARTS * PART_ROWS:
        good = (target.best == target.truth).astype(float)
        parts = [float(part.mean()) for part in np.array_split(good, PARTS)]
        if max(parts) - min(parts) > CHANGED:
            yield (
                f"the accuracy of parts of these rows is between {percent(min(parts))} and {percent(max(parts))}: the "
                "model is the one after its last event, which has left older concepts behind. Give rows that came "
                "after it; moeapps report of the run's folder has the scores of predictions made before each event was "
                "learned"
            )
    if getattr(model, "drift", "") is None:
        yield (
            "no drift detector (drift=None): experts are never renewed when the stream changes; drift='replace' renews "
            "them, and does nothing while it does not change"
        )
