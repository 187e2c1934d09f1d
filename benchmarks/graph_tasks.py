"""Links and graph targets: each expert alone beside their mixture, with the defaults, over splits.

    python benchmarks/graph_tasks.py links --data Cora CiteSeer amherst41 --root data --seeds 5
    python benchmarks/graph_tasks.py graphs --data Cora CiteSeer minesweeper --root data --seeds 5
    python benchmarks/graph_tasks.py show

links: a tenth of the links is the test (PyG's RandomLinkSplit, one pair without a link for each), a tenth of the rest
is held out by the estimator. Beside the experts stand common neighbours, Adamic-Adar and resource allocation as they
are. graphs: the target is the class of the node in the centre of a neighbourhood of one hop, whose own features are
hidden; a fifth of at most 1,000 neighbourhoods is the test. Scores are those of the test. "best expert" is the one with
the best mean on the test, which nobody knows beforehand; "chosen" the one with the lowest loss on validation. Gains are
those of the mixture, with the standard error of the paired differences. Seconds are processor time. Results are added
to the output file, split by split.
"""

import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import script_parser
from graph_accuracy import offline_root
from lightning.pytorch.utilities.seed import isolate_rng
from sklearn.model_selection import train_test_split
from torch_geometric.data import Data
from torch_geometric.transforms import RandomLinkSplit
from torch_geometric.utils import remove_self_loops, to_undirected

from moeapps.core.callbacks import seed_everything
from moeapps.graph import MowstGraphClassifier, MowstLinkPredictor, ego_nets
from moeapps.graph.features import normalized
from moeapps.graph.link_data import load_graph
from moeapps.graph.link_module import link_scores
from moeapps.graph.links import Structure

FORMULAS = ("common_neighbors", "adamic_adar", "resource_allocation")
MOST = 1_000


def prepared(name: str, root: str | None) -> Data:
    """The graph, with its features as usual for it, each edge once in both directions and no self-loops."""
    graph, normalize = load_graph(name, root)
    x = normalized(graph.x) if normalize else graph.x
    edges = to_undirected(remove_self_loops(graph.edge_index)[0], num_nodes=len(x))
    return Data(x=x, edge_index=edges, y=graph.y)


def asked_and_score(model: Any, test: Any, y: Any = None) -> dict[str, float]:
    """Cost of the cascade as a fraction of asking all experts, and its scores."""
    model.set_params(inference="cascade")
    asked = model.predict_table(test).filter(like="asked_").to_numpy()
    scores = model.evaluate(test) if y is None else model.evaluate(test, y)
    model.set_params(inference="mix")
    order = list(model.cascade_.order)
    costs = np.diff(model.cascade_.costs, prepend=0.0)
    return {**scores, "cost": float((asked[:, order] * costs).sum(axis=1).mean())}


def links(graph: Data, seed: int) -> dict[str, Any]:
    """One split: scores by expert."""
    plain = Data(x=graph.x, edge_index=graph.edge_index)
    with isolate_rng():
        seed_everything(seed)
        train, _, test = RandomLinkSplit(0.0, 0.1, is_undirected=True, add_negative_train_samples=False)(plain)
    start = time.process_time()
    model = MowstLinkPredictor(random_state=seed).fit(train)
    seconds = time.process_time() - start
    scores = model.compare(test).to_dict("index")
    rows = Structure(test.edge_index, len(graph.x))(test.edge_label_index)
    for name in FORMULAS:
        values = torch.from_numpy(rows[:, Structure.columns.index(name)])
        scores[name] = link_scores(torch.stack([-values, values], dim=1), test.edge_label.long())
    return {"scores": scores, "seconds": seconds, **told(model), "cascade": asked_and_score(model, test)}


def graphs(graph: Data, seed: int) -> dict[str, Any]:
    """One split: scores by expert."""
    nets = ego_nets(graph, most=MOST, seed=seed)
    y = [int(net.y) for net in nets]
    train, test = train_test_split(nets, test_size=0.2, random_state=seed, stratify=y)
    start = time.process_time()
    model = MowstGraphClassifier(random_state=seed, monitor="auc" if len(set(y)) == 2 else "accuracy").fit(train)
    seconds = time.process_time() - start
    scores = model.compare(test).to_dict("index")
    return {"scores": scores, "seconds": seconds, **told(model), "cascade": asked_and_score(model, test)}


