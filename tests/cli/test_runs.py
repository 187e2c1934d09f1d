"""Runs of ``moeapps fit``: several seeds, continued runs, kept scores, loggers by name, what is printed."""

import importlib.util
from typing import Union, get_args

import pandas as pd
import pytest
import yaml

from moeapps.cli.main import main
from moeapps.cli.parsing import whole_numbers_first
from moeapps.core.run_result import RunResult
from tests.cli.test_cli import final_weights, same, toy


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """``moeapps fit`` and its kin, on a toy, in an empty folder: exit status and what was printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, command="fit", max_epochs=3):
        config = toy(tmp_path / "toy.yaml", max_epochs=max_epochs)
        capsys.readouterr()
        status = main([command, "--config", str(config), *map(str, arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_seeds_are_runs_in_one_folder_and_end_in_a_table(fit, tmp_path):
    status, shown, _ = fit("--seeds", "2", "--test")
    assert status == 0
    group = tmp_path / "moeapps-runs/toy"
    assert sorted(path.name for path in group.iterdir()) == ["seed_0", "seed_1"]
    configs = [yaml.safe_load((group / f"seed_{seed}/config.yaml").read_text()) for seed in (0, 1)]
    assert [config["seed_everything"] for config in configs] == [0, 1]
    assert not same(final_weights(group / "seed_0"), final_weights(group / "seed_1"))
    assert all(RunResult.load(group / f"seed_{seed}").is_evaluated("test") for seed in (0, 1))
    assert "test/loss" in shown.partition("mean")[2]
    assert "moeapps report moeapps-runs/toy --table results.csv" in shown


def test_a_seed_that_is_finished_is_not_run_again_and_a_list_names_seeds(fit, tmp_path):
    fit("--seeds", "3,")
    before = (tmp_path / "moeapps-runs/toy/seed_3/checkpoints/last.ckpt").stat().st_mtime_ns
    _, shown, _ = fit("--seeds", "3,5")
    assert shown.count("fit: ToyModule") == 1
    assert (tmp_path / "moeapps-runs/toy/seed_3/checkpoints/last.ckpt").stat().st_mtime_ns == before
    assert (tmp_path / "moeapps-runs/toy/seed_5/result.json").exists()


def test_a_seed_that_was_interrupted_goes_on_from_its_checkpoint(fit, tmp_path):
    fit("--seeds", "7,")
    folder = tmp_path / "moeapps-runs/toy/seed_7"
    whole = (folder / "metrics.csv").read_text()
    fit("--seeds", "7,", "--trainer.default_root_dir", "broken", max_epochs=2)
    broken = tmp_path / "broken/toy/seed_7"
    (broken / "result.json").unlink()  # as a kill would leave it
    with open(broken / "metrics.csv", "a") as file:
        file.write("9,1000" + "," * (whole.splitlines()[0].count(",") - 1) + "\n9,10")
    _, shown, _ = fit("--seeds", "7,", "--trainer.default_root_dir", "broken")
    assert "(continued at epoch 2)" in shown
    assert (broken / "metrics.csv").read_text() == whole
    assert same(final_weights(broken), final_weights(folder))


def test_another_configuration_of_the_same_name_has_a_folder_of_its_own(fit, tmp_path):
    fit("--seeds", "1")
    fit("--seeds", "1", "--model.width", "8")
    assert sorted(path.name for path in (tmp_path / "moeapps-runs").iterdir()) == ["toy", "toy_1"]


@pytest.mark.parametrize("text", ["x", "0", "1,1", "-1", ","])
def test_wrong_seeds_are_refused(fit, tmp_path, text):
    status, _, error = fit(f"--seeds={text}")
    assert status == 2
    assert "--seeds must" in error
    assert not (tmp_path / "moeapps-runs").exists()


def test_a_longer_training_continues_in_its_folder_without_a_gap(fit, tmp_path):
    fit()
    fit("--ckpt_path", "last", max_epochs=5)
    fit("--trainer.default_root_dir", "whole", max_epochs=5)
    assert [path.name for path in (tmp_path / "moeapps-runs").iterdir()] == ["version_0"]
    metrics = [pd.read_csv(tmp_path / root / "version_0/metrics.csv") for root in ("moeapps-runs", "whole")]
    pd.testing.assert_frame_equal(*metrics)
    assert yaml.safe_load((tmp_path / "moeapps-runs/version_0/config.yaml").read_text())["ckpt_path"] is None


def test_a_finished_run_is_not_trained_further(fit):
    fit()
    status, shown, note = fit("--ckpt_path", "last")
    assert status == 0
    assert "fit: " not in shown
    assert "moeapps-runs/version_0 is finished" in note


def test_other_settings_begin_a_new_run_and_are_named(fit, tmp_path):
    fit()
    _, _, note = fit("--ckpt_path", "last", "--data.seed", "8", max_epochs=4)
    assert "data.init_args.seed is 8, was 3" in note
    assert (tmp_path / "moeapps-runs/version_1/metrics.csv").exists()


def test_scores_of_validate_and_test_are_kept_beside_the_run(fit, tmp_path):
    fit()
    for command in ("validate", "test", "test"):
        fit("--ckpt_path", "last", command=command)
    result = RunResult.load(tmp_path / "moeapps-runs/version_0")
    assert [evaluation.stage for evaluation in result.evaluations] == ["validate", "test"]
    assert result.evaluations[1].checkpoint == "checkpoints/last.ckpt"
    assert "test/loss" in result.evaluations[1].scores


def test_scores_on_a_part_of_the_data_are_not_kept(fit, tmp_path):
    fit()
    fit("--ckpt_path", "last", "--trainer.limit_test_batches", "1", command="test")
    assert RunResult.load(tmp_path / "moeapps-runs/version_0").evaluations == []


def test_one_batch_is_one_in_whatever_order_python_has_the_types():
    def trainer(limit: Union[float, int, None] = None, dropout: float = 0.0, name: str | int = ""):  # noqa: UP007
        """As Lightning's, after a library has written the same union in the other order."""

    whole_numbers_first(trainer)
    kinds = [get_args(kind) for kind in trainer.__annotations__.values()]
    assert kinds == [(int, float, type(None)), (), (str, int)]


