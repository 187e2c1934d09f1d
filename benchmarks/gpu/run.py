"""GPU acceptance: everything that only a GPU can show, in one command of under eight minutes.

    python benchmarks/gpu/run.py                       # on a machine with a CUDA device
    python benchmarks/gpu/run.py --device cpu --small  # the same steps as a rehearsal

Four parts, each of which goes on when another fails:

1. ``tests``: those marked ``gpu``. Every router, backend and dtype against the CPU, no host synchronisation, compile,
   autocast, graph capture.
2. ``dispatch``: MoE layers beside a dense chain of equal FLOPs, and beside megablocks and scattermoe where installed.
3. ``models``: training steps of WideNet-B, Switch-DiT-S, HoME and Mowst beside a dense model of the same family.
4. ``configurations``: the examples on embedded data, two steps each with ``moeapps fit``; one of them with its weights
   divided by FSDP, whose checkpoint one process on the CPU then validates.

Needs no network and no data beyond what moeapps ships. Prints tables and writes one JSON file.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import dispatch
import models

ROOT = Path(__file__).parent.parent.parent
EMBEDDED = ("cora.yaml", "census.yaml", "digits.yaml")
"""Endings of the example configurations whose data comes with moeapps."""


def tests(device: str, small: bool) -> dict[str, Any]:
    """Run ``pytest -m gpu``: counts, and what failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "-m", "gpu",
                   "--junitxml", str(report), str(ROOT / "tests" / "core"), str(ROOT / "tests" / "graph")]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if not report.exists():
            raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
        suite = ET.parse(report).getroot()
    cases = list(suite.iter("testcase"))
    failed = {
        f"{case.get('classname')}::{case.get('name')}": str(bad.get("message"))[:300]
        for case in cases
        if (bad := case.find("failure") if case.find("failure") is not None else case.find("error")) is not None
    }
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"passed": len(cases) - len(failed) - skipped, "skipped": skipped, "failed": failed}


def configurations(device: str, small: bool) -> dict[str, Any]:
    """Two steps of ``moeapps fit`` with every example on embedded data: exit status and seconds."""
    configs = [path for path in sorted(ROOT.glob("examples/*/*.yaml")) if path.name.endswith(EMBEDDED)]
    jobs = {str(path.relative_to(ROOT)): partial(two_steps, path, device) for path in configs}
    jobs["weights divided, then read by one process"] = partial(divided_weights, device)
    with ThreadPoolExecutor(
        max(1, min(4, (os.cpu_count() or 1) // 4))
    ) as pool:  # they wait for imports most of the time
        return dict(zip(jobs, pool.map(lambda job: job(), jobs.values()), strict=True))


def two_steps(config: Path, device: str) -> dict[str, Any]:
    """Train two steps."""
    with tempfile.TemporaryDirectory() as folder:
        return moeapps(folder, *fit_arguments(config, device))


def divided_weights(device: str) -> dict[str, Any]:
    """Train two steps with FSDP (on a CPU, which torch's FSDP refuses, with DDP), and validate the checkpoint."""
    config = ROOT / "examples" / "recsys" / "home_census.yaml"
    strategy = ["--trainer.strategy", "fsdp" if device == "cuda" else "ddp"]
    with tempfile.TemporaryDirectory() as folder:
        trained = moeapps(folder, *fit_arguments(config, device), *strategy)
        if trained["status"]:
            return trained
        options = ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.limit_val_batches", "1"]
        read = moeapps(folder, "validate", "--config", str(config), "--ckpt_path", "last", *options)
    return {**read, "seconds": round(trained["seconds"] + read["seconds"], 1)}


def fit_arguments(config: Path, device: str) -> list[str]:
    """Arguments of a training of two steps."""
    return ["fit", "--config", str(config), "--trainer.accelerator", "gpu" if device == "cuda" else "cpu",
            "--trainer.devices", "1", "--trainer.max_epochs", "2", "--trainer.limit_train_batches", "1",
            "--trainer.limit_val_batches", "2", "--trainer.enable_progress_bar", "false"]  # fmt: skip


def moeapps(folder: str, *arguments: str) -> dict[str, Any]:
    """Run the command in a folder."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "moeapps", *arguments], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    result = {"status": done.returncode, "seconds": round(time.perf_counter() - began, 1)}
    return {**result, "error": done.stderr[-500:]} if done.returncode else result


PARTS: dict[str, Callable[[str, bool], Any]] = {
    "tests": tests,
    "dispatch": dispatch.measure,
    "models": models.measure,
    "configurations": configurations,
}


def show(name: str, result: Any) -> None:
    """Print one part's result."""
    print(f"\n=== {name} ({result['seconds']} s)")
    if "error" in result:
        print(result["error"])
    elif name == "dispatch":
        dispatch.show(result["result"])
    elif name == "models":
        models.show(result["result"])
    elif name == "tests":
        print("{passed} passed, {skipped} skipped, {failures} failed".format(
            **result["result"], failures=len(result["result"]["failed"])))  # fmt: skip
    else:
        for config, run in result["result"].items():
            print(f"{config:<44} {run['seconds']:>6.1f} s  {run.get('error') or 'ok'}")


def failures(report: dict[str, Any]) -> list[str]:
    """Names of what failed: parts, tests, models, configurations."""
    names = [part for part in PARTS if "error" in report.get(part, {})]
    results = {part: report[part]["result"] for part in PARTS if "result" in report.get(part, {})}
    names += list(results.get("tests", {}).get("failed", {}))
    names += [row["model"] for row in results.get("models", []) if "error" in row]
    names += [name for name, run in results.get("configurations", {}).items() if run["status"]]
    return names


def main() -> int:
    """Run the parts; exit status 1 if anything failed."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="sizes for a rehearsal")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--output", default="gpu.json", help="file to write")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: --device cpu --small rehearses the steps without one")
    machine = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    report: dict[str, Any] = {
        "machine": machine,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "command": "python benchmarks/gpu/run.py"
        + (" --device cpu" if options.device == "cpu" else "")
        + (" --small" if options.small else ""),
        "date": time.strftime("%Y-%m-%d"),
    }
    print(f"{machine}, torch {torch.__version__}")
    for name in options.parts:
        began = time.perf_counter()
        try:
            part = {"result": PARTS[name](options.device, options.small)}
        except Exception:
            part = {"error": traceback.format_exc(limit=4)}
        report[name] = {**part, "seconds": round(time.perf_counter() - began, 1)}
        show(name, report[name])
        Path(options.output).write_text(json.dumps(report, indent=1) + "\n")  # what is done is safe
    spent = sum(report[name]["seconds"] for name in options.parts)
    print(f"\n{spent:.0f} s in all; written: {options.output}")
    for name in (failed := failures(report)):
        print(f"FAILED: {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
