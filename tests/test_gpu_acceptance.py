"""``benchmarks/gpu/run.py``: what counts as a failure, and what another package's layer may do."""

import sys

import pytest
import torch

from tests.test_docs import ROOT


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/gpu"))
    import dispatch
    import run

    yield run, dispatch
    for name in ("run", "dispatch", "models", "timing", "rivals"):
        sys.modules.pop(name, None)


def test_failures_are_named_by_part_test_model_and_configuration(scripts):
    run, _ = scripts
    report = {
        "tests": {"result": {"passed": 1, "skipped": 0, "failed": {"test_a": "why"}}},
        "dispatch": {"error": "Traceback"},
        "models": {"result": [{"model": "HoME", "error": "out of memory"}, {"model": "MMoE"}]},
        "configurations": {"result": {"a.yaml": {"status": 0}, "b.yaml": {"status": 1}}},
    }
    assert run.failures(report) == ["dispatch", "test_a", "HoME", "b.yaml"]


def test_a_layer_of_another_package_that_fails_is_reported_and_does_not_end_the_acceptance(scripts):
    _, dispatch = scripts
    x = torch.randn(8, 4, requires_grad=True)

    def broken(*sizes):
        raise ImportError("no kernel for this torch")

    found = dispatch.measure_rival(broken, (4, 8, 2, 1), x, "cpu", (1, 0), dense_ms=1.0)
    assert found == {"error": "ImportError: no kernel for this torch"}
    found = dispatch.measure_rival(lambda *_: torch.nn.Linear(4, 4), (4, 8, 2, 1), x, "cpu", (1, 0), dense_ms=1.0)
    assert found["ms"] > 0
