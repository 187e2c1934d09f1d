"""Data for link prediction: a graph whose links are cut into those to train, to validate and to test on."""

# N nodes, E edges, B pairs

from operator import itemgetter
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch_geometric.data import Data

from moeapps.core.checks import check_below_one, check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.loading import ResumableLoader, make_loader
from moeapps.graph.data import read_npz
from moeapps.graph.datasets import PUBLIC_GRAPHS, PublicGraphData
from moeapps.graph.edges import Edges
from moeapps.graph.features import normalized
from moeapps.graph.graph_tables import is_table_path
from moeapps.graph.inputs import bare_graph
from moeapps.graph.links import LinkBatch, Structure, hold_out_links, labeled_pairs, link_pairs, pair_keys
from moeapps.registry import did_you_mean

__all__ = ["LinkData", "load_graph"]


class LinkData(L.LightningDataModule):
    """One graph for link prediction, with links held out for validation and test.

    A held-out link passes no message in any part: training and validation see the edges that are left after both, the
    test those that are left after its own. After ``setup`` the attributes ``in_channels``, ``directed`` and
    ``weighted`` are there.

    Parameters
    ----------
    source : Data or str, default="Cora"
        A PyG ``Data``, the path of an ``.npz`` file (see :class:`~moeapps.graph.GraphDataModule`), or the name of a
        public graph (see :class:`~moeapps.graph.PublicGraphData`). If PyG's RandomLinkSplit made the ``Data``, its
        ``edge_label_index`` has the pairs to train on.
    root : str, optional
        Folder of public graphs; not needed for Cora.
    val_fraction : float, default=0.1
        Part of the links that is held out for validation.
    test_fraction : float, default=0.1
        Part of the links that is held out for the test; 0 for none.
    normalize_features : bool, optional
        Whether to scale each node's features to sum to 1; None follows the usual practice for a public graph.
    batch_size : int, optional
        Links in a mini-batch, whose nodes draw neighbours. None takes the whole graph, and at most 16,384 links, drawn
        anew, in each epoch's one step.
    num_neighbors : list of int, optional
        Neighbours to draw at each hop, one number per layer, -1 for all; 10 each when None. For mini-batches.
    seed : int, default=0
        Seed of the split and of the order of mini-batches.
    val : Data, optional
        Validation pairs with labels, as RandomLinkSplit makes them, instead of ``val_fraction``.

    Raises
    ------
    DataError
        In ``setup``, if the graph cannot be used; the message names the reason.
    """

    out_channels = 2
    _no_test = "test_fraction is 0: there are no links to test on"
    """Why there is no test part."""
    in_channels: int
    directed: bool
    weighted: bool

    def __init__(
        self,
        source: Any = "Cora",  # no class in the type: the command line would read a file of this name as its settings
        root: str | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        normalize_features: bool | None = None,
        batch_size: int | None = None,
        num_neighbors: list[int] | None = None,
        seed: int = 0,
        val: Data | None = None,
    ) -> None:
        super().__init__()
        check_below_one(val_fraction=val_fraction, test_fraction=test_fraction)
        if val is None and not val_fraction:
            raise ConfigError("val_fraction must be above 0: validation links stop the training and fit the mixture")
        if batch_size is not None:
            check_sizes(batch_size=batch_size)
        elif num_neighbors is not None:
            raise ConfigError("num_neighbors is for mini-batches: give batch_size too")
        self.source, self.root, self.val = source, root, val
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.normalize_features, self.seed = normalize_features, seed
        self.batch_size = batch_size
        self.num_neighbors = None if num_neighbors is None else tuple(num_neighbors)
        self._parts: dict[str, LinkBatch] = {}
        self._on_device: dict[str, LinkBatch] = {}

    def load(self) -> tuple[Data, bool]:
        """Return the raw graph, and whether its features are usually normalised; override this for another source."""
        return load_graph(self.source, self.root)

    def chosen_links(self, num_nodes: int) -> dict[str, Tensor]:
        """Links ``(2, B)`` that the data itself assigns to the parts ``"val"`` and ``"test"``, once it is loaded."""
        return {}

    def setup(self, stage: str | None = None) -> None:
        """Load, check and cut the links."""
        if self._parts:
            return
        raw, usual = self.load()
        graph = bare_graph(raw)
        self.normalized = bool(usual if self.normalize_features is None else self.normalize_features)
        if self.normalized:
            graph.x = normalized(graph.x)
        num_nodes = graph.x.shape[0]
        self.directed = not Data(
            edge_index=graph.edge_index, num_nodes=num_nodes
        ).is_undirected()  # whatever the weights
        self.in_channels, self.weighted = graph.x.shape[1], graph.edge_weight is not None
        known = graph.edge_index
        own = labeled_pairs(raw, num_nodes)
        if own is not None:  # RandomLinkSplit(disjoint_train_ratio=...) asks for links that are no edges
            links = own[0][:, own[1] == 1]
            links = links[:, ~self._among(links, known, num_nodes)]
            known = torch.cat([known, links, links.flip(0)[:, : 0 if self.directed else None]], dim=1)
        chosen = self.chosen_links(num_nodes)
        if self.test_fraction or "test" in chosen:
            graph, pairs, y = hold_out_links(
                graph, chosen.get("test", self.test_fraction), self.seed, self.directed, known, "test_fraction"
            )
            self._parts["test"] = self._part(graph, pairs, y, known)
        if self.val is None:
            # another seed: with the same one the negative pairs of the test would be drawn again
            graph, pairs, y = hold_out_links(
                graph, chosen.get("val", self.val_fraction), self.seed + 1, self.directed, known, "val_fraction"
            )
        else:
            pairs, y = self._given(self.val, graph)
        self._parts["val"] = self._part(graph, pairs, y, known)
        positive = link_pairs(graph.edge_index, num_nodes, self.directed) if own is None else own[0][:, own[1] == 1]
        if own is not None:
            positive = positive[:, ~self._among(positive, pairs[:, y == 1], num_nodes)]
        if not positive.shape[1]:
            raise DataError("edge_label has no pair of label 1 to train on")
        train = self._part(graph, positive, torch.ones(positive.shape[1], dtype=torch.int64), known)
        train.edges, train.structure = self._parts["val"].edges, self._parts["val"].structure
        self._parts["train"] = train

    def part(self, name: str) -> LinkBatch:
        """Pairs of one part, ``"train"`` (links alone), ``"val"`` or ``"test"``, with the edges that it sees.

        Raises
        ------
        ConfigError
            If no links are held out for the test.
        """
        self.setup()
        if name not in self._parts:
            raise ConfigError(self._no_test)
        return self._parts[name]

    def train_dataloader(self) -> ResumableLoader:
        """The whole graph once per epoch, or mini-batches of links in random order."""
        if self.batch_size is None:
            whole: Any = ["train"]
            return make_loader(whole, batch_size=1, collate_fn=itemgetter(0))
        links: Any = range(self.part("train").pairs.shape[1])
        return make_loader(links, self.batch_size, shuffle=True, seed=self.seed, collate_fn=torch.tensor)

    def val_dataloader(self) -> ResumableLoader:
        """All validation pairs at once."""
        return self._whole("val")

    @property
    def has_test_data(self) -> bool:
        """Whether there are links to test on, after ``setup``."""
        return "test" in self._parts

    def test_dataloader(self) -> ResumableLoader:
        """All test pairs at once."""
        self.part("test")
        return self._whole("test")

    def predict_dataloader(self) -> ResumableLoader:
        """The test pairs."""
        return self.test_dataloader()

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> LinkBatch:
        """The part of this name, or some links of the training; graphs are moved to the device once."""
        name = batch if isinstance(batch, str) else "train"
        if name not in self._on_device or self._on_device[name].x.device != device:
            self._on_device[name] = self.part(name).to(device)
        whole = self._on_device[name]
        if isinstance(batch, str):
            return whole
        chosen = batch.to(device)
        links = {"pairs": whole.pairs[:, chosen], "y": whole.y[chosen], "sampled": True}
        return LinkBatch(**{**vars(whole), **links})

    def _whole(self, name: str) -> ResumableLoader:
        names: Any = [name]
        return make_loader(names, batch_size=1, collate_fn=itemgetter(0))

    def _part(self, graph: Data, pairs: Tensor, y: Tensor, known: Tensor) -> LinkBatch:
        num_nodes = graph.x.shape[0]
        return LinkBatch(
            graph.x,
            Edges(graph.edge_index, graph.edge_weight, num_nodes),
            Structure(graph.edge_index, num_nodes),
            pairs,
            y,
            known,
            self.num_neighbors,
            batch_size=self.batch_size,
        )

    def _given(self, val: Data, graph: Data) -> tuple[Tensor, Tensor]:
        """Pairs and labels of the validation graph that was given."""
        num_nodes = graph.x.shape[0]
        found = labeled_pairs(val, num_nodes)
        if found is None:
            raise DataError("val_data has no edge_label_index: give what RandomLinkSplit makes, or leave it out")
        pairs, y = found
        if len(y.unique()) < 2:
            raise DataError("val_data has pairs of one kind only: linked and not linked ones are needed")
        seen = self._among(pairs[:, y == 1], graph.edge_index, num_nodes)
        if bool(seen.any()):
            first = pairs[:, y == 1][:, int(seen.nonzero()[0])].tolist()
            raise DataError(
                f"{int(seen.sum())} linked pairs of val_data are edges of the training graph, the first is {first}: "
                "experts would read the answer from the graph"
            )
        return pairs, y

    def _among(self, pairs: Tensor, others: Tensor, num_nodes: int) -> Tensor:
        keys = [pair_keys(part, num_nodes, self.directed) for part in (pairs, others)]
        return torch.isin(*keys)


def load_graph(source: Data | str, root: str | None) -> tuple[Data, bool]:
    """A graph that is given, in a file, or public; and whether its features are usually normalised.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    if not isinstance(source, str):
        return source, False
    if source in PUBLIC_GRAPHS:
        return PublicGraphData(source, root).load(), PUBLIC_GRAPHS[source].normalize_features
    if Path(source).suffix == ".npz":
        return read_npz(source, undirected=True), False
    tables = ": LinkTableData reads two tables, nodes= and edges="
    raise ConfigError(
        f"source must be a Data, the path of an .npz file or a public graph's name, got {source!r}"
        f"{tables if is_table_path(source) else did_you_mean(source, PUBLIC_GRAPHS)}"
    )
