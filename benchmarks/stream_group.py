"""Whether workers that share a topic learn every event exactly once when some are killed and others are added.

    python benchmarks/stream_group.py                   # 20 kills, 20 additions; needs "moeapps[kafka]"
    python benchmarks/stream_group.py --times 2         # a short look

`moeapps stream run --workers 2` learns four partitions of the mock cluster that librdkafka ships, while events come in.

- kill: the process that owns a random partition gets SIGKILL at a random moment. Its command starts it again.
- addition: at a random moment one more worker process joins, as of the same command on a second machine. When it has a
  partition it is asked to end at a random moment, and saves. So partitions move twice.

A disturbance is over when all events that were there have been learned and saved; the seconds until then are shown. In
the end the model, the scores and the predictions of each partition are compared with those of one process that has read
the partition on its own, and was never stopped: they have to be equal, bit for bit.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import confluent_kafka
import numpy as np
from command_line import script_parser
from rich.console import Console
from rich.table import Table

import moeapps
from moeapps.cli.main import make_parser
from moeapps.cli.stream_worker import Worker
from moeapps.stream import DriftMoEClassifier, group_scores, run_stream
from moeapps.stream.compiled.engine import tree_arrays
from moeapps.stream.group_scores import offsets_of
from moeapps.stream.ownership import OWNER

PARTITIONS = 4
SESSION = 4000
"""Milliseconds after which the group gives up a member; less than the mock cluster takes to begin a group hangs."""

PATIENCE = 300.0
"""Seconds that a disturbance may take."""

ROOT = Path(__file__).parents[1]


class Topic:
    """A topic of a mock cluster, into which a thread sends events."""

    def __init__(self, name: str, rate: float) -> None:
        self.name, self.rate = name, rate
        self.producer = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "ignored:1"})
        known = self.producer.list_topics(timeout=10).brokers
        self.address = next(f"kafka://{broker.host}:{broker.port}/{name}" for broker in known.values())
        self.sent = [0] * PARTITIONS
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _send(self) -> None:
        draw, number = np.random.default_rng(0), 0
        while not self._ended.wait(0.1):
            for _ in range(max(1, round(self.rate / 10))):
                x = draw.normal(size=3).round(4).tolist()
                label = int(x[0] + x[number // 5000 % 3] > 0)  # the concept changes
                event = {"a": x[0], "b": x[1], "c": x[2], "y": label, "id": number}
                self.producer.produce(self.name, json.dumps(event).encode(), partition=number % PARTITIONS)
                self.sent[number % PARTITIONS] += 1
                number += 1
            self.producer.flush(10)

    def end(self) -> None:
        """Send no more."""
        self._ended.set()
        self._thread.join()


def arguments(topic: Topic, folder: Path, workers: int) -> list[str]:
    """What a user writes."""
    return [
        "stream", "run",
        "--source", topic.address, "--group", "g", "--workers", str(workers), "--target", "y", "--id", "id",
        "--checkpoint", str(folder), "--predictions", "predictions.ndjson", "--set", "n_experts=3", "--seed", "1",
        "--every", "500", "--every-seconds", "1", "--metric", "MacroF1", "--plain",
        "--kafka-config", f"session.timeout.ms={SESSION}", "--kafka-config", "heartbeat.interval.ms=300",
    ]  # fmt: skip


def command(topic: Topic, folder: Path) -> subprocess.Popen[bytes]:
    """The command of a user."""
    return subprocess.Popen(
        [sys.executable, "-m", "moeapps", *arguments(topic, folder, 2)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )


def saved(folder: Path, wanted: list[int]) -> bool:
    """Whether everything up to these offsets is in the checkpoints."""
    return all(offsets_of(folder, partition) >= offset for partition, offset in enumerate(wanted))


def wait_for(what: Any, ended: Callable[[], bool]) -> float:
    """Seconds until something is so."""
    start = time.monotonic()
    while not what():
        if ended():
            raise SystemExit("the process has ended")
        if time.monotonic() - start > PATIENCE:
            raise SystemExit(f"not done in {PATIENCE:.0f} s")
        time.sleep(0.1)
    return time.monotonic() - start


def owners(folder: Path) -> dict[int, int]:
    """Process that owns each partition."""
    return {
        partition: json.loads((folder / f"partition-{partition}" / OWNER).read_bytes())["process"]
        for partition in range(PARTITIONS)
    }


def kill(topic: Topic, folder: Path, ended: Callable[[], bool], rng: random.Random) -> float:
    """Kill the owner of a random partition; seconds until its events are learned."""
    time.sleep(rng.random() * 3.0)
    os.kill(owners(folder)[rng.randrange(PARTITIONS)], signal.SIGKILL)
    wanted = list(topic.sent)
    return wait_for(lambda: saved(folder, wanted), ended)


def add(topic: Topic, folder: Path, ended: Callable[[], bool], rng: random.Random) -> float:
    """Add a worker, and take it away again; seconds until the events of both moments are learned."""
    time.sleep(rng.random() * 3.0)
    mine = set(owners(folder).values())
    options = make_parser().parse_args(arguments(topic, folder, 1))
    options.resume = True
    other = Worker(1, options, None)

    def gone() -> bool:
        other.receive()  # what it tells, so that the pipe does not fill
        return ended() or not other.process.is_alive()

    wait_for(lambda: set(owners(folder).values()) - mine, gone)
    wanted = list(topic.sent)
    took = wait_for(lambda: saved(folder, wanted), gone)
    time.sleep(rng.random() * 2.0)
    other.stop()
    wanted = list(topic.sent)
    if (why := other.why()) != "exit status 0":
        raise SystemExit(f"the worker that was added has ended with {why}")
    return took + wait_for(lambda: saved(folder, wanted), ended)


def compare(topic: Topic, folder: Path, alone: Path) -> dict[str, Any]:
    """What differs from one process per partition that was never stopped."""
    found: dict[str, Any] = {"events": sum(topic.sent), "learned": 0, "equal models": 0, "equal scores": 0}
    found |= {"equal predictions": 0, "partitions": PARTITIONS}
    for partition in range(PARTITIONS):
        own, place = folder / f"partition-{partition}", alone / f"partition-{partition}"
        run_stream(
            DriftMoEClassifier(seed=1, n_experts=3), f"{topic.address}?partition={partition}&stop=end", "y",
            checkpoint=place, id_field="id", predictions=str(place / "predictions.ndjson"), named_metrics=("MacroF1",),
        )  # fmt: skip
        mine, theirs = (moeapps.load(where / "stream.safetensors") for where in (own, place))
        arrays, others = tree_arrays(mine.model._engine), tree_arrays(theirs.model._engine)
        found["learned"] += mine.model.n_seen_
        found["equal models"] += all(np.array_equal(arrays[name], others[name], equal_nan=True) for name in others)
        found["equal scores"] += all(mine.run[name] == theirs.run[name] for name in ("scores", "named", "counts"))
        predictions = [where / "predictions.ndjson" for where in (own, place)]
        found["equal predictions"] += predictions[0].read_bytes() == predictions[1].read_bytes()
    merged = group_scores(folder).as_dict()
    found["equal merged scores"] = merged["scores"] == group_scores(alone).as_dict()["scores"]
    found["accuracy"] = merged["scores"]["accuracy"]
    return found


def measure(what: str, times: int, rate: float) -> dict[str, Any]:
    """Disturb a group so many times, and compare it."""
    topic, rng, disturb = Topic("events", rate), random.Random(what), {"kill": kill, "addition": add}[what]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "group"
        topic.start()
        process = command(topic, folder)

        def ended() -> bool:
            return process.poll() is not None

        try:
            wait_for(lambda: saved(folder, [1] * PARTITIONS), ended)
            seconds = []
            for _ in range(times):
                seconds.append(round(disturb(topic, folder, ended, rng), 1))
                print(f"{what} {len(seconds)} of {times}: {seconds[-1]} s, {sum(topic.sent):,} events", flush=True)
            topic.end()
            wait_for(lambda: saved(folder, topic.sent), ended)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE)
        return {"times": times, "seconds": seconds, **compare(topic, folder, Path(name) / "alone")}


def table(results: dict[str, Any]) -> Table:
    """What was compared."""
    shown = Table(title="2 workers, 4 partitions, against one process per partition that was never stopped")
    for column in ("disturbance", "times", "events sent", "learned", "equal models", "equal scores",
                   "equal predictions", "equal merged scores", "seconds until learned: median, most"):  # fmt: skip
        shown.add_column(column, justify="right")
    for what, found in results.items():
        of = f" of {found['partitions']}"
        shown.add_row(
            what, str(found["times"]), f"{found['events']:,}", f"{found['learned']:,}",
            f"{found['equal models']}{of}", f"{found['equal scores']}{of}", f"{found['equal predictions']}{of}",
            "yes" if found["equal merged scores"] else "no",
            f"{np.median(found['seconds']):.0f}, {max(found['seconds']):.0f}",
        )  # fmt: skip
    return shown


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--times", type=int, default=20, help="disturbances of each kind")
    parser.add_argument(
        "--rate", type=float, default=50.0, help="events per second; the mock cluster keeps about 5 MB of a partition"
    )
    parser.add_argument("--only", choices=("kill", "addition"), help="one kind")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/stream_group.json"))
    options = parser.parse_args()
    results: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    for what in ("kill", "addition") if options.only is None else (options.only,):
        results[what] = measure(what, options.times, options.rate)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(results, indent=1) + "\n")
    Console(width=160).print(table(results))


if __name__ == "__main__":
    main()
