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


def test_an_old_path_works_as_the_first_import_of_a_process_and_dependencies_do_not_warn():
    script = (
        "import warnings; warnings.simplefilter('ignore', DeprecationWarning)\n"
        "warnings.simplefilter('error', FutureWarning)\n"
        "from moeapps.core.tabular.classifier import MoEClassifier as old\n"
        "from moeapps import MoEClassifier as new, MowstClassifier\n"
        "assert old is new"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_registry_knows_classes_by_their_old_paths():
    from moeapps.tables import MoEClassifier

    assert registry.resolve("moeapps.core.tabular.MoEClassifier") is MoEClassifier
