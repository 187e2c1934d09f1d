"""Loops compiled by numba: Hoeffding trees, drift detection, the router's network, the mixture."""
