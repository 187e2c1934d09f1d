"""A saved mixture predicts as before, to the bit; what does not belong together is refused."""

import numpy as np
import pandas as pd
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import moeapps
from moeapps import MixtureClassifier, MixtureRegressor, MoEClassifier
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.mixing import GateConfig
from moeapps.tables import TableFeatures
from tests.core.saved_fuzz import join, split

FRAME, LABELS = load_breast_cancer(return_X_y=True, as_frame=True)
FRAME = FRAME.iloc[:300, :4].assign(site=pd.Categorical(np.where(np.arange(300) % 3, "Ulm", "Bonn")))
LABELS = np.where(LABELS[:300] == 1, "benign", "malignant")
EXPERTS = [
    ("linear", make_pipeline(TableFeatures(), LogisticRegression(max_iter=300))),
    HistGradientBoostingClassifier(max_iter=5),
    ("own.net", MoEClassifier(num_experts=2, max_epochs=2)),
]


@pytest.fixture(scope="module")
def mixture():
    return MixtureClassifier(EXPERTS, gate="linear", cv=3, costs=[1.0, 5.0, 2.0], random_state=0).fit(FRAME, LABELS)


@pytest.fixture
def saved(mixture, tmp_path):
    mixture.save(tmp_path / "mixture.safetensors")
    return tmp_path / "mixture.safetensors"


def test_predictions_and_weights_are_the_same_to_the_bit(mixture, saved):
    loaded = moeapps.load(saved)
    assert np.array_equal(loaded.predict_proba(FRAME), mixture.predict_proba(FRAME))
    assert np.array_equal(loaded.predict(FRAME), mixture.predict(FRAME))
    pd.testing.assert_frame_equal(loaded.weights(FRAME), mixture.weights(FRAME), check_exact=True)
    pd.testing.assert_frame_equal(loaded.candidates_, mixture.candidates_, check_exact=True)
    pd.testing.assert_series_equal(loaded.costs_, mixture.costs_)
    assert (loaded.chosen_, loaded.expert_names_) == (mixture.chosen_, ["linear", *mixture.expert_names_[1:]])


def test_a_cascade_asks_the_same_experts(mixture, saved):
    loaded = moeapps.load(saved).set_params(inference="cascade")
    mixture.set_params(inference="cascade")
    try:
        assert np.array_equal(loaded.predict_proba(FRAME), mixture.predict_proba(FRAME))
        assert loaded.experts_asked(FRAME).equals(mixture.experts_asked(FRAME))
        assert list(loaded.predict_table(FRAME[:2]).filter(like="asked_")) == [
            f"asked_{name}" for name in mixture.expert_names_
        ]
    finally:
        mixture.set_params(inference="mix")


@pytest.mark.parametrize("gate", ["best", "mean", "constant", "mlp", GateConfig(kind="linear", top_k=1)])
def test_every_kind_of_gate_comes_back(gate, tmp_path):
    model = MixtureClassifier(EXPERTS[:2], gate=gate, cv=2, random_state=0).fit(FRAME, LABELS)
    model.save(tmp_path / "m.safetensors")
    loaded = moeapps.load(tmp_path / "m.safetensors")
    assert np.array_equal(loaded.predict_proba(FRAME), model.predict_proba(FRAME))
    assert loaded.gate == gate


@pytest.mark.parametrize("targets", [1, 2])
def test_a_regressor_comes_back(targets, tmp_path):
    X, y = load_diabetes(return_X_y=True)
    y = y if targets == 1 else np.column_stack([y, X[:, 0]])
    experts = [Ridge(), Ridge(100.0)] if targets == 2 else [Ridge(), HistGradientBoostingRegressor(max_iter=5)]
    model = MixtureRegressor(experts, gate="constant", cv=KFold(3, shuffle=True, random_state=0)).fit(X, y)
    model.save(tmp_path / "m.safetensors")
    loaded = moeapps.load(tmp_path / "m.safetensors")
    assert np.array_equal(loaded.predict(X), model.predict(X))
    assert repr(loaded.cv) == repr(model.cv)
    names = ["prediction"] if targets == 1 else ["prediction_0", "prediction_1"]
    assert list(loaded.predict_table(X[:3]))[:targets] == names


def test_arguments_come_back_and_a_loaded_mixture_can_be_fitted_again(mixture, saved):
    loaded = moeapps.load(saved)
    assert repr(loaded.get_params()) == repr(mixture.get_params())
    assert loaded.fit(FRAME, LABELS).chosen_ == mixture.chosen_
    assert np.allclose(loaded.predict_proba(FRAME), mixture.predict_proba(FRAME))


def test_what_set_params_changed_since_the_fit_is_kept_beside_the_fit(tmp_path):
    model = MixtureClassifier(EXPERTS[:2], gate="mean", cv=2, random_state=0).fit(FRAME, LABELS)
    model.set_params(gate="linear", linear__logisticregression__C=3.0, random_state=1)
    model.save(tmp_path / "m.safetensors")
    loaded = moeapps.load(tmp_path / "m.safetensors")
    assert (loaded.gate, loaded.random_state, loaded.chosen_) == ("linear", 1, "mean")
    assert loaded.get_params()["linear__logisticregression__C"] == 3.0
    assert np.array_equal(loaded.predict_proba(FRAME), model.predict_proba(FRAME))


