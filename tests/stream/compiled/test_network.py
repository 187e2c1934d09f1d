"""The router's compiled network against torch."""

import numpy as np
import pytest
import torch

from moeapps.core.errors import ConfigError
from moeapps.stream import DriftMoEClassifier, StreamRouter
from moeapps.stream.compiled.jit import random_seed
from moeapps.stream.compiled.network import (
    forward,
    layers_of,
    make_room,
    new_network,
    resize,
    train_batch,
    train_one,
)
from moeapps.stream.compiled.references import as_reference


def twin(network) -> StreamRouter:
    r, h1, h2, e = (int(size) for size in network.sizes)
    router = StreamRouter(r, e, top_k=1, hidden=(h1, h2), dropout=0.0)
    router.load_layers(tuple(torch.from_numpy(part) for part in layers_of(network.parameters, network.sizes)))
    return router


def logits_of(network, x: np.ndarray) -> np.ndarray:
    outputs = network.sizes[3]
    network = as_reference(network)
    room, out = make_room(network), np.zeros((len(x), outputs), dtype=np.float32)
    for i, row in enumerate(x):
        forward(network, row, room, out[i])
    return out


@pytest.mark.parametrize("batch", [1, 32])
def test_training_equals_torch(batch):
    rng = np.random.default_rng(0)
    network = new_network(6, (32, 16), 5, rng)
    router = twin(network)
    optimizer = torch.optim.Adam(router.parameters(), lr=2e-3)
    reference = as_reference(network)
    generator, room = random_seed(0), make_room(reference)
    for _ in range(30):
        x = rng.normal(size=(batch, 6)).astype(np.float32)
        mask = (rng.random((batch, 5)) < 0.4).astype(np.float32)
        if batch == 1:
            train_one(reference, x[0], mask[0], 0.0, 2e-3, room, generator)
        else:
            train_batch(reference, x, mask, 0.0, 2e-3, generator)
        optimizer.zero_grad()
        router.mask_loss(torch.from_numpy(x), torch.from_numpy(mask)).backward()
        optimizer.step()
    x = rng.normal(size=(50, 6)).astype(np.float32)
    with torch.no_grad():
        expected = router.eval().scores(torch.from_numpy(x), None, None).numpy()
    assert np.abs(logits_of(network, x) - expected).max() < 1e-5
    assert network.steps[0] == 30


def test_a_batch_of_one_and_one_instance_are_the_same_step():
    rng = np.random.default_rng(1)
    first = new_network(4, (16, 8), 3, rng)
    second = resize(first, 4, 3, rng)
    x, mask = rng.normal(size=(1, 4)).astype(np.float32), np.array([[1, 0, 1]], dtype=np.float32)
    batch, single = as_reference(first), as_reference(second)
    for _ in range(5):
        train_batch(batch, x, mask, 0.3, 2e-3, random_seed(7))
        train_one(single, x[0], mask[0], 0.3, 2e-3, make_room(single), random_seed(7))
    assert np.abs(first.parameters - second.parameters).max() < 1e-6


def test_dropout_drops_that_share_of_the_first_layer_and_scales_the_rest():
    rng = np.random.default_rng(0)
    network = new_network(1, (2000, 4), 1, rng)
    w1 = layers_of(network.parameters, network.sizes)[0]
    w1[:] = 1.0
    before = network.parameters.copy()
    reference, one = as_reference(network), np.ones(1, np.float32)
    train_one(reference, one, one, 0.25, 1e-3, make_room(reference), random_seed(3))
    moved = layers_of(network.parameters - before, network.sizes)[2]
    rows = np.abs(moved).sum(axis=1) > 0  # rows of W2 behind dropped units do not move
    assert 0.7 < rows.mean() < 0.8 or rows.mean() < 0.05  # or the second layer is off altogether


def test_growing_keeps_what_was_learned():
    rng = np.random.default_rng(0)
    network = new_network(3, (8, 4), 2, rng)
    bigger = resize(network, 5, 4, rng)
    x = rng.normal(size=(10, 3)).astype(np.float32)
    padded = np.column_stack([x, np.zeros((10, 2), dtype=np.float32)])
    assert np.array_equal(logits_of(network, x), logits_of(bigger, padded)[:, :2])


def test_a_result_does_not_depend_on_what_was_computed_before():
    network = new_network(6, (32, 16), 5, np.random.default_rng(0))
    x = np.random.default_rng(1).normal(size=(20, 6)).astype(np.float32)
    assert np.array_equal(logits_of(network, x)[7:8], logits_of(network, x[7:8]))


def test_the_torch_router_of_a_model_gives_its_logits():
    rng = np.random.default_rng(0)
    rows = [dict(enumerate(row)) for row in rng.normal(size=(600, 4)).tolist()]
    model = DriftMoEClassifier.paper(seed=0)
    for x in rows:
        model.learn_one(x, x[1] > 0)
    x = np.array([list(row.values()) for row in rows[:50]], dtype=np.float32)
    router = model.torch_router()
    with torch.no_grad():
        routing = router(torch.from_numpy(x))
    weights = model.expert_weights(x.astype(float)).to_numpy()
    assert np.abs(routing.probabilities.numpy() - weights).max() < 1e-5
    assert routing.choices.shape == (50, 3)
    assert (routing.choices[:, 0].numpy() == weights.argmax(axis=1)).all()


def test_an_impossible_router_is_refused():
    with pytest.raises(ConfigError, match="temperature must be above 0"):
        StreamRouter(3, 4, temperature=0.0)
