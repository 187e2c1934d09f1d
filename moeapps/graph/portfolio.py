"""Which networks compete where none is named: a small portfolio, or the norms of one network."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from moeapps.core.config import as_arguments, config_from
from moeapps.core.errors import ConfigError
from moeapps.graph.networks import NETWORKS, NORMS, NetworkConfig, own_sizes
from moeapps.registry import did_you_mean

__all__ = [
    "AUTO",
    "PORTFOLIO",
    "Networks",
    "Spec",
    "name_of",
    "named_experts",
    "neighbors_of",
    "portfolio_of",
    "spec_of",
]

AUTO = "auto"

Spec = dict[str, Any]
"""A network by its name and sizes: ``{"network": "gcn_skip", "num_layers": 4, "norm": "layer_norm"}``."""

Networks = str | Mapping[str, Any] | nn.Module | Sequence[str | Mapping[str, Any]]
"""``"auto"``, a name, a name with sizes, a module, or a list of names (with sizes or without)."""

PORTFOLIO: tuple[Spec, ...] = (
    {"network": "gcn", "norm": None},
    {"network": "gcn", "norm": "batch_norm"},
    {"network": "gcn_skip", "norm": "layer_norm"},
    {"network": "gcn_skip", "norm": "layer_norm", "num_layers": 4},
    {"network": "gcn_skip", "norm": "batch_norm", "num_layers": 4},
    {"network": "sage", "norm": "batch_norm"},
    {"network": "sage", "norm": "layer_norm", "num_layers": 4},
)
"""What ``"auto"`` stands for: convolutions with a symmetric mean, and with a mean beside the node's own row; shallow
and deep; with the norms that suit them. Chosen on splits that no table of the documentation uses."""


def spec_of(network: str | Mapping[str, Any], config: NetworkConfig) -> Spec:
    """A network's name with all its sizes, those that it does not have being those of the config.

    Raises
    ------
    ConfigError
        If there is no network of this name, or a size of another name.
    """
    name, sizes, options = (network, config, {}) if isinstance(network, str) else own_sizes(network, config)
    if name not in NETWORKS:
        raise ConfigError(f"there is no network {name!r}: they are {', '.join(NETWORKS)}{did_you_mean(name, NETWORKS)}")
    return {"network": name, **as_arguments(config_from(NetworkConfig, sizes)), **options}


def name_of(spec: Mapping[str, Any], config: NetworkConfig) -> str:
    """A short name: the network's, its number of layers where it is its own, and its norm."""
    layers = f"_{spec['num_layers']}" if spec.get("num_layers", config.num_layers) != config.num_layers else ""
    norm = {"batch_norm": "batch", "layer_norm": "layer", None: "plain"}
    return f"{spec['network']}{layers}_{norm.get(spec['norm'], spec['norm'])}"


def portfolio_of(networks: Networks, config: NetworkConfig) -> list[Spec]:
    """The networks that compete, with all their sizes; each once.

    Parameters
    ----------
    networks
        ``"auto"`` for :data:`PORTFOLIO`, a name, or a list of names and of dicts with a name and sizes.
    config : NetworkConfig
        Sizes that a network does not name itself. Its norm may be ``"auto"``: that of the portfolio's entry, or each of
        :data:`~moeapps.graph.networks.NORMS` for a network by name. Another norm is that of all.

    Raises
    ------
    ConfigError
        If the list is empty, has something else in it, or names a network or a size that does not exist.
    """
    if networks == AUTO:
        chosen: list[Any] = [dict(spec) for spec in PORTFOLIO]
        if config.norm != AUTO:
            chosen = [{**spec, "norm": config.norm} for spec in chosen]
    elif isinstance(networks, str | Mapping):
        chosen = [networks]
    elif isinstance(networks, Sequence) and networks and all(isinstance(entry, str | Mapping) for entry in networks):
        chosen = list(networks)
    else:
        raise ConfigError(
            "several networks are given as a list of names, or of dicts such as {'network': 'gcn', 'num_layers': 4}, "
            f"got {networks!r}; a torch module is given alone"
        )
    specs: list[Spec] = []
    for entry in chosen:
        spec = spec_of(entry, config)
        for norm in NORMS if spec["norm"] == AUTO else (spec["norm"],):
            if (made := {**spec, "norm": norm}) not in specs:
                specs.append(made)
    return specs


def neighbors_of(given: Sequence[int] | None, hops: int) -> list[int]:
    """Neighbours that a network of the portfolio draws at each hop in a mini-batch.

    Networks differ in their depth. Where more numbers are needed than were given, the last one is repeated; where none
    was, it is 10 for two hops and 2 for each further one, as the number of nodes is their product.
    """
    numbers = [10, 10, 2] if given is None else list(given)
    return [numbers[min(hop, len(numbers) - 1)] for hop in range(hops)]


def named_experts(specs: Sequence[Spec], config: NetworkConfig) -> dict[str, Spec]:
    """The networks by names that differ."""
    named: dict[str, Spec] = {}
    for spec in specs:
        name = base = name_of(spec, config)
        number = 2
        while name in named:
            name, number = f"{base}_{number}", number + 1
        named[name] = spec
    return named
