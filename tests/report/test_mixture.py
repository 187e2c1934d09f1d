"""The page of a mixture: load per expert, gates that competed, regions, cost against score."""

import json

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from moeapps import MixtureClassifier
from moeapps.core.views import Views
from moeapps.report import write_report

X, Y = load_breast_cancer(return_X_y=True, as_frame=True)
X = X.iloc[:, :4]


@pytest.fixture(scope="module")
def mixture():
    experts = [("linear", LogisticRegression(max_iter=2000)), ("boosting", HistGradientBoostingClassifier(max_iter=5))]
    return MixtureClassifier(experts, gate="linear", cv=3, random_state=0).fit(X[:400], Y[:400])


def test_the_page_shows_what_the_mixture_did(mixture, tmp_path):
    folder = mixture.save_run(tmp_path / "run", X[400:], Y[400:])
    page = write_report([str(folder)], str(tmp_path / "page.html")).read_text()
    seen = ["load of the experts", "share of rows it leads", "gates that competed", "linear (chosen)", "accuracy",
            "mean weight of experts by region", "experts", "linear, boosting"]  # fmt: skip
    seen.append("cost of the cascade against its score")
    for text in seen:
        assert text in page, text


def test_the_numbers_are_those_of_the_mixture(mixture, tmp_path):
    folder = mixture.save_run(tmp_path / "run", X[400:], Y[400:])
    load, candidates, regions = Views.load(folder).maps
    weights = mixture.weights(X[400:])
    assert load.rows == ["linear", "boosting"]
    np.testing.assert_allclose([row[0] for row in load.values], weights.mean())
    np.testing.assert_allclose([row[1] for row in load.values], [(weights.idxmax(axis=1) == n).mean() for n in weights])
    assert [row[2] for row in load.values] == mixture.experts_asked(X[400:]).mean().tolist()
    assert len(candidates.rows) == len(mixture.candidates_)
    assert regions.columns == ["linear", "boosting"]
    run = json.loads((folder / "run.json").read_text())
    assert run["scores"][0]["values"] == [mixture.score(X[400:], Y[400:])]
    assert run["facts"]["gate"] == mixture.chosen_


def test_an_expert_without_weight_is_named(mixture):
    views = mixture.views(X[400:], Y[400:])
    assert not views.hints
    alone = MixtureClassifier(mixture.experts, gate="best", cv=3, random_state=0).fit(X[:400], Y[:400])
    (hint,) = alone.views(X[400:], Y[400:]).hints
    assert "had less than 1% of the weight" in hint
