"""Settings of rankers that are worth a search."""

from moeapps.core.search import Distribution, Float, Int

__all__ = ["RANKING_SEARCH"]

RANKING_SEARCH: dict[str, Distribution] = {
    "embedding_dim": Int(4, 32, log=True),
    "lr": Float(3e-4, 1e-2, log=True),
    "weight_decay": Float(1e-7, 1e-3, log=True),
    "unknown_rate": Float(0.0, 0.1),
}
"""Of all rankers, whatever their network."""
