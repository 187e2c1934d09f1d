"""``moeapps stream run``: the options; what they do is in :mod:`moeapps.cli.stream_job`."""

import argparse
from urllib.parse import urlencode

from moeapps.core.errors import ConfigError
from moeapps.core.warnings import silence_warnings

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "learn from a stream of events: files, standard input, Kafka"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    run = actions.add_parser(
        "run",
        help="predict every event, then learn it",
        description="Predict every event, then learn it. Killed at any moment, the same command with --resume "
        "continues where it was; SIGTERM saves and exits with 0. The exit status is 3 if no event could be used, and 4 "
        "after an alarm with --drift-exit.",
    )
    run.add_argument("--source", required=True, help="file.csv, file.parquet, file.ndjson, -, kafka://host:port/topic")
    run.add_argument("--target", required=True, help="field that holds the label")
    run.add_argument(
        "--model", default="driftmoe",
        help="driftmoe, driftmoe-task, paper-data, paper-task, driftmoe-regressor, or a saved model",
    )  # fmt: skip
    run.add_argument(
        "--seed", type=int, help="seed of a new model; the same seed gives the same predictions (default: 0)"
    )
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="argument of the model")
    run.add_argument(
        "--types",
        action="extend",
        nargs="+",
        default=[],
        metavar="COLUMN=TYPE",
        help="type of a column: text, category, number, time or bool (default: by the first 1,000 records of a CSV)",
    )
    run.add_argument(
        "--missing",
        action="append",
        default=[],
        metavar="TEXT,TEXT",
        help="further texts that mean a missing value, such as N/A,-",
    )
    run.add_argument("--checkpoint", help="folder for model, position and rejects; one run at a time uses it")
    run.add_argument("--resume", action="store_true", help="continue from the checkpoint, if there is one")
    run.add_argument(
        "--allow-change",
        action="store_true",
        help="with --resume: allow another source (read from its beginning), id, window, types or missing texts",
    )
    run.add_argument(
        "--replayed",
        action="store_true",
        help="with --resume: the pipe sends again what it had sent, which is skipped (default: nothing is skipped)",
    )
    run.add_argument(
        "--complete", action="store_true", help="the last line of the file counts also without a newline at its end"
    )
    run.add_argument(
        "--follow",
        action="store_true",
        help="wait at the end of a .csv or .ndjson file for what is added to it, also where it is rotated",
    )
    run.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="COLUMN,...",
        help="fields that are no features (default: none; the id never is one)",
    )
    run.add_argument(
        "--keep", action="append", default=[], metavar="COLUMN,...", help="fields to write beside each prediction"
    )
    run.add_argument("--time", metavar="COLUMN", help="field with the time of an event, for the metrics")
    run.add_argument(
        "--kafka-config",
        action="append",
        default=[],
        metavar="FILE|KEY=VALUE",
        help="settings of librdkafka, such as security.protocol=SASL_SSL, or a file of such lines",
    )
    run.add_argument(
        "--on-gap",
        choices=("error", "earliest", "latest"),
        default="error",
        help="where to go on if Kafka no longer has the events that come next (default: error)",
    )
    run.add_argument("--every", type=int, default=10_000, help="events between two checkpoints")
    run.add_argument("--every-seconds", type=float, default=30.0, help="seconds between two checkpoints")
    run.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that share the partitions of a Kafka topic, with a model and a folder for each partition; the "
        "same command may run on several machines (default: one process, one model)",
    )
    run.add_argument(
        "--group",
        metavar="NAME",
        help="consumer group of Kafka: its workers share the partitions (default: that of the address, if any)",
    )
    run.add_argument("--metrics", help="CSV file of scores per window (default: in the checkpoint folder)")
    run.add_argument("--predictions", help=".csv or .ndjson file, or kafka://host:port/topic")
    run.add_argument("--rejects", help="file of events that could not be learned (default: in the checkpoint folder)")
    run.add_argument(
        "--metric",
        action="append",
        default=[],
        metavar="NAME",
        help="further metric of river, total and windowed, such as MacroF1 or F1=LABEL; may be repeated",
    )
    run.add_argument(
        "--alarms", help=".csv or .ndjson file of drift alarms (default: alarms.ndjson in the checkpoint folder)"
    )
    run.add_argument(
        "--on-drift",
        metavar="COMMAND|URL",
        help="command that gets every drift alarm as JSON on standard input, or http(s) URL to which it is posted",
    )
    run.add_argument("--drift-exit", action="store_true", help="save and end with status 4 after a drift alarm")
    run.add_argument("--metrics-port", type=int, metavar="PORT", help="offer /metrics for Prometheus at this port")
    run.add_argument("--metrics-host", default="127.0.0.1", metavar="ADDRESS", help="address of --metrics-port")
    run.add_argument("--batch", type=int, default=256, help="events handled at once")
    run.add_argument("--window", type=int, default=1000, help="events per window of scores")
    run.add_argument("--id", help="field that identifies an event: repeats are left out, labels may come late")
    run.add_argument("--id-window", type=int, default=10_000, help="number of ids that are remembered")
    run.add_argument("--pending", type=int, default=10_000, help="events that may wait for their label")
    run.add_argument("--limit", type=int, help="stop after this number of events (default: at the end of the source)")
    run.add_argument("--plain", action="store_true", help="lines instead of a live display")


def run(options: argparse.Namespace) -> int:
    """Run the stream."""
    silence_warnings()
    _read_group(options)
    if options.workers is not None:
        from moeapps.cli.stream_group import run as run_group

        return run_group(options)
    from moeapps.cli.stream_job import run as run_job

    return run_job(options)


def _read_group(options: argparse.Namespace) -> None:
    """Let ``--group`` and ``?group=`` of the address be one.

    Raises
    ------
    ConfigError
        If they differ, or the source has no groups.
    """
    from moeapps.stream.io.kafka import parse_address

    source: str = options.source
    if not source.startswith("kafka://"):
        if options.group is not None:
            raise ConfigError(f"--group has no effect: {source} is not kafka://host:port/topic")
        return
    named = parse_address(source)[2].get("group")
    if None not in (named, options.group) and named != options.group:
        raise ConfigError(f"--group {options.group}: the address has ?group={named}; name one of them")
    if named is None and options.group is not None:
        options.source = f"{source}{'&' if '?' in source else '?'}{urlencode({'group': options.group})}"
    options.group = options.group or named
