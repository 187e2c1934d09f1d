"""The house rules that a reader cannot see in one file: import directions, lightness, lazy names."""

import ast
import subprocess
import sys
from pathlib import Path

import networkx
import pytest

import moeapps
import moeapps.core
import moeapps.stream

PACKAGE = Path(moeapps.__file__).parent
TASKS = ("graph", "stream", "recsys", "tables", "vision")
TOP = ("cli", "demo", "report", "serve")


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
        elif room in ("registry.py", "moved.py"):
            forbidden = ["core", *TASKS, *TOP]
        elif room not in ("cli", "__main__.py"):
            forbidden = ["cli"]
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


def modules() -> dict[str, Path]:
    """Every module of the package by its import path."""
    return {
        ".".join(("moeapps", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


def imported_at_once(path: Path, known: set[str]) -> set[str]:
    """Modules that are imported when this one is, not later by a function and not for type checkers only."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("moeapps"):
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= members & known or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("moeapps")}
    return found


def test_no_cycle_of_imports():
    known = modules()
    graph = networkx.DiGraph()
    for name, path in known.items():
        graph.add_edges_from((name, other) for other in imported_at_once(path, set(known)) if other != name)
    assert graph.number_of_edges() > 300
    assert list(networkx.simple_cycles(graph)) == []


def test_no_file_is_too_long_to_read():
    lengths = {str(path): len(path.read_text().splitlines()) for path in modules().values()}
    assert {path: lines for path, lines in lengths.items() if lines > 500} == {}
