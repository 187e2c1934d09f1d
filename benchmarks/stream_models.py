"""Models of the stream benchmarks: ours, river's, and MOA's through CapyMOA, and how each is evaluated.

MOA's learners run in Java's own loop over an ARFF file (``loop="arff"``), which is the fastest that MOA has, or fed
from Python row by row (``loop="numpy"``: CapyMOA's NumpyStream). Predictions are the same up to the number of classes
that the header names; only the speed differs. Where CapyMOA or Java is missing, everything else still runs.
"""

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from river import compose, ensemble, forest, neighbors, preprocessing, tree
from stream_sets import Stream

from moeapps.stream import DriftMoEClassifier, prequential
from moeapps.stream.compiled.kinds import KINDS

__all__ = [
    "ABLATION", "MOA", "OURS", "PAPER", "PARTS", "PREFIX", "RIVER", "WITHOUT", "Rival", "evaluate", "evaluate_moa",
    "no_capymoa", "warm_up",
]  # fmt: skip

NEIGHBOURS, WINDOW = 5, 1000
"""Of the windowed nearest neighbours, in river and in MOA."""


@dataclass(frozen=True)
class Rival:
    """A learner that is not ours.

    Attributes
    ----------
    make : callable
        river: the model for a seed. MOA: name of CapyMOA's class.
    arguments : dict
        Of CapyMOA's class.
    first : int, optional
        Instances after which it is stopped, since the rest would take hours.
    random : bool
        Whether its seed matters; where it does not, fixed instances are run once.
    once : bool
        Whether it is run on the first seed only, since it takes too long.
    most_classes : int, optional
        Classes beyond which it is not run, since it has an ensemble for each and would take hours.
    """

    make: Any
    arguments: dict[str, Any] = field(default_factory=dict)
    first: int | None = None
    random: bool = True
    once: bool = False
    most_classes: int | None = None


OURS: dict[str, Callable[[int], Any]] = {
    "DriftMoE": lambda seed: DriftMoEClassifier(seed=seed),
    "DriftMoE, use_router=False": lambda seed: DriftMoEClassifier(use_router=False, seed=seed),
    "DriftMoE(10)": lambda seed: DriftMoEClassifier(n_experts=10, seed=seed),
    "DriftMoE, task": lambda seed: DriftMoEClassifier("task", seed=seed),
    "paper, data": lambda seed: DriftMoEClassifier.paper("data", seed=seed),
    "paper, task": lambda seed: DriftMoEClassifier.paper("task", seed=seed),
}

PREFIX = 10_000


def _scaled(model: Any) -> Any:
    """With features between 0 and 1, which distances and Mondrian trees need."""
    return compose.Pipeline(preprocessing.MinMaxScaler(), model)


def _river_knn(seed: int) -> Any:
    return _scaled(neighbors.KNNClassifier(NEIGHBOURS, neighbors.LazySearch(window_size=WINDOW)))


RIVER: dict[str, Rival] = {
    "river HT": Rival(lambda seed: tree.HoeffdingTreeClassifier(grace_period=50, delta=1e-7), random=False),
    "river HAT": Rival(lambda seed: tree.HoeffdingAdaptiveTreeClassifier(seed=seed), first=PREFIX, once=True),
    "river kNN": Rival(_river_knn, first=PREFIX, random=False),
    "river ARF(10)": Rival(lambda seed: forest.ARFClassifier(n_models=10, seed=seed), first=PREFIX, once=True),
    "river ARF(12)": Rival(lambda seed: forest.ARFClassifier(n_models=12, seed=seed), first=PREFIX, once=True),
    "river AMF(10)": Rival(lambda seed: _scaled(forest.AMFClassifier(10, seed=seed)), first=PREFIX, once=True),
    "river AMF(12)": Rival(lambda seed: _scaled(forest.AMFClassifier(12, seed=seed)), first=PREFIX, once=True),
    "river LevBag(10)": Rival(
        lambda seed: ensemble.LeveragingBaggingClassifier(tree.HoeffdingTreeClassifier(), n_models=10, seed=seed),
        first=PREFIX,
        once=True,
    ),
    "river SRP(10)": Rival(lambda seed: ensemble.SRPClassifier(n_models=10, seed=seed), first=PREFIX, once=True),
}


MOA: dict[str, Rival] = {
    "MOA HT": Rival("HoeffdingTree", {"grace_period": 50, "confidence": 1e-7}, random=False),
    "MOA HAT": Rival("HoeffdingAdaptiveTree"),
    "MOA kNN": Rival("KNN", {"k": NEIGHBOURS, "window_size": WINDOW}, random=False),
    "MOA SAM-kNN": Rival("SAMkNN", {"k": NEIGHBOURS}, random=False),
    **{
        f"MOA {name}({size})": Rival(kind, {argument: size}, once=size != 10 or name == "SGBT")
        for size in (10, 12)
        for name, kind, argument in (
            ("ARF", "AdaptiveRandomForestClassifier", "ensemble_size"),
            ("LevBag", "LeveragingBagging", "ensemble_size"),
            ("SRP", "StreamingRandomPatches", "ensemble_size"),
            ("SGBT", "StreamingGradientBoostedTrees", "boosting_iterations"),
        )
    },
    "MOA SGBT(100)": Rival("StreamingGradientBoostedTrees", {"boosting_iterations": 100}, once=True, most_classes=2),
}
"""Equal numbers of trees: 10 on every seed, 12 on the first. Boosting is slow, since it has trees for each class, and
runs on the first seed only, also with 100."""

