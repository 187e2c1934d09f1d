"""Graph data for training: a graph of your own, or a public one."""

import copy
import os
import warnings
import zipfile
from operator import itemgetter
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import index_to_mask

from moeapps.core.arrays import unreadable
from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.files import existing_file
from moeapps.core.loading import ResumableLoader, make_loader
from moeapps.core.splits import hold_out
from moeapps.graph.batches import NodeBatch
from moeapps.graph.connections import undirected_edges
from moeapps.graph.edges import Edges
from moeapps.graph.features import normalized
from moeapps.graph.folders import is_folder, open_graph
from moeapps.graph.graph_tables import is_table_path
from moeapps.graph.inputs import as_graph, bare_graph, check_training_masks, edges_of, on_disk
from moeapps.graph.labels import check_marks, class_names, encode_labels
from moeapps.graph.masks import MASKS, check_split, has_splits
from moeapps.graph.sparse_features import sparse_where_it_pays

__all__ = ["GraphDataModule", "read_npz", "split_nodes"]


class GraphDataModule(L.LightningDataModule):
    """One graph, trained on as a whole or in mini-batches of its training nodes.

    After ``setup`` the attributes ``graph``, ``edges``, ``in_channels``, ``out_channels``, ``classes`` and
    ``class_counts`` (training nodes of each class) are there. Without a ``train_mask``, all labeled nodes that are in
    no other mask are trained on. Without a ``val_mask``, a fifth of the training nodes (stratified, chosen by
    ``seed``) is set aside for validation.

    Parameters
    ----------
    source : Data or str
        A PyG ``Data``; or the path of a folder of memory-mapped files, of which only the rows and edges of a batch are
        read (:func:`~moeapps.graph.open_graph`); or the path of an ``.npz`` file with the arrays ``node_features``
        ``(N, F)``, ``node_labels``
        ``(N,)``, ``edges`` ``(E, 2)`` (or ``(2, E)``), ``edge_weight`` ``(E,)`` if there are weights, and
        ``train_masks``, ``val_masks``, ``test_masks`` ``(splits, N)`` (the layout of the heterophilous-graphs
        benchmark) or ``train_mask``, ``val_mask``, ``test_mask`` ``(N,)``.
    split : int, default=0
        Which of several splits to use.
    undirected : bool, default=True
        Whether to add the reverse of every edge of an ``.npz`` file.
    normalize_features : bool, default=False
        Whether to scale each node's features to sum to 1.
    batch_size : int, optional
        Training nodes in a mini-batch, each with randomly drawn neighbours. Validation, test and prediction take all
        neighbours, in pieces around as many nodes or layer by layer. None takes the whole graph in each step. A
        checkpoint of either kind of training fits the other.
    num_neighbors : list of int, optional
        Neighbours to draw at each hop in training, one number per layer of the network, -1 for all; 10 each when None.
    seed : int, default=0
        Seed of the validation split and of the order of mini-batches.

    Raises
    ------
    DataError
        In ``setup``, if the graph cannot be trained on; the message names the reason.
    """

    graph: Data
    edges: Edges
    classes: np.ndarray
    class_counts: list[int]
    in_channels: int
    out_channels: int

    def __init__(
        self,
        source: Any,  # as in LinkData
        split: int = 0,
        undirected: bool = True,
        normalize_features: bool = False,
        batch_size: int | None = None,
        num_neighbors: list[int] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if batch_size is not None:
            check_sizes(batch_size=batch_size)
        elif num_neighbors is not None:
            raise ConfigError("num_neighbors is for mini-batches: give batch_size too")
        self.batch_size = batch_size
        self.num_neighbors = None if num_neighbors is None else tuple(num_neighbors)
        self.several_splits: int | None = None  # number of the split, where there are several
        self._on_device: NodeBatch | None = None  # the whole graph, on the device of the last batch
        self.source = source
        self.split = split
        self.undirected = undirected
        self.normalize_features = normalize_features
        self.seed = seed

    def load(self) -> Data:
        """Return the raw graph; override this to read another source."""
        graph = self.source
        if is_folder(graph):
            graph = open_graph(graph)
        elif is_table_path(graph):
            raise ConfigError(f"source={str(graph)!r} is a table: GraphTableData reads two, nodes= and edges=")
        elif isinstance(graph, str | os.PathLike):
            graph = read_npz(graph, self.undirected)
        check_split(self.split, [getattr(graph, name, None) for name in MASKS])
        return graph

    @property
    def normalized(self) -> bool:
        """Whether each node's features are scaled to sum to 1."""
        return self.normalize_features

    @property
    def labels_name(self) -> str:
        """What an error calls the labels."""
        return "y"

    def setup(self, stage: str | None = None) -> None:
        """Load, check, encode the labels and split."""
        if hasattr(self, "graph"):
            return
        source = self.load()
        if any(has_splits(mask) for mask in (getattr(source, name, None) for name in MASKS) if mask is not None):
            self.several_splits = self.split
        graph = as_graph(source, split=self.split)
        if graph.y is None:
            raise DataError("the graph has no labels y: they are needed for training")
        check_marks(graph.y, _used(graph), self.labels_name)
        self.classes = class_names(graph.y)
        graph.y = encode_labels(graph.y, self.classes)
        if self.normalize_features and on_disk(graph):
            raise ConfigError("normalize_features would copy the features into memory: write them normalised")
        if self.normalize_features:
            graph.x = normalized(graph.x)
        dense = graph.x
        if not on_disk(graph):
            graph.x = sparse_where_it_pays(graph.x)
        self._given = dense
        if "train_mask" not in graph:
            graph.train_mask = _rest(graph)
        if "val_mask" not in graph:
            split_nodes(graph, self.seed)
        check_training_masks(graph)
        self.in_channels, self.out_channels = graph.x.shape[1], len(self.classes)
        self.class_counts = torch.bincount(graph.y[graph.train_mask], minlength=self.out_channels).tolist()
        self.edges = edges_of(graph)
        self.graph = graph

    def prepared(self) -> Data:
        """Return the graph that training uses: checked, with integer labels and masks, normalised on request.

        Features that training stores without their zeros are dense in it, unless they were given sparse.
        """
        self.setup()
        graph = copy.copy(self.graph)
        graph.x = self._given
        return graph

    def _loader(self, mask: str | None, shuffle: bool = False) -> ResumableLoader:
        if self.batch_size is None:
            whole: Any = [NodeBatch(self.graph, self.edges)]
            return make_loader(whole, batch_size=1, collate_fn=itemgetter(0))
        chosen = torch.ones(self.graph.num_nodes, dtype=torch.bool) if mask is None else self.graph[mask]
        nodes: Any = _Nodes(chosen.nonzero().flatten())
        # evaluation takes all its nodes at once, in every process: layer by layer, what they have in common is computed
        # once, and a score is that of all of them
        size = self.batch_size if shuffle else max(len(nodes), 1)
        return make_loader(nodes, size, shuffle=shuffle, seed=self.seed, collate_fn=self._batch, divided=shuffle)

    def _batch(self, nodes: Any) -> NodeBatch:
        chosen = nodes if isinstance(nodes, Tensor) else torch.tensor(nodes)
        return NodeBatch(self.graph, self.edges, chosen, self.num_neighbors, self.batch_size)

    @property
    def has_test_data(self) -> bool:
        """Whether a labeled node is there to test on, after ``setup``."""
        return "test_mask" in self.graph and bool((self.graph.test_mask & (self.graph.y >= 0)).any())

    def train_dataloader(self) -> ResumableLoader:
        """The whole graph once per epoch, or mini-batches of training nodes in random order."""
        return self._loader("train_mask", shuffle=True)

    def val_dataloader(self) -> ResumableLoader:
        """The whole graph (nodes of ``val_mask``), or batches of validation nodes."""
        return self._loader("val_mask")

    def test_dataloader(self) -> ResumableLoader:
        """The whole graph (nodes of ``test_mask``), or batches of test nodes.

        Raises
        ------
        DataError
            If there are no test nodes to make batches of.
        """
        if self.batch_size is not None and not self.has_test_data:
            raise DataError("the data has no labeled node in test_mask: there is nothing to test on")
        return self._loader("test_mask")

    def predict_dataloader(self) -> ResumableLoader:
        """The whole graph, or batches of all its nodes."""
        return self._loader(None)

    def transfer_batch_to_device(self, batch: NodeBatch, device: torch.device, dataloader_idx: int) -> NodeBatch:
        """Move the batch's node numbers; the graph is moved to the device once, not with every batch."""
        if self._on_device is None or self._on_device.graph.y.device != device:
            self._on_device = NodeBatch(self.graph, self.edges).to(device)
        nodes = None if batch.nodes is None else batch.nodes.to(device)
        return NodeBatch(self._on_device.graph, self._on_device.edges, nodes, batch.num_neighbors, batch.piece_size)


class _Nodes:
    """Node numbers as a data set that gives a whole batch at once."""

    def __init__(self, nodes: Tensor) -> None:
        self.nodes = nodes

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, row: int) -> int:
        return int(self.nodes[row])

    def take(self, rows: Any) -> Tensor:
        return self.nodes[rows]


