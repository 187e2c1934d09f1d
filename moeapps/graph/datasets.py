"""Public graphs by name: from a folder of the user's, through the classes of PyG and OGB, or the embedded Cora."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.utils import index_to_mask, to_undirected

from moeapps.core.errors import ConfigError, DataError
from moeapps.core.packages import needs
from moeapps.graph.data import GraphDataModule, read_npz
from moeapps.registry import did_you_mean

__all__ = ["PUBLIC_GRAPHS", "PublicGraphData", "load_cora", "split_randomly"]

Load = Callable[[str, str], Data]


@dataclass(frozen=True)
class _Source:
    """How a graph is loaded, and the usual practice for it."""

    load: Load
    normalize_features: bool = False
    random_split: bool = False


def _planetoid(root: str, name: str) -> Data:
    from torch_geometric.datasets import Planetoid

    return Planetoid(root, name)[0]


def _heterophilous(root: str, name: str) -> Data:
    from torch_geometric.datasets import HeterophilousGraphDataset

    return HeterophilousGraphDataset(root, name)[0]


def _linkx(root: str, name: str) -> Data:
    from torch_geometric.datasets import LINKXDataset

    return LINKXDataset(root, name)[0]


def _flickr(root: str, name: str) -> Data:
    from torch_geometric.datasets import Flickr

    return Flickr(str(Path(root) / name))[0]


def _ogb(root: str, name: str) -> Data:
    with needs(name, "moeapps[ogb]"):
        from ogb.nodeproppred import PygNodePropPredDataset
    dataset = PygNodePropPredDataset(name, root)
    graph: Data = dataset[0]
    graph.y = graph.y.flatten()
    graph.edge_index = to_undirected(graph.edge_index, num_nodes=graph.num_nodes)
    for mask, part in (("train_mask", "train"), ("val_mask", "valid"), ("test_mask", "test")):
        graph[mask] = dataset.get_idx_split()[part]
    return graph


def _npz(root: str, name: str) -> Data:
    return read_npz(Path(root) / name / "raw" / f"{name}.npz", undirected=True)


def _missing(root: str, name: str) -> Data:
    raise ConfigError(
        f"{name} is in neither PyG nor OGB: convert the files of the Non-Homophily-Large-Scale repository to an .npz "
        "with node_features, node_labels and edges, and give its path to GraphDataModule"
    )


PUBLIC_GRAPHS: dict[str, _Source] = {
    **dict.fromkeys(("Cora", "CiteSeer", "PubMed"), _Source(_planetoid, normalize_features=True)),
    **dict.fromkeys(
        ("tolokers", "minesweeper", "questions", "roman-empire", "amazon-ratings"),
        _Source(_heterophilous),
    ),
    **dict.fromkeys(("chameleon_filtered", "squirrel_filtered"), _Source(_npz)),
    **dict.fromkeys(
        ("amherst41", "johnshopkins55", "reed98", "cornell5", "Penn94"),
        _Source(_linkx, random_split=True),
    ),
    "Flickr": _Source(_flickr),
    **dict.fromkeys(("ogbn-arxiv", "ogbn-products"), _Source(_ogb)),
    **dict.fromkeys(("twitch-gamers", "pokec"), _Source(_missing)),
}
"""Public graphs by name."""


class PublicGraphData(GraphDataModule):
    """A public graph by its name: Cora comes with moeapps, the others are read from ``root`` or downloaded to it.

    Where there is a public split it is used, ``split`` choosing among several. The Facebook graphs have none: half of
    the labeled nodes, chosen by ``split`` as the seed, are for training, a quarter for validation and a quarter for
    the test.

    Parameters
    ----------
    name : str, default="Cora"
        One of ``PUBLIC_GRAPHS``: Cora, CiteSeer, PubMed, tolokers, minesweeper, questions, roman-empire,
        amazon-ratings, chameleon_filtered, squirrel_filtered, amherst41, johnshopkins55, reed98, cornell5, Penn94,
        Flickr, ogbn-arxiv, ogbn-products.
    root : str, optional
        Folder in PyG's layout (``<root>/<name>/raw``); what is not there is downloaded. None uses the embedded copy,
        which exists for Cora only.
    split : int, default=0
        Which of several splits.
    normalize_features : bool, optional
        Whether to scale each node's features to sum to 1; None follows the usual practice for this graph.
    batch_size : int, optional
        As in :class:`GraphDataModule`.
    num_neighbors : list of int, optional
        As in :class:`GraphDataModule`.
    seed : int, default=0
        Seed of the order of mini-batches.

    Raises
    ------
    ConfigError
        If the name is unknown, or ``root`` is missing for a graph that is not embedded.
    DataError
        In ``setup``, if the graph is neither in ``root`` nor can be downloaded.
    """

    def __init__(
        self,
        name: str = "Cora",
        root: str | None = None,
        split: int = 0,
        normalize_features: bool | None = None,
        batch_size: int | None = None,
        num_neighbors: list[int] | None = None,
        seed: int = 0,
    ) -> None:
        if name not in PUBLIC_GRAPHS:
            raise ConfigError(
                f"name must be one of {', '.join(PUBLIC_GRAPHS)}, got {name!r}{did_you_mean(name, PUBLIC_GRAPHS)}"
            )
        if root is None and name != "Cora":
            raise ConfigError(f"{name} is not embedded: give root, a folder where PyG finds it or downloads it to")
        usual = PUBLIC_GRAPHS[name].normalize_features
        super().__init__(
            source=name,
            split=split,
            normalize_features=usual if normalize_features is None else normalize_features,
            batch_size=batch_size,
            num_neighbors=num_neighbors,
            seed=seed,
        )
        self.graph_name, self.root = name, root

    def load(self) -> Data:
        """Read the embedded graph, or let PyG or OGB find or download it."""
        if self.root is None:
            return load_cora()
        source = PUBLIC_GRAPHS[self.graph_name]
        try:
            graph = source.load(self.root, self.graph_name)
        except (OSError, RuntimeError) as error:
            if isinstance(error, DataError | ConfigError):
                raise
            raise DataError(
                f"{self.graph_name} is neither in {self.root} nor can it be downloaded there "
                f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
            ) from error
        if source.random_split and "train_mask" not in graph:
            split_randomly(graph, self.split)
            self.several_splits = self.split
        return graph


def load_cora() -> Data:
    """Cora, embedded: 2,708 papers, 1,433 words, 7 topics, 10,556 directed edges, the public Planetoid split.

    Source: Sen et al. 2008, as committed by kimiyoung/planetoid (MIT; see ``moeapps/graph/embedded/NOTICE``).

    Examples
    --------
    >>> load_cora()
    Data(x=[2708, 1433], edge_index=[2, 10556], y=[2708], train_mask=[2708], val_mask=[2708], test_mask=[2708])
    """
    with files("moeapps.graph").joinpath("embedded/cora.npz").open("rb") as file, np.load(file) as arrays:
        nodes, features = (int(n) for n in arrays["shape"])
        x = torch.zeros(nodes, features)
        x[
            torch.from_numpy(arrays["word_of"][0].astype(np.int64)),
            torch.from_numpy(arrays["word_of"][1].astype(np.int64)),
        ] = 1
        graph = Data(
            x=x,
            edge_index=torch.from_numpy(arrays["edge_index"].astype(np.int64)),
            y=torch.from_numpy(arrays["y"].astype(np.int64)),
        )
        for number, name in enumerate(("train_mask", "val_mask", "test_mask"), start=1):
            graph[name] = torch.from_numpy(arrays["split"] == number)
    return graph


def split_randomly(graph: Data, seed: int, train: float = 0.5, val: float = 0.25) -> None:
    """Set masks: of the labeled nodes (y >= 0), in random order, the first are for training, the next to validate.

    Not PyG's RandomNodeSplit, which draws from torch's global generator: a seed must go on giving the same split.
    """
    labeled = (torch.as_tensor(graph.y).flatten() >= 0).nonzero().flatten()
    order = labeled[torch.randperm(len(labeled), generator=torch.Generator().manual_seed(seed))]
    first, second = round(train * len(order)), round((train + val) * len(order))
    parts: dict[str, Any] = {
        "train_mask": order[:first],
        "val_mask": order[first:second],
        "test_mask": order[second:],
    }
    for name, nodes in parts.items():
        graph[name] = index_to_mask(nodes, graph.num_nodes)