def told(model: Any) -> dict[str, Any]:
    """What the model says of itself."""
    alone = model.candidates_[model.candidates_["candidate"].str.startswith("expert:")]
    chosen = str(alone["candidate"][alone["loss"].idxmin()]).partition(":")[2]
    return {"champion": model.champion_, "chosen": chosen, "epochs": model.n_iter_, "experts": model.expert_names_}


def metric_of(task: str, runs: list[dict[str, Any]]) -> str:
    """AUC for links and for two classes, else accuracy."""
    return "auc" if task == "links" or runs[0].get("classes") == 2 else "accuracy"


def gains(runs: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """Gain of the mixture over the best expert and over the chosen one, with standard errors."""
    experts = runs[0]["experts"] + [name for name in FORMULAS if name in runs[0]["scores"]]
    values = {name: np.array([run["scores"][name][metric] for run in runs]) for name in ["mixture", *experts]}
    best = max(experts, key=lambda name: values[name].mean())
    chosen = np.array([run["scores"][run["chosen"]][metric] for run in runs])
    found: dict[str, Any] = {"best": best, "values": values}
    for name, other in (("over best", values[best]), ("over chosen", chosen)):
        difference = values["mixture"] - other
        error = float(difference.std(ddof=1) / len(runs) ** 0.5) if len(runs) > 1 else float("nan")
        found[name] = (float(difference.mean()), error)
    return found


def table(task: str, found: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Lines of a table in Markdown: one row per graph."""
    first = next(iter(found.values()))[0]
    experts = first["experts"] + [name for name in FORMULAS if name in first["scores"]]
    head = ["graph", *(name.replace("_", " ") for name in experts), "mixture", "over best", "over chosen", "cost", "s"]
    lines = [f"| {' | '.join(head)} |", f"| --- | {' | '.join(['---:'] * (len(head) - 1))} |"]
    for name, runs in found.items():
        metric = metric_of(task, runs)
        result = gains(runs, metric)
        cells = []
        for expert in [*experts, "mixture"]:
            values = 100 * result["values"][expert]
            cell = f"{values.mean():.2f} ± {values.std(ddof=1) / len(values) ** 0.5:.2f}"
            cells.append(f"**{cell}**" if expert in (result["best"], "mixture") else cell)
        for key in ("over best", "over chosen"):
            mean, error = result[key]
            cells.append(f"{100 * mean:+.2f} ± {100 * error:.2f}")
        cells.append(f"{np.mean([run['cascade']['cost'] for run in runs]):.2f}")
        cells.append(f"{np.mean([run['seconds'] for run in runs]):.0f}")
        lines.append(f"| {name}, {metric.upper() if metric == 'auc' else metric} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("task", choices=["links", "graphs", "show"])
    parser.add_argument("--data", nargs="+", default=["Cora"])
    parser.add_argument("--root", help="folder of the public graphs; not needed for Cora")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/graph_tasks.json"))
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    with tempfile.TemporaryDirectory() as scratch:
        for seed in range(options.seeds if options.task != "show" else 0):
            for name in options.data:
                graph = prepared(name, offline_root(options.root, Path(scratch), name))
                run = {"links": links, "graphs": graphs}[options.task](graph, seed)
                run |= {"seed": seed, "classes": 2 if options.task == "links" else int(graph.y.max()) + 1}
                results = json.loads(options.output.read_text()) if options.output.exists() else {}
                others = [one for one in results.get(options.task, {}).get(name, []) if one["seed"] != seed]
                results.setdefault(options.task, {})[name] = sorted([*others, run], key=lambda one: one["seed"])
                options.output.write_text(json.dumps(results, indent=1) + "\n")
                scores = {key: round(value["accuracy" if options.task == "graphs" else "auc"], 4)
                          for key, value in run["scores"].items()}  # fmt: skip
                print(name, seed, run["champion"], scores, f"{run['seconds']:.0f} s", flush=True)
    results = json.loads(options.output.read_text())
    for task in ("links", "graphs"):
        if task in results:
            print(f"\n{task}", *table(task, results[task]), sep="\n")


if __name__ == "__main__":
    main()
