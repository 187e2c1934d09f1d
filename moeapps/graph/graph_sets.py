"""Sets of graphs with one target each: from what users have to checked graphs, batches and data modules."""

# G graphs, N nodes of one graph or of a batch, E edges, F features

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import lightning as L
import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.data import Batch, Data

from moeapps.core.arrays import as_array
from moeapps.core.checks import check_below_one, check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.loading import ResumableLoader, make_loader
from moeapps.core.splits import hold_out
from moeapps.graph.edges import Edges
from moeapps.graph.features import normalized
from moeapps.graph.inputs import bare_graph
from moeapps.graph.labels import as_labels, class_names, encode_labels, labeled
from moeapps.graph.link_data import load_graph

__all__ = ["EgoNetData", "GraphBatch", "GraphSetData", "ego_nets", "graph_labels", "read_graphs"]


@dataclass
class GraphBatch:
    """Several graphs as one, whose parts are not connected.

    Parameters
    ----------
    x : Tensor of shape (N, F)
        Features of all nodes.
    edges : Edges
        Edges of all graphs.
    graph : int64 Tensor of shape (N,)
        Number of each node's graph.
    y : int64 Tensor of shape (G,)
        Class of each graph; -1 where it is not known.
    sizes : float64 array of shape (G, 2)
        Nodes and edges of each graph.
    """

    x: Tensor
    edges: Edges
    graph: Tensor
    y: Tensor
    sizes: np.ndarray

    @classmethod
    def of(cls, graphs: Sequence[Data]) -> "GraphBatch":
        """Batch of checked graphs, put together by PyG."""
        joined = Batch.from_data_list(list(graphs))
        weight = joined.edge_weight if "edge_weight" in joined else None
        y = joined.y if "y" in joined else torch.full((len(graphs),), -1)
        sizes = np.array([[graph.x.shape[0], graph.edge_index.shape[1]] for graph in graphs], dtype=np.float64)
        return cls(joined.x, Edges(joined.edge_index, weight, joined.x.shape[0]), joined.batch, y, sizes)

    @property
    def count(self) -> int:
        """Number of graphs G."""
        return len(self.sizes)

    def features(self) -> np.ndarray:
        """``(G, 2)`` what a gate may look at: logarithms of the numbers of nodes and edges."""
        return np.log1p(self.sizes)

    def to(self, device: torch.device) -> "GraphBatch":
        """The same batch on a device."""
        return GraphBatch(
            self.x.to(device), self.edges.to(device), self.graph.to(device), self.y.to(device), self.sizes
        )


def read_graphs(graphs: Any, width: int | None = None) -> list[Data]:
    """Check a set of graphs.

    Parameters
    ----------
    graphs
        A list of PyG ``Data``, a PyG ``Dataset`` or a ``Batch``.
    width : int, optional
        Features per node that they must have; those of the first graph when None.

    Returns
    -------
    list of Data
        With float32 ``x``, int64 ``edge_index`` and, if one of the graphs has weights, ``edge_weight``.

    Raises
    ------
    DataError
        Naming the graph: it is none, has no nodes or no features, another number of features than the others, or edges
        to nodes that it does not have.
    """
    if isinstance(graphs, Batch):
        graphs = graphs.to_data_list()
    if isinstance(graphs, Data):
        raise DataError("one graph was given: graph targets need a list of graphs, or a PyG Dataset")
    if not hasattr(graphs, "__len__") or not hasattr(graphs, "__getitem__") or isinstance(graphs, str | dict):
        raise DataError(f"graphs must be a list of torch_geometric.data.Data or a Dataset, got {type(graphs).__name__}")
    if len(graphs) == 0:
        raise DataError("there are 0 graphs, at least one is needed")
    found: list[Data] = []
    for number in range(len(graphs)):
        graph = graphs[number]
        if not isinstance(graph, Data):
            raise DataError(f"graph {number} is a {type(graph).__name__}, expected a torch_geometric.data.Data")
        found.append(_checked(graph, number))
        first = found[0].x.shape[1] if width is None else width
        if found[-1].x.shape[1] != first:
            whose = "graph 0 has" if width is None else "the model was fitted with"
            raise DataError(f"graph {number} has {found[-1].x.shape[1]} features per node, {whose} {first}")
    if any(graph.edge_weight is not None for graph in found):
        for graph in found:
            if graph.edge_weight is None:
                graph.edge_weight = torch.ones(graph.edge_index.shape[1])
    return found


def _checked(graph: Data, number: int) -> Data:
    attributes = getattr(graph, "edge_attr", None)
    if isinstance(attributes, Tensor) and attributes.ndim == 2 and attributes.shape[1] > 1:
        # the networks by name read none; to refuse them would refuse most sets of molecules
        graph = graph.clone()
        del graph.edge_attr
        if number == 0:
            warnings.warn(
                f"edge_attr has {attributes.shape[1]} columns and is not used: only one weight per edge is",
                UserWarning,
                stacklevel=4,
            )
    if getattr(graph, "x", None) is None:
        raise DataError(
            f"graph {number} has no node features x; torch_geometric.transforms.OneHotDegree or Constant makes some"
        )
    if getattr(graph.x, "ndim", 2) == 2 and len(graph.x) == 0:
        raise DataError(f"graph {number} has no nodes")
    try:
        return bare_graph(graph)
    except DataError as error:
        raise type(error)(f"graph {number}: {error}") from None


