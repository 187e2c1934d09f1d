"""The page of a fitted model: its numbers are right, what it says about experts is there only if it is true."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, r2_score, roc_auc_score
from sklearn.tree import DecisionTreeClassifier

import moeapps
from moeapps import MixtureClassifier, MoEClassifier, MoERegressor
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.layer import MoE
from moeapps.core.tabledata.vocabulary import ImputedValues
from moeapps.core.views import Gallery, Map
from moeapps.report import model_report, render_model
from moeapps.report.evaluation import evaluate
from moeapps.report.expert_roles import expert_roles, readable_features
from moeapps.report.explained import _cell, explain_row, most_certain_error
from moeapps.report.html import informative
from moeapps.report.importance import dominates, importance
from moeapps.report.judged import Judged, Target
from moeapps.report.measures import measure
from moeapps.report.model_hints import model_hints
from moeapps.report.model_page import _lead
from moeapps.report.sections import number
from moeapps.report.subjects import judge
from moeapps.report.timeline import over_time
from tests.report.browser import look, needs_browser


def customers(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"age": rng.integers(18, 80, n), "city": rng.choice(["Ulm", "Köln <b>"], n)})
    frame["noise"] = rng.normal(size=n)
    sign = np.where(frame["city"] == "Ulm", 1, -1)
    frame["churned"] = np.where(sign * (frame["age"] - 49) / 6 + rng.normal(size=n) > 0, "yes", "no")
    return frame


TRAIN, TEST = customers(300, 0), customers(200, 1)
X, Y = TEST.drop(columns="churned"), TEST["churned"]


@pytest.fixture(scope="module")
def classifier():
    model = MoEClassifier(num_experts=4, dim=16, hidden_dim=16, max_epochs=25, random_state=0)
    return model.fit(TRAIN.drop(columns="churned"), TRAIN["churned"])


@pytest.fixture(scope="module")
def judged(classifier):
    return judge(classifier, X, Y, "churned")


def test_what_is_odd_about_the_rows_is_not_said_by_every_part_of_the_page(classifier):
    rows = X[:60].assign(age=X["age"][:60].where(X["age"][:60] > 20))
    with pytest.warns(ImputedValues) as said:
        render_model(classifier, rows, Y[:60], seconds=1)
    assert len(said) <= 2


@pytest.fixture(scope="module")
def page(classifier):
    return render_model(classifier, X, Y, seconds=5)


def shown(html: str) -> str:
    """The text of a page without its marks."""
    html = html.replace("<wbr>", "").replace("\xa0", " ")
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL).split())


# ---------------------------------------------------------------------- scores


def test_scores_of_classes_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400)
    p = np.clip(0.5 + 0.3 * (truth - 0.5) + 0.2 * rng.standard_normal(400), 0.01, 0.99).round(2)
    found = {one.name: one for one in measure(Target("t", truth, np.c_[1 - p, p], ("a", "b")))}
    assert found["log loss"].value == pytest.approx(log_loss(truth, p))
    assert found["accuracy"].value == pytest.approx(((p > 0.5) == truth).mean())
    assert found["ROC AUC"].value == pytest.approx(roc_auc_score(truth, p))
    assert found["Brier score"].value == pytest.approx(brier_score_loss(truth, p))
    for one in found.values():
        assert one.low < one.value < one.high
        assert one.beats_baseline


def test_the_auc_of_several_classes_is_the_mean_of_one_against_the_rest():
    rng = np.random.default_rng(1)
    truth, scores = rng.integers(0, 3, 200), rng.random((200, 3)).round(1) + 0.05
    p = scores / scores.sum(axis=1, keepdims=True)
    found = {one.name: one for one in measure(Target("t", truth, p, ("a", "b", "c")))}
    assert found["ROC AUC"].value == pytest.approx(roc_auc_score(truth, p, multi_class="ovr"))


def test_an_interval_is_as_wide_as_the_normal_approximation():
    rng = np.random.default_rng(2)
    truth = 1e6 + rng.standard_normal(500)
    target = Target("t", truth, truth + rng.standard_normal(500) / 2)
    found = {one.name: one for one in measure(target)}
    error = found["mean absolute error"]
    width = 2 * 1.96 * target.losses.std() / np.sqrt(500)
    assert error.high - error.low == pytest.approx(width, rel=0.15)
    assert found["R2"].value == pytest.approx(r2_score(truth, target.predicted))


def test_a_guess_does_not_beat_the_constant():
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 2, 300)
    found = measure(Target("t", truth, np.full((300, 2), 0.5), ("a", "b")))
    assert not any(one.beats_baseline for one in found)


# ---------------------------------------------------------------------- the page


def test_the_page_has_header_scores_mistakes_importance_experts_and_a_row(page):
    text = shown(page)
    for part in ("3: 2 numbers, 1 category", "2: no, yes", "rows of this report 200", "target churned", "log loss ↓",
                 "ROC AUC ↑", "95 % interval", "Most frequent error:", "predicted probability of yes",
                 "With 10 % false alarms", "rise of the log loss when shuffled", "What each expert is for",
                 "One row explained", "the most certain error", "num_experts 4", "which is kept"):  # fmt: skip
        assert part in text, part
    assert "Without a measurable effect: noise" in text


def test_the_page_is_small_needs_nothing_and_escapes_everything(page):
    assert len(page.encode()) < 200_000
    assert "<b>" not in page
    assert not re.search(r"<script|https?://(?!www\.w3\.org)|@import|url\((?!#)", page)
    assert page.count("<svg") == page.count('role="img"')


def test_every_chart_has_a_sentence_and_named_axes(page):
    for picture in re.findall(r"<figcaption>(.*?)</figcaption><svg(.*?)</svg>", page, flags=re.DOTALL):
        caption, svg = picture
        assert len(caption.split()) > 2
        assert svg.count("<text") > 2


def test_long_names_of_columns_can_be_broken_where_their_words_end():
    rows = pd.DataFrame({"calls_last_quarter<b>": range(60), "age": [20, 40] * 30})
    model = MoEClassifier(num_experts=2, dim=8, max_epochs=1, random_state=0).fit(rows, [0, 1] * 30)
    assert '<th scope="row">calls_<wbr>last_<wbr>quarter&lt;b&gt;</th>' in render_model(model)


def test_the_version_on_the_page_is_that_of_the_code(classifier):
    assert shown(render_model(classifier)).count(f"moeapps {moeapps.__version__}") == 2


@needs_browser
def test_the_page_fits_a_phone(page, tmp_path):
    path = tmp_path / "page.html"
    path.write_text(page)
    look(path, 360, "dark", "rgb(20, 23, 26)")


def test_a_model_without_rows_shows_settings_and_training(classifier):
    text = shown(render_model(classifier))
    assert "Training" in text
    assert "max_epochs 25" in text
    assert "Scores" not in text


def test_the_kept_epoch_is_marked_and_its_loss_is_the_one_named(classifier, page):
    history = classifier.history_
    kept = int(history["epoch"][history["val/loss"].idxmin()])
    assert f"val/loss: {history['val/loss'].min():.4g} at epoch {kept}, which is kept: the lowest" in page


def test_a_regression_shows_errors_in_the_target_and_beats_the_median():
    frame = TRAIN.drop(columns="churned")
    model = MoERegressor(num_experts=2, dim=16, hidden_dim=16, max_epochs=10, random_state=0)
    model.fit(frame, 2.0 * frame["age"])
    text = shown(render_model(model, X, pd.Series(2.0 * X["age"], name="euros"), seconds=1))
    for part in ("always predicting the median would be off by", "Half of the predictions are within", "true euros",
                 "the largest error of all rows"):  # fmt: skip
        assert part in text, part


def test_rows_without_a_target_are_left_out_and_told(classifier):
    y = Y.astype(object).where(np.arange(len(Y)) % 10 > 0, None)
    text = shown(render_model(classifier, X, y, seconds=1))
    assert "20 rows without a target are left out" in text
    assert "rows of this report 180" in text


@pytest.mark.parametrize("count", [1, 3])
def test_few_rows_are_no_reason_to_fail(classifier, count):
    assert "Scores" in shown(render_model(classifier, X[:count], Y[:count], seconds=1))


def test_wrong_inputs_are_named(classifier, tmp_path):
    with pytest.raises(DataError, match="churned has the label 'maybe' in 1 rows, which the model does not know"):
        render_model(classifier, X, Y.where(Y.index != 3, "maybe"))
    with pytest.raises(ConfigError, match="row must be the number of a row, 0 to 199, got 200"):
        render_model(classifier, X, Y, row=200, seconds=1)
    with pytest.raises(ConfigError, match="y is missing"):
        render_model(classifier, X)
    with pytest.raises(DataError, match="y has 5 values for 200 rows"):
        render_model(classifier, X, Y.to_numpy()[:5])
    with pytest.raises(ConfigError, match="must be an .html file, got 'a.pdf'"):
        model_report(classifier, X, Y, "a.pdf")
    with pytest.raises(ValueError, match="not fitted"):
        render_model(MoEClassifier())


# ---------------------------------------------------------------------- parts


def test_the_reliability_curve_tells_certain_from_right():
    rng = np.random.default_rng(0)
    p = rng.random(2000)
    truth = (rng.random(2000) < p).astype(int)
    right = evaluate(Target("t", truth, np.c_[1 - p, p], ("a", "b"))).pictures[0].title
    sure = np.where(p > 0.5, 0.99, 0.01)
    certain = evaluate(Target("t", truth, np.c_[1 - sure, sure], ("a", "b"))).pictures[0].title
    assert right.startswith("Probabilities are right")
    assert certain.startswith("Probabilities are too certain: 2")


@pytest.mark.parametrize(("share", "wanted"), [(0.03, "yes"), (0.97, "no")])
def test_of_two_classes_the_roc_curve_is_about_the_rarer_one(share, wanted):
    truth = (np.arange(400) < 400 * share).astype(int)
    sure = np.where(truth == 1, 0.9, 0.1)
    section = evaluate(Target("y", truth, np.column_stack([1 - sure, sure]), ["no", "yes"]))
    titles = [picture.title.replace("\xa0", " ") for picture in section.pictures]
    assert f"With 10 % false alarms, 100 % of all {wanted} are found" in titles


def test_of_many_classes_the_most_frequent_confusions_are_listed():
    truth = np.arange(400) % 20
    best = np.where(truth == 7, 3, truth)
    (table,) = evaluate(Target("t", truth, np.eye(20)[best], [f"c{i}" for i in range(20)])).tables
    assert table.rows == [["c7", "c3", "20", "100\xa0%"]]


def test_importance_keeps_to_its_seconds(classifier, judged):
    (section,) = importance(judged, classifier, 1e-6, 0)
    assert not section.pictures
    assert "Not computed" in section.text[0]


def test_a_simple_rule_is_found_where_there_is_one_and_not_where_there_is_none(judged, classifier):
    city = (X["city"] == "Ulm").to_numpy()
    by_city = pd.DataFrame({"a": np.where(city, 0.9, 0.1), "b": np.where(city, 0.1, 0.9)})
    planted = Judged(judged.targets, judged.frame, by_city)
    (section,) = expert_roles(planted, classifier, 0)
    rules = section.tables[1]
    assert rules.title.startswith("A simple rule says which expert leads, right for 100")
    assert {(row[0], row[1]) for row in rules.rows} <= {
        ("city is Ulm", "a"), ("city is not Ulm", "b"), ("city is Köln <b>", "b"), ("city is not Köln <b>", "a"),
    }  # fmt: skip
    chance = np.random.default_rng(0).random(len(X))
    noise = Judged(judged.targets, judged.frame[["age"]], pd.DataFrame({"a": chance, "b": 1 - chance}))
    (section,) = expert_roles(noise, classifier, 0)
    assert any(text.startswith("No simple rule says which expert leads") for text in section.text)


def test_equal_weights_have_no_table_and_no_map(judged, classifier):
    even = Judged(judged.targets, judged.frame, pd.DataFrame(np.full((len(X), 12), 1 / 12)))
    (section,) = expert_roles(even, classifier, 0)
    assert not section.tables
    assert "All experts have the same weight" in section.text[0]
    assert not informative(Map("load", ["a"], list("xyz"), [[0.25, 0.25, 0.25]]))
    assert informative(Map("load", ["a"], list("xyz"), [[0.25, 0.5, 0.25]]))


def test_columns_that_no_rule_can_name_are_left_out():
    frame = pd.DataFrame({
        "n": [1.0, np.nan, 3.0] * 10, "t": pd.date_range("2020", periods=30), "id": [f"u{i}" for i in range(30)],
        "list": [[1]] * 30, "c": ["a", "b", None] * 10,
    })  # fmt: skip
    named, features = readable_features(frame)
    assert {one.name for one in named} == {"n", "t", "list", "c"}
    assert {one.value for one in named if one.name == "c"} == {"a", "b", "missing"}
    assert features.shape == (30, len(named))


def test_the_most_certain_error_is_explained_unless_another_row_is_asked_for(judged):
    target = judged.first
    chosen = most_certain_error(target)
    wrong = target.best != target.truth
    assert wrong[chosen]
    assert target.predicted[chosen].max() == target.predicted[wrong].max(axis=1).max()
    assert explain_row(judged, None).title == f"One row explained: {chosen}"
    right = int(np.flatnonzero(~wrong)[0])
    assert "which is right" in explain_row(judged, right).text[0]


def test_the_column_that_made_the_difference_is_named(classifier):
    old = X.assign(age=79, city="Ulm", noise=0.0)
    section = explain_row(judge(classifier, pd.concat([old[:1], X], ignore_index=True), ["yes", *Y], "churned"), 0)
    columns = section.tables[-1]
    assert columns.rows[0][0] in ("age", "city")
    assert columns.rows[0][3].startswith("-")


# ---------------------------------------------------------------------- mixtures, hints


@pytest.fixture(scope="module")
def mixture():
    frame = TRAIN[["age", "noise"]]
    experts = [("linear", LogisticRegression()), ("tree", DecisionTreeClassifier(max_depth=3))]
    y = np.where(TRAIN["age"] > 49, "yes", "no")
    return MixtureClassifier(experts, cv=3, random_state=0).fit(frame, y)


AGES = np.where(X["age"] > 49, "yes", "no")


def test_experts_of_a_mixture_are_scored_by_themselves(mixture):
    found = judge(mixture, X[["age", "noise"]], AGES, "old")
    assert set(found.opinions) == {"linear", "tree"}
    np.testing.assert_allclose(found.weights.sum(axis=1), 1)
    text = shown(render_model(mixture, X[["age", "noise"]], AGES, seconds=1))
    assert "its own accuracy there" in text
    assert "its own prediction" in text


def hints(model, X, y, **changes) -> list[str]:
    found = judge(model, X, y, "t")
    found = Judged(**{**{name: getattr(found, name) for name in found.__dataclass_fields__}, **changes})
    return model_hints(model, X, found, measure(found.first))


def test_healthy_models_get_no_hints(classifier, mixture):
    assert hints(classifier, X, Y) == []
    even = pd.DataFrame({"linear": np.full(len(X), 0.5), "tree": np.full(len(X), 0.5)})
    assert hints(mixture, X[["age", "noise"]], AGES, weights=even) == []


def test_a_gate_that_ignores_an_expert_is_named(mixture):
    weights = pd.DataFrame({"linear": np.full(len(X), 0.999), "tree": np.full(len(X), 0.001)})
    (hint,) = hints(mixture, X[["age", "noise"]], AGES, weights=weights)
    assert hint.startswith("the gate ignores expert tree (less than 1% of the weight, linear has 99.9")


def test_an_expert_that_predicts_a_constant_is_named(mixture):
    frame = X[["age", "noise"]]
    constant = np.tile([0.0, 1.0], (len(X), 1))
    opinions = {**judge(mixture, frame, AGES).opinions, "tree": constant}
    even = pd.DataFrame({"linear": np.full(len(X), 0.5), "tree": np.full(len(X), 0.5)})
    (hint,) = hints(mixture, frame, AGES, opinions=opinions, weights=even)
    assert hint.startswith("expert tree is no better than a constant")


def test_a_collapsed_weak_expert_is_named(mixture):
    class Mowst:
        champion_, variant = "strong", "mowst_star"

    truth = np.arange(100) % 2
    good = np.eye(2)[truth]
    target = Target("", truth, good, ("a", "b"))
    weights = pd.DataFrame({"weak": np.full(100, 0.3), "strong": np.full(100, 0.7)})
    ruined = Judged([target], None, weights, {"weak": good[::-1] * 0 + [1.0, 0.0], "strong": good})
    found = model_hints(Mowst(), None, ruined, measure(target))
    assert found[0].startswith("weak expert collapsed: by itself it gets 50\xa0% right")
    assert "the mixture is not used: strong alone was better" in found[1]
    Mowst.champion_ = "mix"
    healthy = Judged([target], None, weights, {"weak": good * 0.8 + 0.1, "strong": good})
    assert model_hints(Mowst(), None, healthy, measure(target)) == []


class Layers:
    """A model whose blocks have experts, with the load that each block shall have."""

    def __init__(self, loads: list[list[float]], shared: bool) -> None:
        self.loads = loads
        layers = 1 if shared else len(loads)
        self.model_ = torch.nn.ModuleList([MoE(4, num_experts=len(loads[0])) for _ in range(layers)])

    def expert_load(self, X, groups, layer):
        if layer >= len(self.loads):
            raise ConfigError("no such layer")
        return pd.DataFrame([self.loads[layer]])


@pytest.mark.parametrize(
    ("loads", "shared", "named"),
    [
        ([[0.5, 0.3, 0.2], [0.6, 0.4, 0.001]], False, "block 2 of 2 with experts: expert 2 got almost none"),
        ([[0.5, 0.5, 0.0], [0.6, 0.4, 0.001]], True, "the experts that 2 blocks share: expert 2 got almost none"),
        ([[0.5, 0.5, 0.0], [0.3, 0.4, 0.3]], True, ""),
        ([[0.5, 0.3, 0.2], [0.3, 0.4, 0.3]], False, ""),
    ],
)
def test_dead_experts_are_named_by_block_unless_blocks_share_them(loads, shared, named):
    truth = np.arange(60) % 2
    target = Target("", truth, np.eye(2)[truth], ("a", "b"))
    found = model_hints(Layers(loads, shared), np.zeros((60, 4)), Judged([target]), measure(target))
    assert [hint[: len(named)] for hint in found] == ([named] if named else [])


def test_a_stream_without_a_drift_detector_is_named():
    class Stream:
        drift = None

        def learn_many(self):
            """As a stream's."""

    truth = np.arange(60) % 2
    target = Target("", truth, np.eye(2)[truth], ("a", "b"))
    found = Judged([target])
    assert "no drift detector" in model_hints(Stream(), None, found, measure(target))[0]
    Stream.drift = "replace"
    assert model_hints(Stream(), None, found, measure(target)) == []
    many = np.arange(1000) % 2
    for change, named in ((0, False), (300, True)):  # a concept that the model has left behind
        best = np.where(np.arange(1000) < change, 1 - many, many)
        target = Target("", many, np.eye(2)[best], ("a", "b"))
        told = model_hints(Stream(), None, Judged([target]), measure(target))
        assert any("older concepts behind" in hint for hint in told) == named


