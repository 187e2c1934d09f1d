"""The parts of the demo: each trains a mixture and its dense baselines on data that is part of the package.

Every part announces its rows to the recorder, then trains each model once per seed and notes score, history and views.
Sizes are what fits into five minutes on two cores; the benchmarks train larger models.
"""

from collections.abc import Callable
from typing import Any

import pandas as pd
import torch

from moeapps.core.views import Curves, Map, Views, expert_shares
from moeapps.demo.record import Recorder, Row

__all__ = ["graph", "recsys", "stream", "tables", "vision"]

DRIFTING = 3_000
"""Instances of the synthetic stream with drift."""


def tables(recorder: Recorder) -> None:
    """MoEClassifier and logistic regression: breast cancer (30 numbers), a quarter of the rows for testing."""
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from moeapps.tables import MoEClassifier

    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    names = y.map({0: "malignant", 1: "benign"})
    linear = Row("tables", "breast cancer", "logistic regression", "accuracy", ours=False)
    mixture = Row("tables", "breast cancer", "MoEClassifier", "accuracy", ours=True)
    recorder.add(linear, mixture)
    for seed in range(recorder.seeds):
        train, test, y_train, y_test = train_test_split(X, names, test_size=0.25, random_state=seed, stratify=names)
        baseline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        with recorder.training(linear, seed):
            baseline.fit(train, y_train)
        recorder.score(linear, baseline.score(test, y_test), X.shape[1] + 1)
        model = MoEClassifier(random_state=seed)
        with recorder.training(mixture, seed):
            model.fit(train, y_train)
        recorder.score(mixture, model.score(test, y_test), _count(model.model_))
        mixture.history = model.history_
        mixture.views = Views([Map.of("experts by class, last block", model.expert_load(test, y_test), "class")])


def graph(recorder: Recorder) -> None:
    """Cora: MLP, GCN, Mowst trained in turns and Mowst* trained jointly, of the same sizes, and the default mixture."""
    from moeapps.core.plots import plot_training
    from moeapps.graph import GNNClassifier, Mowst, MowstClassifier, PublicGraphData, variance_dispersion
    from moeapps.graph.measures import confidence_curves
    from moeapps.graph.plan import stages_of
    from moeapps.graph.plots import plot_confidence

    data = PublicGraphData("Cora").prepared()
    test = data.test_mask.numpy()
    truth = data.y.numpy()[test]
    models: dict[str, Any] = {
        "MLP alone": GNNClassifier("mlp", norm=None),
        "GCN alone": GNNClassifier("gcn", norm=None),
        "Mowst, in turns": MowstClassifier("gcn", variant="mowst", norm=None, round_patience=1),
        "Mowst*, jointly": MowstClassifier("gcn", variant="mowst_star", norm=None),
        "mixture of networks": MowstClassifier(),
    }
    rows = [Row("graph", "Cora", name, "accuracy", ours=not name.endswith("alone")) for name in models]
    recorder.add(*rows)
    for seed in range(recorder.seeds):
        for row, model in zip(rows, models.values(), strict=True):
            with recorder.training(row, seed):
                model.set_params(random_state=seed).fit(data)
            score = (model.predict(data)[test] == truth).mean()
            strong = model.route(data).mean() if row.ours else float(row.model == "GCN alone")
            recorder.score(row, score, _count(model.model_), strong=strong)
            row.history = model.history_
            if row.ours:
                weak = model.model_.experts["weak"](data.x).detach().softmax(-1)[data.test_mask]
                dispersion, right = variance_dispersion(weak), weak.argmax(-1).numpy() == truth
                confidence = model.predict_confidence(data)[test]
                curves = confidence_curves(
                    dispersion, torch.as_tensor(confidence), torch.from_numpy(right), "test nodes"
                )
                row.views = Views(curves=[curves])
                if row.model == "Mowst*, jointly":
                    shown = dispersion.numpy(), confidence, right
    chain = models["Mowst*, jointly"].model_
    assert isinstance(chain, Mowst)
    recorder.pictures["graph-training.png"] = plot_training(
        {row.model: row.history for row in rows if row.history is not None and "mixture" not in row.model},
        stages=(*stages_of(chain.names), "finished"),
    )
    recorder.pictures["graph-confidence.png"] = plot_confidence(
        *shown, f"Mowst* on Cora's test nodes, seed {recorder.seeds - 1}"
    )