def test_a_fit_prints_one_line_its_scores_and_what_to_type_next(fit):
    _, shown, notes = fit()
    lines = shown.splitlines()
    assert lines[0].startswith("fit: ToyModule (")
    assert lines[0].endswith("ToyData, cpu, moeapps-runs/version_0")
    assert "next: moeapps test --config moeapps-runs/version_0/config.yaml --ckpt_path" in shown
    assert "litlogger" not in shown + notes
    assert "GPU available" not in shown + notes


def test_a_run_that_is_tested_at_once_does_not_ask_for_a_test(fit):
    _, shown, _ = fit("--test")
    assert "next: moeapps report moeapps-runs/version_0" in shown
    assert "moeapps test" not in shown


def test_patience_stops_early_and_keeps_the_best(fit, tmp_path):
    fit("--patience", "2", "--monitor", "val/loss", "--optimizer", "SGD", "--optimizer.lr", "0", max_epochs=30)
    run = tmp_path / "moeapps-runs/version_0"
    assert pd.read_csv(run / "metrics.csv")["epoch"].max() == 2
    assert RunResult.load(run).checkpoint == "checkpoints/best.ckpt"


def test_loggers_are_named(fit, tmp_path):
    fit("--logger", "csv")
    run = tmp_path / "moeapps-runs/version_0"
    assert (run / "metrics.csv").exists()
    assert not list(run.glob("events*"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("wanbd", "did you mean 'wandb'?"), ("mlflow", "logger 'mlflow' needs the package mlflow: pip install mlflow")],
)
def test_a_logger_that_is_not_there_is_refused_by_name(fit, tmp_path, monkeypatch, name, message):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda module, *rest: find_spec(module, *rest) if module != "mlflow" else None
    )
    status, _, error = fit("--logger", name)
    assert status == 2
    assert message in error
    assert not (tmp_path / "moeapps-runs").exists()


def test_a_folder_that_only_has_a_configuration_of_the_users_is_no_run(fit, tmp_path):
    fit()
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "moeapps-runs/version_0/checkpoints/last.ckpt").rename(tmp_path / "checkpoints/mine.ckpt")
    (tmp_path / "moeapps-runs/version_0/config.yaml").rename(tmp_path / "config.yaml")
    assert fit("--ckpt_path", "checkpoints/mine.ckpt", command="test")[0] == 0
    assert not (tmp_path / "result.json").exists()


def test_the_help_of_fit_names_what_is_moeapps_own(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    shown = capsys.readouterr().out
    for option in ("--seeds N", "--test", "--logger LOGGER", "--patience PATIENCE", "--monitor MONITOR"):
        assert option in shown


def test_a_wrong_key_beside_a_right_patience_is_the_one_that_is_named(fit):
    status, _, error = fit("--patience", "3", "--model.widht", "8")
    assert status == 2
    assert "did you mean 'width'?" in error


def table_config(tmp_path, **data):
    """A configuration of TableModule for a small table."""
    pd.DataFrame({"age": range(40), "bought": ["yes", "no"] * 20}).to_csv(tmp_path / "rows.csv", index=False)
    config = {
        "seed_everything": 0,
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {"class_path": "moeapps.tables.TableModule", "init_args": {"num_experts": 2, "dim": 4}},
        "data": {
            "class_path": "moeapps.tables.TableData",
            "init_args": {"path": str(tmp_path / "rows.csv"), "target": "bought", **data},
        },
    }
    path = tmp_path / "table.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.parametrize("seeds", [("--seeds", "2"), ()])
def test_missing_test_data_are_named_before_anything_is_trained(seeds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--config", str(table_config(tmp_path)), *seeds, "--test"]) == 2
    shown = capsys.readouterr()
    assert "error: --test: test is not set" in shown.err
    assert "--data.test FILE" in shown.err
    assert "Nothing was trained" in shown.err
    assert "fit: " not in shown.out
    assert not list((tmp_path / "moeapps-runs").glob("**/config.yaml"))


def test_the_next_commands_test_only_where_there_are_test_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for data, tests in [({}, 0), ({"test": str(tmp_path / "rows.csv")}, 1)]:
        assert main(["fit", "--config", str(table_config(tmp_path, **data))]) == 0
        assert capsys.readouterr().out.count("moeapps test") == tests
