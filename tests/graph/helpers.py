"""Small graphs, and a Trainer that can be interrupted and resumed."""

import lightning as L
import numpy as np
import torch
from torch_geometric.data import Data
from torch_geometric.utils import to_undirected

from moeapps.core.callbacks import LastCheckpoint, StepSeeding
from moeapps.core.checkpoint import AtomicCheckpointIO


def small_graph(nodes: int = 60) -> Data:
    """Three classes, edges inside them, a third of the nodes for each mask."""
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(nodes) % 3
    x = torch.randn(nodes, 5, generator=generator) + torch.nn.functional.one_hot(y, 5) * 1.5
    source = torch.randint(0, nodes, (200,), generator=generator)
    target = torch.randint(0, nodes, (200,), generator=generator)
    keep = y[source] == y[target]
    edge_index = torch.stack([torch.cat([source[keep], target[keep]]), torch.cat([target[keep], source[keep]])])
    data = Data(x=x, edge_index=edge_index, y=y)
    part = torch.arange(nodes) // 3 % 3
    data.train_mask, data.val_mask, data.test_mask = part == 0, part == 1, part == 2
    return data


def trainer(folder, *callbacks, epochs: int) -> L.Trainer:
    """Writes ``last.ckpt`` to the folder."""
    return L.Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, default_root_dir=folder, plugins=[AtomicCheckpointIO()],
        callbacks=[StepSeeding(3), LastCheckpoint(str(folder)), *callbacks],
    )  # fmt: skip


def graph_with(**changes) -> Data:
    """:func:`small_graph` with sorted edges, each there once, as in PyG's data sets, and with other attributes."""
    data = small_graph()
    data.edge_index = data.edge_index.unique(dim=1)
    for name, value in changes.items():
        data[name] = value
    return data


def circles(nodes: int = 80, directed: bool = False) -> Data:
    """Two groups, known from the features but for noise; neighbours are mostly of the same group."""
    rng = np.random.default_rng(0)
    group = np.arange(nodes) % 2
    chance = np.where(group[:, None] == group[None], 0.2, 0.01)
    source, target = np.nonzero(np.triu(rng.random((nodes, nodes)) < chance, 1))
    edges = torch.from_numpy(np.stack([source, target]))
    x = torch.from_numpy(rng.normal(size=(nodes, 6)) + 1.5 * np.eye(6)[group]).float()
    return Data(x=x, edge_index=edges if directed else to_undirected(edges, num_nodes=nodes))