def stream(recorder: Recorder) -> None:
    """DriftMoE and river's Hoeffding tree and adaptive random forest: phishing sites, and a stream with drift."""
    from river import datasets, forest, tree

    from moeapps.stream import DriftMoEClassifier, prequential, synthetic_stream
    from moeapps.stream.evaluate import plot_prequential

    def rows_of(task: str, seed: int) -> list[Any]:
        return list(datasets.Phishing() if task == "phishing" else synthetic_stream("rbf_fast", n=DRIFTING, seed=seed))

    makers: dict[str, Callable[[int], Any]] = {
        "Hoeffding tree": lambda seed: tree.HoeffdingTreeClassifier(),
        "adaptive forest (10)": lambda seed: forest.ARFClassifier(n_models=10, seed=seed),
        "DriftMoE": lambda seed: DriftMoEClassifier(seed=seed),
    }
    results: dict[str, Any] = {}
    for task in ("phishing", "moving clusters"):
        rows = [Row("stream", task, name, "accuracy", ours=name == "DriftMoE") for name in makers]
        recorder.add(*rows)
        for seed in range(recorder.seeds):
            instances = rows_of(task, seed)
            for row in rows:
                model = makers[row.model](seed)
                with recorder.training(row, seed):
                    result = prequential(model, instances, window=250)
                recorder.score(row, result.scores["accuracy"])
                row.history = result.curve
                row.views = stream_views(result.curve, result.drift_events)
                results[row.model] = result
    recorder.pictures["stream.png"] = plot_prequential(
        results, title="moving clusters: each instance is predicted, then learned"
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
    """Shared-Bottom, MMoE and HoME: two targets of a census table, 6,400 rows for training, 1,600 for testing."""
    from moeapps.recsys import MultiTaskRanker, census_income, census_schema

    people = census_income()
    rows = {
        name: Row("recsys", "census, two targets", title, "mean ROC-AUC", ours=name != "shared_bottom")
        for name, title in (("shared_bottom", "Shared-Bottom"), ("mmoe", "MMoE"), ("home", "HoME"))
    }
    recorder.add(*rows.values())
    for seed in range(recorder.seeds):
        mixed = people.sample(frac=1.0, random_state=seed)
        train, test = mixed[:6400], mixed[6400:]
        for name, row in rows.items():
            model = MultiTaskRanker(
                name, schema=census_schema(), batch_size=256, lr=2e-3, max_epochs=8, random_state=seed
            )
            with recorder.training(row, seed):
                model.fit(train, targets=["income", "never_married"])
            recorder.score(row, model.evaluate(test)["auc"].mean(), _count(model.model_))
            row.history = model.history_
            if row.ours:
                row.views = model.diagnose(test).views()


def vision(recorder: Recorder) -> None:
    """ViT and WideNet, which classify digits, and DiT and Switch-DiT, which generate them."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from moeapps.vision import SwitchDiTGenerator, WideNetClassifier
    from moeapps.vision.plots import plot_images

    digits = load_digits()
    classifiers = {
        name: Row("vision", "digits classification", title, "accuracy", ours=name == "widenet")
        for name, title in (("vit", "ViT"), ("widenet", "WideNet"))
    }
    generators = {
        name: Row("vision", "digits generation", title, "denoising error", ours=name == "switch_dit", percent=False)
        for name, title in (("dit", "DiT"), ("switch_dit", "Switch-DiT"))
    }
    recorder.add(*classifiers.values(), *generators.values())
    for seed in range(recorder.seeds):
        train, test, y_train, y_test = train_test_split(
            digits.images, digits.target, test_size=0.25, random_state=seed, stratify=digits.target
        )
        for name, row in classifiers.items():
            classifier = WideNetClassifier(name, max_epochs=8, random_state=seed)
            with recorder.training(row, seed):
                classifier.fit(train, y_train)
            recorder.score(row, classifier.score(test, y_test), _count(classifier.model_.network))
            row.history = classifier.history_
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
