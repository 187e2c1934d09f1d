"""The networks that serve as experts, by name."""

from torch import Tensor, nn
from torch_geometric.nn import GCN, MLP, GraphSAGE

from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.registry import nearest

__all__ = ["GNNS", "make_network", "run_network"]

GNNS: dict[str, type[nn.Module]] = {"gcn": GCN, "sage": GraphSAGE}
"""Graph networks by name; any module with ``forward(x, edge_index)`` can be given instead of a name."""


def make_network(
    network: str | nn.Module,
    in_channels: int,
    out_channels: int,
    *,
    hidden_channels: int = 64,
    num_layers: int = 2,
    dropout: float = 0.5,
    norm: str | None = "batch_norm",
) -> nn.Module:
    """Build ``"mlp"``, ``"gcn"`` or ``"sage"``, or pass a module through.

    Every layer but the last is followed by the norm, ReLU and dropout; the last one is plain. The graph convolutions
    cache nothing, so the network can be used on any graph.

    Args:
        network: A name or a module.
        in_channels: Features per node F.
        out_channels: Classes K.
        hidden_channels: Width of the hidden layers.
        num_layers: Number of layers.
        dropout: Dropout probability.
        norm: ``"batch_norm"``, another of PyG's norms by name, or None.

    Raises:
        ConfigError: If the name is unknown or a size impossible.
    """
    if isinstance(network, nn.Module):
        return network
    names = ["mlp", *GNNS]
    if network not in names:
        guess = nearest(str(network), names)
        raise ConfigError(
            f"network must be one of {', '.join(names)} or a torch module, got {network!r}"
            + (f"; did you mean {guess!r}?" if guess else "")
        )
    check_sizes(
        in_channels=in_channels,
        hidden_channels=hidden_channels,
        num_layers=num_layers,
        out_channels=out_channels,
    )
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout must be in [0, 1), got {dropout!r}")
    built: nn.Module = (MLP if network == "mlp" else GNNS[network])(
        in_channels=in_channels,
        hidden_channels=hidden_channels,
        num_layers=num_layers,
        out_channels=out_channels,
        dropout=dropout,
        norm=norm,
    )
    return built


def run_network(network: nn.Module, x: Tensor, edge_index: Tensor, edge_weight: Tensor | None = None) -> Tensor:
    """Call a network as its kind wants to be called.

    Raises:
        DataError: If there are edge weights and the network has no use for them.
    """
    if isinstance(network, MLP):  # the one that takes no edges
        return network(x)
    if edge_weight is None:
        return network(x, edge_index)
    if not getattr(network, "supports_edge_weight", True):
        raise DataError(f"edge_weight was given, but {type(network).__name__} does not use edge weights")
    return network(x, edge_index, edge_weight)
