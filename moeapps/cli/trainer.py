"""``moeapps fit|validate|test|predict``: Lightning's command line with moeapps' Trainer around it.

1. jsonargparse reads the YAML files and options in their order. Where it refuses one, the files that it has read
   (:mod:`.parsing`) and the options are searched for the cause, which is told in one line.
2. The checkpoint is found and verified, and an unsafe option refused: up to here nothing has been written.
3. Lightning builds model, data and trainer; moeapps adds its callbacks, loggers and checkpoint format.
4. The subcommand runs.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import MethodType
from typing import Any

import lightning as L
from jsonargparse import ActionConfigFile, ArgumentError, set_loader
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback, instantiate_class
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from yaml import YAMLError

from moeapps import plugins
from moeapps.cli.arguments import IMPORT_HELP, subcommand, subcommand_position
from moeapps.cli.checkpoints import KEYWORDS, find_checkpoint
from moeapps.cli.config_check import CLASSES, explain
from moeapps.cli.environment import arguments_in, sections_in_environment
from moeapps.cli.parsing import RecordingParser, import_classes, load_value, own_error, readable_error
from moeapps.core.callbacks import LastCheckpoint, PredictionWriter, StepSeeding, StopOnSignal, ViewWriter
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import ConfigError
from moeapps.core.run_folder import new_run_folder
from moeapps.core.statistics import RoutingMonitor

__all__ = ["RUNS", "run"]

RUNS = "moeapps-runs"
"""Folder of the runs, unless ``trainer.default_root_dir`` says otherwise."""


_WITH_FOLDERS = CSVLogger | TensorBoardLogger
"""Loggers with a folder for each run."""


class SaveConfig(SaveConfigCallback):
    """Save the configuration of a run in its folder; loggers of other programs have one folder for all runs."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save, once, under a name that is not taken."""
        folder = trainer.log_dir  # every process has to ask, since it is broadcast
        if not self.already_saved and folder is not None and not isinstance(trainer.logger, _WITH_FOLDERS | None):
            number = 0
            while Path(folder, self.config_filename).exists():
                number += 1
                self.config_filename = f"config_{number}.yaml"
        super().setup(trainer, pl_module, stage)


class MoEAppsCLI(LightningCLI):
    """LightningCLI whose Trainer writes safe checkpoints, resumes exactly, stops on signals and watches the routing."""

    output: Path | None = None
    engine: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    """What another engine changes in the arguments of the Trainer, such as the strategy."""

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make the parser of a subcommand, or of what stands before it."""
        parser = RecordingParser(**kwargs)
        parser.add_argument(
            "-c", "--config", action=ActionConfigFile, help="YAML file; a later one overrides an earlier one"
        )
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add ``--import``: the command has taken it from the options, a configuration may have it too."""
        names = plugins.from_environment() or None
        parser.add_argument("--import", type=str | list[str] | None, default=names, help=IMPORT_HELP)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, turning an error into one line."""
        position = subcommand_position(args)
        assert position is not None
        self._args = args[position + 1 :]
        for option, following in pairwise([*self._args, ""]):
            name, equals, value = option.partition("=")
            if name.removeprefix("--").rstrip("+") in (*CLASSES, "trainer.callbacks", "trainer.logger"):
                import_classes({"class_path": value if equals else following})
        try:
            with self._arguments_of_environment(parser, args, args[position]):
                self.config = parser.parse_args(args)
        except (ArgumentError, TypeError, ValueError, OSError, ImportError, AttributeError) as error:
            parsers = [parser, self._subcommand_parsers[args[position]]]
            sources = [source for part in parsers if isinstance(part, RecordingParser) for source in part.sources]
            # first what was refused by name: a misspelled option is named where jsonargparse complains of another one
            explain([*args[:position], *self._args], sources, args[position])
            raise own_error(error) or readable_error(error) from error
        given = self.config[args[position]]
        named = [given.get("import")] if isinstance(given.get("import"), str) else given.get("import") or []
        given["import"] = list(dict.fromkeys([*plugins.from_environment(), *named])) or None

    @contextmanager
    def _arguments_of_environment(self, parser: LightningArgumentParser, args: list[str], name: str) -> Iterator[None]:
        """While the arguments are read, let environment variables name arguments of classes too."""
        subparser = self._subcommand_parsers[name]
        known = [action.dest for action in subparser._actions]
        arguments = arguments_in(os.environ, name, known)
        if not arguments or any(".help" in option or option in ("-h", "--help") for option in args):
            yield
            return
        config = parser.parse_args([option for option in args if not option.startswith("--print_config")])
        for reader in (parser, subparser):
            reader.sources.clear()  # type: ignore[attr-defined]
        with sections_in_environment(arguments, config[name], name):
            yield

    def instantiate_classes(self) -> None:
        """Build everything, turning a refused argument into the one error that says which."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, ImportError, AttributeError, LookupError) as error:
            raise own_error(error) or readable_error(error) from error

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Let ``optimizer`` and ``lr_scheduler`` take the place of the module's own, as in LightningCLI.

        They are made when training begins and not here, where a module that depends on the data has no weights yet.
        """
        optimizer = self._get(self.config_init, "optimizer")
        scheduler = self._get(self.config_init, "lr_scheduler")
        if not optimizer:
            if scheduler:
                raise ConfigError("lr_scheduler has no effect without optimizer: give both")
            return
        if scheduler and scheduler["class_path"] == "torch.optim.lr_scheduler.ReduceLROnPlateau":
            raise ConfigError(
                "lr_scheduler: torch's ReduceLROnPlateau does not know which metric to watch; use Lightning's, "
                "--lr_scheduler ReduceLROnPlateau --lr_scheduler.monitor METRIC"
            )
        name = type(self.model).__name__
        if not self.model.automatic_optimization:
            raise ConfigError(f"optimizer: {name} has optimizers of its own, one per part; set its arguments instead")
        if subcommand != "fit":
            return
        print(
            f"note: {optimizer['class_path']} takes the place of {name}.configure_optimizers: "
            "its learning rate, weight decay and schedule have no effect",
            file=sys.stderr,
        )

        def configure_optimizers(module: L.LightningModule) -> Any:
            made = instantiate_class((module.parameters(),), optimizer)
            return self.configure_optimizers(module, made, instantiate_class((made,), scheduler) if scheduler else None)

        self.model.configure_optimizers = MethodType(configure_optimizers, self.model)

    def _parse_ckpt_path(self) -> None:
        """Find and verify the checkpoint before anything is built. The configuration alone says what is built."""
        subcommand = self.config["subcommand"]
        given = self.config[subcommand]
        if given.get("weights_only") is False:
            raise ConfigError("--weights_only false would run code from the checkpoint; it is never done here")
        if given.get("ckpt_path") in KEYWORDS:
            given["ckpt_path"] = find_checkpoint(given["ckpt_path"], given.get("trainer"), RUNS, subcommand)
        if given.get("ckpt_path"):
            AtomicCheckpointIO().verify(given["ckpt_path"])
        elif subcommand != "fit" and not _says_null(self._args, "--ckpt_path"):
            raise ConfigError(
                f"moeapps {subcommand} needs --ckpt_path FILE (or last, or best): the model would have the random "
                "weights of its beginning. If that is what you want, say --ckpt_path null"
            )

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add moeapps' callbacks, loggers and checkpoint format to those of the configuration."""
        config = self._get(self.config_init, "trainer", default={})
        fitting = self.subcommand == "fit" and not config.get("fast_dev_run")
        root = Path(config.get("default_root_dir") or RUNS)
        plugins = _as_list(config.get("plugins"))
        own_io = any(isinstance(plugin, CheckpointIO) for plugin in plugins)
        kwargs["plugins"] = plugins if own_io else [*plugins, AtomicCheckpointIO()]
        kwargs["callbacks"] = [*_as_list(config.get("callbacks")), *self._callbacks(config, fitting)]
        logger = config.get("logger")
        if fitting and logger in (None, True, False, []):  # without a logger, too, a run has a folder of its own
            folder = new_run_folder(root)
            root = root if logger in (None, True) else folder
            version = int(folder.name.removeprefix("version_"))
            kwargs["logger"] = logger in (None, True) and [
                CSVLogger(root, name="", version=version),
                TensorBoardLogger(root, name="", version=version),
            ]
        elif logger in (None, True):
            kwargs["logger"] = False
        kwargs["default_root_dir"] = str(root)
        if fitting:
            _refuse_folders_of_others(_as_list(logger), self._get(self.config, "ckpt_path"))
        else:
            self.save_config_callback = None
        if self.subcommand != "fit" and not any(isinstance(c, Checkpoint) for c in kwargs["callbacks"]):
            kwargs["enable_checkpointing"] = False
        if self.engine is not None:
            kwargs |= self.engine({**config, **kwargs})
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
        for callback in self.trainer.checkpoint_callbacks if self.trainer.is_global_zero else []:
            if isinstance(callback, ModelCheckpoint) and callback.best_model_path:
                print(f"checkpoint: {_relative(callback.best_model_path)}")

    def after_predict(self) -> None:
        """Print where the predictions are."""
        print(f"predictions: {self.output}")


