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
from typing import Any, ClassVar

import lightning as L
from jsonargparse import ActionConfigFile, ArgumentError, set_loader
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback, instantiate_class
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from yaml import YAMLError

from moeapps import plugins
from moeapps.cli.arguments import IMPORT_HELP, subcommand, subcommand_position
from moeapps.cli.checkpoints import KEYWORDS, find_checkpoint
from moeapps.cli.config_check import CLASSES, explain
from moeapps.cli.continuing import RunComplete, begin_again, continued_run, name_of_config, seed_folder, steps_of
from moeapps.cli.environment import arguments_in, sections_in_environment
from moeapps.cli.fit_lines import StartLine, print_end
from moeapps.cli.kept_scores import keep_scores
from moeapps.cli.parsing import RecordingParser, import_classes, load_value, own_error, readable_error
from moeapps.cli.required_test_data import RequireTestData
from moeapps.core.callbacks import LastCheckpoint, PredictionWriter, ProgressBar, StepSeeding, StopOnSignal, ViewWriter
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import ConfigError
from moeapps.core.loggers import ContinuedCSVLogger, check_names, close_loggers, make_loggers
from moeapps.core.run_folder import discard_unused, new_run_folder
from moeapps.core.run_result import RunResult, is_smaller_better
from moeapps.core.statistics import RoutingMonitor
from moeapps.core.tabledata.urls import is_url
from moeapps.core.warnings import silence_warnings
from moeapps.core.yaml_files import parse_yaml

__all__ = ["RUNS", "run"]

RUNS = "moeapps-runs"
"""Folder of the runs, unless ``trainer.default_root_dir`` says otherwise."""


LOGGER_HELP = (
    "csv, tensorboard, wandb or mlflow, or several with commas (default: csv,tensorboard; csv is always written); "
    "wandb stays offline unless WANDB_MODE=online"
)
FIT_HELP = (
    "--seeds N or --seeds 0,1,2: one run per seed, in one folder; what is finished is not run again. "
    "--test: score the best checkpoint on the test data afterwards."
)
PATIENCE_HELP = "stop when --monitor has not improved for so many epochs (default: no early stopping)"
MONITOR_HELP = "logged metric that chooses the checkpoint best.ckpt (default with --patience: val/loss)"

_DATA_NAMES = ("name", "source", "path", "file", "root", "nodes", "train")
"""Arguments of data modules that say which data they are, for the first line of a training."""

_WITH_FOLDERS = CSVLogger | TensorBoardLogger
"""Loggers with a folder for each run."""


