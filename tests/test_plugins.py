"""Routers and models of a user's own package: known where the user says so, in every process, and nowhere else."""

import importlib
import sys
import textwrap
from pathlib import Path

import pytest
from sklearn.datasets import load_wine

import moeapps
from moeapps import plugins, registry
from moeapps.core import MoE
from moeapps.core.errors import ConfigError, FileFormatError
from tests.processes import Command

ROUTER = """
import torch
from moeapps import registry
from moeapps.core.routers import Router
from moeapps.core.routing import Routing
from torch import nn

print("imported")


class MarginRouter(Router):
    def __init__(self, dim, num_experts, margin=0.5):
        super().__init__(dim, num_experts)
        self.weight = nn.Parameter(torch.randn(num_experts, dim) * dim**-0.5)
        self.margin = margin

    def scores(self, x, experts, ids):
        return x @ self.weight.to(x.dtype).T

    def choose(self, logits, valid):
        probabilities = logits.softmax(-1)
        score, expert = logits.topk(2, dim=-1)
        keep = score >= score[:, :1] - self.margin
        weight = torch.where(keep, probabilities.gather(1, expert), 0.0)
        weight = weight / weight.sum(-1, keepdim=True)
        return Routing.from_topk(expert, weight, logits=logits, probabilities=probabilities, valid=valid, keep=keep)
"""
REGISTER = '\nregistry.register("router", "{module}.MarginRouter", "one or two experts, by the margin", "{alias}")\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder of its own, with a registry and modules that are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    # without the router of docs/extend.md, which its test may have registered in this process
    entries = {path: entry for path, entry in registry.ENTRIES.items() if not path.startswith("margin.")}
    monkeypatch.setattr(registry, "ENTRIES", entries)
    monkeypatch.setattr(plugins, "_named", set())
    monkeypatch.setattr(plugins, "_installed_done", False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    importlib.invalidate_caches()
    return path


def fitted(router: str) -> moeapps.MoEClassifier:
    return moeapps.MoEClassifier(router=router, dim=8, max_epochs=2, random_state=0).fit(*load_wine(return_X_y=True))


def test_a_new_process_loads_a_model_with_a_router_of_ones_own_only_with_the_users_word(folder):
    write(folder / "margins/routers.py", ROUTER)
    write(folder / "margins/__init__.py", "")
    plugins.import_modules("margins.routers")
    registry.register("router", "margins.routers.MarginRouter", "registered by the script, not by the module", "margin")
    model = fitted("margin")
    model.save("model.safetensors")
    x = load_wine().data
    expected = model.predict_proba(x).tolist()
    process = Command(
        [], folder, textwrap.dedent("""
        import sys
        import warnings
        import moeapps
        from moeapps.core.errors import FileFormatError
        from sklearn.datasets import load_wine
        warnings.filterwarnings("error", category=UserWarning, module="moeapps")
        try:
            moeapps.load("model.safetensors")
        except FileFormatError as error:
            print(error)
        assert not [name for name in sys.modules if name.startswith("margins")]
        model = moeapps.load("model.safetensors", import_modules=["margins.routers"])
        assert model.predict_proba(load_wine().data).tolist() == EXPECTED
        """).replace("EXPECTED", repr(expected)),
    )  # fmt: skip
    out, error = process.communicate(120)
    assert process.returncode == 0, error
    refused, imported = out.splitlines()
    assert "needs the router 'margin' of the module margins.routers" in refused
    assert "--import margins.routers" in refused
    assert 'moeapps.load(path, import_modules="margins.routers")' in refused
    assert imported == "imported"


def install(site: Path, package: str, module: str) -> None:
    """Lay a package out as pip does, with an entry point for moeapps."""
    write(site / f"{package}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    write(site / f"{package}-1.0.dist-info/entry_points.txt", f"[moeapps.plugins]\n{package} = {module}\n")


def test_an_installed_plugin_needs_no_further_word(folder):
    site = folder / "site"
    write(site / "plugged.py", ROUTER + REGISTER.format(module="plugged", alias="plugged_margin"))
    install(site, "plugged", "plugged")
    sys.path.append(str(site))
    fitted("plugged_margin").save("model.safetensors")
    del registry.ENTRIES["plugged.MarginRouter"], sys.modules["plugged"]  # as in another process
    plugins._installed_done = False
    moeapps.load("model.safetensors")
    assert registry.find("router", "plugged_margin").path == "plugged.MarginRouter"
    assert "plugged" in sys.modules


def test_a_plugin_that_fails_is_a_warning_that_names_it(folder):
    site = folder / "site"
    write(site / "broken_plugin.py", "import moeapps\n1 / 0\n")
    install(site, "broken_plugin", "broken_plugin")
    sys.path.append(str(site))
    with (
        pytest.warns(UserWarning, match=r"plugin broken_plugin of broken_plugin .*ZeroDivisionError.*line 2"),
        pytest.raises(ConfigError, match="router must be one of"),
    ):
        MoE(8, num_experts=4, router="no_such_router")
    MoE(8, num_experts=4, router="topk")


def test_the_environment_variable_is_the_users_word_too(folder, monkeypatch):
    write(folder / "margin_env.py", ROUTER + REGISTER.format(module="margin_env", alias="env_margin"))
    monkeypatch.setenv(plugins.VARIABLE, "margin_env")
    assert type(MoE(8, num_experts=4, router="env_margin").router).__name__ == "MarginRouter"


def test_a_router_of_an_imported_module_works_by_its_path_without_registration(folder):
    write(folder / "margin_path.py", ROUTER)
    with pytest.raises(ConfigError, match="module margin_path, which is imported only if you say so: --import"):
        MoE(8, num_experts=4, router="margin_path.MarginRouter")
    plugins.import_modules(["margin_path"])
    fitted("margin_path.MarginRouter").save("model.safetensors")
    plugins._named.clear()
    with pytest.raises(FileFormatError, match="needs the router 'MarginRouter' of the module margin_path"):
        moeapps.load("model.safetensors")
    assert moeapps.load("model.safetensors", import_modules="margin_path").predict(load_wine().data).shape == (178,)


def test_a_short_name_belongs_to_one_class(folder):
    with pytest.raises(ValueError, match="short name 'topk': it is that of moeapps.core.TopKRouter"):
        registry.register("router", "mine.Router", "", "topk")
    write(folder / "margin_a.py", ROUTER + REGISTER.format(module="margin_a", alias="either"))
    plugins.import_modules("margin_a")
    fitted("either").save("model.safetensors")
    del registry.ENTRIES["margin_a.MarginRouter"]
    write(folder / "margin_b.py", ROUTER + REGISTER.format(module="margin_b", alias="either"))
    plugins.import_modules("margin_b")
    with pytest.raises(FileFormatError, match="margin_a.MarginRouter as router 'either', but here .* margin_b"):
        moeapps.load("model.safetensors", import_modules="margin_a")


def test_a_model_class_of_ones_own_is_named_and_loaded_the_same_way(folder):
    write(folder / "own_model.py", "from moeapps import MoEClassifier\nclass OwnClassifier(MoEClassifier): pass\n")
    own = plugins.import_module("own_model")
    registry.register("model", "own_model.OwnClassifier", "by the script, not by the module")
    x, y = load_wine(return_X_y=True)
    own.OwnClassifier(dim=8, max_epochs=1, random_state=0).fit(x, y).save("model.safetensors")
    del registry.ENTRIES["own_model.OwnClassifier"], sys.modules["own_model"]  # as in another process
    with pytest.raises(FileFormatError, match="needs the model 'OwnClassifier' of the module own_model, which is"):
        moeapps.load("model.safetensors")
    assert "own_model" not in sys.modules
    loaded = moeapps.load("model.safetensors", import_modules=["own_model"])
    assert type(loaded).__name__ == "OwnClassifier"
    assert registry.foreign_parts({"class": "moeapps.stream.StreamCheckpoint", "arguments": {}, "state": {
        "model": {"class": "own_model.OwnClassifier", "arguments": {"layers": [{"router": "topk"}]}}
    }})[0]["path"] == "own_model.OwnClassifier"  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("own_missing", None, "there is no module own_missing, neither in the working folder"),
        (
            "own_import",
            "import nowhere_to_be_found",
            r"No module named 'nowhere_to_be_found' \(.*own_import.py, line 1",
        ),
        ("own_syntax", "x = = 1", r"own_syntax cannot be imported: SyntaxError.*own_syntax.py, line 1"),
        ("own_error", "\nraise AttributeError('mine')", r"AttributeError: mine \(.*own_error.py, line 2"),
        ("own_exit", "import sys; sys.exit(3)", "SystemExit: 3"),
        ("own.py", "", "expected a name such as mypackage.mymodule; write own"),
        ("own-dash", "", "expected a name such as"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_with_its_cause(folder, name, text, message):
    if text is not None:
        write(folder / f"{name}.py", text)
    with pytest.raises(ConfigError, match=message):
        plugins.import_modules(name)


def test_a_file_of_the_working_folder_hides_no_library(folder):
    write(folder / "sched.py", "raise RuntimeError('not the library')")
    write(folder / "own_first.py", "value = 1")
    plugins.import_modules("own_first")
    sys.modules.pop("sched", None)
    assert hasattr(importlib.import_module("sched"), "scheduler")


def test_the_module_of_the_present_working_folder_counts(folder, monkeypatch):
    for place in ("one", "two"):
        write(folder / place / "own_twice.py", f"value = {place!r}")
        monkeypatch.chdir(folder / place)
        assert plugins.import_module("own_twice").value == place


@pytest.mark.parametrize(
    "parts", [3, [3], [{"kind": "router"}], [{"kind": "router", "path": "x", "summary": "", "alias": None}]]
)
def test_parts_of_a_file_that_are_none_are_refused(parts):
    assert not registry.are_parts(parts)
