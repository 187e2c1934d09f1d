"""The names that users may write: in YAML files, in saved models, in ``moeapps list``.

A table of strings and nothing else, so that reading it imports no framework. Two users depend on that: ``moeapps
list`` and ``--help`` answer at once, and :func:`moeapps.load` imports a class only when its name stands here (a model
file can therefore not make it import anything else).
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any

from moeapps import plugins
from moeapps.moved import current_path

__all__ = [
    "ENTRIES",
    "MODULE_NAME",
    "OWN_MODULES",
    "TRAINED",
    "Entry",
    "Trained",
    "admit",
    "are_parts",
    "describe_import",
    "did_you_mean",
    "entries",
    "find",
    "foreign_parts",
    "is_known",
    "nearest",
    "register",
    "resolve",
]


@dataclass(frozen=True)
class Entry:
    """One public name: what kind of thing it is, where it lives, and what it is, in one line."""

    kind: str
    path: str
    summary: str
    alias: str | None = None

    @property
    def name(self) -> str:
        """Short name: the alias, or the last part of the path."""
        return self.alias or self.path.rpartition(".")[2]


ENTRIES: dict[str, Entry] = {
    entry.path: entry
    for entry in (
        Entry(
            "model",
            "moeapps.graph.Mowst",
            "weak MLP + strong GNN, mixed per node by confidence (plain torch)",
        ),
        Entry(
            "model",
            "moeapps.graph.MowstModule",
            "Mowst with its training in turns or jointly, for `moeapps fit`",
        ),
        Entry(
            "model",
            "moeapps.graph.GNNModule",
            "one network alone (mlp, gcn, gat, ...): the baseline, for `moeapps fit`",
        ),
        Entry("model", "moeapps.tables.MoEClassifier", "mixture of experts for tables, classification"),
        Entry("model", "moeapps.tables.MoERegressor", "mixture of experts for tables, regression"),
        Entry("model", "moeapps.tables.MixtureClassifier", "a gate over any fitted classifiers, weights by row"),
        Entry("model", "moeapps.tables.MixtureRegressor", "a gate over any fitted regressors, weights by row"),
        Entry("model", "moeapps.tables.TableModule", "mixture of experts for tables, for `moeapps fit`"),
        Entry("model", "moeapps.tables.MixtureModule", "a gate over any estimators, for `moeapps fit`"),
        Entry("model", "moeapps.graph.MowstClassifier", "Mowst behind scikit-learn's fit/predict"),
        Entry("model", "moeapps.graph.MowstLinkPredictor", "links of a graph: MLP, GNNs, common neighbours, mixed"),
        Entry("model", "moeapps.graph.MowstGraphClassifier", "classes of whole graphs: pooled MLP and GNNs, mixed"),
        Entry("model", "moeapps.graph.LinkModule", "several experts for links and their mixture, for `moeapps fit`"),
        Entry("model", "moeapps.graph.GraphExpertsModule", "the same for classes of graphs, for `moeapps fit`"),
        Entry("model", "moeapps.stream.DriftMoEClassifier", "mixture of Hoeffding trees for streams that change"),
        Entry("model", "moeapps.stream.DriftMoERegressor", "the same for streams of numbers"),
        Entry("model", "moeapps.recsys.MultiTaskRanker", "several targets of one table: MMoE, PLE, AdaTT, HoME"),
        Entry("model", "moeapps.recsys.AWMoERanker", "experts activated by a user's history; also DIN and SASRec"),
        Entry("model", "moeapps.recsys.RankingModule", "any ranker, for `moeapps fit`"),
        Entry("model", "moeapps.vision.WideNetClassifier", "images by WideNet, ViT-MoE or ViT, fit/predict"),
        Entry("model", "moeapps.vision.SwitchDiTGenerator", "generates images by class: Switch-DiT or DiT, fit/sample"),
        Entry("model", "moeapps.vision.ImageModule", "WideNet, ViT-MoE, ViT or a timm model, for `moeapps fit`"),
        Entry("model", "moeapps.vision.DiffusionModule", "Switch-DiT or DiT, for `moeapps fit`"),
        Entry(
            "network",
            "moeapps.core.growth.saved.MoEified",
            "a network of one's own with experts",
        ),
        Entry("checkpoint", "moeapps.stream.StreamCheckpoint", "a model of `moeapps stream run` with its position"),
        Entry("model", "moeapps.graph.GNNClassifier", "one network alone behind scikit-learn's fit/predict"),
        Entry(
            "router",
            "moeapps.core.TopKRouter",
            "softmax over experts, the k most probable ones (Switch, GShard, V-MoE)",
            "topk",
        ),
        Entry(
            "router", "moeapps.core.NoisyTopKRouter", "top-k with noise of learned size (Shazeer 2017)", "noisy_topk"
        ),
        Entry(
            "router",
            "moeapps.core.TopPRouter",
            "as many experts as it takes to reach probability p (dynamic routing)",
            "topp",
        ),
        Entry(
            "router",
            "moeapps.core.ExpertChoiceRouter",
            "every expert takes its top tokens; evaluation falls back to top-k",
            "expert_choice",
        ),
        Entry(
            "router", "moeapps.core.HashRouter", "one expert by hash of the token or its id; nothing to learn", "hash"
        ),
        Entry(
            "router",
            "moeapps.core.ThorRouter",
            "random experts per batch in training, the mean of all in evaluation",
            "thor",
        ),
        Entry(
            "router", "moeapps.core.SMoEDropoutRouter", "fixed random router, k grows during training", "smoe_dropout"
        ),
        Entry(
            "router",
            "moeapps.core.NullExpertsRouter",
            "top-k over real and null experts: easy tokens use fewer (AdaMoE)",
            "null_experts",
        ),
        Entry(
            "router",
            "moeapps.core.SharedExpertsRouter",
            "always-on experts beside routed ones, balanced by a bias (DeepSeekMoE)",
            "shared",
        ),
        Entry(
            "router", "moeapps.core.BilevelRouter", "first a group of experts, then an expert in it (SMILE)", "bilevel"
        ),
        Entry("router", "moeapps.core.AvgKRouter", "score by the mean of an expert's keys; no router weights", "avg_k"),
        Entry(
            "router",
            "moeapps.core.AutonomyRouter",
            "experts score themselves by the norm of a narrow activation",
            "autonomy",
        ),
        Entry("router", "moeapps.core.SoftRouter", "every slot is a mix of a sample's tokens (Soft MoE)", "soft"),
        Entry(
            "data",
            "moeapps.graph.PublicGraphData",
            "a public graph by name: Cora (embedded), tolokers, Penn94, ogbn-arxiv, ...",
        ),
        Entry(
            "data",
            "moeapps.recsys.PublicRankingData",
            "a public table: census-income, ml-100k, KuaiRand, ...",
        ),
        Entry("data", "moeapps.recsys.RankingData", "your own table: a frame, or a CSV or Parquet file of any size"),
        Entry("data", "moeapps.recsys.ImplicitData", "what users took, without negatives: events from a file or frame"),
        Entry("data", "moeapps.tables.TableData", "your own table, a CSV or Parquet file, or census-income"),
        Entry("data", "moeapps.vision.PublicImageData", "images by name: digits (embedded), CIFAR-10, MNIST, ..."),
        Entry("data", "moeapps.vision.ImageFolderData", "your own images: one folder per class"),
        Entry("data", "moeapps.graph.LinkData", "a graph whose links are held out: your own, or a public one"),
        Entry("data", "moeapps.graph.LinkTableData", "the links of your own graph: a table of nodes and one of edges"),
        Entry("data", "moeapps.graph.GraphSetData", "a set of graphs: your own, or one of TUDataset's"),
        Entry("data", "moeapps.graph.EgoNetData", "the neighbourhoods of a graph's nodes, as a set of graphs"),
        Entry("data", "moeapps.graph.GraphTableData", "your own graph: a table of nodes and one of edges"),
        Entry("data", "moeapps.graph.GraphDataModule", "your own graph: a PyG Data object or an .npz file"),
    )
}


MODULE_NAME = "moeapps_module"
"""Entry of a checkpoint: import path of the module that was trained."""

OWN_MODULES = "moeapps_own_modules"
"""Entry of a checkpoint: names of constructor arguments that were torch modules of the user."""


@dataclass(frozen=True)
class Trained:
    """A module of ``moeapps fit``, and the estimator that its checkpoint becomes.

    Parameters
    ----------
    module : str
        Registered path of the module.
    estimator : str
        Registered path of a class whose ``from_module`` makes the estimator.
    marks : tuple of str
        Entries and hyperparameters by which a checkpoint without :data:`MODULE_NAME` is known.
    """

    module: str
    estimator: str
    marks: tuple[str, ...]


TRAINED: tuple[Trained, ...] = (
    Trained("moeapps.recsys.RankingModule", "moeapps.recsys.MultiTaskRanker", ("moeapps_table",)),
    Trained("moeapps.tables.TableModule", "moeapps.tables.MoEClassifier", ("moeapps_tabular",)),
    Trained("moeapps.tables.MixtureModule", "moeapps.tables.MixtureClassifier", ("moeapps_mixture",)),
    Trained("moeapps.vision.DiffusionModule", "moeapps.vision.SwitchDiTGenerator", ("moeapps_images", "timesteps")),
    Trained("moeapps.vision.ImageModule", "moeapps.vision.WideNetClassifier", ("moeapps_images",)),
    Trained("moeapps.graph.LinkModule", "moeapps.graph.MowstLinkPredictor", ("plan", "decoder")),
    Trained("moeapps.graph.GraphExpertsModule", "moeapps.graph.MowstGraphClassifier", ("plan", "pooling")),
    Trained("moeapps.graph.MowstModule", "moeapps.graph.MowstClassifier", ("plan", "held_out")),
    Trained("moeapps.graph.GNNModule", "moeapps.graph.GNNClassifier", ("network", "out_channels", "monitor")),
)
"""What becomes of a checkpoint in :func:`moeapps.load`; the first entry whose marks are there counts."""


_OWN = frozenset(ENTRIES)
"""Paths of moeapps' own entries."""


