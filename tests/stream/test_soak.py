"""A long stream in constant memory and constant time, and a check that can fail."""

import mmap
import time

import numpy as np
import psutil
import pytest

from moeapps.stream import DriftMoEClassifier


def soak(model, instances: int, block: int = 500) -> tuple[list[float], list[float]]:
    """Resident MiB and seconds per block, on a stream whose concept keeps turning."""
    rng = np.random.default_rng(0)
    memory, seconds = [], []
    process = psutil.Process()
    for start in range(0, instances, block):
        X = rng.normal(size=(block, 8))
        angle = start / 200_000
        y = (np.cos(angle) * X[:, 0] + np.sin(angle) * X[:, 1] > 0).astype(int)
        rows = [dict(enumerate(row)) for row in X.tolist()]
        labels = y.tolist()
        begin = time.perf_counter()
        model.test_then_train(rows, labels)
        seconds.append(time.perf_counter() - begin)
        memory.append(process.memory_info().rss / 2**20)
    return memory, seconds


def check(memory: list[float], seconds: list[float]) -> None:
    half, tenth = len(memory) // 2, max(len(memory) // 10, 1)
    growth = memory[-1] - memory[half]
    assert growth <= max(20.0, (memory[half] - memory[0]) / 4), f"{growth:.1f} MiB in the second half"
    early, late = np.quantile(seconds[tenth : 2 * tenth], 0.5), np.quantile(seconds[-tenth:], 0.5)
    assert late <= 3 * early, (early, late)


@pytest.mark.parametrize("experts", [{"experts": {"tree": 2, "neighbours": 1, "linear": 1}}, {"experts": None}])
def test_fifty_thousand_instances(experts):
    router = {"router_hidden": (16, 8)} if experts["experts"] is None else {}
    model = DriftMoEClassifier(seed=0, n_experts=4, max_nodes=63, **router, **experts)
    soak(model, 5000)
    check(*soak(model, 50_000))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_million_instances():
    model = DriftMoEClassifier(seed=0)
    soak(model, 5000)
    check(*soak(model, 1_000_000))


def test_the_check_notices_a_model_that_leaks():
    class Leaks(DriftMoEClassifier):
        kept: list = []

        def test_then_train(self, rows, targets):
            # pages of their own: an array might take memory that other tests have given back
            pages = mmap.mmap(-1, 1_600_000)
            pages.write(b"x" * 1_600_000)
            self.kept.append(pages)
            return super().test_then_train(rows, targets)

    with pytest.raises(AssertionError, match="MiB in the second half"):
        check(*soak(Leaks(seed=0, n_experts=4, router_hidden=(16, 8)), 50_000))
    Leaks.kept.clear()