def graph_labels(graphs: Any, y: Any) -> np.ndarray:
    """Labels ``(G,)`` of graphs: those of ``y``, or of each graph's own ``y`` when None.

    Raises
    ------
    DataError
        If a graph has none or several, or ``y`` is not one label per graph.
    """
    if isinstance(graphs, Batch):
        graphs = graphs.to_data_list()
    if y is None:
        own = []
        for number in range(len(graphs)):
            label = getattr(graphs[number], "y", None)
            if label is None:
                raise DataError(f"graph {number} has no label y: give fit(graphs, y), or graphs with one y each")
            values = as_array(label).ravel()
            if len(values) != 1:
                raise DataError(
                    f"graph {number} has {len(values)} labels, expected one for the graph (labels of nodes are for "
                    "MowstClassifier)"
                )
            own.append(values[0])
        y = np.array(own) if not any(isinstance(label, str) for label in own) else np.array(own, dtype=object)
    else:
        count = as_array(y).shape
        if len(count) == 0 or count[0] != len(graphs):
            raise DataError(f"y must have one label per graph, {len(graphs)}, got shape {count}")
    labels = as_labels(y, len(graphs))
    known = labeled(labels)
    if not known.all():
        raise DataError(f"graph {int((~known).argmax())} has no label (missing, or below 0): leave it out")
    return labels


class GraphSetData(L.LightningDataModule):
    """A set of graphs with one class each, in mini-batches.

    After ``setup`` the attributes ``in_channels``, ``out_channels``, ``classes``, ``weighted`` and ``class_counts``
    (training graphs of each class) are there.

    Parameters
    ----------
    source : list of Data, Dataset or str
        The graphs; a name is one of TUDataset's, ``"MUTAG"`` for example.
    root : str, optional
        Folder of a TUDataset; what is not there is downloaded.
    val_fraction : float, default=0.15
        Part of the graphs that is held out for validation, by class.
    test_fraction : float, default=0.15
        Part that is held out for the test; 0 for none.
    batch_size : int, default=64
        Graphs in a mini-batch.
    seed : int, default=0
        Seed of the split and of the order.
    y : array of shape (G,), optional
        Labels, instead of the graphs' own.

    Raises
    ------
    DataError
        In ``setup``, naming the graph that cannot be used.
    """

    in_channels: int
    out_channels: int
    classes: np.ndarray
    weighted: bool
    class_counts: list[int]
    normalized: bool = False
    """Whether each node's features are scaled to sum to 1."""

    def __init__(
        self,
        source: Any,
        root: str | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        batch_size: int = 64,
        seed: int = 0,
        y: Any = None,
    ) -> None:
        super().__init__()
        check_sizes(batch_size=batch_size)
        check_below_one(val_fraction=val_fraction, test_fraction=test_fraction)
        if not val_fraction:
            raise ConfigError("val_fraction must be above 0: validation graphs stop the training and fit the mixture")
        self.source, self.root, self.y = source, root, y
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.batch_size, self.seed = batch_size, seed
        self.parts: dict[str, list[Data]] = {}
        self._batches: dict[str, Any] = {}

    def load(self) -> Any:
        """Return the raw graphs; override this to read another source."""
        if not isinstance(self.source, str):
            return self.source
        if self.root is None:
            raise ConfigError(
                f"source={self.source!r} is not embedded: give root, a folder where PyG finds this TUDataset or "
                "downloads it. Graphs of your own are given in Python, as a list of Data"
            )
        from torch_geometric.datasets import TUDataset

        return TUDataset(self.root, self.source, use_node_attr=True)

    def setup(self, stage: str | None = None) -> None:
        """Load, check, encode the labels and split."""
        if self.parts:
            return
        raw = self.load()
        graphs = read_graphs(raw)
        labels = graph_labels(raw, self.y)
        self.classes = class_names(labels)
        if len(self.classes) < 2:
            raise DataError(f"y has {len(self.classes)} class: at least two are needed")
        codes = encode_labels(labels, self.classes)
        for graph, code in zip(graphs, codes, strict=True):
            graph.y = code.reshape(1)
        self.in_channels, self.out_channels = graphs[0].x.shape[1], len(self.classes)
        self.weighted = graphs[0].edge_weight is not None
        train, test = hold_out(len(graphs), self.test_fraction, self.seed, codes.numpy())
        chosen, val = hold_out(len(train), self.val_fraction, self.seed, codes.numpy()[train])
        self.class_counts = np.bincount(codes.numpy()[train[chosen]], minlength=self.out_channels).tolist()
        rows = {"train": train[chosen], "val": train[val], "test": test, "all": np.arange(len(graphs))}
        self.parts = {name: [graphs[row] for row in numbers] for name, numbers in rows.items()}

    def train_dataloader(self) -> ResumableLoader:
        """Mini-batches in random order, put together by PyG."""
        part: Any = self.parts["train"]
        return make_loader(part, self.batch_size, shuffle=True, seed=self.seed, collate_fn=GraphBatch.of)

    def val_dataloader(self) -> ResumableLoader:
        """Validation graphs."""
        return self._kept("val")

    @property
    def has_test_data(self) -> bool:
        """Whether there are graphs to test on."""
        return bool(self.test_fraction)

    def test_dataloader(self) -> ResumableLoader:
        """Test graphs.

        Raises
        ------
        ConfigError
            If there are none.
        """
        if not self.parts["test"]:
            raise ConfigError("test_fraction is 0: there are no graphs to test on")
        return self._kept("test")

    def predict_dataloader(self) -> ResumableLoader:
        """All graphs, in their order."""
        return self._kept("all")

    def _kept(self, name: str) -> ResumableLoader:
        if name not in self._batches:  # once: the forms of their edges are kept, too
            part, size = self.parts[name], self.batch_size
            self._batches[name] = [GraphBatch.of(part[i : i + size]) for i in range(0, len(part), size)]
        # every process sees all of them: experts stop by their score on the whole part
        return make_loader(self._batches[name], batch_size=1, collate_fn=itemgetter(0), divided=False)


