"""A mixture of estimators behind requests and the command line: predictions with the weights of its experts."""

import numpy as np
import pandas as pd
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline

import moeapps
from moeapps import MixtureClassifier, MixtureRegressor, MoEClassifier
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError
from moeapps.core.tabledata.scoring import predict_file
from moeapps.serve.services import open_service
from moeapps.tables import TableFeatures

from .conftest import ROW, people

FRAME = people()
LABELS = np.where((FRAME["age of"] > 40) ^ (FRAME["city"] == "Rome"), "yes", "no")
EXPERTS = {
    "linear": make_pipeline(TableFeatures(), LogisticRegression()),
    "boosting": make_pipeline(TableFeatures("categories"), HistGradientBoostingClassifier(max_iter=10)),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "mixture.safetensors"
    MixtureClassifier(list(EXPERTS.items()), gate="linear", cv=3, random_state=0).fit(FRAME, LABELS).save(path)
    return path


def test_an_answer_has_the_weights_of_the_experts(path):
    service = open_service(path)
    assert service.describe()["columns"] == {"age of": "number", "city": "category", "visits": "number"}
    (answers,) = service.predict([{"rows": [ROW, {**ROW, "city": "Oslo"}]}])
    model = moeapps.load(path)
    expected = model.predict_table(pd.DataFrame([ROW, {**ROW, "city": "Oslo"}]))
    assert answers == expected.to_dict("records")
    assert list(answers[0]) == ["prediction", "probability_no", "probability_yes", "weight_linear", "weight_boosting"]
    assert answers[0]["weight_linear"] + answers[0]["weight_boosting"] == pytest.approx(1)


def test_a_cascade_answers_which_experts_were_asked(path, tmp_path):
    model = moeapps.load(path)
    model.set_params(inference="cascade").save(tmp_path / "c.safetensors")
    (answers,) = open_service(tmp_path / "c.safetensors").predict([{"rows": [ROW]}])
    assert {answers[0]["asked_linear"], answers[0]["asked_boosting"]} <= {True, False}
    assert answers[0]["asked_linear"] or answers[0]["asked_boosting"]


def test_rows_without_names_are_answered(tmp_path):
    X = np.random.default_rng(0).normal(size=(80, 3))
    model = MixtureRegressor([Ridge(), ("flat", Ridge(1e6))], gate="constant", cv=2).fit(X, X[:, 0])
    model.save(tmp_path / "m.safetensors")
    (answers,) = open_service(tmp_path / "m.safetensors").predict([{"rows": X[:2].tolist()}])
    assert list(answers[0]) == ["prediction", "weight_ridge", "weight_flat"]
    np.testing.assert_allclose([answer["prediction"] for answer in answers], model.predict(X[:2]))


def test_score_writes_weights_where_they_are_asked_for(path, tmp_path, capsys):
    FRAME.to_csv(tmp_path / "people.csv", index=False)
    score = ["score", str(path), "--input", str(tmp_path / "people.csv"), "--output", str(tmp_path / "out.csv")]
    assert main(score) == 0
    assert list(pd.read_csv(tmp_path / "out.csv")) == ["prediction", "probability_no", "probability_yes"]
    assert main([*score, "--weights"]) == 0
    out = pd.read_csv(tmp_path / "out.csv")
    model = moeapps.load(path)
    np.testing.assert_allclose(out["weight_boosting"], model.weights(FRAME)["boosting"])
    assert (out["prediction"] == model.predict(FRAME)).all()


def test_weights_of_a_model_that_has_none_are_refused(tmp_path):
    model = MoEClassifier(num_experts=2, max_epochs=1).fit(FRAME, LABELS)
    FRAME.to_csv(tmp_path / "people.csv", index=False)
    with pytest.raises(ConfigError, match="a MoEClassifier has no weights of experts per row"):
        predict_file(model, tmp_path / "people.csv", tmp_path / "out.csv", weights=True)


def test_types_to_trust_are_named_on_the_command_line(tmp_path, monkeypatch, capsys):
    lightgbm = pytest.importorskip("lightgbm")
    monkeypatch.setenv("MOEAPPS_TRUST", "")
    X = FRAME[["age of", "visits"]].rename(columns={"age of": "age"})
    model = MixtureClassifier([("lgbm", lightgbm.LGBMClassifier(n_estimators=2, verbose=-1))], gate="best", cv=2)
    with pytest.warns(UserWarning, match="trusted="):
        model.fit(X, LABELS).save(tmp_path / "m.safetensors")
    X.to_csv(tmp_path / "x.csv", index=False)
    score = ["score", str(tmp_path / "m.safetensors"), "--input", str(tmp_path / "x.csv"),
             "--output", str(tmp_path / "out.csv")]  # fmt: skip
    assert main(score) != 0
    assert "holds types that are not trusted" in capsys.readouterr().err
    assert main([*score, "--trust", "lightgbm.basic.Booster,lightgbm.sklearn.LGBMClassifier"]) == 0
