"""Settings of experts that are trained side by side, and the networks that they name."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from moeapps.core.errors import ConfigError
from moeapps.graph.networks import NetworkConfig

__all__ = ["PORTFOLIO", "ExpertsConfig", "expert_networks"]

PORTFOLIO = ("gcn", "sage", "gin")
"""Strong experts of ``strong="auto"``: a normalised mean, a mean beside the node itself, and a sum of neighbours."""

WEIGHTED_PORTFOLIO = ("gcn",)
"""Strong experts of ``strong="auto"`` where edges have weights."""


@dataclass(frozen=True)
class ExpertsConfig(NetworkConfig):
    """Experts and their training.

    Parameters
    ----------
    hidden_channels : int, default=64
        Width of the hidden layers, and of what a network knows of a node.
    strong : str, torch.nn.Module or list of these, default="auto"
        Graph networks: names that :func:`~moeapps.graph.networks.make_network` knows, or modules with
        ``forward(x, edge_index)`` whose output has ``hidden_channels`` columns. ``"auto"``: gcn, sage and gin; only
        gcn where edges have weights.
    weak : str, torch.nn.Module or None, default="mlp"
        Network that sees each node's own features and no edges; None for none.
    gate : str, default="auto"
        How the experts are mixed, see :func:`~moeapps.core.mixing.fit_mixture`: ``"auto"``, ``"best"``, ``"mean"``,
        ``"constant"``, ``"confidence"``, ``"linear"``, ``"mlp"`` or ``"stacked"``.
    lr : float, default=0.01
        Learning rate of Adam.
    weight_decay : float, default=0.0
        L2 penalty of Adam.
    patience : int, default=20
        Epochs without improvement after which an expert rests.
    """

    strong: Any = "auto"
    weak: Any = "mlp"
    gate: str = "auto"
    lr: float = 0.01
    weight_decay: float = 0.0
    patience: int = 20


def expert_networks(config: ExpertsConfig, weighted: bool) -> list[tuple[str, Any]]:
    """Names of the experts and their networks (names or modules), the weak one first; names are made to differ.

    Raises
    ------
    ConfigError
        If ``strong`` is neither a name, a module nor a list of these.
    """
    strong = config.strong
    if isinstance(strong, str) and strong == "auto":
        strong = WEIGHTED_PORTFOLIO if weighted else PORTFOLIO
    elif isinstance(strong, str | nn.Module):
        strong = [strong]
    elif strong is None:
        strong = []
    if not isinstance(strong, list | tuple):
        raise ConfigError(f"strong must be 'auto', a network's name, a module, or a list of these, got {strong!r}")
    found: list[tuple[str, Any]] = []
    for network in [*([] if config.weak is None else [config.weak]), *strong]:
        if not isinstance(network, str | nn.Module):
            raise ConfigError(f"strong and weak must hold names of networks and modules, got {network!r}")
        name = network if isinstance(network, str) else type(network).__name__
        same = sum(other.partition(" ")[0] == name for other, _ in found)
        found.append((f"{name} {same + 1}" if same else name, network))
    return found
