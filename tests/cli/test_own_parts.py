"""A router of a user's own package works with every command in a process of its own, if the user names its module."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import moeapps
from moeapps import plugins
from moeapps.cli.main import main
from moeapps.core.errors import MoEAppsError
from moeapps.serve.worker import Worker
from tests.processes import Command
from tests.test_plugins import REGISTER, ROUTER, folder, write  # noqa: F401 - a fixture

COMMANDS = """
import sys
from moeapps.cli.main import main

for line in sys.argv[1:]:
    print("status", main(line.split()))
"""


def commands(lines: list[str], cwd: Path) -> str:
    """Run commands in one new process; their output and exit statuses."""
    process = Command(lines, cwd, code=COMMANDS, merged=True)
    output, _ = process.communicate(240)
    assert process.returncode == 0, output
    return output


@pytest.fixture
def package(folder):  # noqa: F811
    """A package `own_package` with the router "own_margin", and a model and a table that were saved with it."""
    text = ROUTER.replace('print("imported")', '__import__("pathlib").Path("imported.txt").touch()')
    write(folder / "own_package/__init__.py", "")
    write(folder / "own_package/routers.py", text + REGISTER.format(module="own_package.routers", alias="own_margin"))
    plugins.import_modules("own_package.routers")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=60), "b": rng.normal(size=60), "y": rng.integers(0, 2, 60)})
    frame.to_csv("rows.csv", index=False)
    model = moeapps.MoEClassifier(router="own_margin", dim=8, max_epochs=1, random_state=0)
    model.fit(frame[["a", "b"]], frame["y"]).save("model.safetensors")
    (folder / "imported.txt").unlink()
    return folder


def test_fit_test_and_score_with_a_router_of_ones_own_in_a_new_process(package):
    config = {
        "model": {"class_path": "tests.toy.ToyModule", "init_args": {"router": "own_margin"}},
        "data": {"class_path": "tests.toy.ToyData"},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }
    write(package / "c.yaml", yaml.safe_dump(config))
    named = "--import own_package.routers"
    lines = [
        "fit --config c.yaml",
        "score model.safetensors --input rows.csv --output out.csv",
        f"fit --config c.yaml {named}",
        f"score model.safetensors --input rows.csv --output out.csv {named.replace(' ', '=')}",
        "validate --config moeapps-runs/version_0/config.yaml --ckpt_path last",
        f"list routers {named}",
    ]
    done = commands(lines, package)
    refused, _, worked = done.partition("status 1")
    assert "router must be one of" in refused
    assert "model.safetensors needs the router 'own_margin' of the module own_package.routers" in refused
    assert named in refused
    assert worked.count("status 0") == 4, done
    assert "one or two experts, by the margin" in worked
    expected = moeapps.load("model.safetensors").predict_proba(pd.read_csv("rows.csv")[["a", "b"]])
    np.testing.assert_allclose(pd.read_csv("out.csv")[["probability_0", "probability_1"]], expected, atol=1e-6)


@pytest.mark.slow
def test_a_server_imports_what_the_user_named_in_its_worker(package, monkeypatch):
    with pytest.raises(MoEAppsError, match="needs the router 'own_margin'"):
        Worker("model.safetensors")
    assert not (package / "imported.txt").exists()
    monkeypatch.setenv(plugins.VARIABLE, "own_package.routers")
    worker = Worker("model.safetensors")
    worker.kill()
    assert (package / "imported.txt").exists()


def test_what_a_command_named_is_forgotten_with_it(package):
    assert main(["list", "routers", "--import", "own_package"]) == 0
    assert plugins.VARIABLE not in os.environ
