"""The ways of LightningCLI's documentation, tried one by one with `moeapps fit`, `validate`, `test` and `predict`."""

import importlib
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from moeapps import plugins, registry
from moeapps.core.checkpoint import AtomicCheckpointIO
from tests.cli.test_cli import CORA, cli  # noqa: F401 - a fixture
from tests.hostile import BAD_YAML

OWN = """
import lightning as L
import torch
from moeapps.core import MoE, MoEModule
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


class OwnModule(MoEModule):
    def __init__(self, lr: float = 0.1, width: int = 8, criterion: nn.Module | None = None, router: str = "topk"):
        super().__init__()
        self.lr, self.width, self.criterion = lr, width, criterion
        self.network = nn.Sequential(nn.Linear(4, width), MoE(width, num_experts=4, router=router), nn.Linear(width, 1))

    def training_step(self, batch, batch_idx):
        return self.total_loss({"task": F.mse_loss(self.network(batch[0]), batch[1])})

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", F.mse_loss(self.network(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.log("test/loss", F.mse_loss(self.network(batch[0]), batch[1]))

    def predict_step(self, batch, batch_idx):
        return {"prediction": self.network(batch[0]).squeeze(-1).tolist()}

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class OtherModule(OwnModule):
    def __init__(self, depth: int = 1):
        super().__init__()
        self.depth = depth


class LateModule(OwnModule):
    def configure_model(self):
        self.late = nn.Linear(1, 1)


class OwnData(L.LightningDataModule):
    def __init__(self, rows: int = 32):
        super().__init__()
        x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
        self.data = TensorDataset(x, x.sum(1, keepdim=True))

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=16)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class OwnSGD(torch.optim.SGD):
    pass
"""
TRAINER = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
CLASSES = ["--model", "own_way.OwnModule", "--data", "own_way.OwnData", "--trainer", "trainer.yaml"]


def write(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(content) if isinstance(content, str) else yaml.safe_dump(content))
    importlib.invalidate_caches()


@pytest.fixture
def own(cli, tmp_path, monkeypatch):  # noqa: F811
    """The command in a folder with a module, and the Trainer's settings in a file."""
    monkeypatch.setattr(registry, "ENTRIES", dict(registry.ENTRIES))
    monkeypatch.setattr(plugins, "_named", set())
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    write(tmp_path / "own_way.py", OWN)
    write(tmp_path / "trainer.yaml", TRAINER)
    yield cli
    for name in [name for name in sys.modules if name.startswith("own_")]:
        del sys.modules[name]


def printed(own, *arguments) -> dict:
    """The configuration that a command line means."""
    done = own("fit", *arguments, "--print_config")
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def checkpoint(folder: str | Path) -> dict:
    return AtomicCheckpointIO().load_checkpoint(Path(folder) / "checkpoints/last.ckpt")


def test_a_module_of_the_working_folder_is_trained_and_its_saved_configuration_trains_again(own):
    write(Path("deep/folder/c.yaml"), {"model": {"class_path": "own_way.OwnModule"}, "data": "own_way.OwnData"})
    done = own("fit", "--config", "deep/folder/c.yaml", "--trainer", "trainer.yaml", "--model.width=6")
    assert done.returncode == 0, done.stderr
    assert own("fit", "--config", "moeapps-runs/version_0/config.yaml").returncode == 0
    first, second = (checkpoint(f"moeapps-runs/version_{run}")["state_dict"] for run in (0, 1))
    assert first["network.0.weight"].shape == (6, 4)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_class_is_found_by_its_short_name_if_it_is_registered_or_imported(own):
    config = printed(own, "--model", "MowstModule", "--data=PublicGraphData", "--data.name", "Cora")
    assert config["model"]["init_args"]["gate_fit"] == "holdout"
    config = printed(own, "--import", "own_way", "--model=OwnModule", "--data=OwnData", "--optimizer=OwnSGD")
    assert [config[key]["class_path"] for key in ("model", "data", "optimizer")] == [
        "own_way.OwnModule",
        "own_way.OwnData",
        "own_way.OwnSGD",
    ]
    assert config["import"] == ["own_way"]
    write(
        Path("c.yaml"), {"import": "own_way", "model": {"class_path": "OwnModule"}, "data": {"class_path": "OwnData"}}
    )
    assert printed(own, "--config", "c.yaml")["model"]["class_path"] == "own_way.OwnModule"


