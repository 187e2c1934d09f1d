"""Names that packages import when they are first used: those that editors see, and those that were renamed."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import moeapps.core


@pytest.mark.parametrize("package", ["moeapps", "moeapps.core"])
def test_editors_see_every_name_that_is_imported_late(package):
    module = import_module(package)
    tree = ast.parse(Path(module.__file__).read_text())
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        for alias in node.names
    }
    base = "" if package == "moeapps" else "moeapps.core."
    assert typed == {name: base + where for name, where in module._LAZY.items()}
    assert set(module._LAZY) == set(module.__all__) - {"__version__"}


def test_a_renamed_public_name_warns():
    with pytest.warns(DeprecationWarning, match=r"use moeapps\.core\.RoutedLayer"):
        old = moeapps.core.Routed
    assert old is moeapps.core.RoutedLayer