def run(
    args: list[str], output: str | None = None, engine: Callable[[dict[str, Any]], dict[str, Any]] | None = None
) -> None:
    """Run one of Lightning's subcommands.

    Parameters
    ----------
    args : list of str
        The command line from the subcommand on.
    output : str, optional
        File that ``predict`` writes; ``predictions.csv`` when None.
    engine : callable, optional
        From arguments of the Trainer to those that replace them, where another engine has started this process.

    Raises
    ------
    ConfigError
        If the configuration is wrong; nothing has been written then.
    FileNotFoundError, FileFormatError
        If the checkpoint does not exist or is damaged; nothing has been written then.
    """
    set_loader("yaml", load_value, (YAMLError,))
    predicting = subcommand(args) == "predict"
    MoEAppsCLI.output = _prediction_file(output) if predicting else None
    MoEAppsCLI.engine = None if engine is None else staticmethod(engine)
    if predicting:
        args = [*args, "--return_predictions", "false"]
    strict = {"exit_on_error": False, "allow_abbrev": False, "default_env": True}
    MoEAppsCLI(
        L.LightningModule,
        L.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        seed_everything_default=0,
        save_config_callback=SaveConfig,
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


def _says_null(args: list[str], option: str) -> bool:
    """Whether an option is given as null on the command line (in a saved configuration everything unset is null)."""
    return any(
        given in (f"{option}=null", f"{option}=None") or (given == option and following in ("null", "None"))
        for given, following in pairwise([*args, ""])
    )


def _refuse_folders_of_others(loggers: list[Any], start: str | None) -> None:
    """Refuse a logger with the folder of an earlier run: it would empty its files before anything else could.

    Raises
    ------
    ConfigError
        If the run does not continue from a checkpoint in that folder.
    """
    for logger in loggers:
        if isinstance(logger, _WITH_FOLDERS) and getattr(rank_zero_only, "rank", 0) == 0:
            folder = Path(logger.log_dir)
            continued = start is not None and folder.resolve() in Path(start).resolve().parents
            if (folder / "config.yaml").exists() and not continued:
                raise ConfigError(
                    f"{folder} is the folder of an earlier run: choose another version of the logger, or continue that "
                    "run with --ckpt_path"
                )


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _relative(path: str) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path
