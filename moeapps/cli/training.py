"""``moeapps fit``, ``validate``, ``test`` and ``predict``: the part that needs no Lightning."""

import shlex
import signal
import sys

from moeapps.cli import score
from moeapps.cli.arguments import SUMMARIES, subcommand, subcommand_position, take_option
from moeapps.core.errors import ConfigError, MoEAppsError
from moeapps.core.warnings import silence_warnings

__all__ = ["SUMMARIES", "run"]


def run(arguments: list[str]) -> int:
    """Run one of the subcommands.

    Parameters
    ----------
    arguments : list of str
        The command line.

    Returns
    -------
    int
        Exit status: 0, or 128 plus the number of the signal that stopped the training after it was saved.
    """
    if arguments[0] == "predict" and len(arguments) > 1 and not arguments[1].startswith("-"):
        return score.run_as_predict(arguments[1:])
    command = list(arguments)
    arguments = list(arguments)
    fitting = subcommand(arguments) == "fit"
    output = take_option(arguments, "--output") if subcommand(arguments) == "predict" else None
    engine = take_option(arguments, "--engine") if subcommand(arguments) == "fit" else None
    seeds = take_option(arguments, "--seeds") if fitting else None
    test = fitting and "--test" in arguments
    arguments = [argument for argument in arguments if not (test and argument == "--test")]
    silence_warnings()
    if engine not in (None, "local") and not _only_prints(arguments):
        if seeds is not None or test:
            option = "--seeds" if seeds is not None else "--test"
            raise ConfigError(
                f"{option}: a training by several workers is one run, which --engine {engine} does not test. Train "
                "with --seed_everything 0, 1, ... one after the other, and use moeapps test --ckpt_path for each"
            )
        return _with_engine(engine, arguments)
    if engine not in (None, "local"):
        take_option(arguments, "--workers")  # not an option of the Trainer's
    from moeapps.cli.seeds import fit, seeds_of
    from moeapps.cli.trainer import run as run_trainer
    from moeapps.core.callbacks import Interrupted
    from moeapps.core.distributed import peer_is_gone

    try:
        if fitting:
            fit(arguments, None if seeds is None else seeds_of(seeds), test)
        else:
            run_trainer(arguments, output)
    except Interrupted as stop:
        if seeds is None:
            take_option(command, "--ckpt_path")
            command += ["--ckpt_path", str(stop.checkpoint)]
        name = signal.Signals(stop.signum).name
        print(f"stopped by {name}; continue with: moeapps {shlex.join(command)}", file=sys.stderr, flush=True)
        return 128 + stop.signum
    except RuntimeError as error:
        if not peer_is_gone(error):
            raise
        raise MoEAppsError(
            "another process of this training has ended: what it said stands above, unless it was killed. "
            "--ckpt_path last goes on from the last checkpoint"
        ) from error
    return 0


def _only_prints(arguments: list[str]) -> bool:
    """Whether the command prints help or the configuration and ends: no cluster is started for that."""
    names = [argument.partition("=")[0] for argument in arguments if argument.startswith("-")]
    return any(name in ("-h", "--help", "--print_config") or name.endswith(".help") for name in names)


def _with_engine(engine: str, arguments: list[str]) -> int:
    from moeapps.scale import fit

    if engine != "ray":
        raise ConfigError(f"--engine must be local or ray, got {engine!r}")
    workers = take_option(arguments, "--workers") or "2"
    if not workers.isdigit():
        raise ConfigError(f"--workers must be a whole number, got {workers!r}")
    position = subcommand_position(arguments)
    assert position is not None
    fit([*arguments[:position], *arguments[position + 1 :]], workers=int(workers))
    return 0
