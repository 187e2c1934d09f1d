"""Fixtures that all tests share, the gate for GPU tests, and how tests share the processors."""

import gc
import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has one processor, and so have the programs it starts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

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


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if "stream" in item.path.parts or "DriftMoE" in item.name:
            late = item.path.name in ("test_run.py", "test_kafka.py", "test_soak.py")
            item.add_marker(pytest.mark.xdist_group("stream runs" if late else "stream"))
    items.sort(key=_turn)


def _turn(item) -> int:
    """The first worker begins with the tests of streams, the first of which compiles the loops (about a minute).

    Those that run `moeapps stream run` as a process are a group of their own. They come after other tests, when the
    machine code is on disk; before, each process would compile it once more. numba writes its cache atomically.
    """
    # Tests without a group go to whichever worker is free, so the last ones should be short: the doctests are.
    group = item.get_closest_marker("xdist_group")
    if group is not None:
        return 0 if group.args[0] == "stream" else 2
    return 1 if item.path.parent.name in ("cli", "core", "graph") else 3


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def short_trainings(monkeypatch):
    """Let every estimator that trains by epochs stop after a few, whatever it is told."""
    from moeapps.graph import GNNClassifier, MowstClassifier, MowstGraphClassifier, MowstLinkPredictor
    from moeapps.recsys import MultiTaskRanker
    from moeapps.tables import MoEClassifier
    from moeapps.vision import SwitchDiTGenerator, WideNetClassifier

    most = {MoEClassifier: 3, GNNClassifier: 4, MowstClassifier: 4, MultiTaskRanker: 1, WideNetClassifier: 1,
            SwitchDiTGenerator: 1, MowstLinkPredictor: 2, MowstGraphClassifier: 2}  # fmt: skip
    for kind, epochs in most.items():

        def fit(self, *args, fit=kind.fit, epochs=epochs, **options):
            most = epochs if self.max_epochs == "auto" else min(self.max_epochs, epochs)
            return fit(self.set_params(max_epochs=most), *args, **options)

        monkeypatch.setattr(kind, "fit", fit)


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
