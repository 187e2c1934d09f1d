"""Each kind of expert and the gate against a reference: scikit-learn, torch, or the formula in numpy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from moeapps.stream.compiled.bayes import (
    BAYES,
    grow_bayes,
    learn_bayes,
    new_bayes,
    vote_bayes,
)
from moeapps.stream.compiled.inputs import CUT, Layout, encode, move_rows, update_moments
from moeapps.stream.compiled.linear import LINEAR, START, learn_linear, new_linear, vote_linear
from moeapps.stream.compiled.neighbours import (
    NEIGHBOURS,
    learn_neighbours,
    new_neighbours,
    vote_neighbours,
)
from moeapps.stream.compiled.online_gate import (
    ACCURACY,
    AUTO,
    CONTEXT,
    FLOOR,
    MEAN,
    STACK,
    decide,
    learn_gate,
    new_gate,
    new_gate_work,
)
from moeapps.stream.compiled.perceptron import (
    HIDDEN,
    NETWORKS,
    grow_perceptrons,
    learn_perceptrons,
    new_perceptrons,
    vote_perceptrons,
)
from moeapps.stream.compiled.references import as_reference

NUMBERS = np.array([-1, -1, -1], dtype=np.int32)


def moments_of(X):
    moments = np.zeros((X.shape[1], 3))
    for x in X:
        update_moments(moments, x)
    return moments


# ---------------------------------------------------------------------------------------------------------- inputs


def test_inputs_are_a_constant_standardised_numbers_and_one_row_per_category():
    X = np.random.default_rng(0).normal(3.0, 2.0, size=(500, 3))
    moments = moments_of(X)
    np.testing.assert_allclose(moments[:, 1], X.mean(axis=0))
    np.testing.assert_allclose(moments[:, 2], X.var(axis=0))
    rows, numbers = np.zeros(4, dtype=np.int64), np.zeros(4)
    kind = np.array([-1, 0, -1], dtype=np.int32)
    n = encode(kind, moments, np.array([5.0, 2.0, np.nan]), 4, rows, numbers)
    assert rows[:n].tolist() == [0, 1, 4 + 2]
    np.testing.assert_allclose(numbers[:n], [1.0, (5.0 - moments[0, 1]) / np.sqrt(moments[0, 2]), 1.0])
    n = encode(kind, moments, np.array([1e9, -1.0, 1.0]), 4, rows, numbers)  # -1: a category not seen before
    assert rows[:n].tolist() == [0, 1, 3]
    assert numbers[1] == CUT


def test_standardisation_follows_the_recent_past():
    moments = moments_of(np.r_[np.zeros(5000), np.full(20_000, 7.0)][:, None])
    assert moments[0, 0] == 25_000
    assert moments[0, 1] == pytest.approx(7.0, abs=1e-3)


def test_rows_keep_what_they_have_learned_when_features_and_categories_come():
    small, large = Layout(2, 1, 2), Layout(3, 2, 4)
    source, target = np.arange(small.rows * 2.0).reshape(-1, 2) + 1, np.zeros((large.rows, 3))
    move_rows(source, target, small, large)
    assert (
        dict(zip(small.keys().tolist(), source[:, 0].tolist(), strict=True)).items()
        <= dict(zip(large.keys().tolist(), target[:, 0].tolist(), strict=True)).items()
    )
    assert (target != 0).sum() == source.size


# ------------------------------------------------------------------------------------------------------ neighbours


def votes_of_neighbours(n, kind, moments, x, classes):
    votes = np.zeros((len(NEIGHBOURS), classes))
    most = max(k for k, _ in NEIGHBOURS)
    room = np.zeros(max(window for _, window in NEIGHBOURS)), np.zeros(most), np.zeros(most, dtype=np.int64)
    vote_neighbours(n, kind, moments, x, *room, classes, votes)
    return votes


def test_neighbours_are_those_of_scikit_learn_in_the_recent_window():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2600, 3)) * [1.0, 10.0, 0.1]
    y = rng.integers(0, 4, 2600)
    moments, n = moments_of(X), as_reference(new_neighbours(3, 3))
    for x, label in zip(X, y, strict=True):
        learn_neighbours(n, NUMBERS, x, label)
    scale = np.sqrt(moments[:, 2])

    def weights(distance):
        return 1 / (distance / np.sqrt(distance[:, -1:] ** 2 + 1e-12) + 0.1)

    for x in rng.normal(size=(20, 3)) * [1.0, 10.0, 0.1]:
        votes = votes_of_neighbours(n, NUMBERS, moments, x, 4)
        for (k, window), found in zip(NEIGHBOURS, votes, strict=True):
            reference = KNeighborsClassifier(k, weights=weights).fit(X[-window:] / scale, y[-window:])
            np.testing.assert_allclose(found, reference.predict_proba([x / scale])[0], atol=1e-9)


def test_categories_and_missing_values_have_a_distance():
    kind, moments = np.array([-1, 0], dtype=np.int32), np.array([[9.0, 0.0, 1.0], [9.0, 0.0, 0.0]])
    n = as_reference(new_neighbours(1, 2))
    for x, label in (((0.0, 0.0), 0), ((0.0, 1.0), 1), ((np.nan, 0.0), 2), ((3.0, np.nan), 3)):
        for _ in range(3):
            learn_neighbours(n, kind, np.array(x), label)

    def best(*x):
        votes = np.zeros((1, 4))
        vote_neighbours(n, kind, moments, np.array(x), np.zeros(500), np.zeros(3), np.zeros(3, np.int64), 4, votes)
        return votes[0].argmax()

    assert best(0.1, 0.0) == 0
    assert best(0.1, 1.0) == 1
    assert best(-2.0, 0.0) == 2  # a difference of two standard deviations is more than a missing value
    assert best(3.0, 5.0) == 3
    assert best(np.nan, 1.0) == 1


def test_without_instances_all_classes_are_equally_likely():
    votes = votes_of_neighbours(as_reference(new_neighbours(3, 3)), NUMBERS, np.ones((3, 3)), np.zeros(3), 4)
    assert (votes == 0.25).all()


# ----------------------------------------------------------------------------------------------------- naive Bayes


def test_naive_bayes_is_the_formula():
    rng = np.random.default_rng(0)
    kind, known = np.array([-1, 0], dtype=np.int32), np.array([3], dtype=np.int32)
    X = np.column_stack([rng.normal(size=400), rng.integers(0, 3, 400)])
    y = (X[:, 0] + (X[:, 1] == 2) + rng.normal(size=400) > 1).astype(int)
    moments, plain = np.zeros((2, 3)), new_bayes(2, 2, 1, 4, 2)
    b = as_reference(plain)
    for x, label in zip(X, y, strict=True):
        learn_bayes(b, kind, moments, known, x, label, 2)
        update_moments(moments, x)
    x = np.array([0.3, 1.0])
    votes = np.zeros((2, 2))
    vote_bayes(b, kind, known, x, 2, votes)
    for e, memory in enumerate(BAYES):
        logs = []
        for c in range(2):
            weight, mean, variance, share = 0.0, 0.0, 0.0, np.zeros(3)
            total = sum((1 - 1 / memory) ** (399 - i) for i in range(400))
            so_far = np.zeros((0,))
            for i in range(400):
                weight *= 1 - 1 / memory
                if y[i] != c:
                    continue
                weight += 1
                gap = X[i, 0] - mean
                mean += gap / weight
                variance += (gap * (X[i, 0] - mean) - variance) / weight
                share += ((np.arange(3) == X[i, 1]) - share) / weight
                so_far, own = X[:i, 0], weight / (weight + 2)
                if i > 1:
                    spread = own * variance + (1 - own + 1e-3) * so_far.var()
                    offset = -0.5 * np.log(spread / so_far.var())
            density = offset - 0.5 * (x[0] - mean) ** 2 / spread
            logs.append(np.log(weight / total) + density + np.log((weight * share[1] + 1) / (weight + 3)))
        expected = np.exp(logs) / np.exp(logs).sum()
        np.testing.assert_allclose(votes[e], expected, rtol=1e-6)


def test_naive_bayes_forgets_and_far_values_do_not_break_it():
    rng = np.random.default_rng(0)
    moments, b = np.zeros((3, 3)), as_reference(new_bayes(2, 3, 0, 0, 2))
    none = np.zeros(0, dtype=np.int32)
    right = []
    for i in range(4000):
        y = int(rng.integers(2))
        x = rng.normal(size=3) + 2 * (y if i < 2000 else 1 - y)
        votes = np.zeros((2, 2))
        vote_bayes(b, NUMBERS, none, x, 2, votes)
        right.append(votes.argmax(axis=1) == y)
        learn_bayes(b, NUMBERS, moments, none, x, y, 2)
        update_moments(moments, x)
    assert np.mean(right[1000:2000], axis=0).min() > 0.9
    after = np.mean(right[2100:2500], axis=0)
    assert after[1] > after[0] + 0.2  # what remembers 300 instances is back before what remembers 1000
    assert np.mean(right[3500:], axis=0).min() > 0.9
    vote_bayes(b, NUMBERS, none, np.full(3, 1e149), 2, votes)
    assert np.isfinite(votes).all()


def test_naive_bayes_grows():
    old = new_bayes(2, 1, 1, 2, 2)
    for array in old:
        array += np.random.default_rng(0).random(array.shape)
    new = grow_bayes(old, 3, 2, 8, 4)
    assert np.array_equal(new.mean[:, :1, :2], old.mean)
    assert np.array_equal(new.share[:, :1, :2, :2], old.share)
    assert new.weight[:, 2:].sum() == new.share[:, 1:].sum() == 0


# ------------------------------------------------------------------------------------------------- linear, network


def test_linear_models_make_the_steps_of_adagrad_and_rmsprop():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 3)), rng.integers(0, 4, 60)
    plain = new_linear(3, Layout(3, 0, 0), 4)
    m = as_reference(plain)
    rows, votes, gradient = np.arange(4), np.zeros((3, 4)), np.zeros(4)
    weights = [torch.zeros(4, 4, dtype=torch.float64, requires_grad=True) for _ in LINEAR]
    steps = []
    for (rate, memory), w in zip(LINEAR, weights, strict=True):
        if memory == 0:
            steps.append(torch.optim.Adagrad([w], lr=rate, initial_accumulator_value=START, eps=0))
        else:
            steps.append(torch.optim.RMSprop([w], lr=rate, alpha=1 - memory, eps=0))
            start = {"step": torch.tensor(0.0), "square_avg": torch.full_like(w, START, requires_grad=False)}
            steps[-1].state[w].update(start)
    for x, label in zip(X, y, strict=True):
        numbers = np.r_[1.0, x]
        vote_linear(m, rows, numbers, 4, 4, votes)
        for w, step, found in zip(weights, steps, votes, strict=True):
            logits = torch.tensor(numbers) @ w
            np.testing.assert_allclose(found, torch.softmax(logits, 0).detach().numpy(), rtol=1e-9)
            step.zero_grad()
            torch.nn.functional.cross_entropy(logits[None], torch.tensor([label])).backward()
            step.step()
        learn_linear(m, rows, numbers, 4, label, 4, votes, gradient)
    for e, w in enumerate(weights):
        np.testing.assert_allclose(plain.weights[:, e], w.detach().numpy(), rtol=1e-9)


def test_a_network_makes_the_steps_of_adam():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 3)), rng.integers(0, 2, 60)
    plain = new_perceptrons(1, Layout(3, 0, 0), 2, seed=5)
    p = as_reference(plain)
    first = torch.tensor(plain.first[:, 0, 0].copy(), requires_grad=True)
    second = torch.tensor(plain.second[0, :, 0].copy(), requires_grad=True)
    adam = torch.optim.Adam([first, second], lr=NETWORKS[0])
    votes, hidden, gradient = np.zeros((1, 2)), np.zeros((1, HIDDEN)), np.zeros((2, HIDDEN))
    for x, label in zip(X, y, strict=True):
        numbers = np.r_[1.0, x]
        vote_perceptrons(p, np.arange(4), numbers, 4, 2, votes, hidden)
        on = torch.relu(torch.tensor(numbers) @ first)
        logits = torch.cat([on, torch.ones(1, dtype=torch.float64)]) @ second
        np.testing.assert_allclose(votes[0], torch.softmax(logits, 0).detach().numpy(), rtol=1e-6)
        adam.zero_grad()
        torch.nn.functional.cross_entropy(logits[None], torch.tensor([label])).backward()
        # units that are off have weights of the second layer that are left alone, as rows that an instance lacks
        before, off = second.detach().clone(), torch.cat([on <= 0, torch.zeros(1, dtype=torch.bool)])
        kept = {k: v.clone() for k, v in adam.state[second].items()} if adam.state[second] else None
        adam.step()
        with torch.no_grad():
            second[off] = before[off]
            for name in ("exp_avg", "exp_avg_sq"):
                adam.state[second][name][off] = 0.0 if kept is None else kept[name][off]
        learn_perceptrons(p, np.arange(4), numbers, 4, label, 2, votes, hidden, gradient)
    np.testing.assert_allclose(plain.first[:, 0, 0], first.detach().numpy(), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(plain.second[0, :, 0], second.detach().numpy(), rtol=1e-6, atol=1e-9)


def test_weights_of_a_network_do_not_depend_on_the_order_in_which_its_inputs_came():
    at_once = new_perceptrons(1, Layout(3, 2, 4), 3, seed=1)
    grown = new_perceptrons(1, Layout(0, 0, 0), 0, seed=1)
    layouts = [Layout(0, 0, 0), Layout(1, 0, 0), Layout(2, 1, 2), Layout(3, 1, 4), Layout(3, 2, 4)]
    for before, layout in pairwise(layouts):
        grown = grow_perceptrons(grown, before, layout, min(layout.features, 3), seed=1)
    assert np.array_equal(grown.first, at_once.first)
    assert np.array_equal(grown.second, at_once.second)
    drawn = at_once.first[1:, 0, 0]
    assert len(np.unique(drawn)) == drawn.size
    assert abs(drawn.mean()) < 0.02
    assert 0.15 < drawn.std() < 0.2
    assert not np.array_equal(new_perceptrons(1, Layout(3, 2, 4), 3, seed=2).first, at_once.first)


# ------------------------------------------------------------------------------------------------------------ gate

E, C, R = 3, 2, 4


class Gate:
    """A gate with three experts, and torch beside it."""

    def __init__(self, way=AUTO):
        self.way = way
        self.plain = new_gate(E, Layout(R - 1, 0, 0), way)
        self.work = new_gate_work(E, C)
        self.g, self.w = as_reference(self.plain), as_reference(self.work)
        self.recent = np.array([0.9, 0.6, 0.3])

    def decide(self, votes, numbers=None):
        self.numbers = np.r_[1.0, np.zeros(R - 1)] if numbers is None else numbers
        return decide(self.g, self.way, self.recent, votes, np.arange(R), self.numbers, R, E, C, self.w)

    def learn(self, votes, y):
        learn_gate(self.g, self.way, votes, np.arange(R), self.numbers, R, y, E, C, self.w)


def some_votes(rng):
    first = rng.random(E)
    return np.column_stack([first, 1 - first])


def test_the_four_ways_of_mixing_are_their_formulas():
    gate, rng = Gate(), np.random.default_rng(0)
    votes = some_votes(rng)
    assert gate.decide(votes) == ACCURACY
    np.testing.assert_allclose(gate.work.mixed[MEAN], votes.mean(axis=0))
    odds = np.maximum(np.log(gate.recent / (1 - gate.recent)), 1e-3)
    np.testing.assert_allclose(gate.work.weights[ACCURACY], odds / odds.sum())
    np.testing.assert_allclose(gate.work.mixed[ACCURACY], odds @ votes / odds.sum())
    logs = np.log(votes * (1 - FLOOR) + FLOOR / C)
    pool = np.exp(logs.mean(axis=0))
    np.testing.assert_allclose(gate.work.mixed[STACK], pool / pool.sum())
    softmax = gate.recent**2 / (gate.recent**2).sum()
    np.testing.assert_allclose(gate.work.mixed[CONTEXT], softmax @ votes)


def test_stack_and_context_gate_follow_the_gradients_of_their_losses():
    gate, rng = Gate(), np.random.default_rng(0)
    stack = torch.full((E,), 1 / E, dtype=torch.float64, requires_grad=True)
    context = torch.zeros(R + E, E, dtype=torch.float64, requires_grad=True)
    by_stack = torch.optim.RMSprop([stack], lr=0.003, alpha=0.999, eps=0)
    by_stack.state[stack].update(step=torch.tensor(0.0), square_avg=torch.full((E,), START, dtype=torch.float64))
    by_context = torch.optim.Adagrad([context], lr=0.05, initial_accumulator_value=START, eps=0)
    for _ in range(300):
        votes, numbers, y = some_votes(rng), np.r_[1.0, rng.normal(size=R - 1)], int(rng.integers(C))
        gate.decide(votes, numbers)
        smooth = torch.tensor(votes) * (1 - FLOOR) + FLOOR / C
        logits = stack @ torch.log(smooth)
        np.testing.assert_allclose(gate.work.mixed[STACK], torch.softmax(logits, 0).detach().numpy(), rtol=1e-9)
        inputs = torch.tensor(np.r_[numbers, votes.max(axis=1)])
        share = torch.softmax(inputs @ context + 2 * torch.log(torch.tensor(gate.recent)), 0)
        np.testing.assert_allclose(gate.work.weights[CONTEXT], share.detach().numpy(), rtol=1e-9)
        for loss, step in (
            (-torch.log_softmax(logits, 0)[y], by_stack),
            (-torch.log(share @ smooth[:, y]), by_context),
        ):
            step.zero_grad()
            loss.backward()
            step.step()
        with torch.no_grad():
            stack.clamp_(min=0.0)
        gate.learn(votes, y)
    np.testing.assert_allclose(gate.plain.stack, stack.detach().numpy(), rtol=1e-9)
    np.testing.assert_allclose(np.r_[gate.plain.context, gate.plain.sure], context.detach().numpy(), rtol=1e-8)


def test_the_gate_goes_over_to_a_better_way_and_says_which():
    gate, rng = Gate(), np.random.default_rng(0)
    gate.recent[:] = 1 / 2  # so recent accuracy is the mean, which an expert that is always right is lost in
    for _ in range(600):
        y = int(rng.integers(C))
        votes = np.full((E, C), 0.5)
        votes[1] = 0.02, 0.02
        votes[1, y] = 0.98
        gate.decide(votes)
        gate.learn(votes, y)
    way = gate.plain.state[0]
    assert way in (STACK, CONTEXT)
    assert gate.work.weights[way].argmax() == 1
    assert gate.plain.loss[way] == gate.plain.loss.min()
    assert gate.plain.answered.sum() == 600
    assert gate.plain.answered[way] > 400


def test_the_gate_does_not_change_its_way_for_noise():
    changes = 0
    for seed in range(20):
        gate, rng = Gate(), np.random.default_rng(seed)
        gate.recent[:] = 1 / 2
        way = ACCURACY
        for _ in range(500):
            votes = np.full((E, C), 0.5) + rng.normal(size=(E, 1)) * [0.02, -0.02]
            gate.decide(votes)
            gate.learn(votes, int(rng.integers(C)))
            changes += gate.plain.state[0] != way
            way = gate.plain.state[0]
    assert changes <= 20


@pytest.mark.parametrize("way", [MEAN, ACCURACY, STACK, CONTEXT])
def test_one_way_alone_is_that_of_all_four(way):
    alone, all_four, rng = Gate(way), Gate(), np.random.default_rng(0)
    for _ in range(50):
        votes, numbers, y = some_votes(rng), np.r_[1.0, rng.normal(size=R - 1)], int(rng.integers(C))
        assert alone.decide(votes, numbers) == way
        all_four.decide(votes, numbers)
        assert np.array_equal(alone.work.mixed[way], all_four.work.mixed[way])
        for gate in (alone, all_four):
            gate.learn(votes, y)
    assert alone.plain.answered[way] == 50
