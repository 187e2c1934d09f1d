"""The house rules that a reader cannot see in one file: import directions, lightness, lazy names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import moeapps
import moeapps.core
import moeapps.stream

PACKAGE = Path(moeapps.__file__).parent
TASKS = ("graph", "stream", "recsys", "vision")
TOP = ("cli", "training", "demo", "report", "serve", "config_check")


def imported(path: Path) -> set[str]:
    """Modules of moeapps that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name for name in names if name.startswith("moeapps.")}


def test_imports_run_one_way():
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0]
        forbidden: list[str] = []
        if room == "core":
            forbidden = [*TASKS, *TOP]
        elif room in TASKS:
            forbidden = [*(task for task in TASKS if task != room), *TOP]
        elif room == "registry.py":
            forbidden = ["core", *TASKS, *TOP]
        for name in imported(path):
            assert name.split(".")[1] not in forbidden, f"{path.relative_to(PACKAGE)} imports {name}"


def test_importing_moeapps_loads_no_framework():
    heavy = "{'torch', 'lightning', 'sklearn', 'pandas', 'numpy', 'torch_geometric', 'river', 'timm'}"
    script = f"import sys, moeapps, moeapps.registry; loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("package", [moeapps, moeapps.core], ids=lambda package: package.__name__)
def test_every_public_name_is_there(package):
    modules = {path.stem for path in Path(package.__file__).parent.glob("*.py")}
    assert not modules & set(package.__all__), "a module would hide the name once it is imported"
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = package.nonsense