def test_a_model_that_is_no_better_than_a_constant_is_told(classifier):
    found = hints(classifier, X, np.random.default_rng(0).permutation(Y))
    assert found[0].startswith("t is not predicted better than by one constant")


@pytest.mark.parametrize(
    ("rare", "told"),
    [
        (0.45, " The model is not measurably better in that, but its probabilities tell the classes apart: ROC AUC 1 "
         "(95 % interval 1 to 1), 0.5 without a model."),
        (0.05, " The model is not measurably better than that."),
        (0.99, ""),
    ],
)  # fmt: skip
def test_the_first_sentence_tells_a_rare_class_that_is_ranked_right_from_one_that_is_not(rare, told):
    truth = (np.arange(400) % 40 < 3).astype(int)
    chance = np.where(truth == 1, rare, 0.05) + 0.01 * np.random.default_rng(0).random(400) - 0.005
    target = Target("t", truth, np.column_stack([1 - chance, chance]), ("a", "b"))
    assert _lead(Judged([target]), measure(target)).endswith(f"would get 92.5\u00a0%.{told}")


def test_probabilities_that_are_too_certain_are_not_taken_for_a_model_that_has_learned_nothing():
    truth = np.arange(100) % 2
    best = np.where(np.arange(100) % 5 == 0, 1 - truth, truth)  # a fifth is wrong, and surely so
    target = Target("t", truth, np.where(np.eye(2)[best] == 1, 1 - 1e-6, 1e-6), ("a", "b"))
    (hint,) = model_hints(object(), None, Judged([target]), measure(target))
    assert hint.startswith("the probabilities of t are no better than those of one constant")


