"""Every estimator, trained on a few rows, for ``test_everywhere.py``."""

import hashlib
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.core.fuzz_models import MAKE, TABLE, sets_of_graphs

SHORT: dict[str, Any] = {"max_epochs": 2, "accelerator": "cpu"}


def _table() -> tuple[Any, Any, Any]:
    frame = MAKE["table"]().dropna()
    return frame[TABLE], frame["label"], frame["number"]


def _moe_classifier(seed: int | None) -> tuple[Any, Callable[[], Any]]:
    from moeapps import MoEClassifier

    X, labels, _ = _table()
    model = MoEClassifier("noisy_topk", dim=4, num_experts=2, num_blocks=1, random_state=seed, **SHORT).fit(X, labels)
    return model, lambda: model.predict_proba(X)


def _moe_regressor(seed: int | None) -> tuple[Any, Callable[[], Any]]:
    from moeapps import MoERegressor

    X, _, numbers = _table()
    model = MoERegressor(dim=4, num_experts=2, num_blocks=1, random_state=seed, **SHORT).fit(X, numbers)
    return model, lambda: model.predict(X)


def _mixture(seed: int | None) -> tuple[Any, Callable[[], Any]]:
    from sklearn.tree import DecisionTreeClassifier

    from moeapps import MixtureClassifier

    X, labels, _ = _table()
    experts = [DecisionTreeClassifier(max_depth=depth, max_features=1) for depth in (2, 4)]
    model = MixtureClassifier(experts, gate="linear", cv=2, costs=[1.0, 2.0], random_state=seed)
    model.fit(X[["a", "b", "c"]], labels)
    return model, lambda: model.predict_proba(X[["a", "b", "c"]])


def _mowst(seed: int | None) -> tuple[Any, Callable[[], Any]]:
    from moeapps import MowstClassifier

    X, y, edges = MAKE["graph"]()
    model = MowstClassifier(["gcn", "sage"], hidden_channels=4, random_state=seed, **SHORT).fit(X, y, edges)
    return model, lambda: model.predict_proba(X, edges)


def _gnn(seed: int | None) -> tuple[Any, Callable[[], Any]]:
    from moeapps import GNNClassifier

    X, y, edges = MAKE["graph"]()
    model = GNNClassifier("gat", hidden_channels=4, random_state=seed, **SHORT).fit(X, y, edges)
    return model, lambda: model.predict_proba(X, edges)


def _links(seed: int | None) -> tuple[Any, Callable[[], Any]]:
    from moeapps.graph import MowstLinkPredictor

    X, _, edges = MAKE["graph"]()
    model = MowstLinkPredictor(["gcn", "sage"], hidden_channels=4, random_state=seed, **SHORT).fit(X, edges)
    return model, lambda: model.predict_proba(np.array([[0, 1], [2, 3], [4, 39]]), X, edges)


def _graphs(seed: int | None) -> tuple[Any, Callable[[], Any]]:
    from moeapps.graph import MowstGraphClassifier

    graphs = sets_of_graphs()
    model = MowstGraphClassifier(["gcn"], hidden_channels=4, batch_size=8, norm=None, random_state=seed, **SHORT)
    model.fit(graphs)
    return model, lambda: model.predict_proba(graphs)


def _multi_task(seed: int | None) -> tuple[Any, Callable[[], Any]]:
    from moeapps.recsys import MultiTaskRanker

    frame = MAKE["ranking"]()
    model = MultiTaskRanker("mmoe", embedding_dim=2, batch_size=20, random_state=seed, **SHORT)
    model.fit(frame, ["click", "stars"], ignored=["like", "seconds"])
    return model, lambda: model.predict_proba(frame)


def _history(seed: int | None) -> tuple[Any, Callable[[], Any]]:
    from moeapps.recsys import AWMoERanker

    frame = MAKE["ranking"]()
    model = AWMoERanker(embedding_dim=2, batch_size=20, random_state=seed, **SHORT)
    model.fit(frame, "click", ignored=["like", "stars", "seconds"])
    return model, lambda: model.predict_proba(frame)


def _images(seed: int | None) -> tuple[Any, Callable[[], Any]]:
    from moeapps.vision import WideNetClassifier

    X, y = MAKE["images"]()
    sizes = {"embed_dim": 8, "depth": 1, "num_heads": 2, "num_experts": 2, "patch_size": 4}
    model = WideNetClassifier(random_state=seed, batch_size=8, **sizes, **SHORT).fit(X, y)
    return model, lambda: model.predict_proba(X)


def _generator(seed: int | None) -> tuple[Any, Callable[[], Any]]:
    from moeapps.vision import SwitchDiTGenerator

    X, y = MAKE["images"]()
    sizes = {"dim": 16, "depth": 1, "num_heads": 2, "num_experts": 2, "timesteps": 10}
    model = SwitchDiTGenerator(random_state=seed, batch_size=8, **sizes, **SHORT).fit(X, y)
    return model, lambda: model.sample(2, steps=3, seed=1)


def _drift(seed: int | None) -> tuple[Any, Callable[[], Any]]:
    from moeapps.stream import DriftMoEClassifier

    X, labels, _ = _table()
    model = DriftMoEClassifier(n_experts=3, router_hidden=(8, 8), seed=seed)
    model.learn_many(X, labels)
    return model, lambda: model.predict_proba_many(X)


def _drift_numbers(seed: int | None) -> tuple[Any, Callable[[], Any]]:
    from moeapps.stream import DriftMoERegressor

    X, _, numbers = _table()
    model = DriftMoERegressor(n_experts=3, router_hidden=(8, 8), seed=seed)
    model.learn_many(X, numbers)
    return model, lambda: model.predict_many(X)


MAKERS: dict[str, Callable[[int | None], tuple[Any, Callable[[], Any]]]] = {
    "MoEClassifier": _moe_classifier,
    "MoERegressor": _moe_regressor,
    "MixtureClassifier": _mixture,
    "MowstClassifier": _mowst,
    "GNNClassifier": _gnn,
    "MowstLinkPredictor": _links,
    "MowstGraphClassifier": _graphs,
    "MultiTaskRanker": _multi_task,
    "AWMoERanker": _history,
    "WideNetClassifier": _images,
    "SwitchDiTGenerator": _generator,
    "DriftMoEClassifier": _drift,
    "DriftMoERegressor": _drift_numbers,
}
"""Trains an estimator with a seed, and returns it with a function that predicts, by the estimator's name."""


def trained(name: str, seed: int | None) -> tuple[Any, Callable[[], Any]]:
    """An estimator trained with a seed, and a function of no argument that asks it for predictions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MAKERS[name](seed)


def digest(model: Any, predictions: Any) -> str:
    """A hash of the bits of a model, as it is saved, and of what it predicts."""
    return hashlib.sha256(model.to_bytes() + np.ascontiguousarray(predictions).tobytes()).hexdigest()


def digests(seed: int) -> dict[str, str]:
    """The hash of every estimator trained with a seed."""
    made = {name: trained(name, seed) for name in MAKERS}
    return {name: digest(model, predict()) for name, (model, predict) in made.items()}
