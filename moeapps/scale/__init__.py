"""moeapps on the machines of a Ray cluster (``pip install "moeapps[ray]"``)."""

from moeapps.scale.scoring import score
from moeapps.scale.searching import SearchResult, search, tune_space
from moeapps.scale.training import fit

__all__ = ["SearchResult", "fit", "score", "search", "tune_space"]