def test_a_class_that_is_lost_in_the_middle_of_a_stream_is_seen():
    truth = np.arange(200) % 2
    best = np.where((np.arange(200) >= 100) & (truth == 1), 0, truth)
    times = pd.DataFrame({"time": pd.date_range("2024-01-01", periods=200)})
    (section,) = over_time(Judged([Target("", truth, np.eye(2)[best], ("up", "down"))], times, ordered=True))
    (lost,) = section.maps
    assert lost.title.endswith("least for down")
    assert [row[1] for row in lost.values] == [1.0] * 4 + [0.0] * 4
    assert "2024-05" in section.pictures[0].title
    assert over_time(Judged([Target("", truth, np.eye(2)[best], ("up", "down"))], times)) == []


# ---------------------------------------------------------------------- pictures in a page


def test_a_gallery_takes_png_only_and_stays_small():
    png = b"\x89PNG\r\n\x1a\n"
    gallery = Gallery.of("wrong", [("<a>", png), ("b", png * 10_000), ("c", png)])
    assert gallery.captions == ["<a>"]
    with pytest.raises(ValueError, match="PNG data URI"):
        Gallery("x", ["javascript:alert(1)"], ["a"])
    with pytest.raises(ValueError, match="1 images and 0 captions"):
        Gallery("x", gallery.images, [])


