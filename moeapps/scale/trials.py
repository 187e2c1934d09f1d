"""One trial of a search: ``moeapps fit`` with some settings, which reports after each validation."""

import contextlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from moeapps import registry
from moeapps.core.errors import ConfigError, MoEAppsError
from moeapps.core.search import Distribution
from moeapps.core.yaml_files import parse_yaml
from moeapps.registry import did_you_mean

__all__ = ["UnknownMetricError", "options_of", "read_config", "space_of", "train"]

Report = Callable[[int, float], bool]
"""Called with the number of epochs that are done and the metric; whether the trial shall end here."""


class UnknownMetricError(ConfigError):
    """The metric of a search is not logged, in no trial."""


class Reporter(L.Callback):
    """Report a metric after each validation.

    Parameters
    ----------
    metric : str
        A logged metric.
    report : callable
        What takes it.
    """

    def __init__(self, metric: str, report: Report) -> None:
        self.metric, self.report = metric, report

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Report; end the training if that is the answer."""
        if trainer.sanity_checking:
            return
        logged = trainer.callback_metrics
        if self.metric not in logged:
            hint = did_you_mean(self.metric, logged, f"{', '.join(sorted(logged))} are")
            raise UnknownMetricError(f"metric {self.metric!r} is not logged{hint}")
        value = float(logged[self.metric])
        if not math.isfinite(value):
            raise MoEAppsError(f"{self.metric} is {value} after {trainer.current_epoch + 1} epochs")
        if self.report(trainer.current_epoch + 1, value):
            trainer.should_stop = True


def train(arguments: Sequence[str], settings: Mapping[str, Any], folder: Path, metric: str, report: Report) -> None:
    """Train with some settings, from the newest checkpoint in the trial's folder if it was interrupted.

    Parameters
    ----------
    arguments : sequence of str
        The command line after ``moeapps fit``.
    settings : mapping
        Values by the name of their option, such as ``"model.lr"``.
    folder : Path
        Of this trial's run.
    metric, report
        As for :class:`Reporter`.
    """
    from moeapps.cli.trainer import run

    command = [
        "fit", *arguments, *options_of(settings), "--trainer.default_root_dir", str(folder),
        "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    checkpoints = list(folder.rglob("last*.ckpt"))
    if checkpoints:
        command += ["--ckpt_path", str(max(checkpoints, key=lambda path: path.stat().st_mtime_ns))]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a") as log, contextlib.redirect_stdout(log):
        run(command, engine=lambda trainer: {"callbacks": [*trainer["callbacks"], Reporter(metric, report)]})


def options_of(settings: Mapping[str, Any]) -> list[str]:
    """Settings as options of the command line."""
    return [f"--{name}={_as_option(value)}" for name, value in settings.items()]


def _as_option(value: Any) -> str:
    """JSON; plain text as it is, since jsonargparse compares a Literal with what stands there, quotes included."""
    try:
        plain = isinstance(value, str) and parse_yaml(value, "text") == value
    except MoEAppsError:
        plain = False
    return value if plain else json.dumps(value)


def read_config(arguments: Sequence[str], settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The whole configuration of a command line with some settings, as text and read.

    Raises
    ------
    ConfigError
        If it is wrong.
    """
    from moeapps.cli.trainer import run

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        run(["fit", *arguments, *options_of(settings), "--print_config"])
    config: dict[str, Any] = parse_yaml(text.getvalue(), "the configuration")
    return text.getvalue(), config


def space_of(config: Mapping[str, Any]) -> dict[str, Distribution]:
    """What the module of a configuration publishes, by the name of the option.

    Raises
    ------
    ConfigError
        If it publishes nothing.
    """
    path = config["model"]["class_path"]
    kind = registry.resolve(path) if registry.is_known(path) else None
    space = kind.search_space() if kind is not None and hasattr(kind, "search_space") else {}
    if not space:
        raise ConfigError(f"{path} publishes no search space: name the settings to search with --space FILE.yaml")
    return {f"model.{name}": distribution for name, distribution in space.items()}
