"""moeapps on the machines of a Ray cluster (``pip install "moeapps[ray]"``)."""

from moeapps.scale.scoring import score
from moeapps.scale.training import fit

__all__ = ["fit", "score"]