# ---------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def saved(classifier, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    classifier.save(folder / "model.safetensors")
    TEST.to_csv(folder / "test.csv", index=False)
    return folder


def test_the_command_writes_the_page_of_a_saved_model(saved, tmp_path, capsys):
    out = tmp_path / "page.html"
    model, data = str(saved / "model.safetensors"), str(saved / "test.csv")
    assert main(["report", model, "--data", data, "--target", "churned", "--output", str(out), "--seconds", "2"]) == 0
    text = shown(out.read_text())
    assert "MoEClassifier: model.safetensors" in text
    assert "rows of this report 200" in text
    assert capsys.readouterr().out == f"report: {out}\n"
    assert main(["report", model, "--output", str(out)]) == 0
    assert "Scores" not in shown(out.read_text())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "test.csv", "--target", "churnd"], "did you mean 'churned'?"),
        (["--data", "test.csv"], "--target is missing, the column with the true values"),
        (["--data", "test.csv", "--target", "age"], "is a column that the model reads"),
        (["--data", "nothing.csv", "--target", "churned"], "nothing.csv does not exist"),
        (["--row", "3"], "--row needs rows: --data FILE"),
    ],
)
def test_wrong_usage_is_one_line(saved, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(saved)
    assert main(["report", "model.safetensors", *arguments]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_options_of_a_model_are_refused_for_runs(tmp_path, capsys):
    assert main(["report", str(tmp_path), "--target", "y"]) == 2
    assert "--target belongs to a model" in capsys.readouterr().err


def test_a_loaded_model_has_the_page_of_the_fitted_one(classifier, saved):
    loaded = moeapps.load(saved / "model.safetensors")
    old = shown(render_model(classifier, X, Y, seconds=1)).partition("Scores")[2].partition("Which columns")[0]
    new = shown(render_model(loaded, X, Y, seconds=1)).partition("Scores")[2].partition("Which columns")[0]
    assert old == new


def test_an_estimator_that_is_not_ours_is_refused():
    with pytest.raises(ValueError, match="not fitted"):
        render_model(LinearRegression())


def test_large_numbers_stand_in_full_and_years_without_commas():
    assert [number(v) for v in (23815.09, -1234567, 999.4, 0.012345)] == ["23,800", "-1,230,000", "999", "0.0123"]
    assert [_cell(v) for v in (92731.0, 2024.0, 23815.09, 2024, None)] == ["92731", "2024", "23,820", "2024", "missing"]


def test_a_column_that_says_nearly_everything_may_be_a_leak_and_is_named():
    assert dominates([0.01, 1.4, 0.02, 0.0], useful=[1, 2, 0])
    assert not dominates([0.3, 1.4, 0.2, 0.0], useful=[1, 0, 2])
    assert not dominates([1.4, 0.01], useful=[0, 1])  # one of two columns often does so honestly
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(200, 4)), columns=["age", "reason", "income", "orders"])
    truth = (frame["reason"] > 0).to_numpy().astype(int)

    def predict(rows):
        high = 1 / (1 + np.exp(-8 * rows["reason"].to_numpy()))
        return [np.column_stack([1 - high, high])]

    target = Target("churned", truth, predict(frame)[0], ["no", "yes"])
    section = importance(Judged([target], predict=predict, frame=frame), DummyClassifier().fit(frame, truth), 5, 0)[0]
    assert any("ignore_columns=['reason']" in text for text in section.text)
