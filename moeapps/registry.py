"""The names that users may write: in YAML files, in saved models, in ``moeapps list``.

A table of strings and nothing else, so that reading it imports no framework. Two users depend on that: ``moeapps
list`` and ``--help`` answer at once, and :func:`moeapps.load` imports a class only when its name stands here (a model
file can therefore not make it import anything else).
"""

from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module

from moeapps.moved import current_path

__all__ = ["ENTRIES", "Entry", "entries", "nearest", "register", "resolve"]


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
        Entry("model", "moeapps.graph.MowstClassifier", "Mowst behind scikit-learn's fit/predict"),
        Entry("model", "moeapps.stream.DriftMoEClassifier", "mixture of Hoeffding trees for streams that change"),
        Entry("model", "moeapps.stream.DriftMoERegressor", "the same for streams of numbers"),
        Entry("model", "moeapps.recsys.MultiTaskRanker", "several targets of one table: MMoE, PLE, AdaTT, HoME"),
        Entry("model", "moeapps.recsys.AWMoERanker", "experts activated by a user's history; DIN as baseline"),
        Entry("model", "moeapps.recsys.RankingModule", "any ranker, for `moeapps fit`"),
        Entry("model", "moeapps.vision.WideNetClassifier", "images by WideNet, ViT-MoE or ViT, fit/predict"),
        Entry("model", "moeapps.vision.SwitchDiTGenerator", "draws images by class: Switch-DiT or DiT, fit/sample"),
        Entry("model", "moeapps.vision.ImageModule", "WideNet, ViT-MoE, ViT or a timm model, for `moeapps fit`"),
        Entry("model", "moeapps.vision.DiffusionModule", "Switch-DiT or DiT, for `moeapps fit`"),
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
        Entry("data", "moeapps.vision.PublicImageData", "images by name: digits (embedded), CIFAR-10, MNIST, ..."),
        Entry("data", "moeapps.vision.ImageFolderData", "your own images: one folder per class"),
        Entry("data", "moeapps.graph.GraphDataModule", "your own graph: a PyG Data object or an .npz file"),
    )
}


def register(kind: str, path: str, summary: str, alias: str | None = None) -> None:
    """Make a class of your own known to :func:`moeapps.load` and to ``moeapps list``.

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
    """
    ENTRIES[path] = Entry(kind, path, summary, alias)


def entries(kind: str | None = None) -> list[Entry]:
    """Return the entries of one kind (all of them if ``kind`` is None), in the order of the table."""
    return [entry for entry in ENTRIES.values() if kind is None or entry.kind == kind]


def nearest(name: str, known: list[str]) -> str | None:
    """Return the entry of ``known`` that looks most like ``name``, or None when nothing is close."""
    found = get_close_matches(name, known, n=1, cutoff=0.5)
    return found[0] if found else None


def resolve(path: str) -> type:
    """Import the class registered under ``path``, or under the path that it had in 0.1.

    Raises
    ------
    KeyError
        If the path is not registered. Nothing has been imported then.
    """
    path = current_path(path)
    if path not in ENTRIES:
        raise KeyError(path)
    module, _, name = path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found
