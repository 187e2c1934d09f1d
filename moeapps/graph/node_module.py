"""LightningModules for node classification: the base, and one network alone."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from moeapps.core.errors import ConfigError
from moeapps.core.module import MoEModule
from moeapps.graph.networks import make_network, run_network

__all__ = ["GNNModule", "NodeModule", "check_rates", "measure"]


class NodeModule(MoEModule):
    """Base of both modules: sizes taken from the data, what is measured, what is predicted.

    A subclass has ``in_channels`` and ``out_channels`` (None means: ask the data module) and defines
    :meth:`make_model` and :meth:`log_probs`.
    """

    in_channels: int | None
    out_channels: int | None
    model: nn.Module

    def make_model(self, in_channels: int, out_channels: int) -> nn.Module:
        """Build the network."""
        raise NotImplementedError

    def log_probs(self, graph: Data) -> Tensor:
        """``(N, K)`` log-probabilities of every node."""
        raise NotImplementedError

    def configure_model(self) -> None:
        """Build the network once the sizes are known; Lightning calls this before weights are restored."""
        if hasattr(self, "model"):
            return
        data = getattr(self._trainer, "datamodule", None)
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) is None:
                if data is None:
                    raise ConfigError(f"{name} is not set and there is no data module to take it from")
                setattr(self, name, getattr(data, name))
            self.hparams[name] = getattr(self, name)
        assert self.in_channels is not None
        assert self.out_channels is not None
        self.model = self.make_model(self.in_channels, self.out_channels)

    def test_step(self, batch: Data, batch_idx: int) -> None:
        """Log ``test/accuracy`` and ``test/loss`` over the test nodes.

        Raises:
            ConfigError: If the graph has no test nodes.
        """
        if "test_mask" not in batch or not bool(batch.test_mask.any()):
            raise ConfigError("the data has no labeled node in test_mask: there is nothing to test on")
        self.log_measures("test", self.log_probs(batch), batch.y, batch.test_mask)

    def predict_step(self, batch: Data, batch_idx: int) -> dict[str, Any]:
        """Columns: node, predicted class name, and one probability per class."""
        probabilities = self.log_probs(batch).exp().cpu().numpy()
        classes = getattr(getattr(self._trainer, "datamodule", None), "classes", range(probabilities.shape[1]))
        return {
            "node": np.arange(len(probabilities)),
            "prediction": np.asarray(classes)[probabilities.argmax(1)],
            **{f"probability_{name}": probabilities[:, k] for k, name in enumerate(classes)},
        }

    def log_measures(self, stage: str, log_probs: Tensor, y: Tensor, mask: Tensor) -> None:
        """Log accuracy and negative log-likelihood over the nodes of ``mask``."""
        accuracy, loss = measure(log_probs[mask], y[mask])
        count = int(mask.sum())
        self.log_dict({f"{stage}/accuracy": accuracy, f"{stage}/loss": loss}, batch_size=count, prog_bar=stage == "val")


def measure(log_probs: Tensor, y: Tensor) -> tuple[float, float]:
    """Accuracy and mean negative log-likelihood."""
    return float((log_probs.argmax(-1) == y).float().mean()), float(F.nll_loss(log_probs, y))


class GNNModule(NodeModule):
    """One network alone, trained with cross-entropy: the baseline that a mixture has to beat.

    Args:
        network: ``"mlp"``, ``"gcn"``, ``"sage"`` or a module with ``forward(x, edge_index)``.
        hidden_channels: Width of the hidden layers.
        num_layers: Number of layers.
        dropout: Dropout probability.
        norm: Norm after each hidden layer, ``"batch_norm"`` or None.
        lr: Learning rate of Adam.
        weight_decay: Its L2 penalty.
        in_channels: Features per node; taken from the data when None.
        out_channels: Classes; taken from the data when None.
    """

    def __init__(
        self,
        network: str | nn.Module = "gcn",
        hidden_channels: int = 64,
        num_layers: int = 2,
        dropout: float = 0.5,
        norm: str | None = "batch_norm",
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        in_channels: int | None = None,
        out_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_rates(lr=lr, weight_decay=weight_decay)
        self.save_hyperparameters(ignore=["network"] if isinstance(network, nn.Module) else None)
        self.network, self.in_channels, self.out_channels = network, in_channels, out_channels
        self.settings = {
            "hidden_channels": hidden_channels,
            "num_layers": num_layers,
            "dropout": dropout,
            "norm": norm,
        }
        self.lr, self.weight_decay = lr, weight_decay

    def make_model(self, in_channels: int, out_channels: int) -> nn.Module:
        """Build the network."""
        return make_network(self.network, in_channels, out_channels, **self.settings)  # type: ignore[arg-type]

    def log_probs(self, graph: Data) -> Tensor:
        """``(N, K)`` log-probabilities of every node."""
        return run_network(self.model, graph.x, graph.edge_index, graph.get("edge_weight")).log_softmax(-1)

    def training_step(self, batch: Data, batch_idx: int) -> Tensor:
        """Cross-entropy over the training nodes."""
        mask = batch.train_mask
        loss = F.nll_loss(self.log_probs(batch)[mask], batch.y[mask])
        return self.total_loss({"task": loss}, batch_size=int(mask.sum()))

    def validation_step(self, batch: Data, batch_idx: int) -> None:
        """Log ``val/accuracy`` and ``val/loss``."""
        self.log_measures("val", self.log_probs(batch), batch.y, batch.val_mask)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)


def check_rates(**rates: float) -> None:
    """Refuse negative or non-finite rates, naming the argument."""
    for name, value in rates.items():
        if not 0 <= value < float("inf"):
            raise ConfigError(f"{name} must be a number of at least 0, got {value!r}")