def test_parts_of_a_configuration_are_files_of_their_own(own):
    write(Path("parts/model.yaml"), {"class_path": "own_way.OwnModule", "init_args": {"lr": 0.5}})
    write(Path("parts/data.yaml"), {"class_path": "own_way.OwnData", "init_args": {"rows": 8}})
    by_option = printed(own, "--model", "parts/model.yaml", "--data", "parts/data.yaml", "--trainer", "trainer.yaml")
    # in a file they are relative to that file
    write(Path("parts/all.yaml"), {"model": "model.yaml", "data": "data.yaml", "trainer": "../trainer.yaml"})
    by_file = printed(own, "--config", "parts/all.yaml")
    as_text = printed(own, "--model", Path("parts/model.yaml").read_text(), "--data", "parts/data.yaml",
                      "--trainer", "{max_epochs: 1, accelerator: cpu}")  # fmt: skip
    for config in (by_option, by_file, as_text):
        assert config["model"]["init_args"]["lr"] == 0.5
        assert config["data"]["init_args"]["rows"] == 8
        assert config["trainer"]["accelerator"] == "cpu"


def test_a_later_file_may_change_the_class(own):
    write(
        Path("a.yaml"),
        {"model": {"class_path": "own_way.OwnModule", "init_args": {"lr": 0.5}}, "data": "own_way.OwnData"},
    )
    write(Path("b.yaml"), {"model": {"class_path": "own_way.OtherModule", "init_args": {"depth": 2}}})
    config = printed(own, "--config", "a.yaml", "--config", "b.yaml", "--model.depth", 3)
    assert config["model"] == {"class_path": "own_way.OtherModule", "init_args": {"depth": 3}}


def test_a_file_with_a_section_for_each_subcommand_stands_before_it(own):
    classes = {"model": "own_way.OwnModule", "data": "own_way.OwnData", "trainer": TRAINER}
    write(Path("c.yaml"), {"fit": {**classes, "seed_everything": 3}, "test": {**classes, "ckpt_path": "last"}})
    assert own("--config", "c.yaml", "fit").returncode == 0
    assert "test/loss" in own("--config", "c.yaml", "test").stdout
    wrong = {"fit": {**classes, "trainer": {"max_epoch": 3}}}
    write(Path("c.yaml"), wrong)
    assert "trainer.max_epoch: unknown key; did you mean 'max_epochs'?" in own("--config", "c.yaml", "fit").stderr


def test_what_print_config_shows_is_read_again_to_the_same(own):
    options = ["--optimizer", "SGD", "--optimizer.lr=0.1", "--lr_scheduler", "StepLR", "--lr_scheduler.step_size=2",
               "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss", "--seed_everything", 5,
               "--model.criterion", "torch.nn.CrossEntropyLoss"]  # fmt: skip
    config = printed(own, *CLASSES, *options)
    write(Path("again.yaml"), config)
    assert printed(own, "--config", "again.yaml") == config
    assert config["trainer"]["callbacks"][0]["class_path"] == "lightning.pytorch.callbacks.EarlyStopping"
    assert config["seed_everything"] == 5