class SaveConfig(SaveConfigCallback):
    """Save the configuration of a run in its folder; loggers of other programs have one folder for all runs."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Save, once, under a name that is not taken."""
        if any(isinstance(logger, ContinuedCSVLogger) and logger.continued for logger in trainer.loggers):
            self.config = self.config.clone()
            self.config["ckpt_path"] = None  # of this part of the run only
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
    seed: int | None = None
    """Seed of this run where it is one of several that have a common folder."""
    tested: bool = False
    """Whether the best checkpoint will be tested afterwards."""

    folder: Path | None = None
    """Folder of the run, where the loggers are moeapps' own."""

    _continued: bool = False
    loggers: ClassVar[list[Logger]] = []
    """Loggers of the run that moeapps made."""

    commands: ClassVar[dict[str, set[str]]] = LightningCLI.subcommands()
    """Subcommands that may be asked for, with the arguments of the Trainer's method that are no options."""

    made: ClassVar[Path | None] = None
    """Folder that was made for this run, so that one that fails before it begins leaves none."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the subcommands that need a parser, each of which takes time to build."""
        return MoEAppsCLI.commands

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
        parser.add_argument("--logger", type=str | list[str] | None, default=None, help=LOGGER_HELP)
        parser.add_argument("--patience", type=int | None, default=None, help=PATIENCE_HELP)
        parser.add_argument("--monitor", type=str | None, default=None, help=MONITOR_HELP)

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
        if subcommand == "fit":
            self._find_folder(given)
        if given.get("ckpt_path"):
            AtomicCheckpointIO().verify(given["ckpt_path"])
        elif subcommand != "fit" and not _says_null(self._args, "--ckpt_path"):
            raise ConfigError(
                f"moeapps {subcommand} needs --ckpt_path FILE (or last, or best): the model would have the random "
                "weights of its beginning. If that is what you want, say --ckpt_path null"
            )

    def _find_folder(self, given: Any) -> None:
        """Where a training that continues, or that is one of several seeds, has its folder."""
        trainer = given.get("trainer") or {}
        own = trainer.get("logger") in (None, True, False, []) and not trainer.get("fast_dev_run")
        if self.seed is not None:
            if not own:
                raise ConfigError(
                    "--seeds needs the folder of each run to itself: give --logger NAMES instead of trainer.logger"
                )
            if given.get("ckpt_path"):
                raise ConfigError("--seeds continues what was interrupted by itself: leave --ckpt_path out")
            name = name_of_config(self._args) or given["model"]["class_path"].rpartition(".")[2].lower()
            root = Path(trainer.get("default_root_dir") or RUNS)
            self.folder, start = seed_folder(root, name, self.seed, self._as_saved())
            given["ckpt_path"] = None if start is None else str(start)
            self._continued = start is not None
        elif own and given.get("ckpt_path"):
            self.folder = continued_run(given["ckpt_path"], self._as_saved())
            self._continued = self.folder is not None

    def _as_saved(self) -> Any:
        """The configuration as ``config.yaml`` of a run has it."""
        subcommand = self.config["subcommand"]
        parser = self._parser(subcommand)
        return parse_yaml(parser.dump(self.config[subcommand], skip_none=False, skip_validation=True), "settings")

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Add moeapps' callbacks, loggers and checkpoint format to those of the configuration."""
        config = self._get(self.config_init, "trainer", default={})
        fitting = self.subcommand == "fit" and not config.get("fast_dev_run")
        if is_url(config.get("default_root_dir") or ""):
            raise ConfigError(
                f"trainer.default_root_dir={config['default_root_dir']!r} is a URL, and a run needs a folder: mount it"
            )
        root = Path(config.get("default_root_dir") or RUNS)
        plugins = _as_list(config.get("plugins"))
        own_io = any(isinstance(plugin, CheckpointIO) for plugin in plugins)
        kwargs["plugins"] = plugins if own_io else [*plugins, AtomicCheckpointIO()]
        kwargs["callbacks"] = [*_as_list(config.get("callbacks")), *self._callbacks(config, fitting)]
        logger = config.get("logger")
        named = self._get(self.config_init, "logger")
        if named is not None and logger not in (None, True):
            raise ConfigError("--logger and trainer.logger exclude each other: give one of them")
        names = check_names(["csv", "tensorboard"] if named is None else named)
        if fitting and logger in (None, True, False, []):  # without a logger, too, a run has a folder of its own
            if self.folder is None:
                self.folder = type(self).made = new_run_folder(root)
            root = root if logger in (None, True) else self.folder
            step = steps_of(self._get(self.config, "ckpt_path")) if self._continued else None
            begin_again(self.folder)
            type(self).loggers = make_loggers(names, self.folder, step) if logger in (None, True) else []
            kwargs["logger"] = self.loggers or False
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
        if config.get("enable_model_summary") is None:
            kwargs["enable_model_summary"] = False
        try:
            return super().instantiate_trainer(**kwargs)
        except ValueError as error:
            if "requires a GPU accelerator" not in str(error):
                raise
            raise ConfigError(
                f"trainer.strategy={config.get('strategy')} needs GPUs, among which torch divides the weights: "
                "set it to ddp for processes on CPUs"
            ) from error

    def _callbacks(self, config: Any, fitting: bool) -> list[Callback]:
        added: list[Callback] = []
        if config.get("enable_progress_bar") is not False:
            added.append(ProgressBar())
        if self.subcommand == "predict" and self.output is not None:
            added.append(PredictionWriter(str(self.output)))
        if self.subcommand == "fit":
            seed = self._get(self.config, "seed_everything")
            added += [
                StepSeeding(None if isinstance(seed, bool) else seed),
                StopOnSignal(),
                RoutingMonitor(),
                ViewWriter(),
                StartLine(self._data_in_words(), self.folder, self._continued),
                *self._early_stopping(),
                *([RequireTestData()] if self.tested else []),
            ]
        if fitting and config.get("enable_checkpointing") is not False:
            added.append(LastCheckpoint())
        return added

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Spell ``weights_only`` out: left unset, an environment variable could turn unpickling on."""
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    def _data_in_words(self) -> str:
        data = self._get(self.config, "data") or {}
        arguments = data.get("init_args") or {}
        named = next((arguments.get(key) for key in _DATA_NAMES if isinstance(arguments.get(key), str)), "")
        return f"{str(data.get('class_path') or '').rpartition('.')[2]} {named}".strip()

    def _early_stopping(self) -> list[Callback]:
        """The callbacks of ``--patience`` and ``--monitor``."""
        patience, monitor = self._get(self.config, "patience"), self._get(self.config, "monitor")
        if patience is None and monitor is None:
            return []
        if patience is not None and patience < 1:
            raise ConfigError(f"--patience must be at least 1, got {patience}")
        monitor = monitor or "val/loss"
        mode = "min" if is_smaller_better(monitor) else "max"
        best = ModelCheckpoint(monitor=monitor, mode=mode, filename="best", enable_version_counter=False)
        return [best] if patience is None else [EarlyStopping(monitor, patience=patience, mode=mode), best]

    def after_fit(self) -> None:
        """Note that the run is finished, and print its scores and what to type next."""
        if not self.trainer.is_global_zero:
            return
        managers = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        managers.sort(key=lambda manager: manager.monitor is None)  # the best checkpoint first
        files = [manager.best_model_path for manager in managers if manager.best_model_path]
        if self.folder is not None:
            result = RunResult.load(self.folder)
            result.finished, result.checkpoint = True, os.path.relpath(files[0], self.folder) if files else ""
            result.save(self.folder)
        checkpoints = [_relative(file) for file in files]
        print_end(self.trainer, self.folder, checkpoints, commands=self.seed is None, tested=self.tested)

    def after_validate(self) -> None:
        """Keep the scores beside the run of the checkpoint."""
        self._keep_scores("validate")

    def after_test(self) -> None:
        """Keep the scores beside the run of the checkpoint."""
        self._keep_scores("test")

    def _keep_scores(self, stage: str) -> None:
        checkpoint = self._get(self.config, "ckpt_path")
        limit = self.trainer.limit_test_batches if stage == "test" else self.trainer.limit_val_batches
        whole = isinstance(limit, float) and limit == 1.0  # the whole number 1 is one batch, and fast_dev_run sets it
        if checkpoint and self.trainer.is_global_zero and whole:
            keep_scores(stage, checkpoint, self.trainer.callback_metrics, self._as_saved())

    def after_predict(self) -> None:
        """Print where the predictions are."""
        print(f"predictions: {self.output}")


def run(
    args: list[str],
    output: str | None = None,
    engine: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    seed: int | None = None,
    tested: bool = False,
) -> Path | None:
    """Run one of Lightning's subcommands.

    Parameters
    ----------
    args : list of str
        The command line from the subcommand on.
    output : str, optional
        File that ``predict`` writes; ``predictions.csv`` when None.
    engine : callable, optional
        From arguments of the Trainer to those that replace them, where another engine has started this process.
    seed : int, optional
        Seed of this run where it is one of several that have a common folder (:mod:`.seeds`).
    tested : bool, default=False
        Whether the best checkpoint of ``fit`` will be tested afterwards: data without a test part are refused.

    Returns
    -------
    Path or None
        Folder of the run of ``fit``; None in the further processes of a distributed run.

    Raises
    ------
    ConfigError
        If the configuration is wrong; nothing has been written then.
    FileNotFoundError, FileFormatError
        If the checkpoint does not exist or is damaged; nothing has been written then.
    """
    set_loader("yaml", load_value, (YAMLError,))
    silence_warnings()  # again: Lightning sets the level of its log when it is imported
    predicting = subcommand(args) == "predict"
    MoEAppsCLI.output = _prediction_file(output) if predicting else None
    MoEAppsCLI.engine = None if engine is None else staticmethod(engine)
    MoEAppsCLI.seed, MoEAppsCLI.tested, MoEAppsCLI.loggers, MoEAppsCLI.made = seed, tested, [], None
    commands, name = LightningCLI.subcommands(), args[0]
    # a file that is read before the subcommand is known may have a section for each
    MoEAppsCLI.commands = {name: commands[name]} if name in commands and "PL_CONFIG" not in os.environ else commands
    if predicting:
        args = [*args, "--return_predictions", "false"]
    strict = {"exit_on_error": False, "allow_abbrev": False, "default_env": True}
    try:
        cli = MoEAppsCLI(
            L.LightningModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            save_config_kwargs={"overwrite": True},
            parser_kwargs={
                **strict,
                **{name: dict(strict) for name in MoEAppsCLI.commands},
                **({"fit": {**strict, "epilog": FIT_HELP}} if "fit" in MoEAppsCLI.commands else {}),
            },
            args=args,
        )
    except RunComplete as complete:
        return complete.folder
    finally:
        close_loggers(MoEAppsCLI.loggers)
        discard_unused(MoEAppsCLI.made, refused=isinstance(sys.exception(), ConfigError))
    return cli.folder if cli.trainer.is_global_zero else None


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
