"""Relations of tasks: who helps, who hurts."""

import numpy as np
import pandas as pd
import pytest
import torch

from moeapps.core.errors import ConfigError, DataError
from moeapps.recsys import MultiTaskRanker
from moeapps.recsys.targets import task_losses

QUICK = {"max_epochs": 1, "batch_size": 128, "random_state": 0, "accelerator": "cpu", "validation_fraction": 0.0}


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = 1200
    frame = pd.DataFrame({"age": rng.normal(40, 9, n), "city": rng.choice(["Ulm", "Bonn"], n)})
    older = (frame["age"] > 40).to_numpy()
    frame["click"] = older.astype(float)
    frame["like"] = np.where(rng.random(n) < 0.9, older, ~older).astype(float)
    frame["leave"] = (~older).astype(float)
    frame.loc[rng.random(n) < 0.5, "leave"] = np.nan
    return frame


@pytest.fixture(scope="module")
def ranker(frame) -> MultiTaskRanker:
    return MultiTaskRanker("shared_bottom", **QUICK).fit(frame, ["click", "like", "leave"])


def test_cosines_are_those_of_gradients_on_the_shared_bottom(frame, ranker):
    found = ranker.task_relations(frame, batch_size=len(frame))
    network, rows = ranker.model_, ranker.encoder_.transform(frame)
    labels = torch.from_numpy(ranker.targets_.encode(frame))
    shared = [*network.embedding.parameters(), *network.model.experts.parameters()]
    losses = task_losses(network(rows), labels, ["binary"] * 3)
    flat = [torch.cat([g.flatten() for g in torch.autograd.grad(x, shared, retain_graph=True)]) for x in losses]
    for i in range(3):
        for j in range(i):
            expected = torch.nn.functional.cosine_similarity(flat[i], flat[j], dim=0)
            assert found.cosine.iloc[i, j] == pytest.approx(float(expected), abs=1e-3)


def test_tasks_that_are_the_same_have_one_gradient(frame):
    twice = frame.assign(again=frame["click"])
    ranker = MultiTaskRanker("shared_bottom", **QUICK).fit(twice, ["click", "again"], ignored=["like", "leave"])
    for name in ("weights", "biases"):  # towers of their own, made equal
        for tensor in getattr(ranker.model_.model.towers, name):
            tensor.data[1] = tensor.data[0]
    assert ranker.task_relations(twice).cosine.loc["click", "again"] == pytest.approx(1.0, abs=1e-4)


def test_pairs_begin_with_the_strongest_conflict(frame, ranker):
    pairs = ranker.task_relations(frame).pairs
    assert pairs["cosine"].is_monotonic_increasing
    assert len(pairs) == 3


def test_tasks_without_labels_in_common_batches_have_no_relation(frame, ranker):
    found = ranker.task_relations(frame.assign(leave=np.nan)).cosine
    assert np.isnan(found.loc["click", "leave"])
    assert np.isfinite(found.loc["click", "like"])


def test_relations_leave_the_model_as_it_was(frame, ranker):
    before = {name: tensor.clone() for name, tensor in ranker.model_.state_dict().items()}
    ranker.model_.zero_grad()
    ranker.task_relations(frame)
    assert all(torch.equal(tensor, before[name]) for name, tensor in ranker.model_.state_dict().items())
    assert all(parameter.grad is None for parameter in ranker.model_.parameters())


def test_relations_are_drawn(frame, ranker):
    relations = ranker.task_relations(frame)
    figure = relations.plot("relations")
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["click", "like", "leave"]
    assert relations.map().rows == ["click", "like", "leave"]


def test_relations_say_what_they_cannot_be_measured_on(frame):
    one = MultiTaskRanker("shared_bottom", **QUICK).fit(frame[["age", "click"]], "click")
    with pytest.raises(DataError, match="relations are between tasks"):
        one.task_relations(frame[["age", "click"]])
    with pytest.raises(DataError, match="at least one row"):
        one.task_relations(frame[["age", "click"]].head(0))
    sparse = MultiTaskRanker("mmoe", sparse_gradients=True, **QUICK).fit(frame, ["click", "like", "leave"])
    with pytest.raises(ConfigError, match="dense gradients"):
        sparse.task_relations(frame)