def test_fitted_experts_that_were_given_are_kept_once(tmp_path):
    experts = [make_pipeline(StandardScaler(), LogisticRegression()).fit(FRAME.iloc[:, :4], LABELS),
               RandomForestClassifier(20, random_state=0).fit(FRAME.iloc[:, :4], LABELS)]  # fmt: skip
    model = MixtureClassifier(experts, cv="prefit", gate="constant").fit(FRAME.iloc[:, :4], LABELS)
    model.save(tmp_path / "m.safetensors")
    loaded = moeapps.load(tmp_path / "m.safetensors")
    assert loaded.experts[1] is loaded.experts_[1]
    assert np.array_equal(loaded.predict_proba(FRAME.iloc[:, :4]), model.predict_proba(FRAME.iloc[:, :4]))


def test_the_default_portfolio_is_saved(tmp_path):
    from moeapps.tables.mixture.portfolio import default_experts

    experts = default_experts(FRAME, LABELS, "classification", 0)
    experts[2][1].set_params(model__n_estimators=5)
    experts[3][1].set_params(max_epochs=1, num_experts=2)
    model = MixtureClassifier(experts, gate="mean", cv=2).fit(FRAME, LABELS)
    model.save(tmp_path / "m.safetensors")
    assert np.array_equal(moeapps.load(tmp_path / "m.safetensors").predict_proba(FRAME), model.predict_proba(FRAME))


def test_lightgbm_among_the_experts_is_kept_for_those_who_trust_it(tmp_path, monkeypatch):
    lightgbm = pytest.importorskip("lightgbm")
    X = FRAME.iloc[:, :4]
    model = MixtureClassifier(
        [LogisticRegression(max_iter=300), ("lgbm", lightgbm.LGBMClassifier(n_estimators=3, verbose=-1))],
        gate="mean", cv=2,
    ).fit(X, LABELS)  # fmt: skip
    with pytest.warns(UserWarning, match=r"expert 'lgbm' \(LGBMClassifier\) will load only with moeapps.load"):
        model.save(tmp_path / "m.safetensors")
    with pytest.raises(FileFormatError, match="expert 'lgbm' holds types that are not trusted, .*lightgbm"):
        moeapps.load(tmp_path / "m.safetensors")
    trusted = ["lightgbm.basic.Booster", "lightgbm.sklearn.LGBMClassifier"]
    expected = model.predict_proba(X)
    assert np.array_equal(moeapps.load(tmp_path / "m.safetensors", trusted=trusted).predict_proba(X), expected)
    monkeypatch.setenv("MOEAPPS_TRUST", ",".join(trusted))  # for a server's processes
    assert np.array_equal(moeapps.load(tmp_path / "m.safetensors").predict_proba(X), expected)
    with pytest.raises(ConfigError, match="trusted must hold types or their full names, got 3"):
        moeapps.load(tmp_path / "m.safetensors", trusted=[3])


def test_a_mixture_that_is_not_fitted_is_not_saved(tmp_path):
    with pytest.raises(NotFittedError):
        MixtureClassifier(EXPERTS).save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_ten_times_saved_is_one_file(mixture, saved, tmp_path):
    moeapps.load(saved).save(tmp_path / "again.safetensors")
    first = saved.read_bytes()
    mixture.save(saved)
    assert saved.read_bytes() == first
    assert (tmp_path / "again.safetensors").read_bytes() == first


def change(path, edit):
    header, document, data = split(path.read_bytes())
    edit(document["state"], document["arguments"])
    path.write_bytes(join(header, document, data))


@pytest.mark.parametrize(
    "edit",
    [
        lambda state, _: state["expert_names_"].reverse(),
        lambda state, _: state["costs_"].pop(),
        lambda state, _: state["nested"].pop("0-linear"),
        lambda state, _: state["classes_"]["values"].pop(),
        lambda state, _: state.update(n_features_in_=4),
        lambda state, _: state["gate_features_"]["columns_"].pop(),
        lambda state, _: state["gate_features_"]["kept_"][0].append(99),
        lambda state, _: state["mixture.state"].update(num_features=3),
        lambda state, _: state["mixture.state"]["gate"].update(hidden_dim=10**12, kind="mlp"),
        lambda state, _: state.update(changed_arguments={"experts": []}),
        lambda _, arguments: arguments["experts"].append([None, "x"]),
        lambda _, arguments: arguments.update(cv={"splitter": "system", "arguments": {}}),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(saved, edit):
    change(saved, edit)
    with pytest.raises(FileFormatError):
        moeapps.load(saved)


def test_an_expert_of_other_columns_or_classes_is_refused(mixture, saved, tmp_path):
    other = MixtureClassifier(EXPERTS[1:2], gate="mean", cv=2).fit(FRAME.iloc[:, :3], np.arange(300) % 2)
    change(saved, lambda state, _: state["nested"]["0-linear"].update(steps=[]))
    with pytest.raises(FileFormatError):
        moeapps.load(saved)
    other.experts_ = [mixture.experts_[1]]
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(FileFormatError, match="its expert 'histgradientboostingclassifier' is one of 5 columns"):
        moeapps.load(tmp_path / "other.safetensors")
