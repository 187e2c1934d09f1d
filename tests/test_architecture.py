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
TOP = ("cli", "comparison", "demo", "report", "scale", "serve")


def modules() -> dict[str, Path]:
    """Every module of the package by its import path."""
    return {
        ".".join(("moeapps", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }


KNOWN = modules()


def imported(path: Path, late: bool = True) -> set[str]:
    """Modules of the package that a file imports, also inside functions.

    Without ``late`` those are left out that no code of the package reaches: for type checkers, and for old names that
    a module's ``__getattr__`` looks up.
    """
    tree = ast.parse(path.read_text())
    skipped: set[int] = set()
    if not late:
        for node in tree.body:
            typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            if typing or (isinstance(node, ast.FunctionDef) and node.name == "__getattr__"):
                skipped |= {id(inner) for inner in ast.walk(node)}
    package = path.parent.relative_to(PACKAGE.parent).parts
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            members = {f"{module}.{alias.name}" for alias in node.names} & set(KNOWN)
            names |= members or {module}
    return {name for name in names if name.split(".")[0] == "moeapps"} - {"moeapps"}


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
        elif room not in ("cli", "scale", "__main__.py"):  # workers of scale run the command line
            forbidden = ["cli"]
        for name in imported(path):
            assert name.split(".")[1] not in forbidden, f"{path.relative_to(PACKAGE)} imports {name}"


def test_importing_moeapps_loads_no_framework():
    heavy = "{'torch', 'lightning', 'sklearn', 'pandas', 'numpy', 'torch_geometric', 'river', 'timm'}"
    script = f"import sys, moeapps, moeapps.registry; loaded = {heavy} & set(sys.modules); assert not loaded, loaded"
    subprocess.run([sys.executable, "-c", script], check=True)


WITHOUT_TORCH = """
import sys, zipfile

heavy = {"torch", "lightning", "torchmetrics", "torchvision", "safetensors.torch"}
%s
loaded = heavy & set(sys.modules)
assert not loaded, f"{loaded} imported"
"""
"""Torch takes seconds and hundreds of MiB to import, and a stream's model computes without it."""

LEARN_SAVE_LOAD = """
import moeapps, moeapps.stream
from moeapps import DriftMoEClassifier, DriftMoERegressor
from moeapps.core.saving import card_of_file, from_bytes

for kind, targets in ((DriftMoEClassifier, "no yes".split()), (DriftMoERegressor, (0.5, 2.0))):
    model = kind(seed=0)
    for i in range(40):
        model.learn_one({"a": i % 5, "b": "xy"[i % 2]}, targets[i % 2])
    model.save("model.safetensors")
    loaded = moeapps.load("model.safetensors")
    assert loaded.predict_one({"a": 3, "b": "y"}) == model.predict_one({"a": 3, "b": "y"})
    loaded.learn_one({"a": 3, "b": "y"}, targets[1])
    assert from_bytes(loaded.to_bytes()).n_seen_ == 41
    assert kind.__name__ in card_of_file("model.safetensors")
with zipfile.ZipFile(sys.argv[1]) as archive:  # of moeapps 0.1
    for name in ("drift_data", "drift_task", "drift_regressor"):
        moeapps.load(archive.extract(f"{name}.safetensors"))
"""

RUN_A_STREAM = """
from pathlib import Path
from moeapps.cli.main import main

lines = ["a,b,label", *(f"{i % 7},{i % 3},{'no yes'.split()[i % 2]}" for i in range(60))]
Path("events.csv").write_text("\\n".join(lines) + "\\n")
command = "stream run --source events.csv --target label --checkpoint run --predictions out.csv --plain".split()
assert main([*command, "--limit", "30"]) == 0
assert main([*command, "--resume"]) == 0
assert len(Path("out.csv").read_text().splitlines()) == 61
"""


@pytest.mark.parametrize("work", [LEARN_SAVE_LOAD, RUN_A_STREAM], ids=["model", "run"])
def test_streams_do_without_torch(work, tmp_path):
    models = Path(__file__).parent / "data/0.1/models.zip"
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH % work, models], check=True, cwd=tmp_path)


def test_a_name_that_needs_torch_is_there_on_demand():
    from moeapps.core import saving

    assert moeapps.stream.StreamRouter.__module__ == "moeapps.stream.router"
    assert saving.SavableModule.__module__ == "moeapps.core.savable_module"
    for module in (moeapps.stream, saving):
        with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
            _ = module.nonsense


@pytest.mark.parametrize("package", [moeapps, moeapps.core], ids=lambda package: package.__name__)
def test_every_public_name_is_there(package):
    modules = {path.stem for path in Path(package.__file__).parent.glob("*.py")}
    assert not modules & set(package.__all__), "a module would hide the name once it is imported"
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = package.nonsense


def test_no_cycle_of_imports():
    graph = networkx.DiGraph()
    for name, path in KNOWN.items():
        graph.add_edges_from((name, other) for other in imported(path, late=False) if other != name)
    assert graph.number_of_edges() > 300
    assert list(networkx.simple_cycles(graph)) == []


def test_a_name_is_imported_from_the_module_that_defines_it():
    """The lazy names of `moeapps` and `moeapps.core` are for users: inside, they would hide a cycle."""
    for path in KNOWN.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in ("moeapps", "moeapps.core"):
                for alias in node.names:
                    assert f"{node.module}.{alias.name}" in KNOWN, f"{path} imports {alias.name} from {node.module}"


def test_no_file_is_too_long_to_read():
    lengths = {str(path): len(path.read_text().splitlines()) for path in KNOWN.values()}
    assert {path: lines for path, lines in lengths.items() if lines > 500} == {}