def register(kind: str, path: str, summary: str, alias: str | None = None) -> None:
    """Make a class of your own known to :func:`moeapps.load` and to ``moeapps list``.

    Called where the class is defined (at the end of its module), it takes effect wherever the module is imported: by
    ``--import``, by ``moeapps.load(path, import_modules=...)``, or as the entry point of an installed package.

    Parameters
    ----------
    kind : str
        ``"model"``, ``"router"`` or ``"data"``.
    path : str
        Import path of the class, for example ``"mypackage.models.MyModel"``.
    summary : str
        What it is, in one line.
    alias : str, optional
        Short name, where the class's name is not it (routers: ``"topk"``).

    Raises
    ------
    ValueError
        If another class of this kind has the short name already: a saved model would load as something else.
    """
    entry = Entry(kind, path, summary, alias)
    for other in entries(kind):
        if other.name == entry.name and other.path != path and alias is not None:
            raise ValueError(f"the {kind} {path} cannot have the short name {alias!r}: it is that of {other.path}")
    ENTRIES[path] = entry


def entries(kind: str | None = None) -> list[Entry]:
    """Return the entries of one kind (all of them if ``kind`` is None), in the order of the table."""
    return [entry for entry in ENTRIES.values() if kind is None or entry.kind == kind]


def nearest(name: str, known: Iterable[str], likeness: float = 0.5) -> str | None:
    """Return the entry of ``known`` that looks most like ``name``, or is the only one with it, or None.

    Upper and lower case are told apart only where that finds one.
    """
    names = list(known)
    found = get_close_matches(name, names, n=1, cutoff=likeness)
    if not found:  # ID, of id
        folded = {entry.casefold(): entry for entry in reversed(names)}
        found = [folded[near] for near in get_close_matches(name.casefold(), folded, n=1, cutoff=likeness)]
    if not found and len(name) > 2:  # ridge, of ridge regression
        containing = [entry for entry in names if name in entry]
        found = containing if len(containing) == 1 else []
    return found[0] if found else None


