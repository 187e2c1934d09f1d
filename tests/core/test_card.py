"""Model cards: what they say of a model and of a file, and what they do not."""

import numpy as np
import pandas as pd
import pytest
import yaml

import moeapps
from moeapps import MoEClassifier, MoERegressor
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.saving import card_of_file


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.normal(size=80), "job|title": rng.choice(["zx1", "zx2"], 80)})
    target = np.where(frame["age"] > 0, "stays", "<b>leaves")
    return MoEClassifier(max_epochs=2, early_stopping=True, random_state=0).fit(frame, target)


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("card") / "model.safetensors"
    model.save(path)
    return path


def header(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_header_is_the_hubs(model):
    data = header(model.card({"accuracy": 0.9}))
    assert data["library_name"] == "moeapps"
    assert "tabular-classification" in data["tags"]
    assert "license" not in data
    result = data["model-index"][0]["results"][0]
    assert {"type": "accuracy", "value": 0.9} in result["metrics"]


def test_it_names_columns_classes_rows_settings_and_versions(model):
    card = model.card()
    for part in (
        "| age | number | 0 |",
        "| job\\|title | category | 0 |",
        "- examples in training: 72",
        "| max\\_epochs | 2 |",
    ):
        assert part in card
    assert "- classes: 2: &lt;b>leaves, stays" in card
    assert f"- moeapps {moeapps.__version__}" in card


def test_scores_of_the_validation_are_those_of_the_epoch_that_was_kept(model):
    best = model.history_.loc[model.history_["val/loss"].idxmin(), "val/loss"]
    assert f"| val/loss | {best:.4f} | validation part of the training data |" in model.card()


def test_it_has_no_values_of_the_data(model):
    assert "zx1" not in model.card()


def test_the_card_of_a_file_is_that_of_the_model_before_and_after_loading(model, file):
    assert card_of_file(file) == model.card() == moeapps.load(file).card()


def test_saving_what_was_loaded_gives_the_same_file(file, tmp_path):
    moeapps.load(file).save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()


def test_a_regressor_has_no_classes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    card = MoERegressor(max_epochs=1, early_stopping=False, random_state=0).fit(x, x[:, 0]).card()
    assert "tabular-regression" in card
    assert "classes" not in card


@pytest.mark.parametrize("value", [float("nan"), "high", None, True])
def test_a_score_that_is_no_number_is_refused(model, value):
    with pytest.raises(ConfigError, match="'accuracy' must be a finite number"):
        model.card({"accuracy": value})


def test_the_command_writes_or_prints_the_card(file, tmp_path, capsys):
    assert main(["card", str(file), "--name", "Churn", "--score", "auc=0.8"]) == 0
    shown = capsys.readouterr().out
    assert "# Churn" in shown
    assert "| auc | 0.8000 | given by the author |" in shown
    assert main(["card", str(file), "--output", str(tmp_path / "README.md")]) == 0
    assert (tmp_path / "README.md").read_text() == card_of_file(file)


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--score", "auc"], "METRIC=VALUE"), (["--output", "card.txt"], "must be an .md file, got 'card.txt'")],
)
def test_wrong_options_are_named(file, capsys, options, message):
    assert main(["card", str(file), *options]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_model_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_text("nothing")
    with pytest.raises(FileFormatError, match="not a model saved by moeapps"):
        card_of_file(path)
