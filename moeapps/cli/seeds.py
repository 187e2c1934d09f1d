"""``moeapps fit --seeds 5 --test``: the same training with several seeds, one after the other, and their scores."""

import math
import re
import shlex
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moeapps.cli.arguments import subcommand_position, take_option
from moeapps.cli.fit_lines import print_table
from moeapps.cli.trainer import run
from moeapps.core.errors import ConfigError
from moeapps.core.run_result import RunResult
from moeapps.report.runs import find_runs

__all__ = ["fit", "seeds_of"]


def seeds_of(text: str) -> list[int]:
    """Seeds that ``--seeds`` names: a number of them from 0 on, or a list with commas (``3,`` is seed 3 alone).

    Raises
    ------
    ConfigError
        If it is neither, or a seed occurs twice.
    """
    if not re.fullmatch(r"\d+|\d+(,\d+)*,?", text.strip()):
        raise ConfigError(f"--seeds must be a number of seeds (5) or a list of them (0,1,2), got {text!r}")
    parts = [int(part) for part in text.split(",") if part.strip()]
    seeds = parts if "," in text else list(range(parts[0]))
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds must name at least one seed, and each once, got {text!r}")
    return seeds


def fit(args: list[str], seeds: list[int] | None, test: bool) -> None:
    """Train, once or with several seeds; a run that is finished, or tested, is not so again.

    Parameters
    ----------
    args : list of str
        The command line, without ``--seeds`` and ``--test``.
    seeds : list of int, optional
        One run for each; one run as the configuration says when None.
    test : bool
        Whether to score the best checkpoint of each run on the test data.

    Raises
    ------
    ConfigError
        As :func:`moeapps.cli.trainer.run`; if there is nothing to test on, before anything is trained.
    """
    folders = []
    for seed in [None] if seeds is None else seeds:
        given = args if seed is None else [*args, "--seed_everything", str(seed)]
        with _as_command(given if seed is None else [*given, "--seeds", f"{seed},"]):
            folder = run(given, seed=seed, tested=test)
        if folder is None:
            continue
        folders.append(folder)
        result = RunResult.load(folder)
        if test and not result.is_evaluated("test"):
            if not result.checkpoint:
                raise ConfigError(f"--test: the run in {folder} has no checkpoint: leave checkpointing on")
            tested = _as_test(given, folder / result.checkpoint)
            with _as_command(tested):
                run(tested)
    if seeds is not None and folders:
        _print_scores(folders)


def _as_test(args: list[str], checkpoint: Path) -> list[str]:
    """The command line that tests a checkpoint of a training."""
    args, position = list(args), subcommand_position(args)
    assert position is not None
    args[position] = "test"
    take_option(args, "--ckpt_path")
    return [*args, "--ckpt_path", str(checkpoint)]


@contextmanager
def _as_command(args: list[str]) -> Iterator[None]:
    """While a training runs, let its further processes, which start the command anew, do only the same."""
    before = sys.argv
    sys.argv = [before[0], *args]
    try:
        yield
    finally:
        sys.argv = before


def _print_scores(folders: list[Path]) -> None:
    """Mean and standard deviation of every metric over the seeds."""
    columns: dict[str, dict[str, float | str]] = {"mean": {}, "sd": {}, "seeds": {}}
    for score in find_runs([str(folder) for folder in folders])[0].scores:
        values = [value for value in score.values if not math.isnan(value)]
        if values:
            columns["mean"][score.name] = statistics.fmean(values)
            columns["sd"][score.name] = statistics.stdev(values) if len(values) > 1 else ""
            columns["seeds"][score.name] = str(len(values))
    print_table("", columns)
    group = folders[0].parent
    print(f"runs: {group}")
    print(f"next: moeapps report {shlex.quote(str(group))} --table results.csv")