def split_nodes(graph: Data, seed: int, fraction: float = 0.2) -> None:
    """Take ``fraction`` of the labeled training nodes out of ``train_mask`` into ``val_mask``, stratified by class.

    Raises
    ------
    DataError
        If fewer than two labeled nodes are there to be split.
    """
    nodes = (graph.train_mask & (graph.y >= 0)).nonzero().flatten()
    if len(nodes) < 2:
        raise DataError(f"train_mask has {len(nodes)} labeled nodes: at least 2 are needed to set one aside")
    train, val = hold_out(len(nodes), fraction, seed, graph.y[nodes].numpy())
    for name, chosen in (("train_mask", train), ("val_mask", val)):
        graph[name] = index_to_mask(nodes[torch.from_numpy(chosen)], graph.num_nodes)


def _rest(graph: Data) -> Tensor:
    """Labeled nodes in no other mask: the training nodes of a graph without ``train_mask``."""
    rest: Tensor = graph.y >= 0
    for name in ("val_mask", "test_mask"):
        if name in graph:
            rest = rest & ~graph[name]
    return rest


def _used(graph: Data) -> np.ndarray:
    """Nodes in one of the masks that were given; all if there is no ``train_mask``."""
    masks: list[Any] = [graph[name].numpy() for name in MASKS if name in graph]
    return np.logical_or.reduce(masks) if "train_mask" in graph else np.ones(graph.num_nodes, dtype=bool)