class EgoNetData(GraphSetData):
    """The neighbourhoods of a graph's nodes, each with the class of its centre, which is hidden; see :func:`ego_nets`.

    Parameters
    ----------
    source : Data or str, default="Cora"
        A graph with labels of nodes, an ``.npz`` file, or the name of a public graph.
    root : str, optional
        Folder of public graphs; not needed for Cora.
    hops : int, default=1
        Largest distance from the centre.
    most : int, optional
        Number of neighbourhoods, chosen by ``seed``; all labeled nodes when None.
    val_fraction, test_fraction, batch_size, seed
        As in :class:`GraphSetData`.
    """

    def __init__(
        self,
        source: Any = "Cora",  # as in LinkData
        root: str | None = None,
        hops: int = 1,
        most: int | None = None,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(source, root, val_fraction, test_fraction, batch_size, seed)
        check_sizes(hops=hops, **({} if most is None else {"most": most}))
        self.hops, self.most = hops, most

    def load(self) -> list[Data]:
        """Read the graph and cut it up."""
        graph, self.normalized = load_graph(self.source, self.root)
        if self.normalized:
            graph = graph.clone()
            graph.x = normalized(graph.x)
        return ego_nets(graph, self.hops, self.most, self.seed)


def ego_nets(graph: Data, hops: int = 1, most: int | None = None, seed: int = 0) -> list[Data]:
    """Cut the neighbourhood of each labeled node out of a graph; the target is the class of the node in its centre.

    The features of the centre are set to 0: the class has to be told from the nodes around it and the edges among them.
    One more feature is 1 at the centre and 0 elsewhere.

    Parameters
    ----------
    graph : Data
        With features, edges, their weights if there are such, and labels of nodes.
    hops : int, default=1
        Largest distance from the centre.
    most : int, optional
        Number of neighbourhoods, chosen at random; all labeled nodes when None.
    seed : int, default=0
        Seed of the choice.

    Returns
    -------
    list of Data
        The centre is each graph's node 0.

    Raises
    ------
    DataError
        If the graph has no labels.
    """
    if getattr(graph, "y", None) is None:
        raise DataError("the graph has no labels y, which are the targets of the neighbourhoods")
    whole = bare_graph(graph)
    count = whole.x.shape[0]
    labels = as_labels(graph.y, count)
    centers = np.flatnonzero(labeled(labels))
    if most is not None and most < len(centers):
        # a stream of its own: the mines of the public graph minesweeper are permutation(10_000)[:2_000] of seed 0
        centers = np.sort(np.random.default_rng((seed, 1)).permutation(centers)[:most])
    source, target = whole.edge_index.numpy()
    weight = whole.edge_weight
    value = np.ones(len(source), dtype=np.float32) if weight is None else weight.numpy()
    edges = sparse.csr_matrix((value, (target, source)), shape=(count, count))  # of copies the weights add up
    incoming = sparse.csr_matrix((np.ones(len(source), dtype=np.int8), (target, source)), shape=(count, count))
    nets = []
    for center in centers:
        nodes = np.array([center])
        for _ in range(hops):
            reached = np.setdiff1d(incoming[nodes].indices, nodes)
            nodes = np.concatenate([nodes, reached])
        inside = edges[nodes][:, nodes].tocoo()
        x = torch.cat([whole.x[torch.from_numpy(nodes)], torch.zeros(len(nodes), 1)], dim=1)
        x[0], x[0, -1] = 0.0, 1.0
        index = torch.from_numpy(np.stack([inside.col, inside.row]).astype(np.int64))
        label: Any = labels[center]
        y = torch.tensor(label) if isinstance(label, np.number | np.bool_) else np.asarray(label).item()
        net = Data(x=x, edge_index=index, y=y)
        if weight is not None:
            net.edge_weight = torch.from_numpy(inside.data)
        nets.append(net)
    return nets
