"""Loggers by name, in the folder of a run; and how those of a continued run go on in it."""

import csv
import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from moeapps.core.errors import ConfigError
from moeapps.registry import did_you_mean

__all__ = [
    "LOGGERS",
    "ContinuedCSVLogger",
    "check_loggers",
    "check_names",
    "close_loggers",
    "estimator_loggers",
    "make_loggers",
]

LOGGERS = {
    "csv": ("lightning", "lightning"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow"),
}
"""Loggers by name: the module that each needs, and what to install."""


class ContinuedCSVLogger(CSVLogger):
    """CSV logger that goes on in the ``metrics.csv`` of a run from a checkpoint.

    Lightning's own deletes that file. Rows that the broken run logged after the checkpoint are replaced.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    step : int, optional
        Steps that the checkpoint has behind it: rows of later ones are dropped. A new file begins when None.
    """

    def __init__(self, folder: Path, step: int | None = None) -> None:
        super().__init__(folder.parent, name="", version=folder.name)
        self.continued = step is not None
        file = folder / "metrics.csv"
        if step is None or getattr(rank_zero_only, "rank", 0) != 0 or not file.is_file():
            return
        with open(file, newline="") as stream:
            reader = csv.DictReader(stream)
            rows = [row for row in reader if _number(row.get("step")) < step]
        file.unlink()
        experiment: Any = self.experiment
        if rows:
            experiment.metrics = [{k: v for k, v in row.items() if k and v not in (None, "")} for row in rows]
            self.save()


def _number(text: str | None) -> float:
    try:
        return float(text or "inf")
    except ValueError:  # a line that a kill cut short
        return float("inf")


def check_names(given: str | Sequence[str]) -> list[str]:
    """Names of loggers, of a list or of a text with commas.

    Raises
    ------
    ConfigError
        If there is no logger of a name, or its package is not installed.
    """
    parts = given.split(",") if isinstance(given, str) else list(given)
    names = list(dict.fromkeys(str(name).strip() for name in parts if str(name).strip()))
    for name in names:
        if name not in LOGGERS:
            raise ConfigError(f"logger must be of {', '.join(LOGGERS)}, got {name!r}{did_you_mean(name, LOGGERS)}")
        module, package = LOGGERS[name]
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"logger {name!r} needs the package {package}: pip install {package}")
    return names


def make_loggers(names: str | Sequence[str], folder: Path, step: int | None = None) -> list[Logger]:
    """Loggers of a run.

    Parameters
    ----------
    names : str or sequence of str
        Of :data:`LOGGERS`; a text may have several, separated by commas. CSV is always among them, since reports are
        made of it.
    folder : Path
        Folder of the run.
    step : int, optional
        Steps that the run has behind it if it is continued.

    Returns
    -------
    list of Logger
        The CSV logger, whose folder is the run's, first. Weights & Biases is offline, unless the environment variable
        ``WANDB_MODE`` says otherwise; MLflow writes to ``mlflow.db`` beside the folder, unless
        ``MLFLOW_TRACKING_URI`` does.

    Raises
    ------
    ConfigError
        As :func:`check_names`.
    """
    names = check_names(names)
    loggers: list[Logger] = [ContinuedCSVLogger(folder, step)]
    if "tensorboard" in names:
        # what the broken run wrote after the checkpoint is hidden
        purge: dict[str, Any] = {} if step is None else {"purge_step": step}
        loggers.append(TensorBoardLogger(folder.parent, name="", version=folder.name, **purge))
    if "wandb" in names:
        offline = os.environ.get("WANDB_MODE", "offline") != "online"
        loggers.append(WandbLogger(name=_title(folder), save_dir=folder, project="moeapps", offline=offline))
    if "mlflow" in names:
        beside = folder.absolute().parent
        uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{beside / 'mlflow.db'}"
        artifacts = (beside / "mlruns").as_uri() if uri.startswith("sqlite:") else None
        loggers.append(MLFlowLogger("moeapps", _title(folder), uri, artifact_location=artifacts))
    return loggers


def check_loggers(given: Any, log_dir: str | None) -> None:
    """Refuse what an estimator cannot take as ``logger``, before anything is written.

    Raises
    ------
    ConfigError
        As :func:`check_names`; or if names are given without ``log_dir``, or something else than names and loggers.
    """
    if isinstance(given, str):
        check_names(given)
        if log_dir is None:
            raise ConfigError(f"logger={given!r} needs log_dir, the folder to write to")
    elif given is not None and not all(isinstance(logger, Logger) for logger in _as_list(given)):
        raise ConfigError(
            f"logger must be of {', '.join(LOGGERS)}, a Logger of Lightning or a list of these, got {given!r}"
        )


def estimator_loggers(given: Any, folder: Path | None) -> tuple[list[Logger], list[Logger]]:
    """Loggers of an estimator: those that are made here, and those that the user gave.

    Parameters
    ----------
    given : str, Logger, list of Logger or None
        The estimator's ``logger``.
    folder : Path or None
        Folder of the run, where there is a ``log_dir``.
    """
    own = [] if folder is None else make_loggers(given if isinstance(given, str) else "csv", folder)
    return own, [] if given is None or isinstance(given, str) else _as_list(given)


def close_loggers(loggers: Iterable[Logger]) -> None:
    """End the runs of loggers of :func:`make_loggers`; the next one of Weights & Biases would go on in the same run."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _title(folder: Path) -> str:
    folder = folder.absolute()
    return f"{folder.parent.name}/{folder.name}"
