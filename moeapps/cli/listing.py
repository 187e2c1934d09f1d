"""``moeapps list``: the registry, one line per entry."""

import argparse

from moeapps import registry

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "list models, routers and data sets, one line each"
KINDS = {"models": "model", "routers": "router", "data": "data"}
"""Headings, and the kinds of the registry that stand under them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("kind", nargs="?", choices=list(KINDS), help="only this kind")


def run(options: argparse.Namespace) -> int:
    """Print the entries of one kind, or of all."""
    width = max(len(entry.alias or entry.path) for entry in registry.entries())
    for title, kind in KINDS.items():
        if options.kind in (None, title):
            print(title)
            for entry in registry.entries(kind):
                print(f"  {entry.alias or entry.path:<{width}}  {entry.summary}")
    return 0
