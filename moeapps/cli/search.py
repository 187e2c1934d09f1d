"""``moeapps search``: try settings of a configuration, and write the best ones."""

import argparse
import os
import shlex

from moeapps.core.warnings import silence_warnings

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "try settings of a YAML file, and write the best ones as another"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        "Train with several settings (moeapps fit) and write the best ones to FOLDER/best.yaml. Trials that are behind "
        "end early."
    )
    parser.add_argument(
        "--config", "-c", required=True, action="append", metavar="FILE", help="YAML file of moeapps fit"
    )
    parser.add_argument(
        "--space",
        metavar="FILE",
        help="YAML file with the settings to search: {model.lr: {low: 1.0e-4, high: 0.01, log: true}, "
        "model.num_experts: [4, 8]}; by default what the module publishes",
    )
    parser.add_argument("--trials", type=int, default=20, help="number of trials")
    parser.add_argument(
        "--metric", default="val/loss", help="metric of the validation; its name says whether less is better"
    )
    parser.add_argument(
        "--engine",
        choices=("optuna", "ray"),
        default="optuna",
        help="optuna: one trial after the other, settings by TPE; ray: several at once, settings at random",
    )
    parser.add_argument("--workers", type=int, default=1, help="with --engine ray: trials at once, one core each")
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="with --engine optuna: database (sqlite:///study.db); commands that name the same one share the search",
    )
    parser.add_argument("--seed", type=int, help="of the settings that are tried")
    parser.add_argument("--folder", default="moeapps-search", help="folder of the trials' runs")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of all trials, as moeapps fit takes it (trainer.max_epochs=5); may be given several times",
    )


def run(options: argparse.Namespace) -> int:
    """Search, and print what was found."""
    silence_warnings()
    from moeapps.core.errors import ConfigError
    from moeapps.core.search import read_space
    from moeapps.core.yaml_files import read_yaml
    from moeapps.scale.searching import search

    for entry in options.set:
        if "=" not in entry:
            raise ConfigError(f"--set must be NAME=VALUE, got {entry!r}")
    files = [part for file in options.config for part in ("--config", file)]
    result = search(
        [*files, *(f"--{entry.removeprefix('--')}" for entry in options.set)],
        None if options.space is None else read_space(read_yaml(options.space)),
        metric=options.metric,
        trials=options.trials,
        engine=options.engine,
        workers=options.workers,
        storage=options.storage,
        seed=options.seed,
        folder=options.folder,
        progress=lambda line: print(line, flush=True),
    )
    print(f"best {options.metric}: {result.value:.4g}")
    for name, value in result.settings.items():
        print(f"  {name}: {value}")
    print(f"next: moeapps fit --config {shlex.quote(os.path.relpath(result.config))}")
    return 0
