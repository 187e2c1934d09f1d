"""Experts out of a network that was made elsewhere: its two-layer blocks are found, and become MoE layers."""
