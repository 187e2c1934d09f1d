"""The networks that serve as experts, by name; :mod:`moeapps.graph.experts` runs them on a graph.

The graph networks are PyG's, with two differences that change no result. They take prepared edges
(:class:`~moeapps.graph.edges.Edges`), so that self-loops and degrees are computed once per graph, not in each layer of
each step; and messages are summed by one sparse product instead of one row per edge in memory (on two CPU cores,
next to PyG without its compiled extensions, that is 1.2 to 20 times faster, most where nodes have many neighbours or
features; ``benchmarks/graph_speed.py``). GAT, which needs a row per edge, is not faster.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Optional

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric import EdgeIndex
from torch_geometric.nn import GAT as PyGGAT
from torch_geometric.nn import GCN as PyGGCN
from torch_geometric.nn import GIN as PyGGIN
from torch_geometric.nn import MLP, GATConv, GATv2Conv, GCNConv, GINConv, SAGEConv
from torch_geometric.nn import GraphSAGE as PyGSAGE
from torch_geometric.nn.models.basic_gnn import BasicGNN
from torch_geometric.typing import OptPairTensor, OptTensor  # PyG reads these signatures and knows no `X | None`
from torch_geometric.utils import softmax

from moeapps.core.checks import check_sizes
from moeapps.core.config import as_arguments, config_from, field_names
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.routers import router_dtype
from moeapps.graph.edges import EdgeForm, Edges, Neighborhood, sorted_edge_index
from moeapps.graph.sparse_features import SparseFeatures
from moeapps.registry import did_you_mean

__all__ = ["GNNS", "NETWORKS", "GraphNetwork", "NetworkConfig", "build_network", "make_network"]

# N nodes of the graph, M nodes of a piece of it, S seeds of the piece, E edges, F features, K classes, d hidden width


def refuse_negative(weight: Tensor, network: str) -> None:
    """A mean over edges has no meaning with negative weights."""
    if bool((weight < 0).any()):
        raise DataError(f"an edge_weight is {float(weight.min()):g}: {network} takes weights from 0 on")


def neighbor_sum(
    edge_index: EdgeIndex, rows: Tensor, weight: Tensor | None = None, reduce: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """Sum or mean of the sources' rows at each target, ``(N, d)`` to ``(N, d)``; in float32 or better.

    With weights each row counts in the sum, or in the mean, as often as its edge's weight says.
    """
    if weight is not None and reduce == "mean":
        refuse_negative(weight, "a mean over neighbours (sage)")
        total = neighbor_sum(edge_index, torch.ones_like(rows[:, :1]), weight)
        return neighbor_sum(edge_index, rows, weight) / total.clamp(min=torch.finfo(total.dtype).tiny)
    if isinstance(rows, SparseFeatures):
        rows = rows.to_dense()
    rows = rows.to(router_dtype(rows))
    if weight is None and rows.dtype != torch.float32:  # PyG's ones are float32
        weight = rows.new_ones(edge_index.shape[1])
    value = None if weight is None else weight.to(rows.dtype)
    # autocast would hand the sparse product rows in half precision beside float32 values, which CUDA refuses
    with torch.autocast(rows.device.type, enabled=False):
        out: Tensor = edge_index.matmul(rows, input_value=value, reduce=reduce, transpose=True)
    return out


class _GCNConv(GCNConv):
    SUPPORTS_FUSED_EDGE_INDEX = True

    def message_and_aggregate(self, adj_t: EdgeIndex, x: Tensor, edge_weight: OptTensor) -> Tensor:
        return neighbor_sum(adj_t, x, edge_weight)


class _GINConv(GINConv):
    SUPPORTS_FUSED_EDGE_INDEX = True

    def message_and_aggregate(self, adj_t: EdgeIndex, x: OptPairTensor) -> Tensor:
        assert x[0] is not None
        return neighbor_sum(adj_t, x[0])


class _SAGEConv(SAGEConv):
    """Mean of neighbours, multiplied before the mean is taken where that makes the rows shorter.

    An edge of weight w counts in the mean as w edges.
    """

    def forward(self, x: Tensor, edge_index: EdgeIndex, edge_weight: Tensor | None = None) -> Tensor:
        weight, bias = self.lin_l.weight, self.lin_l.bias
        first = weight.shape[0] < weight.shape[1]
        rows = F.linear(x, weight) if first else x
        mean = neighbor_sum(edge_index, rows, edge_weight, reduce="mean")
        own: Tensor = self.lin_r(x)
        return own + (mean + bias if first else F.linear(mean, weight, bias))


class _GATConv(GATConv):
    """Attention in which an edge of weight w counts as w edges: its logarithm is added to the score (no parameters)."""

    def edge_update(
        self,
        alpha_j: Tensor,
        alpha_i: OptTensor,
        edge_attr: OptTensor,
        index: Tensor,
        ptr: OptTensor,
        dim_size: Optional[int],  # noqa: UP045 - PyG reads these signatures
    ) -> Tensor:
        scores = F.leaky_relu(alpha_j if alpha_i is None else alpha_j + alpha_i, self.negative_slope)
        return _attention(self, scores, edge_attr, index, ptr, dim_size)


class _GATv2Conv(GATv2Conv):
    def edge_update(
        self,
        x_j: Tensor,
        x_i: Tensor,
        edge_attr: OptTensor,
        index: Tensor,
        ptr: OptTensor,
        dim_size: Optional[int],  # noqa: UP045
    ) -> Tensor:
        scores = (F.leaky_relu(x_i + x_j, self.negative_slope) * self.att).sum(dim=-1)
        return _attention(self, scores, edge_attr, index, ptr, dim_size)


def _attention(
    conv: GATConv | GATv2Conv,
    scores: Tensor,
    weight: Tensor | None,
    index: Tensor,
    ptr: Tensor | None,
    dim_size: int | None,
) -> Tensor:
    """Softmax over each target's edges, ``(E, heads)``, with edges of weight ``(E,)``."""
    if weight is not None:
        refuse_negative(weight, "an attention network (gat, gatv2)")
        scores = scores + weight.log()[:, None]
    return F.dropout(softmax(scores, index, ptr, dim_size), conv.dropout, conv.training)


