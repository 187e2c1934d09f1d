"""The command as a user runs it, with right and with wrong input; in a process of its own where signals matter."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from moeapps.cli.main import COMMANDS, main
from moeapps.cli.training import SUMMARIES
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import DataError
from tests.kills import fit_killed
from tests.processes import Command

ROOT = Path(__file__).parents[2]
CORA = ROOT / "examples/graph/mowst_cora.yaml"


def moeapps(*arguments, cwd) -> subprocess.CompletedProcess:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "moeapps", *map(str, arguments)],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """The same command in this process, in an empty folder: importing torch again for each wrong key takes minutes."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> subprocess.CompletedProcess:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as end:
            status = int(end.code or 0)
        captured = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, status, captured.out, captured.err)

    return run


def toy(path: Path, model=None, data=None, **trainer) -> Path:
    config = {
        "model": {"class_path": "tests.toy.ToyModule", "init_args": model or {}},
        "data": {"class_path": "tests.toy.ToyData", "init_args": data or {}},
        "trainer": {"max_epochs": 5, "accelerator": "cpu", "enable_progress_bar": False, **trainer},
    }
    path.write_text(yaml.safe_dump(config))
    return path


def final_weights(folder: Path) -> dict[str, torch.Tensor]:
    return AtomicCheckpointIO().load_checkpoint(folder / "checkpoints/last.ckpt")["state_dict"]


