"""Lines of the table of defaults, out of the results of the other benchmarks.

A line is one data set and one score: the default untouched, its own parts, and what else a user would take, by seed (or
split). Every function reads the file of one benchmark and yields its lines; nothing is computed but means over targets.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import graph_accuracy
import graph_tasks
import numpy as np
from mixtures import NOT_MEMBERS, SLOW
from public_tables import TABLES
from stream_models import MOA
from stream_sets import REAL

__all__ = ["SOURCES", "Line", "collect"]

Scores = dict[str, float]
"""By seed."""


@dataclass(frozen=True)
class Line:
    """One data set and one score.

    Attributes
    ----------
    task : str
        Kind of task; the summary has a row for each task, model and metric.
    model, data, metric : str
        The model with its defaults, the data set, and the score.
    ours : dict
        Scores of the default by seed.
    parts, rivals : dict
        Scores by seed of each of its own parts, and of each other model that a user would take.
    less : bool
        Whether less is better.
    fixed : bool
        Whether the rows are the same for every seed, so that one run of a model without randomness stands for all.
    scale : float
        What the scores are multiplied by when they are shown: 100 for shares.
    seen : bool
        Whether defaults were chosen with a look at this data set (at its training part).
    seconds : dict
        Mean seconds of training by model, where they were measured.
    """

    task: str
    model: str
    data: str
    metric: str
    ours: Scores
    parts: dict[str, Scores]
    rivals: dict[str, Scores]
    less: bool = False
    fixed: bool = False
    scale: float = 1.0
    seen: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def kind(self) -> tuple[str, str, str]:
        """What lines have in common that the summary counts together."""
        return self.task, self.model, self.metric


def by_seed(runs: Mapping[str, Any], score: Callable[[Any], Any]) -> Scores:
    """Scores of the runs that have one."""
    return {str(seed): float(score(run)) for seed, run in runs.items() if score(run) is not None}


def tables(found: dict[str, Any]) -> Iterator[Line]:
    """MixtureClassifier and MixtureRegressor on the public tables that nothing was tuned on."""
    for key, metric, task, scale in (
        ("loss", "log loss", "classification", 1.0),
        ("score", "accuracy", "classification", 100.0),
        ("score", "R2", "regression", 100.0),
    ):
        for name, splits in found["tables"].items():
            if TABLES[name].task != task:
                continue
            models = [model for model in splits["0"] if model not in SLOW]
            scores = {model: by_seed(splits, lambda run, model=model, key=key: run[model][key]) for model in models}
            members = [model for model in models if model not in NOT_MEMBERS]
            others = ("voting", "stacking", "boosting", "forest", "linear", "MLP")
            yield Line(
                f"tables, {task}", "MixtureClassifier" if task == "classification" else "MixtureRegressor",
                name, metric, scores["mixture"], {m: scores[m] for m in members}, {m: scores[m] for m in others},
                less=key == "loss", scale=scale,
                seconds={m: float(np.mean([run[m]["fit"] for run in splits.values()])) for m in models},
            )  # fmt: skip


def graphs(found: dict[str, Any]) -> Iterator[Line]:
    """MowstClassifier on public graphs; "chosen GNN" is the network that validates best alone."""
    runs = found["runs"]
    for name in graph_accuracy.GRAPHS:
        own = {key.rpartition(", ")[2]: run for key, run in runs.items() if key.rpartition(", ")[0] == name}

        def scores(model: str, own: dict[str, Any] = own) -> Scores:
            return {
                seed: value
                for seed, run in own.items()
                for value in graph_accuracy.scores_of({f"{name}, {seed}": run}, name, model)  # noqa: B023
            }

        experts = graph_accuracy.experts_of(runs)
        rivals = {"GCN": "gcn_plain", "chosen GNN": "best by validation"} | {n: n for n in graph_accuracy.LABELS}
        yield Line(
            "graphs, nodes", "MowstClassifier", name, "ROC-AUC" if name in graph_accuracy.BY_AUC else "accuracy",
            scores("mixture"), {expert: scores(expert) for expert in experts},
            {shown: found for shown, model in rivals.items() if (found := scores(model))},
            fixed=name in ("Cora", "CiteSeer"), scale=100.0,
            seconds={"ours": float(np.mean([run["mixture"]["seconds"] for run in own.values() if "mixture" in run]))},
        )  # fmt: skip


def links_and_graphs(found: dict[str, Any]) -> Iterator[Line]:
    """MowstLinkPredictor and MowstGraphClassifier."""
    for kind, task, model in (
        ("links", "graphs, links", "MowstLinkPredictor"),
        ("graphs", "graphs, whole", "MowstGraphClassifier"),
    ):
        for name, runs in found[kind].items():
            metric = graph_tasks.metric_of(kind, runs)
            own = {str(run["seed"]): run for run in runs}

            def scores(expert: str, own: dict[str, Any] = own, metric: str = metric) -> Scores:
                return by_seed(own, lambda run: run["scores"][expert][metric])  # noqa: B023

            formulas = [formula for formula in graph_tasks.FORMULAS if formula in runs[0]["scores"]]
            networks = {"GCN": "gcn", "SAGE": "sage", "GIN": "gin"}
            yield Line(
                task, model, name, "ROC-AUC" if metric == "auc" else metric, scores("mixture"),
                {expert: scores(expert) for expert in runs[0]["experts"]},
                {shown: scores(expert) for shown, expert in networks.items()}
                | {formula.replace("_", " "): scores(formula) for formula in formulas},
                scale=100.0, seconds={"ours": float(np.mean([run["seconds"] for run in runs]))},
            )  # fmt: skip


def alone(parts: dict[str, Any]) -> dict[str, Any]:
    """Runs of single kinds of experts among those of ``stream_accuracy.py --parts``."""
    return {
        key: {label: found for label, found in run.items() if label.endswith(" alone")}
        for key, run in parts["runs"].items()
    }


def streams(found: dict[str, Any]) -> Iterator[Line]:
    """DriftMoEClassifier; single kinds of experts are from ``stream_accuracy.py --parts`` and ``defaults.py --run``."""
    runs, single = found["runs"], found["alone"]

    def scores(name: str, model: str, of: dict[str, Any] = runs) -> Scores:
        own = {key.rpartition(", ")[2]: run for key, run in of.items() if key.rpartition(", ")[0] == name}
        return by_seed({seed: run[model] for seed, run in own.items() if model in run}, lambda run: run["accuracy"])

    for name in dict.fromkeys(key.rpartition(", ")[0] for key in runs):
        kinds = {label for key, run in single.items() if key.rpartition(", ")[0] == name for label in run}
        rivals = {label: scores(name, label) for label in MOA if "(12)" not in label and "(100)" not in label}
        yield Line(
            "streams, classes", "DriftMoEClassifier", name, "accuracy", scores(name, "DriftMoE"),
            {"use_router=False": scores(name, "DriftMoE, use_router=False")}
            | {label: scores(name, label, single) for label in sorted(kinds)},
            {label: values for label, values in rivals.items() if values},
            fixed=name in REAL, scale=100.0,
            seconds={
                label: float(np.mean([run[label]["n"] / run[label]["per_cpu_second"] for key, run in runs.items()
                                      if key.rpartition(", ")[0] == name and label in run]))
                for label in ("DriftMoE", *(label for label, values in rivals.items() if values))
            },
        )  # fmt: skip


def numbers(found: dict[str, Any]) -> Iterator[Line]:
    """DriftMoERegressor; the mixture of 0.1 is neither a part nor a rival."""
    found = found["runs"]
    for name in dict.fromkeys(key.rpartition(", ")[0] for key in found):
        own = {key.rpartition(", ")[2]: run for key, run in found.items() if key.rpartition(", ")[0] == name}
        models = list(next(iter(own.values())))
        scores = {
            label: by_seed({seed: run[label] for seed, run in own.items() if label in run}, lambda run: run["mae"])
            for label in models
        }
        yield Line(
            "streams, numbers", "DriftMoERegressor", name, "absolute error", scores["DriftMoE"],
            {label: scores[label] for label in models if label.startswith("DriftMoE,")},
            {label: scores[label] for label in models if label.startswith("river")},
            less=True,
            seconds={
                label: float(np.mean([run[label]["seconds"] for run in own.values() if label in run]))
                for label in models
            },
        )  # fmt: skip


def several_targets(found: dict[str, Any]) -> Iterator[Line]:
    """MultiTaskRanker, whose default is HoME, on two targets of census-income."""
    models = found["runs"]["census"]
    scores = {m: by_seed(runs, lambda run: np.mean(list(run["auc"].values()))) for m, runs in models.items()}
    yield Line(
        "several targets", "MultiTaskRanker", "census, 2 targets", "ROC-AUC", scores["HoME"],
        {"SharedBottom": scores["SharedBottom"]},
        {model: values for model, values in scores.items() if model.startswith(("torch-rechub", "deepctr"))},
        scale=100.0, seconds={m: float(np.mean([run["seconds"] for run in models[m].values()])) for m in models},
    )  # fmt: skip


def scenarios(found: dict[str, Any]) -> Iterator[Line]:
    """The same with six targets, and by age group."""
    models = found["runs"]["census"]

    def scores(model: str, targets: Any = None, group: str | None = None) -> Scores:
        def value(run: Any) -> Any:
            if targets is not None:
                return np.mean([run["auc"][target] for target in targets])
            groups = [group] if group else list(run["rows"])
            return np.mean([areas[name] for areas in run["by_scenario"].values() for name in groups])

        return by_seed(models[model], value)

    rivals = {model: runs for model, runs in models.items() if model.startswith("torch-rechub")}
    shared = list(next(iter(next(iter(rivals.values())).values()))["auc"])
    seconds = {model: float(np.mean([run["seconds"] for run in runs.values()])) for model, runs in models.items()}
    dense = ("single task", "SharedBottom")
    yield Line(
        "several targets", "MultiTaskRanker", f"census, {len(shared)} targets", "ROC-AUC", scores("HoME", shared),
        {model: scores(model, shared) for model in dense}, {model: scores(model, shared) for model in rivals},
        scale=100.0, seconds=seconds,
    )  # fmt: skip
    groups = list(next(iter(models["HoME"].values()))["rows"])
    for group in groups:
        yield Line(
            "several scenarios", "MultiTaskRanker", f"census, age {group}", "ROC-AUC", scores("HoME", group=group),
            {model: scores(model, group=group) for model in (*dense, "single scenario")}, {}, scale=100.0,
        )  # fmt: skip


def rankers(found: dict[str, Any]) -> Iterator[Line]:
    """AWMoERanker; DIN is the same ranker without experts. Rows with a decay or an encoder have no neighbours."""
    parts = ("AW-MoE, no neighbours", "DIN", "DIN, SASRec encoder", "DIN, embedding decay 0", "DNN")
    rivals = ("popularity", "item-kNN", "item-kNN, all other events", "SASRec", "SASRec, embedding decay 0")
    names = {"sparse": "ml-100k, sparse", "events": "ml-100k, every rating", "other": "dslabs movielens",
             "liked": "ml-100k, liked"}  # fmt: skip
    for name, models in found["runs"].items():
        scores = {model: by_seed(runs, lambda run: run["all"]["auc"]) for model, runs in models.items()}
        yield Line(
            "recommendation", "AWMoERanker", names[name], "ROC-AUC", scores["AW-MoE"],
            {model: scores[model] for model in parts if model in scores},
            {model: scores[model] for model in rivals if model in scores},
            fixed=True, scale=100.0, seen=name != "other",
            seconds={
                model: float(np.mean([run["seconds"] for run in runs.values()]))
                for model, runs in models.items() if all("seconds" in run for run in runs.values())
            },
        )  # fmt: skip


def images(found: dict[str, Any]) -> Iterator[Line]:
    """WideNetClassifier; the ViT has the same stem, width, depth and multiplications."""
    for name, models in found["sets"].items():
        scores = {model: by_seed(runs, lambda run: run["accuracy"]) for model, runs in models.items()}
        rivals = ("convolutional", "logistic regression", "random forest", "nearest neighbours")
        if not {"ViT", *rivals} <= scores.keys():  # not measured to the end
            continue
        yield Line(
            "images, classes", "WideNetClassifier", name, "accuracy", scores["WideNet"], {"ViT": scores["ViT"]},
            {model: scores[model] for model in rivals}, scale=100.0, fixed=name == "mnist",
            seconds={m: float(np.mean([run["seconds"] for run in runs.values()])) for m, runs in models.items()},
        )  # fmt: skip


def generation(found: dict[str, Any]) -> Iterator[Line]:
    """SwitchDiTGenerator; DiT is the same network without experts, and what a user would take."""
    runs = found["digits"]["runs"]
    scores = {model: by_seed(own, lambda run: run["curve"][-1]["fid"]) for model, own in runs.items()}
    yield Line(
        "images, generation", "SwitchDiTGenerator", "digits", "FID", scores["Switch-DiT"], {"DiT": scores["DiT"]}, {},
        less=True, seconds={m: float(np.mean([run["seconds"] for run in own.values()])) for m, own in runs.items()},
    )  # fmt: skip


def grown(found: dict[str, Any]) -> Iterator[Line]:
    """``moeify`` at its defaults: the network trained on with copies of its MLPs, or as it was."""
    runs = found["grow"]
    yield Line(
        "your own network", "moeify", "CIFAR-10, 4000", "accuracy", by_seed(runs, lambda run: run["mixture"]),
        {"dense, trained on": by_seed(runs, lambda run: run["dense"])}, {}, scale=100.0,
        seconds={m: float(np.mean([run[f"{key}_seconds"] for run in runs.values()]))
                 for m, key in (("ours", "mixture"), ("dense, trained on", "dense"))},
    )  # fmt: skip


SOURCES: dict[str, Callable[[dict[str, Any]], Iterator[Line]]] = {
    "mixtures": tables,
    "graph_accuracy": graphs,
    "graph_tasks": links_and_graphs,
    "stream_accuracy": streams,
    "stream_regression": numbers,
    "recsys_accuracy": several_targets,
    "recsys_tasks": scenarios,
    "recsys_ranking": rankers,
    "vision_accuracy": images,
    "vision_diffusion": generation,
    "moeify": grown,
}
"""What reads the results of which benchmark, in the order of the table."""


def collect(results: Callable[[str], dict[str, Any]], own: dict[str, Any]) -> list[dict[str, Any]]:
    """All lines as JSON values.

    Parameters
    ----------
    results : callable
        The results of a benchmark by its name.
    own : dict
        What ``defaults.py --run`` measured itself: "alone".

    Returns
    -------
    list of dict
        Fields of the lines.
    """
    lines: list[Line] = []
    for name, read in SOURCES.items():
        found = results(name)
        if name == "stream_accuracy":
            found["alone"] = own["alone"] | alone(results("stream_parts"))
        lines += read(found)
    return [asdict(line) for line in lines]
