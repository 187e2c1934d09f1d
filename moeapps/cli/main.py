"""The ``moeapps`` command. What answers at once is here; what imports torch is imported when it is asked for."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence

import moeapps
from moeapps import registry
from moeapps.cli import serve as serve_command
from moeapps.core.warnings import silence_warnings

__all__ = ["main"]

LIGHTNING = {
    "fit": "train a model from a YAML file",
    "validate": "score a checkpoint on the validation data",
    "test": "score a checkpoint on the test data",
    "predict": "write predictions of a checkpoint, or of a saved model (predict MODEL --input FILE), to a file",
}
DEMOS = ("tables", "graph", "stream", "recsys", "vision")
KINDS = {"models": "model", "routers": "router", "data": "data"}


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Arguments after ``moeapps``; those of the process when None.

    Returns:
        Exit status: 0 success, 1 something failed (data, files, training), 2 wrong usage or configuration, 143 or 130
        stopped by SIGTERM or SIGINT after saving.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    debug = _take_flag(arguments, "--debug") or bool(os.environ.get("MOEAPPS_DEBUG"))
    try:
        if arguments[:1] == ["predict"] and len(arguments) > 1 and not arguments[1].startswith("-"):
            return _predict_file(arguments[1:])
        if arguments and arguments[0] in LIGHTNING:
            return _run_lightning(arguments)
        return _run_light(arguments)
    except KeyboardInterrupt:
        return _say("stopped", 130)
    except Exception as error:
        if debug:
            raise
        return _report(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="moeapps",
        description="Mixture-of-experts models for graphs, streams, recommendation and images.",
        epilog="An error is one line; --debug (or MOEAPPS_DEBUG=1) shows where it came from.",
    )
    parser.add_argument("--version", action="version", version=f"moeapps {moeapps.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in LIGHTNING.items():
        commands.add_parser(name, help=summary, add_help=False)
    listing = commands.add_parser("list", help="list models, routers and data sets, one line each")
    listing.add_argument("kind", nargs="?", choices=list(KINDS), help="only this kind")
    demo = commands.add_parser("demo", help="train and compare on real data, without network, in about five minutes")
    demo.add_argument("part", nargs="?", choices=DEMOS, help="only this part")
    demo.add_argument("--output", default="moeapps-demo", help="folder for the report, results.json and pictures")
    demo.add_argument("--seeds", type=int, default=2, help="how often everything is trained")
    report = commands.add_parser("report", help="draw runs on one HTML page: scores, curves, what the experts did")
    report.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run (of fit, stream run, demo), or of runs")
    report.add_argument("--output", default="moeapps-report.html", help="file to write")
    report.add_argument("--title", default="", help="headline")
    serve = commands.add_parser("serve", help="answer requests over HTTP with a saved model")
    serve_command.add_arguments(serve)
    _add_stream(commands)
    return parser


def _add_stream(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    stream = commands.add_parser("stream", help="learn from a stream of events: files, standard input, Kafka")
    actions = stream.add_subparsers(dest="action", metavar="ACTION", required=True)
    run = actions.add_parser(
        "run",
        help="predict every event, then learn it",
        description="Predict every event, then learn it. Killed at any moment, the same command with --resume goes on "
        "where it was; SIGTERM saves and exits with 0.",
    )
    run.add_argument("--source", required=True, help="file.csv, file.parquet, file.ndjson, -, kafka://host:port/topic")
    run.add_argument("--target", required=True, help="field that holds the label")
    run.add_argument("--model", default="driftmoe", help="driftmoe, driftmoe-task, paper-data, paper-task, "
                     "driftmoe-regressor, or a saved model")  # fmt: skip
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="argument of the model")
    run.add_argument("--checkpoint", help="folder for model, position and rejects")
    run.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")
    run.add_argument("--every", type=int, default=10_000, help="events between two checkpoints")
    run.add_argument("--every-seconds", type=float, default=30.0, help="seconds between two checkpoints")
    run.add_argument("--metrics", help="CSV file of scores per window (default: in the checkpoint folder)")
    run.add_argument("--predictions", help=".csv or .ndjson file, or kafka://host:port/topic")
    run.add_argument("--rejects", help="file of events that could not be learned (default: in the checkpoint folder)")
    run.add_argument("--batch", type=int, default=256, help="events handled at once")
    run.add_argument("--window", type=int, default=1000, help="instances of a window")
    run.add_argument("--id", help="field that identifies an event: repeats are left out, labels may come late")
    run.add_argument("--id-window", type=int, default=10_000, help="ids that are remembered")
    run.add_argument("--pending", type=int, default=10_000, help="events that may wait for their label")
    run.add_argument("--limit", type=int, help="end after so many events")
    run.add_argument("--plain", action="store_true", help="lines instead of a live display")


def _run_light(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.command == "list":
        _list(options.kind)
        return 0
    silence_warnings()
    if options.command == "stream":
        from moeapps.cli.stream import run as run_stream

        return run_stream(options)
    if options.command == "report":
        from moeapps.report import write_report

        print(f"report: {write_report(options.runs, options.output, options.title)}")
        return 0
    if options.command == "serve":
        return serve_command.run(options)
    from moeapps.demo import run

    run(options.output, options.seeds, options.part)
    return 0


def _predict_file(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="moeapps predict", description="Predict the rows of a table of any size with a saved model."
    )
    parser.add_argument("model", help="file that model.save wrote")
    parser.add_argument("--input", required=True, help=".csv or .parquet file with the columns that the model knows")
    parser.add_argument("--output", required=True, help=".csv or .parquet file to write")
    parser.add_argument("--keep", default="", help="columns to copy beside the predictions, with commas")
    options = parser.parse_args(arguments)
    silence_warnings()
    from moeapps.core.tabledata.scoring import predict_file

    rows = predict_file(
        moeapps.load(options.model), options.input, options.output, [name for name in options.keep.split(",") if name]
    )
    print(f"predictions: {options.output} ({rows} rows)")
    return 0


def _run_lightning(arguments: list[str]) -> int:
    output = _take_option(arguments, "--output") if arguments[0] == "predict" else None
    silence_warnings()
    from moeapps.cli.training import run
    from moeapps.core.callbacks import Interrupted

    try:
        run(arguments, output)
    except Interrupted as stop:
        name = signal.Signals(stop.signum).name
        command = [*_without_option(arguments, "--ckpt_path"), "--ckpt_path", str(stop.checkpoint)]
        _say(f"stopped by {name}; continue with: moeapps {shlex.join(command)}", 0)
        return 128 + stop.signum
    return 0


def _list(kind: str | None) -> None:
    width = max(len(entry.alias or entry.path) for entry in registry.entries())
    for title, name in KINDS.items():
        if kind in (None, title):
            print(title)
            for entry in registry.entries(name):
                print(f"  {entry.alias or entry.path:<{width}}  {entry.summary}")


def _report(error: Exception) -> int:
    from moeapps.core.errors import ConfigError, MoEAppsError

    text = " ".join(str(error).split())
    if isinstance(error, MoEAppsError | OSError):
        return _say(f"error: {text}", 2 if isinstance(error, ConfigError) else 1)
    return _say(f"error: {type(error).__name__}: {text} (--debug shows where)", 1)


def _say(text: str, status: int) -> int:
    print(text, file=sys.stderr, flush=True)
    return status


def _take_flag(arguments: list[str], name: str) -> bool:
    found = name in arguments
    arguments[:] = [argument for argument in arguments if argument != name]
    return found


def _take_option(arguments: list[str], name: str) -> str | None:
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return arguments.pop(position).partition("=")[2]
        if argument == name and position + 1 < len(arguments):
            del arguments[position]
            return arguments.pop(position)
    return None


def _without_option(arguments: list[str], name: str) -> list[str]:
    rest = list(arguments)
    _take_option(rest, name)
    return rest
