"""Settings of DriftMoE that are worth a search."""

from moeapps.core.search import Distribution, Float, Int

__all__ = ["STREAM_SEARCH"]

STREAM_SEARCH: dict[str, Distribution] = {
    "n_experts": Int(4, 24),
    "top_k": Int(1, 4),
    "bagging": Float(1.0, 10.0, log=True),
    "drift_delta": Float(1e-4, 1e-2, log=True),
    "grace_period": Int(50, 400, log=True),
    "delta": Float(1e-5, 1e-1, log=True),
    "feature_share": Float(0.5, 1.0),
}
"""Of classifier and regressor."""
