"""Settings of networks on graphs that are worth a search."""

from moeapps.core.search import Choice, Distribution, Float, Int

__all__ = ["EXPERTS_SEARCH", "MOWST_SEARCH", "NETWORK_SEARCH"]

NETWORK_SEARCH: dict[str, Distribution] = {
    "hidden_channels": Int(32, 256, log=True),
    "num_layers": Int(2, 4),
    "dropout": Float(0.1, 0.8),
    "lr": Float(1e-3, 3e-2, log=True),
    "weight_decay": Float(1e-5, 5e-3, log=True),
}
"""Of one network."""

EXPERTS_SEARCH: dict[str, Distribution] = {**NETWORK_SEARCH, "weight_decay": Float(0.0, 1e-3)}
"""Of the experts for links and for whole graphs."""

MOWST_SEARCH: dict[str, Distribution] = {
    **NETWORK_SEARCH,
    "variant": Choice(("auto", "mixture", "mowst_star", "mowst")),
}
"""Of Mowst."""
