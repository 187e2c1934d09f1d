"""``moeapps fit|validate|test|predict``: Lightning's command line with moeapps' Trainer around it.

1. jsonargparse reads the YAML files and options in their order; the names in each file are checked as it is read
   (:class:`CheckedParser`), those of the options afterwards, so that a misspelled one is named in one line.
2. The checkpoint is verified and an unsafe option refused: up to here nothing has been written.
3. Lightning builds model, data and trainer; moeapps adds its callbacks, loggers and checkpoint format.
4. The subcommand runs.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import ActionConfigFile, ArgumentError, Namespace
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from moeapps.cli.config_check import check_config, check_options, load_yaml, merge
from moeapps.core.callbacks import LastCheckpoint, PredictionWriter, StepSeeding, StopOnSignal, ViewWriter
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import ConfigError, MoEAppsError
from moeapps.core.statistics import RoutingMonitor

__all__ = ["RUNS", "run"]

RUNS = "moeapps-runs"
"""Folder of the runs, unless ``trainer.default_root_dir`` says otherwise."""


class CheckedParser(LightningArgumentParser):
    """Parser that checks the names in a configuration file when it reads it.

    Attributes
    ----------
    loaded : dict
        The files read so far, merged.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loaded: dict[str, Any] = {}
        self._file: str | None = None

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Read a file."""
        self._file = str(path)
        try:
            return super().parse_path(path, *args, **kwargs)
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}: not a YAML file ({error})") from None
        finally:
            self._file = None

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """Check the content of a file, then let jsonargparse read it."""
        if self._file is None:  # jsonargparse would take a configuration in place of a file's name
            raise ConfigError(f"--config {content}: there is no such file")
        self.loaded = merge(self.loaded, load_yaml(content, self._file))
        check_config(self.loaded)
        return super().parse_string(content, *args, **kwargs)


class MoEAppsCLI(LightningCLI):
    """LightningCLI whose Trainer writes safe checkpoints, resumes exactly, stops on signals and watches the routing."""

    output: Path | None = None

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make the parser of a subcommand."""
        parser = CheckedParser(**kwargs)
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="YAML file; a later one overrides an earlier one"
        )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, turning an error into one line."""
        failure: MoEAppsError | None = None
        try:
            self.config = parser.parse_args(args)
        except (ArgumentError, TypeError, ValueError) as error:
            if (own := _own_error(error)) is not None:
                raise own from None
            failure = _readable_error(error)
        # a misspelled option is named as such, also where jsonargparse complains of something else first
        subparser = self._subcommand_parsers[args[0]]
        assert isinstance(subparser, CheckedParser)
        check_options(args[1:], subparser.loaded)
        if failure is not None:
            raise failure

    def instantiate_classes(self) -> None:
        """Build everything, turning a refused argument into the one error that says which."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise _own_error(error) or _readable_error(error) from None

    def _parse_ckpt_path(self) -> None:
        """Verify the checkpoint before anything is built. The configuration alone says what is built."""
        given = self.config[self.config["subcommand"]]
        if given.get("weights_only") is False:
            raise ConfigError("--weights_only false would run code from the checkpoint; it is never done here")
        if given.get("ckpt_path"):
            AtomicCheckpointIO().verify(given["ckpt_path"])

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add moeapps' callbacks, loggers and checkpoint format to those of the configuration."""
        config = self._get(self.config_init, "trainer", default={})
        fitting = self.subcommand == "fit" and not config.get("fast_dev_run")
        root = Path(config.get("default_root_dir") or RUNS)
        plugins = _as_list(config.get("plugins"))
        own_io = any(isinstance(plugin, CheckpointIO) for plugin in plugins)
        kwargs["plugins"] = plugins if own_io else [*plugins, AtomicCheckpointIO()]
        kwargs["callbacks"] = [*_as_list(config.get("callbacks")), *self._callbacks(config, fitting)]
        if config.get("logger") in (None, True):
            kwargs["logger"] = _loggers(root) if fitting else False
        kwargs["default_root_dir"] = str(root)
        if not fitting:
            self.save_config_callback = None
        if self.subcommand != "fit" and not any(isinstance(c, Checkpoint) for c in kwargs["callbacks"]):
            kwargs["enable_checkpointing"] = False
        return super().instantiate_trainer(**kwargs)

    def _callbacks(self, config: Any, fitting: bool) -> list[Callback]:
        added: list[Callback] = []
        if config.get("enable_progress_bar") is not False:
            added.append(RichProgressBar())
        if self.subcommand == "predict" and self.output is not None:
            added.append(PredictionWriter(str(self.output)))
        if self.subcommand == "fit":
            seed = self._get(self.config, "seed_everything")
            added += [
                StepSeeding(None if isinstance(seed, bool) else seed),
                StopOnSignal(),
                RoutingMonitor(),
                ViewWriter(),
            ]
        if fitting and config.get("enable_checkpointing") is not False:
            added.append(LastCheckpoint())
        return added

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Spell ``weights_only`` out: left unset, an environment variable could turn unpickling on."""
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def after_fit(self) -> None:
        """Print where the best checkpoint is."""
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
                print(f"checkpoint: {_relative(callback.best_model_path)}")

    def after_predict(self) -> None:
        """Print where the predictions are."""
        print(f"predictions: {self.output}")


def run(args: list[str], output: str | None = None) -> None:
    """Run one of Lightning's subcommands.

    Parameters
    ----------
    args : list of str
        The command line from the subcommand on.
    output : str, optional
        File that ``predict`` writes; ``predictions.csv`` when None.

    Raises
    ------
    ConfigError
        If the configuration is wrong; nothing has been written then.
    FileNotFoundError, FileFormatError
        If the checkpoint does not exist or is damaged; nothing has been written then.
    """
    predicting = args[0] == "predict"
    MoEAppsCLI.output = _prediction_file(output) if predicting else None
    if predicting:
        args = [*args, "--return_predictions", "false"]
    strict = {"exit_on_error": False}
    MoEAppsCLI(
        L.LightningModule,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={**strict, **{name: dict(strict) for name in LightningCLI.subcommands()}},
        args=args,
    )


def _prediction_file(output: str | None) -> Path:
    if output is not None:
        PredictionWriter(output)  # refuses another ending before anything runs
        return Path(output)
    path = Path("predictions.csv")
    if path.exists():
        raise ConfigError(f"{path} exists: name the file to write with --output FILE")
    return path


def _loggers(root: Path) -> list[CSVLogger | TensorBoardLogger]:
    """CSV and TensorBoard, in a folder of this run alone: ``version_<n>``."""
    root.mkdir(parents=True, exist_ok=True)
    taken = [int(match.group(1)) for path in root.iterdir() if (match := re.fullmatch(r"version_(\d+)", path.name))]
    version = max(taken, default=-1) + 1
    while getattr(rank_zero_only, "rank", 0) == 0:  # further processes of a distributed run write nothing
        try:
            (root / f"version_{version}").mkdir()
            break
        except FileExistsError:  # another run began at the same moment
            version += 1
    return [CSVLogger(root, name="", version=version), TensorBoardLogger(root, name="", version=version)]


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _own_error(error: BaseException) -> MoEAppsError | None:
    """The error of ours in a chain of jsonargparse's."""
    return next((part for part in _chain(error) if isinstance(part, MoEAppsError)), None)


def _readable_error(error: BaseException) -> ConfigError:
    """One line made of the keys along a chain of jsonargparse's errors, and of the cause at its end."""
    *_, cause = chain = list(_chain(error))
    keys = [match.group(1) for part in chain if (match := re.match(r'Parser key "([^"]+)"', str(part)))]
    text = " ".join(re.sub(r"<class '([^']+)'>", r"\1", str(cause)).replace("typing.", "").split())
    return ConfigError(": ".join([".".join(dict.fromkeys(keys)), text]) if keys else text)


def _relative(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