def same(first: dict, second: dict) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_help_version_and_list_answer_without_importing_torch(tmp_path):
    script = (
        "import sys; from moeapps.cli.main import main\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    try: main(line.split())\n"
        "    except SystemExit: pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    helps = ("list", "demo", "score", "report", "serve", "stream", "stream run")
    lines = ["--help", "--version", "list", "list routers", *(f"{command} --help" for command in helps)]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, input="\n".join(lines), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for expected in ("COMMAND", "moeapps 0.", "moeapps.graph.MowstModule", "null_experts", "--keep", "--every-seconds"):
        assert expected in done.stdout


def test_only_the_worker_of_a_server_imports_torch(tmp_path):
    script = (
        "import sys\n"
        "from moeapps.cli.main import main\n"
        "from moeapps.serve import worker\n"
        "def start(*_, **__): raise worker.WorkerDied\n"
        "worker.Worker.__init__ = start\n"
        "status = main(['serve', 'model.safetensors', '--port', '0', '--trust', 'package.Type'])\n"
        "assert 'moeapps.serve.app' in sys.modules\n"
        "loaded = {'torch', 'lightning', 'sklearn', 'river'} & set(sys.modules)\n"
        "raise SystemExit(loaded or status)"
    )
    (tmp_path / "model.safetensors").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.stderr == "error: model.safetensors could not be loaded: WorkerDied\n"
    assert done.returncode == 1


def test_every_command_is_in_the_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for name in (*COMMANDS, *SUMMARIES):
        assert re.search(rf"^    {name}\s", shown, re.MULTILINE), name


def test_fit_test_validate_and_predict_on_cora(cli, tmp_path):
    short = ["--trainer.max_epochs", 12, "--model.patience", 3, "--trainer.enable_progress_bar", "false"]
    done = cli("fit", "--config", CORA, *short)
    assert done.returncode == 0, done.stderr
    assert "checkpoint: moeapps-runs/version_0/checkpoints/last.ckpt" in done.stdout
    run = tmp_path / "moeapps-runs/version_0"
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "metrics.csv", "checkpoints"}
    assert list(run.glob("events.out.tfevents*"))
    metrics = pd.read_csv(run / "metrics.csv")
    assert {"val/accuracy", "val/moe/model/importance/0", "train/task"} <= set(metrics)
    checkpoint = ["--config", CORA, "--ckpt_path", run / "checkpoints/last.ckpt"]
    assert "test/accuracy" in cli("test", *checkpoint).stdout
    assert "val/accuracy" in cli("validate", *checkpoint).stdout
    done = cli("predict", *checkpoint, "--output", "out.csv")
    assert done.returncode == 0, done.stderr
    frame = pd.read_csv(tmp_path / "out.csv")
    assert len(frame) == 2708
    assert np.allclose(frame.filter(like="probability_").sum(axis=1), 1, atol=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["moeapps-runs", "out.csv"]
    cli("predict", *checkpoint)
    again = cli("predict", *checkpoint)
    assert again.returncode == 2
    assert "predictions.csv exists" in again.stderr
    wrong = cli("predict", *checkpoint, "--output", "out.txt")
    assert wrong.returncode == 2
    assert ".csv or .parquet" in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.hh", "3"], "--model.hh: moeapps.graph.MowstModule has no such argument"),
        (["--model.patienc", "3"], "did you mean 'patience'?"),
        (["--model.max_epochs", "3"], "did you mean --trainer.max_epochs?"),
        (["--model.lr", "abc"], "model.lr: Expected a float"),
        (["--model.lr", "-1"], "lr must be a number of at least 0, got -1.0"),
        (["--trainer.max_epoch", "3"], "--trainer.max_epoch: unknown key; did you mean 'max_epochs'?"),
        (["--trainer.max_epochs", "abc"], "trainer.max_epochs: Expected a int"),
        (["--modle", "x"], "--modle: unknown key; did you mean 'model'?"),
        (["--seed", "3"], "--seed: unknown key; did you mean 'seeds'?"),
        (["--model", "moeapps.graph.MowstModul"], "did you mean 'moeapps.graph.MowstModule'?"),
        (["--data.name", "Kora"], "got 'Kora'; did you mean 'Cora'?"),
        (["--config", "nope.yaml"], "--config nope.yaml: there is no such file"),
        (["--weights_only", "false"], "--weights_only false would run code"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_line_with_status_2_and_leave_nothing(cli, tmp_path, arguments, message):
    done = cli("fit", "--config", CORA, *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: 3", "modle: unknown key; did you mean 'model'?"),
        (
            "model: {class_path: moeapps.graph.MowstModul}",
            "model.class_path: there is no class 'moeapps.graph.MowstModul'",
        ),
        ("model: {class_path: MowstModul}", "did you mean 'moeapps.graph.MowstModule'?"),
        ("model: {class_path: MowstModule}", "data is missing: say which class it is, with --data CLASS"),
        ("model: {class_pth: x}", "model.class_pth: unknown key; did you mean 'class_path'?"),
        (
            "model: {class_path: moeapps.graph.MowstModule, init_args: {drop_out: 1}}",
            "model.init_args.drop_out",
        ),
        ("data: {class_path: moeapps.graph.PublicGraphData, init_args: {nam: Cora}}", "did you mean 'name'?"),
        ("trainer: {max_epoch: 3}", "trainer.max_epoch: unknown key; did you mean 'max_epochs'?"),
        (
            "trainer: {callbacks: [{class_path: lightning.pytorch.callbacks.EarlyStoping}]}",
            "trainer.callbacks.class_path",
        ),
        ("model: [1", "line 2: not a YAML file"),
        ("- 1", "expected keys such as model"),
        ("model: {init_args: {lr: 1}}", "model: class_path is missing"),
    ],
)
def test_wrong_yaml_is_named(cli, tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text + "\n")
    done = cli("fit", "--config", "c.yaml")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_configuration_is_read_once(cli, tmp_path, monkeypatch):
    pipe = tmp_path / "c.yaml"  # a second reader of a pipe would find it empty, or wait for ever
    os.mkfifo(pipe)
    config = toy(tmp_path / "toy.yaml", {"width": 4}).read_bytes()
    writer = threading.Thread(target=pipe.write_bytes, args=(config,))
    writer.start()
    done = cli("fit", "--config", pipe, "--model.width", 5, "--trainer.max_epochs", 1)
    writer.join()
    assert done.returncode == 0, done.stderr
    saved = yaml.safe_load((tmp_path / "moeapps-runs/version_0/config.yaml").read_text())
    assert saved["model"]["init_args"]["width"] == 5


def test_later_files_and_options_count(cli, tmp_path):
    first = toy(tmp_path / "first.yaml", {"width": 4, "num_experts": 2})
    second = tmp_path / "second.yaml"
    second.write_text("model: {init_args: {width: 6}}\ntrainer: {max_epochs: 7}\n")
    done = cli("fit", "--config", first, "--model.num_experts", 8, "--config", second, "--trainer.max_epochs=9",
               "--print_config")  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = yaml.safe_load(done.stdout)
    assert shown["model"]["init_args"]["width"] == 6
    assert shown["model"]["init_args"]["num_experts"] == 8
    assert shown["trainer"]["max_epochs"] == 9


def test_wrong_data_is_one_line_unless_debug_asks(cli, tmp_path):
    x = np.random.default_rng(0).random((6, 3))
    arrays = {"node_features": x, "node_labels": np.array([0, 1] * 3), "edges": np.array([[0, 1], [2, 3]])}
    x_nan = x.copy()
    x_nan[2, 0] = np.nan
    np.savez(tmp_path / "nan.npz", **{**arrays, "node_features": x_nan})
    np.savez(tmp_path / "edge.npz", **{**arrays, "edges": np.array([[0, 1], [2, 6]])})
    config = {
        "model": {"class_path": "moeapps.graph.MowstModule"},
        "data": {"class_path": "moeapps.graph.GraphDataModule", "init_args": {"source": "nan.npz"}},
        "trainer": {"max_epochs": 3, "enable_progress_bar": False},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    for source, message in (
        ("nan.npz", "NaN or infinite features in 1 of 6 nodes, the first are [2]"),
        ("edge.npz", "edge 1: 2 -> 6"),
        ("missing.npz", "missing.npz does not exist"),
    ):
        done = cli("fit", "--config", "c.yaml", "--data.source", source)
        assert done.returncode == 1, done.stderr
        assert message in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    with pytest.raises(DataError, match="NaN"):
        cli("fit", "--config", "c.yaml", "--debug")


def test_a_wrong_checkpoint_is_refused_before_anything_is_written(cli, tmp_path):
    (tmp_path / "damaged.ckpt").write_bytes(b"not a checkpoint")
    for path, message in (
        ("nope.ckpt", "nope.ckpt does not exist"), (".", "is a folder"), ("damaged.ckpt", "damaged or incomplete"),
        ("https://example.org/x.ckpt", "is a URL"),
    ):  # fmt: skip
        done = cli("fit", "--config", CORA, "--ckpt_path", path)
        assert done.returncode == 1
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.ckpt"]


def test_a_run_behind_a_url_is_refused_before_anything_is_written(cli, tmp_path):
    done = cli("fit", "--config", CORA, "--trainer.default_root_dir", "memory://runs")
    assert done.returncode == 2
    assert "trainer.default_root_dir='memory://runs' is a URL, and a run needs a folder" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_print_config_shows_everything_and_runs_nothing(cli, tmp_path):
    done = cli("fit", "--config", CORA, "--print_config")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["model"]["init_args"]["gate_fit"] == "holdout"
    assert list(tmp_path.iterdir()) == []


def test_a_nan_loss_ends_in_one_line(cli, tmp_path):
    done = cli("fit", "--config", toy(tmp_path / "c.yaml", {"nan_at_step": 7}))
    assert done.returncode == 1
    assert "not finite at step 7: task = nan" in done.stderr.splitlines()[-1]


def test_a_second_run_has_a_folder_of_its_own(cli, tmp_path):
    config = toy(tmp_path / "c.yaml", max_epochs=1)
    for _ in range(2):
        assert cli("fit", "--config", config).returncode == 0
    runs = tmp_path / "moeapps-runs"
    assert sorted(path.name for path in runs.iterdir()) == ["version_0", "version_1"]
    assert same(final_weights(runs / "version_0"), final_weights(runs / "version_1"))


def start(config: Path, cwd: Path, *arguments) -> Command:
    return Command(["fit", "--config", config, *arguments], cwd)


def wait_for(path: Path, process: Command) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_the_last_line_tells_how_to_go_on(cli, tmp_path, number, status):
    config = toy(tmp_path / "c.yaml", {"slow": 0.05}, max_epochs=4)
    assert cli("fit", "--config", config, "--model.slow", 0).returncode == 0
    process = start(config, tmp_path)
    wait_for(tmp_path / "moeapps-runs/version_1/checkpoints/last.ckpt", process)
    time.sleep(0.12)  # somewhere inside an epoch
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    last = stderr.strip().splitlines()[-1]
    assert f"stopped by {number.name}; continue with: moeapps fit --config" in last
    command = last.partition("moeapps ")[2].split()
    assert cli(*command, "--model.slow", 0).returncode == 0
    runs = tmp_path / "moeapps-runs"
    assert same(final_weights(runs / "version_0"), final_weights(runs / "version_2"))


def test_a_second_signal_ends_at_once(tmp_path):
    config = toy(tmp_path / "c.yaml", {"slow": 2.0}, {"rows": 8}, max_epochs=9)
    process = start(config, tmp_path)
    checkpoint = tmp_path / "moeapps-runs/version_0/checkpoints/last.ckpt"
    wait_for(checkpoint, process)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None  # it would finish its step of two seconds
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    assert time.monotonic() - begin < 1.2
    assert AtomicCheckpointIO().load_checkpoint(checkpoint)["global_step"] >= 1


@pytest.mark.slow
def test_kill_9_at_any_moment_leaves_a_checkpoint_that_continues_exactly(tmp_path):
    config = toy(tmp_path / "c.yaml", {"slow": 0.01, "width": 512}, max_epochs=20)
    found = fit_killed(config, kills=3, seconds=0.4)
    assert (found["kills"], found["steps"]) == (3, 160)
    assert min(found["tensors"], found["metrics"]) > 3


@pytest.mark.slow  # .ci/run parses every example too
@pytest.mark.parametrize("example", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_parses(cli, tmp_path, example):
    assert cli("fit", "--config", example, "--print_config").returncode == 0


def test_two_processes_train_like_one_with_the_joint_batch(cli, tmp_path):
    quiet = {"noise": False, "num_experts": 8}
    one = toy(tmp_path / "one.yaml", quiet, {"batch_size": 16}, max_epochs=3)
    two = toy(tmp_path / "two.yaml", quiet, {"batch_size": 8}, max_epochs=3, strategy="ddp", devices=2)
    assert cli("fit", "--config", one).returncode == 0
    done = moeapps("fit", "--config", two, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    curves = [
        pd.read_csv(tmp_path / f"moeapps-runs/version_{run}/metrics.csv").filter(like="train/").dropna()
        for run in (0, 1)
    ]
    assert {"train/loss", "train/task", "train/moe/balance", "train/moe/z"} <= set(curves[0])
    assert len(curves[0]) == 3
    pd.testing.assert_frame_equal(curves[0], curves[1][curves[0].columns], atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_rows_that_do_not_divide_and_experts_that_only_one_process_uses(tmp_path):
    config = toy(
        tmp_path / "odd.yaml",
        {"num_experts": 16},
        {"rows": 33, "batch_size": 2},
        max_epochs=2,
        strategy="ddp",
        devices=2,
    )
    done = moeapps("fit", "--config", config, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "moeapps-runs/version_0/checkpoints/last.ckpt").is_file()


@pytest.mark.slow
def test_experts_divided_among_processes_train_like_undivided_ones_and_resume_on_one(cli, tmp_path):
    model = "tests.toy.ParallelToyModule"
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    for path, batch_size, trainer in ((one, 16, {}), (two, 8, {"strategy": "ddp", "devices": 2})):
        toy(path, {}, {"batch_size": batch_size}, max_epochs=4, **trainer)
        path.write_text(path.read_text().replace("tests.toy.ToyModule", model))
    assert cli("fit", "--config", one).returncode == 0
    done = moeapps("fit", "--config", two, "--trainer.max_epochs", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    halfway = tmp_path / "moeapps-runs/version_1/checkpoints/last.ckpt"
    assert final_weights(halfway.parent.parent)["moe.experts.weight1"].shape[0] == 8
    assert cli("fit", "--config", one, "--ckpt_path", halfway).returncode == 0
    whole, resumed = (final_weights(tmp_path / f"moeapps-runs/version_{run}") for run in (0, 2))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, atol=1e-4, rtol=1e-4, msg=name)
    done = moeapps("fit", "--config", two, "--ckpt_path", halfway, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, value in final_weights(tmp_path / "moeapps-runs/version_3").items():
        torch.testing.assert_close(value, whole[name], atol=1e-4, rtol=1e-4, msg=name)
