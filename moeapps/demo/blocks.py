"""The parts of the demo: each trains a mixture and its dense baselines on data that is part of the package.

Every part announces its rows to the recorder, then trains each model once per seed and notes score, history and views.
Sizes are what fits into five minutes on two cores; the benchmarks train larger models.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

from moeapps.core.views import Curves, Map, Views, expert_shares
from moeapps.demo.made import by_age_group, two_halves
from moeapps.demo.record import Recorder, Row

__all__ = ["graph", "recsys", "stream", "tables", "vision"]

DRIFTING = 3_000
"""Instances of the synthetic stream with drift; twice as many where concepts return."""

ROWS = 1_000
"""Rows of a table for training, at most."""


def tables(recorder: Recorder) -> None:
    """MixtureClassifier, its members and their mean: breast cancer (30 numbers), and a part of a census."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.metrics import accuracy_score, roc_auc_score
    from sklearn.model_selection import train_test_split

    from moeapps.recsys import census_income
    from moeapps.tables import MixtureClassifier, default_experts

    cancer, malignant = load_breast_cancer(return_X_y=True, as_frame=True)
    people = census_income()
    census = people.drop(columns=["income", "never_married", "instance_weight"])
    tasks: list[tuple[str, str, pd.DataFrame, pd.Series]] = [
        ("breast cancer", "accuracy", cancer, malignant),
        ("census, one target", "ROC-AUC", census, people["income"]),
    ]
    titles = {"linear": "logistic regression", "boosting": "boosting", "forest": "random forest",
              "moe": "MoEClassifier"}  # fmt: skip
    for task, metric, X, y in tasks:
        size = min(ROWS, len(X) * 3 // 4)
        rows = {
            name: Row("tables", task, title, metric, part=True, rival=name != "moe") for name, title in titles.items()
        }
        mean = Row("tables", task, "mean of the four", metric, rival=True)
        mixture = Row("tables", task, "MixtureClassifier", metric, default=True)
        recorder.add(*rows.values(), mean, mixture)

        def score(probability: Any, y: Any, metric: str = metric) -> float:
            return float(
                accuracy_score(y, probability > 0.5) if metric == "accuracy" else roc_auc_score(y, probability)
            )

        for seed in range(recorder.seeds):
            train, test, y_train, y_test = train_test_split(X, y, train_size=size, random_state=seed, stratify=y)
            probabilities = []
            for name, model in default_experts(train, y_train, task="classification", random_state=seed):
                with recorder.training(rows[name], seed):
                    model.fit(train, y_train)
                probabilities.append(model.predict_proba(test)[:, 1])
                parameters = _count(model.model_) if name == "moe" else 0
                recorder.score(rows[name], score(probabilities[-1], y_test), parameters)
            with recorder.training(mean, seed):  # of the four that are there
                together = np.mean(probabilities, axis=0)
            recorder.score(mean, score(together, y_test))
            model = MixtureClassifier(random_state=seed)
            with recorder.training(mixture, seed):
                model.fit(train, y_train)
            recorder.score(mixture, score(model.predict_proba(test)[:, 1], y_test))
            mixture.views = model.views(test, y_test)


def graph(recorder: Recorder) -> None:
    """MLP, GCN, Mowst* trained jointly and the default mixture: Cora, and a graph on which both experts are needed."""
    from moeapps.core.plots import plot_training
    from moeapps.graph import GNNClassifier, Mowst, MowstClassifier, PublicGraphData
    from moeapps.graph.plan import stages_of
    from moeapps.graph.plots import plot_confidence

    for task in ("Cora", "two kinds of nodes"):
        made = task != "Cora"
        norm = "batch_norm" if made else None
        models: dict[str, Any] = {
            "MLP alone": GNNClassifier("mlp", norm=norm),
            "GCN alone": GNNClassifier("gcn", norm=norm),
        }
        rows = [Row("graph", task, name, "accuracy", part=True, rival=name == "GCN alone") for name in models]
        if made:
            models["Mowst*, jointly"] = MowstClassifier("gcn", variant="mowst_star", norm=norm)
            rows.append(Row("graph", task, "Mowst*, jointly", "accuracy"))
        models["MowstClassifier"] = MowstClassifier()
        rows.append(Row("graph", task, "MowstClassifier", "accuracy", default=True))
        recorder.add(*rows)
        for seed in range(recorder.seeds):
            data = two_halves(seed) if made else PublicGraphData("Cora").prepared()
            for row, model in zip(rows, models.values(), strict=True):
                with recorder.training(row, seed):
                    model.set_params(random_state=seed).fit(data)
                strong = model.route(data).mean() if row.ours else float(row.model == "GCN alone")
                recorder.score(row, model.score(data), _count(model.model_), strong=strong)
                row.history = model.history_
                if row.ours:
                    shown, row.views = _confidence(model, data)
                if row.model.startswith("Mowst*"):
                    chain, of_chain = model.model_, shown
    assert isinstance(chain, Mowst)
    recorder.pictures["graph-training.png"] = plot_training(
        {row.model: row.history for row in rows if row.history is not None and not row.default},
        stages=(*stages_of(chain.names), "finished"),
    )
    recorder.pictures["graph-confidence.png"] = plot_confidence(
        *of_chain, f"Mowst* on test nodes of two kinds, seed {recorder.seeds - 1}"
    )


def _confidence(model: Any, data: Any) -> tuple[tuple[Any, Any, Any], Views]:
    """Dispersion and confidence of the weak expert on test nodes, whether it is right, and these as a view."""
    from moeapps.graph import variance_dispersion
    from moeapps.graph.measures import confidence_curves

    weak = model.model_.experts["weak"](data.x).detach().softmax(-1)[data.test_mask]
    dispersion, right = variance_dispersion(weak), weak.argmax(-1) == data.y[data.test_mask]
    confidence = model.predict_confidence(data)[data.test_mask.numpy()]
    curves = confidence_curves(dispersion, torch.as_tensor(confidence), right, "test nodes")
    return (dispersion.numpy(), confidence, right.numpy()), Views(curves=[curves])


def stream(recorder: Recorder) -> None:
    """DriftMoE and river's tree, forest and neighbours: phishing sites, moving clusters, and concepts that return."""
    from river import datasets, forest, neighbors, preprocessing, tree

    from moeapps.stream import DriftMoEClassifier, prequential, recurring_stream, synthetic_stream
    from moeapps.stream.evaluate import plot_prequential

    streams: dict[str, Callable[[int], Any]] = {
        "phishing": lambda seed: datasets.Phishing(),
        "moving clusters": lambda seed: synthetic_stream("rbf_fast", n=DRIFTING, seed=seed),
        "returning concepts": lambda seed: recurring_stream("rbf", n=2 * DRIFTING, every=DRIFTING // 3, seed=seed),
    }
    makers: dict[str, tuple[Callable[[int], Any], dict[str, Any]]] = {
        "Hoeffding tree": (lambda seed: tree.HoeffdingTreeClassifier(), {"rival": True}),
        "adaptive forest (10)": (lambda seed: forest.ARFClassifier(n_models=10, seed=seed), {"rival": True}),
        "nearest neighbours": (
            lambda seed: (
                preprocessing.MinMaxScaler() | neighbors.KNNClassifier(5, neighbors.LazySearch(window_size=1_000))
            ),
            {"rival": True},
        ),
        "DriftMoE, no router": (lambda seed: DriftMoEClassifier(use_router=False, seed=seed), {"part": True}),
        "DriftMoE": (lambda seed: DriftMoEClassifier(seed=seed), {"default": True}),
    }
    results: dict[str, Any] = {}
    for task, make in streams.items():
        rows = [Row("stream", task, name, "accuracy", **roles) for name, (_, roles) in makers.items()]
        recorder.add(*rows)
        for seed in range(recorder.seeds):
            instances = list(make(seed))
            for row in rows:
                model = makers[row.model][0](seed)
                with recorder.training(row, seed):
                    result = prequential(model, instances, window=250)
                recorder.score(row, result.scores["accuracy"])
                row.history = result.curve
                row.views = stream_views(result.curve, result.drift_events)
                results[row.model] = result
    recorder.pictures["stream.png"] = plot_prequential(
        results, title=f"{task}: each instance is predicted, then learned"
    )


def stream_views(curve: pd.DataFrame, events: pd.DataFrame) -> Views:
    """Shares of the experts, by kind, over time, with a mark where one was renewed."""
    shares = expert_shares(curve)
    if shares.empty:
        return Views()
    renewed = events.loc[events["event"] == "renewed", "instance"].tolist()
    lines = {str(name): values.tolist() for name, values in shares.items()}
    return Views(
        curves=[Curves.of("share of each expert", curve["instance"].tolist(), lines, "instance", "share",
                          stacked=True, marks=[float(instance) for instance in renewed])]
    )  # fmt: skip


def recsys(recorder: Recorder) -> None:
    """HoME, MMoE or PEPNet, Shared-Bottom and boosting: two targets of a census, and three by age group."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    from moeapps.recsys import MultiTaskRanker, Schema, SparseFeature, census_income, census_schema

    people, known = census_income(), census_schema()
    features = (*(feature for feature in known.features if feature.name != "dividends"), SparseFeature("age_group"))
    targets = ["income", "never_married", "dividends"]
    tasks: list[tuple[str, pd.DataFrame, Any, list[str], str | None]] = [
        ("census, two targets", people, known, targets[:2], None),
        ("census, by age group", by_age_group(people), Schema(features, tuple(targets), known.ignored), targets,
         "age_group"),
    ]  # fmt: skip
    for task, frame, schema, names, scenario in tasks:
        boosting = Row("recsys", task, "boosting per target", "mean ROC-AUC", rival=True)
        apart = Row("recsys", task, "a network per group", "mean ROC-AUC", rival=True)
        other = ("pepnet", "PEPNet") if scenario else ("mmoe", "MMoE")
        models = {
            "shared_bottom": Row("recsys", task, "Shared-Bottom", "mean ROC-AUC", part=True),
            other[0]: Row("recsys", task, other[1], "mean ROC-AUC"),
            "home": Row("recsys", task, "HoME", "mean ROC-AUC", default=True),
        }
        recorder.add(boosting, *([apart] if scenario else []), *models.values())

        def ranker(name: str, seed: int, schema: Any = schema, scenario: str | None = scenario) -> MultiTaskRanker:
            return MultiTaskRanker(
                name, schema=schema, batch_size=256, lr=2e-3, max_epochs=8, random_state=seed,
                scenario=scenario if name == "pepnet" else None,
            )  # fmt: skip

        for seed in range(recorder.seeds):
            mixed = frame.sample(frac=1.0, random_state=seed, ignore_index=True)
            train, test = mixed[: len(mixed) * 4 // 5], mixed[len(mixed) * 4 // 5 :]
            found = {}
            with recorder.training(boosting, seed):
                X = mixed[[feature.name for feature in schema.features]]
                X = X.astype(dict.fromkeys(X.select_dtypes(exclude="number"), "category"))
                for name in names:
                    model = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=seed)
                    model.fit(X.loc[train.index], train[name])
                    found[name] = model.predict_proba(X.loc[test.index])[:, 1]
            recorder.score(boosting, _mean_area(test, found, scenario))
            if scenario:
                parts, count = [], 0
                with recorder.training(apart, seed):
                    for group, own in train.groupby(scenario):
                        model = ranker("shared_bottom", seed).fit(own, targets=names)
                        parts.append(_probabilities(model, test[test[scenario] == group]))
                        count += _count(model.model_)
                recorder.score(apart, _mean_area(test, pd.concat(parts), scenario), count)
            for name, row in models.items():
                model = ranker(name, seed)
                with recorder.training(row, seed):
                    model.fit(train, targets=names)
                recorder.score(row, _mean_area(test, _probabilities(model, test), scenario), _count(model.model_))
                row.history = model.history_
                if row.default:
                    row.views = model.diagnose(test).views()


def _probabilities(model: Any, rows: pd.DataFrame) -> pd.DataFrame:
    """Of each target, with the index of the rows."""
    return pd.DataFrame({name: np.asarray(p) for name, p in model.predict_proba(rows).items()}, index=rows.index)


def _mean_area(test: pd.DataFrame, probabilities: Any, scenario: str | None) -> float:
    """ROC-AUC, the mean over targets and the values of a column."""
    from sklearn.metrics import roc_auc_score

    found = pd.DataFrame(probabilities, index=test.index)
    names = [str(name) for name in found]
    parts = [test] if scenario is None else [part for _, part in test.groupby(scenario)]
    return float(np.mean([roc_auc_score(part[name], found.loc[part.index, name]) for part in parts for name in names]))


def vision(recorder: Recorder) -> None:
    """Digits classified by WideNet, a ViT and a convolutional network, and generated by DiT and Switch-DiT."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from moeapps.comparison.image_models import SmallCNN
    from moeapps.vision import SwitchDiTGenerator, WideNetClassifier
    from moeapps.vision.plots import plot_images

    digits = load_digits()
    task, epochs = "digits classification", 8
    classifiers = {
        "convolutional": Row("vision", task, "convolutional", "accuracy", rival=True),
        "vit": Row("vision", task, "ViT of equal FLOPs", "accuracy", part=True, rival=True),
        "widenet": Row("vision", task, "WideNet", "accuracy", default=True),
    }
    task, error = "digits generation", "denoising error"
    generators = {
        "dit": Row("vision", task, "DiT", error, part=True, rival=True, percent=False, less=True),
        "switch_dit": Row("vision", task, "Switch-DiT", error, default=True, percent=False, less=True),
    }
    recorder.add(*classifiers.values(), *generators.values())
    for seed in range(recorder.seeds):
        train, test, y_train, y_test = train_test_split(
            digits.images, digits.target, test_size=0.25, random_state=seed, stratify=digits.target
        )
        for name, row in classifiers.items():
            classifier: Any = SmallCNN(seed, max_epochs=epochs)
            if name != "convolutional":
                width: dict[str, Any] = (
                    {"mlp_ratio": 4.0} if name == "vit" else {}
                )  # as wide as the two experts of a patch
                classifier = WideNetClassifier(name, max_epochs=epochs, random_state=seed, **width)
            with recorder.training(row, seed):
                classifier.fit(train, y_train)
            network = getattr(classifier.model_, "network", classifier.model_)
            recorder.score(row, np.mean(classifier.predict(test) == y_test), _count(network))
            row.history = getattr(classifier, "history_", None)
            if row.ours:
                row.views = Views(
                    [Map.of("experts by digit, last block", classifier.expert_load(test, y_test), "digit")]
                )
        for name, row in generators.items():
            generator = SwitchDiTGenerator(name, max_epochs=8, validation_fraction=0.25, random_state=seed)
            with recorder.training(row, seed):
                generator.fit(digits.images, digits.target)
            recorder.score(row, generator.history_["val/loss"].iloc[-1], _count(generator.model_.network))
            row.history = generator.history_
            if row.ours:
                row.views = generator.model_.views()
    samples = generator.sample(50, y=[digit for digit in range(10) for _ in range(5)], guidance=2.0)
    recorder.pictures["digits.png"] = plot_images(samples, columns=10)


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