class _Skip(nn.Module):
    """A convolution and, added to it, a linear map of the node's own row."""

    def __init__(self, conv: nn.Module, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv, self.own = conv, nn.Linear(in_channels, out_channels)

    def reset_parameters(self) -> None:
        self.conv.reset_parameters()  # type: ignore[operator]
        self.own.reset_parameters()

    def forward(self, x: Tensor, *edges: Any, **more: Any) -> Tensor:
        return self.conv(x, *edges, **more) + self.own(x)


def _by_row(arguments: dict[str, Any]) -> dict[str, Any]:
    """PyG's layer norm takes mean and variance over the whole graph: a node's output would depend on all nodes."""
    if arguments.get("norm") == "layer_norm":
        arguments.setdefault("norm_kwargs", {"mode": "node"})
    return arguments


class FeatureNetwork(MLP):
    """PyG's MLP with dropout of the input; it sees no edges.

    Parameters
    ----------
    *args
        As PyG's MLP.
    input_dropout : float, default=0.0
        Probability with which a feature is dropped.
    **kwargs
        As PyG's MLP.
    """

    def __init__(self, *args: Any, input_dropout: float = 0.0, **kwargs: Any) -> None:
        self.input_dropout = input_dropout
        super().__init__(*args, **_by_row(kwargs))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``(N, F)`` to ``(N, K)``; see PyG's MLP."""
        out: Tensor = super().forward(_dropped(self, x), *args, **kwargs)
        return out


def _dropped(network: "FeatureNetwork | GraphNetwork", x: Tensor) -> Tensor:
    return F.dropout(x, network.input_dropout, network.training) if network.input_dropout else x


class GraphNetwork(BasicGNN):
    """A PyG model that takes prepared edges; base of the networks by name.

    Parameters
    ----------
    *args
        As PyG's model.
    skip : bool, default=False
        Whether every layer adds a linear map of the node's own row.
    input_dropout : float, default=0.0
        Probability with which a feature is dropped.
    **kwargs
        As PyG's model; its ``"layer_norm"`` is that of each node's row.
    """

    edge_form: EdgeForm = "plain"
    cut_share = 0.1  # see NodeExpert.cut_share: a layer is a sparse product

    @property
    def uses_weights(self) -> bool:
        """Whether weights of edges change the result."""
        return bool(self.supports_edge_weight or self.supports_edge_attr)

    @property
    def weight_name(self) -> str:
        """Name by which its layers take weights of edges."""
        return "edge_weight" if self.supports_edge_weight else "edge_attr"

    def __init__(self, *args: Any, skip: bool = False, input_dropout: float = 0.0, **kwargs: Any) -> None:
        self._skip, self.input_dropout = skip, input_dropout
        super().__init__(*args, **_by_row(kwargs))

    def init_conv(self, in_channels: int, out_channels: int, **kwargs: Any) -> nn.Module:
        """One layer."""
        conv = self.make_conv(in_channels, out_channels, **kwargs)
        return _Skip(conv, in_channels, out_channels) if self._skip else conv

    def make_conv(self, in_channels: int, out_channels: int, **kwargs: Any) -> nn.Module:
        """The convolution of one layer, PyG's unless a subclass has a faster one."""
        return super().init_conv(in_channels, out_channels, **kwargs)

    def forward(self, x: Tensor, edges: Tensor | Edges | Neighborhood, edge_weight: Tensor | None = None) -> Tensor:
        """Run all layers.

        Parameters
        ----------
        x : Tensor of shape (N, F)
            Features of the graph's nodes, or ``(M, F)`` of a neighbourhood's.
        edges : Tensor or Edges or Neighborhood
            The whole graph's edges, prepared, as a plain ``(2, E)`` index or as PyG's sparse ``adj_t``; or a
            neighbourhood.
        edge_weight : Tensor of shape (E,), optional
            With a plain index.

        Returns
        -------
        Tensor of shape (N, K)
            Or ``(S, K)`` for the seeds of a neighbourhood.
        """
        more: dict[str, Any] = {}
        if isinstance(edges, Neighborhood):
            index = sorted_edge_index(edges.edge_index, len(edges.nodes))
            weight, seeds = edges.edge_weight, edges.nodes_per_hop[0]
            if self.jk_mode is None:  # every layer needs one hop less; with jumping knowledge all rows are kept
                more = {
                    "num_sampled_nodes_per_hop": edges.nodes_per_hop,
                    "num_sampled_edges_per_hop": edges.edges_per_hop,
                }
        else:
            whole = Edges.of(edges, edge_weight, x.shape[0])
            index, weight = whole.form(self.edge_form)
            seeds = x.shape[0]
        x = _dropped(self, x)
        if weight is not None and self.uses_weights:
            more[self.weight_name] = weight
        out: Tensor = super().forward(x, index, **more)
        return out[:seeds]


class GCN(GraphNetwork, PyGGCN):
    """Kipf and Welling 2017; the normalisation is part of the edges."""

    edge_form: EdgeForm = "normalized"

    def make_conv(self, in_channels: int, out_channels: int, **kwargs: Any) -> nn.Module:
        """A convolution that takes the edges' weights as they are."""
        return _GCNConv(in_channels, out_channels, normalize=False, **kwargs)


class GraphSAGE(GraphNetwork, PyGSAGE):
    """Hamilton et al. 2017, mean aggregation."""

    supports_edge_weight = True  # PyG's does not take them

    def make_conv(self, in_channels: int, out_channels: int, **kwargs: Any) -> nn.Module:
        """A convolution that multiplies where it is cheaper."""
        return _SAGEConv(in_channels, out_channels, **kwargs)


class GAT(GraphNetwork, PyGGAT):
    """Veličković et al. 2018, and v2 (Brody et al. 2022); the self-loops are part of the edges."""

    edge_form: EdgeForm = "looped"
    cut_share = 0.5  # a layer writes one row per edge

    def make_conv(self, in_channels: int, out_channels: int, **kwargs: Any) -> nn.Module:
        """PyG's, with weights of edges, and without self-loops of its own."""
        made = PyGGAT.init_conv(self, in_channels, out_channels, add_self_loops=False, **kwargs)
        made.__class__ = _GATv2Conv if isinstance(made, GATv2Conv) else _GATConv
        return made


class GIN(GraphNetwork, PyGGIN):
    """Xu et al. 2019."""

    def make_conv(self, in_channels: int, out_channels: int, **kwargs: Any) -> nn.Module:
        """PyG's, with the sum as a sparse product."""
        conv = PyGGIN.init_conv(self, in_channels, out_channels, **kwargs)
        return _GINConv(conv.nn)


GNNS: dict[str, tuple[type[GraphNetwork], dict[str, Any]]] = {
    "gcn": (GCN, {}),
    "sage": (GraphSAGE, {}),
    "gat": (GAT, {"act": "elu"}),
    "gatv2": (GAT, {"act": "elu", "v2": True}),
    "gin": (GIN, {}),
}
"""Graph networks by name."""

VARIANTS: dict[str, dict[str, Any]] = {"": {}, "_skip": {"skip": True}, "_jk": {"jk": "cat"}}
"""What may follow the name: a linear skip connection in every layer, or jumping knowledge (Xu et al. 2018)."""

OPTIONS = ("input_dropout", "heads")
"""What a network given as a dict may have beside its sizes: dropout of the features, and attention heads."""

NORMS = ("batch_norm", "layer_norm", None)
"""Norms that ``norm="auto"`` chooses among."""

MOST_LAYERS = 1000
"""Far above every depth that helps; a larger number is a mistake, and would only fill the memory."""

NETWORKS: tuple[str, ...] = ("mlp", *(name + variant for variant in VARIANTS for name in GNNS))
"""All names; any module with ``forward(x, edge_index)`` can be given instead of one."""


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of a network.

    Parameters
    ----------
    hidden_channels : int, default=64
        Width of the hidden layers.
    num_layers : int, default=2
        Number of layers.
    dropout : float, default=0.5
        Dropout probability, in [0, 1).
    norm : str or None, default="batch_norm"
        Norm after each hidden layer: ``"batch_norm"``, ``"layer_norm"`` (of each node's row), another of PyG's norms by
        name, or None.
    """

    hidden_channels: int = 64
    num_layers: int = 2
    dropout: float = 0.5
    norm: str | None = "batch_norm"


def make_network(
    network: str | Mapping[str, Any] | nn.Module,
    in_channels: int,
    out_channels: int,
    *,
    hidden_channels: int = 64,
    num_layers: int = 2,
    dropout: float = 0.5,
    norm: str | None = "batch_norm",
) -> nn.Module:
    """Build a network by its name, or pass a module through.

    Every layer but the last is followed by the norm, the activation (ReLU; ELU for GAT) and dropout; the last one is
    plain. Nothing is cached inside, so a network can be used on any graph.

    Parameters
    ----------
    network : str, dict or torch.nn.Module
        ``"mlp"``, or ``"gcn"``, ``"sage"``, ``"gat"``, ``"gatv2"``, ``"gin"``, each also with ``_skip`` (every layer
        adds a linear map of the node's own row) or ``_jk`` (the last layer sees all layers); or such a name in a dict
        with sizes of its own and :data:`OPTIONS`, ``{"network": "gat", "num_layers": 4, "heads": 4}``; or a module.
    in_channels : int
        Features per node F.
    out_channels : int
        Classes K.
    hidden_channels, num_layers, dropout, norm
        See :class:`NetworkConfig`.

    Returns
    -------
    torch.nn.Module
        The module that was given, or a new one.

    Raises
    ------
    ConfigError
        If the name is unknown or a size impossible.
    """
    sizes = NetworkConfig(hidden_channels, num_layers, dropout, norm)
    return build_network(network, in_channels, out_channels, sizes)


def own_sizes(network: Mapping[str, Any], config: NetworkConfig) -> tuple[str, NetworkConfig, dict[str, Any]]:
    """Name, sizes and options of a network that is given as a dict.

    Raises
    ------
    ConfigError
        If it has no name, or an entry that is neither size nor option.
    """
    given = dict(network)
    name = given.pop("network", None)
    if not isinstance(name, str):
        raise ConfigError(f"a network given as a dict needs its name, {{'network': 'gcn', ...}}, got {dict(network)!r}")
    known = (*field_names(NetworkConfig), *OPTIONS)
    if unknown := set(given) - set(known):
        raise ConfigError(f"a network has no {sorted(unknown)[0]!r}, only {', '.join(known)}; got {dict(network)!r}")
    options = {key: given.pop(key) for key in OPTIONS if key in given}
    return name, config_from(NetworkConfig, config, **given), options


def build_network(
    network: str | Mapping[str, Any] | nn.Module, in_channels: int, out_channels: int, config: NetworkConfig
) -> nn.Module:
    """As :func:`make_network`, with the sizes in one config."""
    if isinstance(network, nn.Module):
        return network
    more: dict[str, Any] = {}
    if isinstance(network, Mapping):
        network, config, more = own_sizes(network, config)
    if network not in NETWORKS:
        raise ConfigError(
            f"network must be one of {', '.join(NETWORKS)} or a torch module, got {network!r}"
            + did_you_mean(str(network), NETWORKS)
        )
    sizes = as_arguments(config_from(NetworkConfig, config))  # of a config that inherits from it, too
    sizes |= {"in_channels": in_channels, "out_channels": out_channels}
    check_sizes(**{name: size for name, size in sizes.items() if name not in ("dropout", "norm")})
    if sizes["num_layers"] > MOST_LAYERS:
        raise ConfigError(f"num_layers must be at most {MOST_LAYERS:,}, got {sizes['num_layers']}")
    for name, share in (("dropout", config.dropout), ("input_dropout", more.get("input_dropout", 0.0))):
        if not 0 <= share < 1:
            raise ConfigError(f"{name} must be in [0, 1), got {share!r}")
    name, _, variant = network.partition("_")
    if "heads" in more:
        check_sizes(heads=more["heads"])
        if not issubclass(GNNS[name][0] if name in GNNS else FeatureNetwork, GAT):
            raise ConfigError(f"heads are those of gat and gatv2, {network!r} has none")
        if config.hidden_channels % more["heads"]:
            raise ConfigError(
                f"hidden_channels={config.hidden_channels} cannot be divided by heads={more['heads']}: each head has "
                "an equal part of them"
            )
    if network == "mlp":
        return FeatureNetwork(**sizes, **more)
    kind, options = GNNS[name]
    return kind(**sizes, **options, **VARIANTS[f"_{variant}" if variant else ""], **more)


def __getattr__(name: str) -> object:
    if name.startswith("__"):  # the import system asks for __path__
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from moeapps.graph.deprecated import old_name

    return old_name(__name__, name)