def read_npz(path: str | os.PathLike[str], undirected: bool) -> Data:
    """Read a graph from an ``.npz`` file in the layout that :class:`GraphDataModule` describes."""
    file = existing_file(path, "a graph in an .npz file")
    arrays = _arrays(file)
    edges: Any = arrays["edges"]
    if edges.ndim == 2 and edges.shape[1] == 2:
        edges = edges.T
    weight = arrays.get("edge_weight")
    graph = bare_graph(arrays["node_features"], edges, edge_weight=weight)  # before to_undirected names no edge
    if undirected:
        graph.edge_index, graph.edge_weight = undirected_edges(
            graph.edge_index, graph.edge_weight, graph.num_nodes, str(file)
        )
    graph.y = arrays["node_labels"]
    for name in MASKS:
        if f"{name}s" in arrays:
            graph[name] = arrays[f"{name}s"].T
        elif name in arrays:
            graph[name] = arrays[name]
    unknown = set(arrays) - {"node_features", "node_labels", "edges", "edge_weight", *MASKS, *(f"{m}s" for m in MASKS)}
    if unknown:
        warnings.warn(f"{file} has arrays that are not used: {', '.join(sorted(unknown))}", UserWarning, stacklevel=2)
    return graph


def _arrays(file: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"{file} {unreadable(error, '.npz file of plain arrays')}") from None
    for name in ("node_features", "node_labels", "edges"):
        if name not in arrays:
            raise DataError(f"{file} has no array {name!r}; it has {', '.join(arrays) or 'none'}")
    return arrays


def __getattr__(name: str) -> object:
    if name.startswith("__"):  # the import system asks for __path__
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from moeapps.graph.deprecated import old_name

    return old_name(__name__, name)