PAPER: dict[str, Any] = DriftMoEClassifier.paper("data").get_params()
ABLATION: list[tuple[str, dict[str, Any]]] = [
    ("paper, data", {}),
    ("+ trees split at delta 0.01", {"delta": 0.01}),
    ("+ all experts learn", {"learn_with": "all"}),
    ("+ online bagging, rate 6", {"bagging": 6.0, "grace_period": 100}),
    ("+ all experts predict", {"predict_with": "mixture"}),
    ("+ background trees", {"drift": "replace"}),
    ("+ enriched router input", {"router_inputs": "enriched"}),
    (
        "+ smaller, quicker router",
        {"router_hidden": (128, 64), "router_lr": 3e-3, "router_period": 8, "router_dropout": 0.0},
    ),
    ("+ the router's class probabilities", {"blend": 30.0}),
]
WITHOUT: dict[str, dict[str, Any]] = {
    "defaults": {},
    "without background trees": {"drift": None},
    "reset instead of background trees": {"drift": "reset"},
    "without bagging": {"bagging": 0.0, "grace_period": 50},
    "recent accuracy instead of the router": {"use_router": False},
    "without the router's class probabilities": {"blend": 0.0},
    "raw router input": {"router_inputs": "raw"},
    "70 % of the features per leaf": {"feature_share": 0.7},
    "majority leaves": {"leaf_prediction": "mc"},
}


PARTS: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"without {kind}": {"experts": [other for other in KINDS if other != kind]} for kind in KINDS},
    **{f"{kind} alone": {"experts": [kind]} for kind in KINDS},
    "mean of all": {"gate": "mean"},
    "recent accuracy (use_router=False)": {"use_router": False},
    "stack": {"gate": "stack"},
    "context gate": {"gate": "context"},
    "without an archive": {"archive": 0},
    "trees, without an archive": {"experts": ["tree"], "archive": 0},
    "trees under the neural router (experts=None)": {"experts": None},
    "trees by recent accuracy, 0.1's rival": {"experts": None, "use_router": False},
}
"""What each kind of expert, each way of mixing and the archive bring."""


def evaluate(model: Any, stream: Stream) -> dict[str, Any]:
    """Scores, instances per second (wall and processor time) and memory of a model of ours or river's."""
    cpu = time.process_time()
    found = prequential(model, stream.pairs())
    cpu = time.process_time() - cpu
    size = getattr(model, "nbytes_", None)
    return {
        **found.scores,
        "n": found.n,
        "per_second": found.instances_per_second,
        "per_cpu_second": found.n / cpu,
        "bytes": model._raw_memory_usage if size is None else size,
    }


@functools.cache
def no_capymoa() -> str | None:
    """Why MOA's learners cannot be run; None if they can."""
    try:
        import capymoa.classifier  # noqa: F401
    except ImportError:
        return "pip install capymoa"
    except Exception as error:  # CapyMOA raises several kinds where Java is missing or too old
        return f"CapyMOA does not start Java: {str(error).splitlines()[0]}"
    return None


def evaluate_moa(
    name: str, stream: Stream, seed: int, cache: Path, loop: str = "arff", hits: bool = False
) -> dict[str, Any]:
    """The same of a learner of MOA. ``hits`` adds whether each instance was predicted correctly."""
    import capymoa.classifier
    from capymoa.evaluation import prequential_evaluation
    from capymoa.stream import ARFFStream, NumpyStream

    rival = MOA[name]
    source = ARFFStream(arff(stream, seed, cache)) if loop == "arff" else NumpyStream(stream.X, stream.y)
    arguments = {**rival.arguments, "random_seed": 1 + seed}
    learner = getattr(capymoa.classifier, rival.make)(schema=source.get_schema(), **arguments)
    wall, cpu = time.perf_counter(), time.process_time()
    found = prequential_evaluation(source, learner, store_predictions=hits, store_y=hits)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    scores, n = found.cumulative, len(stream.y)
    result = {
        "accuracy": scores.accuracy() / 100,
        "kappa": scores.kappa() / 100,
        "kappa_m": scores.kappa_m() / 100,
        "kappa_t": scores.kappa_t() / 100,
        "n": n,
        "per_second": n / wall,
        "per_cpu_second": n / cpu,
    }
    if hits:
        truth, predictions = np.asarray(found.ground_truth_y()), np.asarray(found.predictions())
        result["hits"] = truth.astype(float) == predictions.astype(float)
    return result


def arff(stream: Stream, seed: int, cache: Path) -> Path:
    """The stream as a file of MOA's: numbers to the last digit, classes in the order of their codes."""
    path = cache / f"{stream.name}_{len(stream.y)}_{0 if stream.fixed else seed}.arff"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        with part.open("w") as file:
            file.write(f"@relation {stream.name}\n")
            file.writelines(f"@attribute f{i} numeric\n" for i in range(stream.X.shape[1]))
            file.write(f"@attribute class {{{','.join(map(str, range(int(stream.y.max()) + 1)))}}}\n@data\n")
            for row, label in zip(stream.X.tolist(), stream.y.tolist(), strict=True):
                file.write(f"{','.join(map(repr, row))},{label}\n")
        part.replace(path)
    return path


def warm_up(models: Any = OURS) -> None:
    """Compile, so that no time is counted for it."""
    rows = [({0: float(i), 1: 1.0}, i % 2) for i in range(300)]
    for label in models:
        prequential(OURS[label](0), rows)
