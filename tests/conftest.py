"""Fixtures that all tests share, and the gate for GPU tests."""

import os
from pathlib import Path

import pytest
import torch


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


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
