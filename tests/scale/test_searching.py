"""Searches by Optuna and Ray Tune: the same trials of `moeapps fit`, the best of which is a configuration."""

from pathlib import Path

import pytest

from moeapps import registry
from moeapps.cli.main import main
from moeapps.core.errors import ConfigError, MoEAppsError
from moeapps.core.search import Choice, Float
from moeapps.core.yaml_files import read_yaml
from moeapps.scale import search
from moeapps.scale.trials import options_of, read_config
from tests.scale.helpers import kill_one, once_there_is

pytest.importorskip("optuna")
pytestmark = pytest.mark.timeout(600)
CONFIG = """
model:
  class_path: moeapps.vision.ImageModule
  init_args: {options: {embed_dim: 16, depth: 1, num_heads: 2, patch_size: 4}}
data: {class_path: moeapps.vision.PublicImageData, init_args: {name: digits}}
trainer: {max_epochs: 2, enable_progress_bar: false, limit_train_batches: 2, limit_val_batches: 1}
"""
TABLE = """
model: {class_path: moeapps.tables.TableModule, init_args: {num_experts: 2, dim: 4}}
data: {class_path: moeapps.tables.TableData, init_args: {path: rows.csv, target: bought}}
trainer: {max_epochs: 1, enable_progress_bar: false, accelerator: cpu}
"""
SPACE = {"model.lr": Float(1e-3, 1e-2, log=True), "data.batch_size": Choice((32, 64))}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("x.yaml").write_text(CONFIG)
    return tmp_path


def test_two_searches_with_one_storage_share_their_trials(here):
    lines = []
    first = search(["--config", "x.yaml"], SPACE, trials=1, storage="sqlite:///s.db", seed=0, progress=lines.append)
    both = search(["--config", "x.yaml"], SPACE, trials=2, storage="sqlite:///s.db", seed=1, progress=lines.append)
    assert (len(first.trials), len(both.trials), len(lines)) == (1, 2, 2)
    assert both.value == both.trials["val/loss"].min()
    config = read_yaml(both.config)
    assert config["model"]["init_args"]["lr"] == both.settings["model.lr"]
    assert config["data"]["init_args"]["batch_size"] == both.settings["data.batch_size"]


def test_a_wrong_metric_is_named_where_an_earlier_search_stands_in_the_way(here):
    run = here / "moeapps-search/trial_0/version_0"
    run.mkdir(parents=True)
    (run / "metrics.csv").write_text("epoch,val/loss,val/accuracy\n0,1,0.5\n")
    with pytest.raises(ConfigError, match="metric 'val/acuracy' is not logged by the earlier .*mean 'val/accuracy'"):
        search(["--config", "x.yaml"], SPACE, trials=1, metric="val/acuracy")
    with pytest.raises(ConfigError, match="holds an earlier search"):
        search(["--config", "x.yaml"], SPACE, trials=1, metric="val/accuracy")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"space": {"model.leanring_rate": Choice((1,))}}, "leanring_rate"),
        ({"metric": "val/acuracy"}, "metric 'val/acuracy' is not logged; did you mean 'val/accuracy'"),
        ({"engine": "tune"}, "engine"),
        ({"workers": 2}, "several times with one storage"),
        ({"engine": "ray", "storage": "sqlite:///s.db"}, "storage is for engine optuna"),
        ({"folder": "."}, "holds an earlier search"),
    ],
)
def test_a_wrong_search_is_refused_and_says_what_would_do(arguments, text, here):
    with pytest.raises(ConfigError, match=text):
        search(["--config", "x.yaml"], **{"trials": 1, "space": SPACE, **arguments})


def test_settings_that_cannot_be_trained_are_told_where_none_can(here):
    with pytest.raises(MoEAppsError, match="no trial came to a validation: .*batch_size"):
        search(["--config", "x.yaml"], {"data.batch_size": Choice((-1,))}, trials=2)


def test_texts_are_options_without_quotes_unless_they_read_as_something_else():
    settings = {"model.kind": "piecewise", "model.name": "1", "model.sizes": ["a", 2], "model.lr": 1e-3}
    expected = ["--model.kind=piecewise", '--model.name="1"', '--model.sizes=["a", 2]', "--model.lr=0.001"]
    assert options_of(settings) == expected


def test_a_setting_with_named_choices_is_searched(here):
    Path("rows.csv").write_text("age,bought\n" + "30,yes\n60,no\n" * 20)
    Path("table.yaml").write_text(TABLE)
    space = {"model.numeric_embedding": Choice(("linear",))}
    assert search(["--config", "table.yaml"], space, trials=1).settings == {"model.numeric_embedding": "linear"}


@pytest.mark.parametrize("path", [entry.path for entry in registry.entries("model") if entry.path.endswith("Module")])
def test_every_choice_of_a_modules_space_is_read_unchanged(path):
    choices = {
        f"model.{name}": found.values
        for name, found in registry.resolve(path).search_space().items()
        if isinstance(found, Choice)
    }
    for turn in range(max(map(len, choices.values()), default=0)):
        settings = {name: values[turn % len(values)] for name, values in choices.items()}
        _, config = read_config(["--model", path], settings)
        read = config["model"]["init_args"]
        assert {name: read[name.removeprefix("model.")] for name in settings} == settings


@pytest.mark.slow
def test_the_command_searches_what_the_module_publishes(here, capsys):
    assert main(["search", "--config", "x.yaml", "--trials", "2", "--seed", "0"]) == 0
    assert "next: moeapps fit --config moeapps-search/best.yaml" in capsys.readouterr().out


@pytest.mark.slow
def test_ray_tries_settings_side_by_side_and_goes_on_with_a_trial_whose_worker_was_killed(here):
    pytest.importorskip("ray.tune")
    epochs = ["--config", "x.yaml", "--trainer.max_epochs", "30"]
    with once_there_is(here, "moeapps-search/*/*/checkpoints/last.ckpt", lambda: kill_one("ImplicitFunc")) as killed:
        result = search(epochs, {"model.lr": Choice((1e-2,))}, trials=1, workers=1, engine="ray", seed=0)
    assert killed == [True]
    assert result.trials["epochs"].tolist() == [30]
    log = next(here.glob("moeapps-search/trial_*/log.txt")).read_text()
    assert log.count("fit: ImageModule") == 2
    assert result.settings == {"model.lr": 1e-2}