def did_you_mean(name: object, known: Iterable[object], otherwise: str = "") -> str:
    """Return the end of an error: ``"; did you mean 'x'?"``, or ``otherwise`` when nothing is close."""
    near = nearest(str(name), map(str, known))
    if near is None:
        return f"; {otherwise}" if otherwise else ""
    return f"; did you mean {near!r}?"


def find(kind: str, name: str) -> Entry | None:
    """Entry with this short name or import path; plugins are asked where moeapps has none.

    A class of a module that the user has named for import has one without registration.
    """
    for ask_plugins in (False, True):
        if ask_plugins:
            plugins.load_installed()
        for entry in entries(kind):
            if name in (entry.name, entry.path):
                return entry
    return Entry(kind, name, "") if plugins.is_named(name.rpartition(".")[0]) else None


def is_known(path: str) -> bool:
    """Whether :func:`resolve` may import the class of this path."""
    if path not in ENTRIES:
        plugins.load_installed()
    return path in ENTRIES or plugins.is_named(path.rpartition(".")[0])


def resolve(path: str) -> type:
    """Import the class registered under ``path``, or under the path that it had in 0.1.

    Raises
    ------
    KeyError
        If the path is not known; nothing has been imported on its account then. Or if its module has no such class.
    ConfigError
        If the module is the user's and fails while it is imported.
    """
    path = current_path(path)
    if not is_known(path):
        raise KeyError(path)
    module, _, name = path.rpartition(".")
    found: type | None = getattr((import_module if path in _OWN else plugins.import_module)(module), name, None)
    if found is None:
        raise KeyError(path)
    return found


