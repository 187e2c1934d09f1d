"""Mixtures of experts known by their predictions: fitting, weights, mixing, saving, and data at the edge."""

import copy
import json

import numpy as np
import pytest
import torch

from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.mixing import FixedGate, GateConfig, GatedMixture, PredictionGate, fit_cascade, fit_mixture
from moeapps.core.mixing.gate import dense_weights

# n rows, E experts, K classes


def two_halves(n=400, seed=0):
    """Two experts, each of which knows one half of the rows, by the sign of the first feature."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    known = np.where(y == 1, 0.9, 0.1)
    left = np.where(x[:, 0] < 0, known, rng.uniform(0.05, 0.95, n))
    right = np.where(x[:, 0] >= 0, known, rng.uniform(0.05, 0.95, n))
    p = np.stack([left, right], axis=1)
    return x, np.log(np.stack([1 - p, p], axis=2)), y


def log_loss(probabilities, y):
    return -np.log(probabilities[np.arange(len(y)), y]).mean()


@pytest.fixture(scope="module")
def fitted():
    x, predictions, y = two_halves()
    return fit_mixture(x, predictions, y, names=["left", "right"])


def test_the_gate_learns_where_each_expert_is_good(fitted):
    x, predictions, y = two_halves(seed=1)
    weights = fitted.weights(x, predictions)
    assert weights.shape == (400, 2)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    clear = np.abs(x[:, 0]) > 0.5
    assert (weights.argmax(axis=1) == (x[:, 0] >= 0))[clear].mean() > 0.95
    alone = min(log_loss(np.exp(predictions[:, e]), y) for e in range(2))
    assert log_loss(fitted.mix(x, predictions), y) < 0.3 * alone


def test_the_table_of_candidates_says_what_was_compared(fitted):
    table = fitted.candidates
    kinds = ["mean", "constant", "confidence", "linear", "mlp"]
    assert list(table["candidate"]) == ["expert:left", "expert:right", *kinds]
    assert list(table.loc[table["chosen"], "candidate"]) == [fitted.name]
    assert fitted.name in ("linear", "mlp")
    best = table["loss"].idxmin()
    assert table["difference"][best] == 0
    np.testing.assert_allclose(table["difference"], table["loss"] - table["loss"].min(), atol=1e-12)


def test_the_gate_routes_through_the_core(fitted):
    x, predictions, _ = two_halves(20)
    routing = fitted.routing(x, predictions)
    assert routing.num_experts == 2
    assert routing.counts.tolist() == [20, 20]
    np.testing.assert_allclose(dense_weights(routing).numpy(), fitted.weights(x, predictions))


def test_a_mixture_is_the_weighted_sum_of_calibrated_probabilities():
    x, predictions, y = two_halves()
    mixture = fit_mixture(x, predictions, y, gate="linear", calibrate=False)
    assert mixture.temperature == 1
    assert (mixture.temperatures == 1).all()
    expected = (mixture.weights(x, predictions)[:, :, None] * np.exp(predictions)).sum(axis=1)
    np.testing.assert_allclose(mixture.mix(x, predictions), expected)


@pytest.mark.parametrize("gate", ["constant", "confidence", "linear", "mlp"])
def test_every_gate_can_be_asked_for(gate):
    x, predictions, y = two_halves(120)
    mixture = fit_mixture(x, predictions, y, gate=gate)
    assert mixture.name == gate
    assert isinstance(mixture.gate, PredictionGate)
    assert mixture.gate.config.kind == gate
    np.testing.assert_allclose(mixture.mix(x, predictions).sum(axis=1), 1)


def test_a_constant_gate_gives_every_row_the_same_weights():
    x, predictions, y = two_halves(120)
    weights = fit_mixture(x, predictions, y, gate="constant").weights(x, predictions)
    np.testing.assert_allclose(weights, np.broadcast_to(weights[0], weights.shape))


def test_the_best_expert_alone_can_be_asked_for():
    x, predictions, y = two_halves()
    predictions[:, 0] = np.log(0.5)
    mixture = fit_mixture(x, predictions, y, gate="best", names=["coin", "right"])
    assert mixture.name == "expert:right"
    assert isinstance(mixture.gate, FixedGate)
    assert (mixture.weights(x, predictions) == [0, 1]).all()


def test_the_mean_is_the_mean():
    x, predictions, y = two_halves(100)
    mixture = fit_mixture(x, predictions, y, gate="mean", calibrate=False)
    np.testing.assert_allclose(mixture.mix(x, predictions), np.exp(predictions).mean(axis=1))


def test_a_sparse_router_gives_weights_to_top_k_experts():
    x, predictions, y = two_halves()
    predictions = np.concatenate([predictions, predictions[:, :1]], axis=1)
    mixture = fit_mixture(x, predictions, y, gate=GateConfig("linear", top_k=2))
    assert ((mixture.weights(x, predictions) > 0).sum(axis=1) == 2).all()


@pytest.mark.parametrize("router", ["topp", "noisy_topk"])
def test_other_routers_work_by_name(router):
    x, predictions, y = two_halves(200)
    mixture = fit_mixture(x, predictions, y, gate=GateConfig("linear", router=router))
    np.testing.assert_allclose(mixture.weights(x, predictions).sum(axis=1), 1)


def test_regression_mixes_by_squared_error():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 2))
    target = rng.normal(size=(500, 2))
    noise = np.where(x[:, :1] > 0, 0.1, 2.0)
    predictions = np.stack(
        [target + noise * rng.normal(size=(500, 2)), target + (2.1 - noise) * rng.normal(size=(500, 2))], axis=1
    )
    mixture = fit_mixture(x, predictions, target, task="regression")
    assert mixture.name in ("linear", "mlp")
    mixed = mixture.mix(x, predictions)
    assert mixed.shape == (500, 2)
    assert np.square(mixed - target).mean() < 0.5 * np.square(predictions.mean(axis=1) - target).mean()
    assert (mixture.temperatures == 1).all()


def test_the_same_seed_gives_the_same_mixture_and_global_random_states_stay():
    x, predictions, y = two_halves(150)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (fit_mixture(x, predictions, y, gate="mlp", seed=5) for _ in range(2))
    assert (first.mix(x, predictions) == second.mix(x, predictions)).all()
    GatedMixture.from_state(*first.state())
    assert (torch.get_rng_state() == before[0]).all()
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_a_row_of_weight_two_counts_as_two_rows():
    x, predictions, y = two_halves(60)
    twice = np.concatenate([np.arange(60), np.arange(20)])
    weight = np.where(np.arange(60) < 20, 2.0, 1.0)
    weighted = fit_mixture(x, predictions, y, weight, gate="constant")
    repeated = fit_mixture(x[twice], predictions[twice], y[twice], gate="constant")
    np.testing.assert_allclose(weighted.temperatures, repeated.temperatures, rtol=0.02)
    np.testing.assert_allclose(weighted.weights(x, predictions), repeated.weights(x[:60], predictions), atol=0.03)


def test_rows_of_weight_zero_are_left_out():
    x, predictions, y = two_halves(100)
    weight = np.ones(100)
    weight[50:] = 0
    with_zeros = fit_mixture(x, predictions, y, weight, gate="linear")
    without = fit_mixture(x[:50], predictions[:50], y[:50], gate="linear")
    np.testing.assert_array_equal(with_zeros.mix(x, predictions), without.mix(x, predictions))


def test_rows_of_one_group_stay_in_one_fold():
    x, predictions, y = two_halves(100)
    one = fit_mixture(x, predictions, y, gate="constant", groups=np.repeat(np.arange(20), 5))
    other = fit_mixture(x, predictions, y, gate="constant")
    assert one.candidates["loss"].iloc[-1] != other.candidates["loss"].iloc[-1]
    assert (one.weights(x, predictions) == other.weights(x, predictions)).all()  # fitted on all rows at last


@pytest.mark.parametrize("gate", ["linear", "mlp"])
def test_experts_that_are_sure_and_wrong_in_half_of_the_rows_keep_their_sureness_where_they_are_right(gate):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 2))
    y = rng.integers(0, 2, 600)
    known, wrong = np.where(y == 1, 0.9, 0.1), np.where(rng.random(600) < 0.5, 0.9, 0.1)
    p = np.stack([np.where(x[:, 0] < 0, known, wrong), np.where(x[:, 0] >= 0, known, wrong)], axis=1)
    predictions = np.log(np.stack([1 - p, p], axis=2))
    mixture = fit_mixture(x, predictions, y, gate=gate)
    assert log_loss(mixture.mix(x, predictions), y) < 0.3
    flat = -np.log(0.5)
    assert mixture.candidates.set_index("candidate")["loss"][gate] < 0.6 * flat


# data at the edge


def test_one_expert_is_calibrated():
    x, predictions, y = two_halves(100)
    mixture = fit_mixture(x, predictions[:, :1], y, names=["only"])
    assert mixture.name == "expert:only"
    assert (mixture.weights(x, predictions[:, :1]) == 1).all()


@pytest.mark.parametrize("n", [1, 2, 9, 10, 13])
def test_a_few_rows_are_enough(n):
    x, predictions, y = two_halves(n)
    mixture = fit_mixture(x, predictions, y)
    assert np.isfinite(mixture.mix(x, predictions)).all()
    if n < 10:
        assert mixture.name == "mean"


def test_more_experts_than_rows():
    rng = np.random.default_rng(0)
    predictions = np.log(rng.dirichlet(np.ones(3), size=(12, 20)))
    mixture = fit_mixture(rng.normal(size=(12, 4)), predictions, rng.integers(0, 3, 12))
    np.testing.assert_allclose(mixture.mix(np.zeros((12, 4)), predictions).sum(axis=1), 1)


def test_equal_experts_constant_features_and_no_features():
    x, predictions, y = two_halves(100)
    same = np.repeat(predictions[:, :1], 3, axis=1)
    alone = fit_mixture(x, predictions[:, :1], y)
    for features in (np.full((100, 2), 7.0), np.zeros((100, 0))):
        mixture = fit_mixture(features, same, y)
        difference = log_loss(mixture.mix(features, same), y) - log_loss(alone.mix(x, predictions[:, :1]), y)
        assert difference < 0.02


def test_classes_with_one_row_or_none():
    x, predictions, y = two_halves(60)
    padded = np.concatenate([predictions, np.full((60, 2, 2), -np.inf)], axis=2)
    y[0] = 3  # an expert gave it the probability 0
    mixture = fit_mixture(x, padded, y)
    probabilities = mixture.mix(x, padded)
    assert probabilities.shape == (60, 4)
    assert (probabilities > 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


def test_perfect_experts_keep_a_finite_temperature():
    y = np.arange(50) % 2
    perfect = np.log(np.clip(np.eye(2)[y], 1e-15, 1))[:, None].repeat(2, axis=1)
    mixture = fit_mixture(np.zeros((50, 1)), perfect, y)
    assert np.isfinite(mixture.temperatures).all()
    assert log_loss(mixture.mix(np.zeros((50, 1)), perfect), y) < 0.05


# refusals


def test_nan_is_refused_with_the_experts_name():
    x, predictions, y = two_halves(30)
    predictions[4, 1, 0] = np.nan
    with pytest.raises(DataError, match="expert 'right' predicts nan in row 4"):
        fit_mixture(x, predictions, y, names=["left", "right"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.zeros(29, dtype=int)}, "target must be 30 whole class codes"),
        ({"target": np.full(30, 2)}, "class codes 2 to 2, but 2 classes"),
        ({"features": np.full((30, 2), np.nan)}, "feature 0 has values that are not finite"),
        ({"features": np.zeros((29, 2))}, "features must have shape"),
        ({"weight": np.zeros(30)}, "no row has a weight above 0"),
        ({"weight": np.full(30, -1.0)}, "weight must be 30 finite numbers"),
        ({"groups": np.zeros(29)}, "groups must have one entry per row"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    x, predictions, y = two_halves(30)
    with pytest.raises(DataError, match=message):
        fit_mixture(**{"features": x, "predictions": predictions, "target": y, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gate": "tree"}, "gate must be one of"),
        ({"names": ["a", "a"]}, "names of the experts must differ"),
        ({"gate": GateConfig("linear", router="expert_choice")}, "rows have to choose experts"),
        ({"gate": GateConfig("linear", router="avg_k")}, "rows have to choose experts"),
        ({"gate": GateConfig("linear", router="thor")}, "it has nothing to learn"),
        ({"gate": GateConfig("linear", top_k=3)}, "top_k must be between 1 and num_experts=2"),
    ],
)
def test_impossible_arguments_are_refused(change, message):
    x, predictions, y = two_halves(30)
    with pytest.raises(ConfigError, match=message):
        fit_mixture(x, predictions, y, **change)


def two_shrunk_regressions(n=600, seed=0):
    """Features, predictions of two experts that each know one of two summands, and their sum."""
    rng = np.random.default_rng(seed)
    parts = rng.normal(size=(n, 2))
    return np.zeros((n, 0)), parts[:, :, None], parts.sum(axis=1, keepdims=True) + 0.1 * rng.normal(size=(n, 1))


def test_a_mixture_of_regressions_gets_its_spread_back():
    x, predictions, y = two_shrunk_regressions()
    mixture = fit_mixture(x, predictions, y, task="regression", gate="constant")
    assert mixture.line.slope[0] == pytest.approx(2, rel=0.1)  # weights of a half each, and twice that
    x, predictions, y = two_shrunk_regressions(seed=1)
    assert np.square(mixture.mix(x, predictions) - y).mean() < 0.05
    plain = fit_mixture(x, predictions, y, task="regression", gate="constant", calibrate=False)
    assert plain.line is None
    assert np.square(plain.mix(x, predictions) - y).mean() > 0.4
    alone = fit_mixture(x, predictions, y, task="regression", gate="best")
    assert alone.line is None  # an expert alone predicts what it predicts


def test_a_mixture_of_regressions_can_subtract_an_expert():
    rng = np.random.default_rng(0)
    signal, noise = rng.normal(size=(2, 800, 1))
    predictions = np.stack([signal + noise, noise], axis=1)  # the second knows the first one's error only
    train, test = slice(600), slice(600, None)
    mixture = fit_mixture(np.zeros((600, 0)), predictions[train], signal[train], task="regression")
    assert mixture.name == "stacked"
    assert np.square(mixture.mix(np.zeros((200, 0)), predictions[test]) - signal[test]).mean() < 1e-3
    weights = mixture.weights(np.zeros((200, 0)), predictions[test])
    np.testing.assert_allclose(weights, 0.5, atol=0.01)
    cascade = fit_cascade(mixture, np.zeros((600, 0)), predictions[train], signal[train], costs=[1.0, 1.0])
    answer = cascade.run(np.zeros((200, 0)), lambda expert, rows: predictions[test][rows, expert])
    np.testing.assert_allclose(answer.mixed, mixture.mix(np.zeros((200, 0)), predictions[test]))
    few = fit_mixture(np.zeros((3, 0)), predictions[:3], signal[:3], task="regression", gate="stacked")
    np.testing.assert_allclose(few.mix(np.zeros((3, 0)), predictions[:3]), predictions[:3].mean(axis=1))


# saving


@pytest.mark.parametrize("gate", ["auto", "mean", "mlp", GateConfig("linear", top_k=1)])
def test_a_mixture_survives_its_state(gate):
    x, predictions, y = two_halves(120)
    mixture = fit_mixture(x, predictions, y, gate=gate)
    state, tensors = mixture.state()
    again = GatedMixture.from_state(json.loads(json.dumps(state, allow_nan=False)), tensors)
    assert (again.mix(x, predictions) == mixture.mix(x, predictions)).all()
    assert (again.weights(x, predictions) == mixture.weights(x, predictions)).all()
    assert again.candidates.equals(mixture.candidates)
    assert again.names == mixture.names


def test_a_mixture_of_regressions_survives_its_state():
    x, predictions, y = two_shrunk_regressions()
    for gate in ("constant", "stacked"):
        mixture = fit_mixture(x, predictions, y, task="regression", gate=gate)
        state, tensors = mixture.state()
        again = GatedMixture.from_state(json.loads(json.dumps(state, allow_nan=False)), tensors)
        assert (again.mix(x, predictions) == mixture.mix(x, predictions)).all()
    mixture = fit_mixture(x, predictions, y, task="regression", gate="constant")
    state, tensors = mixture.state()
    again = GatedMixture.from_state(json.loads(json.dumps(state, allow_nan=False)), tensors)
    assert (again.mix(x, predictions) == mixture.mix(x, predictions)).all()
    for line in ([[1.0]], [[1.0], [2.0, 3.0]], [[1.0], [float("inf")]], [[1.0], [2.0], [3.0]]):
        with pytest.raises(FileFormatError, match="line of a mixture must be 1 slopes"):
            GatedMixture.from_state({**state, "line": line}, tensors)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s, t: s.pop("task"), "lacks 'task'"),
        (lambda s, t: s.update(task="ranking"), "task of"),
        (lambda s, t: s.update(names=["a", "a"]), "experts cannot be"),
        (lambda s, t: s.update(names=["a"]), "temperatures of a mixture must be 1 numbers"),
        (lambda s, t: s.update(num_features=3), "does not fit PredictionGate"),
        (lambda s, t: s.update(temperature=0.0), "temperature of a mixture"),
        (lambda s, t: s["gate"].update(router="nonsense"), "cannot be restored"),
        (lambda s, t: s["gate"].update(hidden_dim="wide"), "hidden_dim cannot be"),
        (lambda s, t: s["gate"].update(depth=2), "cannot be restored"),
        (lambda s, t: t.pop("floors"), "floors of a mixture"),
        (lambda s, t: t["temperatures"].fill_(-1), "above 0"),
        (lambda s, t: t["gate.router.weight"].fill_(torch.nan), "not finite"),
        (lambda s, t: t.pop("gate.router.weight"), "missing router.weight"),
        (lambda s, t: t.update({"gate.scale": torch.zeros(7)}), r"scale is \(7,\) in the file"),
    ],
)
def test_a_damaged_state_is_refused(damage, message):
    x, predictions, y = two_halves(60)
    state, tensors = fit_mixture(x, predictions, y, gate="linear").state()
    damage(state, tensors)
    with pytest.raises(FileFormatError, match=message):
        GatedMixture.from_state(state, tensors)


@pytest.fixture(scope="module")
def saved_mlp():
    x, predictions, y = two_halves(60)
    return fit_mixture(x, predictions, y, gate="mlp").state()


@pytest.mark.parametrize("size", [10**9, 10**30], ids=["too much memory", "no number of torch"])
@pytest.mark.parametrize("field", ["hidden_dim", "num_features"])
def test_a_forged_size_of_the_gate_is_refused_before_it_takes_memory(field, size, saved_mlp, monkeypatch):
    state, tensors = copy.deepcopy(saved_mlp)
    (state["gate"] if field == "hidden_dim" else state)[field] = size
    made, plain = [], PredictionGate.__init__

    def watched(gate, *args, **kwargs):
        plain(gate, *args, **kwargs)
        made.append(gate)

    monkeypatch.setattr(PredictionGate, "__init__", watched)
    with pytest.raises(FileFormatError, match="far more than" if size == 10**9 else "cannot be restored"):
        GatedMixture.from_state(state, tensors)
    assert made == []
