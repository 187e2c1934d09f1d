"""The scikit-learn face: rules, persistence, repeatability, and accuracy on Cora."""

import copy
import os
import pickle
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from torch import nn

import moeapps
from moeapps.core.errors import ConfigError, DataError
from moeapps.graph import GNNClassifier, MowstClassifier
from tests.processes import Command

QUICK = {"max_epochs": 40, "patience": 5, "norm": None, "random_state": 0}


@pytest.fixture(scope="module")
def fitted(cora):
    return MowstClassifier("gcn", variant="mowst_star", **QUICK).fit(cora)


def test_prediction_has_a_label_and_a_distribution_per_node(fitted, cora):
    probabilities = fitted.predict_proba(cora)
    assert probabilities.shape == (2708, 7)
    assert np.allclose(probabilities.sum(1), 1, atol=1e-5)
    labels = fitted.predict(cora)
    assert isinstance(labels, np.ndarray)
    assert labels.shape == (2708,)
    assert np.array_equal(labels, fitted.classes_[probabilities.argmax(1)])
    assert np.array_equal(fitted.predict(cora, nodes=[5, 2]), labels[[5, 2]])
    assert np.array_equal(fitted.predict(cora, nodes=cora.test_mask), labels[cora.test_mask.numpy()])
    assert np.array_equal(fitted.predict(), labels)


def test_score_counts_the_test_nodes_of_a_graph(fitted, cora):
    labels, truth, test = fitted.predict(cora), cora.y.numpy(), cora.test_mask.numpy()
    assert fitted.score(cora) == pytest.approx((labels == truth)[test].mean())
    assert fitted.score(cora, nodes=range(100)) == pytest.approx((labels == truth)[:100].mean())


def test_fitted_attributes_tell_how_it_went(fitted):
    assert isinstance(fitted.history_, pd.DataFrame)
    assert len(fitted.history_) == fitted.n_iter_
    assert {"epoch", "stage", "val/accuracy", "train/task"} <= set(fitted.history_)
    assert set(fitted.confidence_) == {"train", "val"}
    assert fitted.champion_ in ("mix", "weak", "strong")
    assert fitted.n_rounds_ == 1


def test_route_and_confidence_agree(fitted, cora):
    confidence = fitted.predict_confidence(cora)
    assert ((confidence >= 0) & (confidence <= 1)).all()
    assert np.array_equal(fitted.route(cora), confidence < 0.5)


def test_a_new_process_predicts_and_trains_the_same(fitted, cora, tmp_path):
    path = tmp_path / "mowst.safetensors"
    fitted.save(path)
    np.save(tmp_path / "expected.npy", fitted.predict_proba(cora))
    trained = GNNClassifier("mlp", max_epochs=2, random_state=0).fit(cora).predict_proba(cora)
    np.save(tmp_path / "trained.npy", trained)
    script = (
        "import sys, warnings; warnings.simplefilter('error', FutureWarning)\n"  # of torch, about PyG
        "import numpy as np, torch, moeapps; from moeapps.graph import load_cora\n"
        "warnings.simplefilter('ignore')\n"
        "g = load_cora(); g.x = g.x / g.x.sum(1, keepdim=True); m = moeapps.load(sys.argv[1])\n"
        "assert np.array_equal(m.predict_proba(g), np.load(sys.argv[2])), 'differs'\n"
        "from moeapps.graph import GNNClassifier\n"
        "trained = GNNClassifier('mlp', max_epochs=2, random_state=0).fit(g).predict_proba(g)\n"
        "assert np.array_equal(trained, np.load(sys.argv[3])), 'another process trains differently'\n"
        "print(type(m).__name__, m.predict(g).shape, m.random_state)"
    )
    process = Command([path, tmp_path / "expected.npy", tmp_path / "trained.npy"], code=script)
    out, error = process.communicate(120)
    assert process.returncode == 0, error
    assert out.strip() == "MowstClassifier (2708,) 0"
    loaded = moeapps.load(path)
    pd.testing.assert_frame_equal(loaded.history_, fitted.history_, check_dtype=False)
    assert loaded.get_params() == fitted.get_params()
    with pytest.raises(DataError, match="does not hold its training graph"):
        loaded.predict()


def test_pickle_deepcopy_and_clone(fitted, cora):
    expected = fitted.predict_proba(cora)
    for twin in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        assert np.array_equal(twin.predict_proba(cora), expected)
    fresh = clone(fitted)
    assert fresh.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        fresh.predict(cora)
    with pytest.raises(NotFittedError):
        fresh.save("never.safetensors")