def foreign_parts(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The classes outside moeapps that a saved model needs: its own class, and the routers that it names.

    Parameters
    ----------
    document : dict
        What :mod:`moeapps.core.saving` writes, with ``class``, ``arguments`` and ``state``.

    Returns
    -------
    list of dict
        Entries (kind, path, summary, alias), in the order of their paths.
    """
    found = set()
    for model in _models(document):
        found.add(find("model", model["class"]))
        found |= {find("router", name) for name in _router_names(model.get("arguments"))}
    foreign = [entry for entry in found if entry is not None and entry.path not in _OWN]
    return [asdict(entry) for entry in sorted(foreign, key=lambda entry: entry.path)]


def _models(document: Any) -> Iterator[dict[str, Any]]:
    """A document and those inside it: the checkpoint of a stream run holds a model, a mixture estimators."""
    if not isinstance(document, dict):
        return
    state = document.get("state")
    if "class" in document:
        yield document
    for inner in (state.get("model"), *dict(state.get("nested") or {}).values()) if isinstance(state, dict) else ():
        yield from _models(inner)
    for _, inner in document.get("steps", ()):
        yield from _models(inner)


def are_parts(value: Any) -> bool:
    """Whether a value of a file is what :func:`foreign_parts` wrote."""
    text = ("kind", "path", "summary")
    return isinstance(value, list) and all(
        isinstance(part, dict)
        and set(part) == {*text, "alias"}
        and all(isinstance(part[key], str) for key in text)
        and isinstance(part["alias"], str | None)
        and all(name.isidentifier() for name in part["path"].split("."))
        and "." in part["path"]
        for part in value
    )


def admit(parts: list[dict[str, Any]]) -> str | None:
    """Make the classes known that a saved model needs, as far as the user has named their modules for import.

    Parameters
    ----------
    parts : list of dict
        What :func:`foreign_parts` wrote.

    Returns
    -------
    str or None
        What is missing and how to give it; None if everything is there.
    """
    for part in parts:
        entry = Entry(**part)
        if not is_known(entry.path):
            return f"the {entry.kind} {entry.name!r} of {describe_import(entry.path.rpartition('.')[0])}"
        other = find(entry.kind, entry.name)
        if other is None:
            register(entry.kind, entry.path, entry.summary, entry.alias)
        elif other.path != entry.path:
            return f"{entry.path} as {entry.kind} {entry.name!r}, but here this is the name of {other.path}"
    return None


def describe_import(module: str) -> str:
    """What to do so that a module outside moeapps is imported."""
    if module == "__main__":
        return "a script: put its class into a module, and save the model again"
    return (
        f"the module {module}, which is imported only if you say so: "
        f'--import {module}, or moeapps.load(path, import_modules="{module}")'
    )


def _router_names(arguments: Any) -> Iterator[str]:
    """Values of all arguments that are called ``router``, or something that ends so, nested ones too."""
    if isinstance(arguments, dict):
        for key, value in arguments.items():
            if isinstance(value, str) and str(key).endswith("router"):
                yield value
            else:
                yield from _router_names(value)
    elif isinstance(arguments, list):
        for value in arguments:
            yield from _router_names(value)
