"""Fixtures that all tests share, the gate for GPU tests, and how tests share the processors."""

import gc
import os
import sys
from functools import cache, partial
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has one processor, and so have the programs it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from tests.sharing import turn, unit

settings.register_profile("fast", max_examples=10, deadline=None)
settings.register_profile("thorough", max_examples=500, deadline=None)  # pytest --hypothesis-profile thorough
settings.load_profile("fast")

collect_ignore = ["data"]


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Spare the collector of garbage the modules and the tests: searching them took a third of every short training."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        gc.enable()
        # Lightning reads the metadata of every installed package for each Trainer: a fifth of a short training
        registry = sys.modules.get("lightning.fabric.utilities.registry")
        if hasattr(registry, "entry_points"):
            registry.entry_points = cache(registry.entry_points)


@pytest.hookimpl(tryfirst=True)  # before pytest picks those of -m
def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    items.sort(key=lambda item: turn(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each worker whole files, as ``--dist loadfile`` does, and units of several files where those share more."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByUnit(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid)

    config.option.loadscopereorder = False  # xdist would begin with the files of most tests
    return ByUnit(config, log)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def short_trainings(monkeypatch):
    """Let every estimator that trains by epochs stop after a few, whatever it is told, and gates too."""
    from moeapps.core.mixing import selection, training
    from moeapps.graph import GNNClassifier, MowstClassifier, MowstGraphClassifier, MowstLinkPredictor
    from moeapps.recsys import MultiTaskRanker
    from moeapps.tables import MoEClassifier
    from moeapps.vision import SwitchDiTGenerator, WideNetClassifier

    most = {MoEClassifier: 2, GNNClassifier: 2, MowstClassifier: 2, MultiTaskRanker: 1, WideNetClassifier: 1,
            SwitchDiTGenerator: 1, MowstLinkPredictor: 1, MowstGraphClassifier: 1}  # fmt: skip
    for kind, epochs in most.items():

        def fit(self, *args, fit=kind.fit, epochs=epochs, **options):
            most = epochs if self.max_epochs == "auto" else min(self.max_epochs, epochs)
            return fit(self.set_params(max_epochs=most), *args, **options)

        monkeypatch.setattr(kind, "fit", fit)
    monkeypatch.setattr(selection, "cut_folds", partial(selection.cut_folds, folds=2))
    monkeypatch.setattr(training, "EPOCHS", 2)


@pytest.fixture
def data_folder() -> Path:
    """Folder of real data; a test that asks for it is skipped where there is none."""
    folder = os.environ.get("MOEAPPS_DATA")
    if not folder:
        pytest.skip("MOEAPPS_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def cora():
    from moeapps.graph import load_cora

    graph = load_cora()
    graph.x = graph.x / graph.x.sum(1, keepdim=True)
    return graph