def test_environment_variables_count_before_files_and_options(own, monkeypatch):
    variables = {
        "PL_FIT__CONFIG": "c.yaml",
        "PL_FIT__TRAINER__MAX_EPOCHS": "7",
        "PL_FIT__SEED_EVERYTHING": "3",
        "PL_FIT__MODEL__LR": "0.75",
        "PL_FIT__MODEL__INIT_ARGS__WIDTH": "16",
        "PL_FIT__DATA": "own_way.OwnData",
        "PL_FIT__DATA__ROWS": "48",
    }
    write(Path("c.yaml"), {"model": {"class_path": "own_way.OwnModule", "init_args": {"lr": 0.5}}, "trainer": TRAINER})
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = printed(own)
    assert (config["trainer"]["max_epochs"], config["seed_everything"]) == (7, 3)
    assert config["model"]["init_args"] | {"lr": 0.75, "width": 16} == config["model"]["init_args"]
    assert config["data"]["init_args"]["rows"] == 48
    config = printed(own, "--config", "c.yaml", "--data.rows", 8, "--trainer.max_epochs", 2)
    assert (config["model"]["init_args"]["lr"], config["model"]["init_args"]["width"]) == (0.5, 16)
    assert (config["data"]["init_args"]["rows"], config["trainer"]["max_epochs"]) == (8, 2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PL_FIT__TRAINER__MAX_EPOCH", "3", "did you mean 'PL_FIT__TRAINER__MAX_EPOCHS'?"),
        ("PL_FIT__MODEL__WIDHT", "3", "own_way.OwnModule has no such argument; did you mean 'width'"),
        ("PL_FIT__TRAINER__MAX_EPOCHS", "many", "trainer.max_epochs: Expected a int"),
        ("PL_FIT__MODEL__WIDTH", "many", "model.width: Expected a int"),
        ("PL_FIT__OPTIMIZER__LR", "1", "PL_FIT__OPTIMIZER__LR: there is no --optimizer"),
        ("PL_FIT__CONFIG", "absent.yaml", "absent.yaml"),
    ],
)  # fmt: skip
def test_an_environment_variable_without_effect_is_refused(own, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    done = own("fit", *CLASSES)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    monkeypatch.setenv("PL_TEST__ANYTHING", "3")  # of another subcommand


@pytest.mark.parametrize("form", ["options", "yaml"])
def test_optimizer_and_scheduler_take_the_place_of_the_modules_own(own, form):
    given = {
        "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.25, "momentum": 0.5}},
        "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1, "gamma": 0.5}},
    }
    write(Path("optimizer.yaml"), given)
    options = ["--config", "optimizer.yaml"] if form == "yaml" else [
        "--optimizer", "SGD", "--optimizer.lr", 0.25, "--optimizer.momentum=0.5",
        "--lr_scheduler=StepLR", "--lr_scheduler.step_size=1", "--lr_scheduler.gamma=0.5",
    ]  # fmt: skip
    done = own("fit", *CLASSES, *options, "--model", "own_way.LateModule")
    assert done.returncode == 0, done.stderr
    assert "note: torch.optim.SGD takes the place of LateModule.configure_optimizers" in done.stderr
    [optimizer] = checkpoint("moeapps-runs/version_0")["optimizer_states"]
    [group] = optimizer["param_groups"]
    assert (group["momentum"], group["initial_lr"], group["lr"]) == (0.5, 0.25, 0.125)
    assert len(group["params"]) == len(list(checkpoint("moeapps-runs/version_0")["state_dict"]))  # also the late ones


def test_a_scheduler_that_watches_a_metric_gets_it(own):
    done = own("fit", *CLASSES, "--optimizer", "own_way.OwnSGD", "--optimizer.lr=0.1",
               "--lr_scheduler=ReduceLROnPlateau", "--lr_scheduler.monitor=val/loss",
               "--trainer.max_epochs=2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert checkpoint("moeapps-runs/version_0")["lr_schedulers"][0]["last_epoch"] == 1  # of two epochs


def test_optimizers_that_would_have_no_effect_are_refused(own):
    done = own("fit", *CLASSES, "--lr_scheduler", "StepLR", "--lr_scheduler.step_size", 1)
    assert (done.returncode, "lr_scheduler has no effect without optimizer" in done.stderr) == (2, True)
    done = own("fit", "--config", CORA, "--optimizer", "Adam")
    assert (done.returncode, "MowstModule has optimizers of its own" in done.stderr) == (2, True)


def test_last_and_best_are_checkpoints_of_the_newest_run(own):
    watch = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss",
             "--trainer.callbacks.filename=best"]  # fmt: skip
    done = own("fit", *CLASSES, "--ckpt_path", "last")
    assert "note: there is no run in moeapps-runs yet: this one begins anew" in done.stderr
    done = own("validate", *CLASSES, "--ckpt_path", "best")
    assert (done.returncode, "chose none. Give fit a" in done.stderr) == (2, True)
    done = own("fit", *CLASSES, *watch, "--trainer.max_epochs", 2, "--ckpt_path", "last")
    assert "note: --ckpt_path last is moeapps-runs/version_0/checkpoints/last.ckpt" in done.stderr
    assert checkpoint("moeapps-runs/version_1")["epoch"] == 1
    assert "version_1/checkpoints/best.ckpt" in own("validate", *CLASSES, "--ckpt_path", "best").stderr
    done = own("predict", *CLASSES, "--ckpt_path=last", "--output", "out.csv")
    assert "version_1/checkpoints/last.ckpt" in done.stderr
    assert len(pd.read_csv("out.csv")) == 32
    done = own("test", *CLASSES, "--trainer.default_root_dir", "elsewhere", "--ckpt_path", "last")
    assert (done.returncode, "there is no checkpoint of a run in elsewhere" in done.stderr) == (2, True)


@pytest.mark.parametrize("subcommand", ["validate", "test", "predict"])
def test_random_weights_are_scored_only_if_the_user_says_so(own, subcommand):
    write(Path("c.yaml"), printed(own, *CLASSES))  # has ckpt_path: null, as every saved configuration
    done = own(subcommand, "--config", "c.yaml")
    assert done.returncode == 2
    assert f"moeapps {subcommand} needs --ckpt_path FILE" in done.stderr
    assert own(subcommand, "--config", "c.yaml", "--ckpt_path", "null").returncode == 0


@pytest.mark.parametrize(
    "logger", [["--trainer.logger", "false"], [], ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"]]
)
def test_a_run_has_a_folder_of_its_own_with_any_logger(own, logger):
    for seed in (1, 2):
        assert own("fit", *CLASSES, *logger, "--seed_everything", seed).returncode == 0
    root = Path("logs/lightning_logs" if "logs" in str(logger) else "moeapps-runs")
    assert sorted(path.name for path in root.iterdir()) == ["version_0", "version_1"]
    for run, seed in (("version_0", 1), ("version_1", 2)):
        assert yaml.safe_load((root / run / "config.yaml").read_text())["seed_everything"] == seed
        assert checkpoint(root / run)["epoch"] == 0


@pytest.mark.filterwarnings("ignore:Experiment logs directory", "ignore:Checkpoint directory")
def test_the_folder_of_an_earlier_run_is_not_written_to_unless_it_is_continued(own):
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", "--trainer.logger.version=7"]
    assert own("fit", *CLASSES, *logger).returncode == 0
    run = Path("logs/lightning_logs/version_7")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    done = own("fit", *CLASSES, *logger, "--seed_everything", 9)
    assert (done.returncode, "version_7 is the folder of an earlier run" in done.stderr) == (2, True)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    done = own("fit", *CLASSES, *logger, "--trainer.max_epochs=2", "--ckpt_path", run / "checkpoints/last.ckpt")
    assert done.returncode == 0, done.stderr
    assert checkpoint(run)["epoch"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere_at_all", r"ModuleNotFoundError: No module named 'nowhere_at_all' (WHERE, line 1)"),
        ("from own_way import Missing", "ImportError: cannot import name 'Missing' from 'own_way'"),
        ("x = = 1", "SyntaxError: invalid syntax (WHERE, line 1)"),
        ("import torch\ntorch.nothing_of_this_name", "AttributeError: module 'torch' has no attribute"),
        ("1 / 0", "ZeroDivisionError: division by zero (WHERE, line 1)"),
        ("raise SystemExit('bye')", "SystemExit: bye (WHERE, line 1)"),
        ("class Modul: pass", "there is no class 'own_bad.Module' in WHERE; did you mean 'own_bad.Modul'?"),
        ("class Module: pass", "own_bad.Module is no LightningModule"),
        ("Module = 3", ""),
        (None, "there is no module own_bad, neither in the working folder"),
    ],
)
@pytest.mark.parametrize("form", ["option", "yaml"])
def test_what_is_wrong_with_the_users_module_is_told_with_its_cause(own, tmp_path, text, message, form):
    if text is not None:
        write(tmp_path / "own_bad.py", text)
    write(Path("c.yaml"), {"model": {"class_path": "own_bad.Module", "init_args": {"lr": 3}}})
    how = ["--config", "c.yaml"] if form == "yaml" else ["--model", "own_bad.Module"]
    done = own("fit", *how, "--data", "own_way.OwnData", "--trainer", "trainer.yaml")
    assert done.returncode == 2, done.stderr
    assert message.replace("WHERE", str(tmp_path / "own_bad.py")) in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert not Path("moeapps-runs").exists()


@pytest.mark.parametrize("text", ["*.png", "!a", "[c", "{d", "%e", "@f", "a: b: c", "12e"])
def test_text_that_looks_like_yaml_stays_text(own, text):
    assert printed(own, *CLASSES, "--model.router", text)["model"]["init_args"]["router"] == text


def test_a_file_that_a_library_hides_is_named(own, tmp_path):
    write(tmp_path / "random.py", "Module = 3")
    done = own("fit", *CLASSES, "--model", "random.Module")
    assert done.returncode == 2
    assert f"It hides your file {tmp_path / 'random.py'}: give that another name" in done.stderr


def test_an_error_in_the_users_constructor_is_told_with_its_line(own, tmp_path):
    write(tmp_path / "own_init.py", """
        from own_way import OwnModule
        class Module(OwnModule):
            def __init__(self, lr: float = 0.1):
                None + lr
        """)  # fmt: skip
    done = own("fit", *CLASSES, "--model", "own_init.Module")
    assert done.returncode == 2
    assert "TypeError: unsupported operand" in done.stderr
    assert "own_init.py, line 5" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optimizer", "Adm"], "--optimizer.class_path: there is no class 'Adm'; did you mean 'Adam'?"),
        (["--optimizer", "Adam", "--optimizer.lrr", 1], "--optimizer.lrr: Adam has no such argument; did you mean"),
        (["--trainer.callbacks+=EarlyStoping"], "--trainer.callbacks: there is no class 'EarlyStoping'; did you mean"),
        (["--optimizer", "SGD", "--lr_scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau"], "which metric to"),
        (["--model", "absent.yaml"], "--model: there is no file 'absent.yaml'"),
        (["--trainer.max_epoch", 1], "--trainer.max_epoch: unknown key; did you mean 'max_epochs'?"),
        (["--import", "own_nothing"], "there is no module own_nothing"),
        (["--import"], "--import needs the name of a module"),
    ],
)  # fmt: skip
def test_wrong_names_of_lightnings_options_are_told(own, options, message):
    done = own("fit", *CLASSES, *options)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert not Path("moeapps-runs").exists()


@pytest.mark.parametrize(("option", "name"), [("model", "OwnModule"), ("optimizer", "SGD"), ("lr_scheduler", "StepLR")])
def test_help_of_a_class(own, option, name):
    done = own("fit", "--import", "own_way", f"--{option}.help", name)
    assert done.returncode == 0, done.stderr
    assert {"model": "width", "optimizer": "momentum", "lr_scheduler": "gamma"}[option] in done.stdout


@pytest.mark.parametrize(("text", "message"), BAD_YAML, ids=range(len(BAD_YAML)))
@pytest.mark.parametrize("option", ["--config", "--model"])
def test_a_hostile_yaml_is_refused_at_once(own, text, message, option):
    Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    done = own("fit", "--data", "own_way.OwnData", option, "c.yaml")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert [path.name for path in Path.cwd().iterdir() if path.name.startswith(("moeapps", "pwned"))] == []
