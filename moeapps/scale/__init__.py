"""moeapps on the machines of a Ray cluster (``pip install "moeapps[ray]"``)."""

from moeapps.scale.scoring import score

__all__ = ["score"]
