"""Import paths of 0.1: they warn, and lead to the same objects."""

import subprocess
import sys
from importlib import import_module

import pytest

from moeapps import moved, registry


@pytest.mark.parametrize("old", sorted(moved.MOVED))
def test_an_old_path_leads_to_the_new_module(old, monkeypatch):
    monkeypatch.delitem(sys.modules, old, raising=False)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to {moved.MOVED[old]}"):
        module = import_module(old)
    assert module is import_module(moved.MOVED[old])
    assert module.__name__ == module.__spec__.name == moved.MOVED[old]


def test_a_warning_says_since_when_and_how_long_and_names_the_line_of_the_caller():
    with pytest.warns(
        DeprecationWarning, match=r"^a is now called b \(deprecated since 0\.2, removed in 0\.4\)$"
    ) as caught:
        (lambda: moved.warn_deprecated("a is now called b"))()
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("stream.sources", "CSVSource"),  # needs no torch
        pytest.param("core.tabular.classifier", "MoEClassifier", marks=pytest.mark.slow),
    ],
)
def test_an_old_path_works_as_the_first_import_of_a_process(path, name):
    script = (
        "import warnings; warnings.simplefilter('ignore')\n"
        f"from moeapps.{path} import {name} as old\n"
        f"from {moved.MOVED[f'moeapps.{path}']} import {name} as new\n"
        "assert old is new"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_registry_knows_classes_by_their_old_paths():
    from moeapps.tables import MoEClassifier

    assert registry.resolve("moeapps.core.tabular.MoEClassifier") is MoEClassifier