def test_string_labels_and_column_names_survive_saving(tmp_path):
    frame = pd.DataFrame(np.random.default_rng(0).random((40, 3)), columns=["a", "b", "c"])
    y = np.where(frame["a"] > 0.5, "yes", "no")
    model = GNNClassifier("mlp", max_epochs=3, random_state=0).fit(frame, y)
    model.save(tmp_path / "m")
    loaded = moeapps.load(tmp_path / "m")
    assert loaded.feature_names_in_.tolist() == ["a", "b", "c"]
    assert np.array_equal(loaded.predict(frame), model.predict(frame))
    assert loaded.classes_.tolist() == ["no", "yes"]
    with pytest.raises(ValueError, match="same order"):
        loaded.predict(frame[["b", "a", "c"]])


def test_a_random_state_of_numpy_is_a_seed(cora):
    def weights(seed):
        return GNNClassifier("mlp", max_epochs=1, random_state=seed).fit(cora).model_.state_dict()["lins.0.weight"]

    assert torch.equal(weights(np.random.RandomState(4)), weights(np.random.RandomState(4)))


def test_files_are_written_where_they_are_asked_for(cora, tmp_path):
    GNNClassifier("mlp", max_epochs=2, random_state=0, log_dir=str(tmp_path / "log")).fit(cora)
    names = {path.name for path in (tmp_path / "log").rglob("*") if path.is_file()}
    assert {"metrics.csv", "last.ckpt"} <= names


def test_a_fit_that_fails_leaves_the_model_as_it_was(cora):
    model = GNNClassifier("mlp", max_epochs=2, random_state=0).fit(cora)
    before = model.predict_proba(cora)
    bad = copy.copy(cora)
    bad.x = cora.x.clone()
    bad.x[3] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        model.fit(bad)
    frame = pd.DataFrame(np.full((4, 2), np.nan), columns=["a", "b"])
    with pytest.raises(DataError, match="NaN"):
        model.fit(frame, [0, 1, 0, 1])
    assert np.array_equal(model.predict_proba(cora), before)
    assert not hasattr(model, "feature_names_in_")


def test_ctrl_c_during_fit_is_a_keyboard_interrupt_and_leaves_the_model_as_it_was(cora, monkeypatch):
    model = GNNClassifier("mlp", norm=None, max_epochs=2, random_state=0).fit(cora)
    before, handler = model.predict_proba(cora), signal.getsignal(signal.SIGINT)

    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("moeapps.graph.node_module.GNNModule.training_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.fit(cora)
    assert signal.getsignal(signal.SIGINT) == handler
    assert np.array_equal(model.predict_proba(cora), before)


def test_grid_search_over_variant_and_gate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).random((60, 4))
    search = GridSearchCV(
        MowstClassifier("gcn", max_epochs=2, patience=1, random_state=0),
        [{"variant": ["mowst"], "confidence": ["learned"]}, {"variant": ["mowst_star"], "confidence": ["given"]}],
        cv=2,
    )
    search.fit(x, (x[:, 0] > 0.5).astype(int))
    assert set(search.best_params_) == {"variant", "confidence"}
    assert os.listdir(tmp_path) == []


def test_the_users_own_network_is_not_trained_in_place(cora):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1433, 7)

        def forward(self, x, edge_index):
            return self.linear(x)

    own = Own()
    before = own.linear.weight.clone()
    GNNClassifier(own, max_epochs=2, random_state=0).fit(cora)
    assert torch.equal(own.linear.weight, before)


def test_verbose_shows_a_progress_bar_and_silence_is_silent(cora, capsys):
    GNNClassifier("mlp", max_epochs=2, random_state=0).fit(cora)
    quiet = capsys.readouterr()
    assert (quiet.out, quiet.err) == ("", "")
    GNNClassifier("mlp", max_epochs=2, random_state=0, verbose=True).fit(cora)
    assert "Epoch" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [({"max_epochs": 0}, "max_epochs"), ({"patience": 0}, "patience"), ({"lr": -1.0}, "lr")],
)
def test_impossible_arguments_are_named_in_fit(cora, arguments, culprit):
    for kind in (GNNClassifier, MowstClassifier):
        with pytest.raises(ConfigError, match=culprit):
            kind(**arguments).fit(cora)


@pytest.mark.parametrize("nodes", [[2708], [-1], [0.5], np.zeros(3, dtype=bool)], ids=str)
def test_nodes_outside_the_graph_are_refused(fitted, cora, nodes):
    with pytest.raises(DataError, match="nodes must"):
        fitted.predict(cora, nodes=nodes)


@pytest.mark.slow
def test_on_cora_the_mixture_reaches_the_gcn(cora):
    seeds = range(5)
    gcn = [GNNClassifier("gcn", norm=None, random_state=s).fit(cora).score(cora) for s in seeds]
    mowst = [MowstClassifier("gcn", norm=None, random_state=s).fit(cora).score(cora) for s in seeds]
    assert np.mean(gcn) > 0.80
    assert np.mean(mowst) >= max(0.82, np.mean(gcn) - 0.01)
