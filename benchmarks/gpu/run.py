"""GPU acceptance: everything that only a GPU can show, in one command of under eight minutes.

    python benchmarks/gpu/run.py                       # on a machine with a CUDA device
    python benchmarks/gpu/run.py --device cpu --small  # the same steps as a rehearsal, in a minute

Four parts, each of which goes on when another fails: the tests marked ``gpu``; MoE layers beside a dense chain of equal
FLOPs; training steps of whole models; the example configurations, two steps each. Needs no network and no data beyond
what moeapps ships. Prints tables and writes JSON.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ET
from collections.abc import Callable
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
    results: dict[str, Any] = {}
    for config in sorted(ROOT.glob("examples/*/*.yaml")):
        if not config.name.endswith(EMBEDDED):
            continue
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "moeapps", "fit", "--config", str(config),
                       "--trainer.accelerator", "gpu" if device == "cuda" else "cpu", "--trainer.devices", "1",
                       "--trainer.max_steps", "2", "--trainer.enable_progress_bar", "false"]  # fmt: skip
            began = time.perf_counter()
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        name = str(config.relative_to(ROOT))
        results[name] = {"status": done.returncode, "seconds": round(time.perf_counter() - began, 1)}
        if done.returncode:
            results[name]["error"] = done.stderr[-500:]
    return results


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
    else:
        print(json.dumps(result["result"], indent=1))


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    print(f"\nwritten: {options.output}")
    for name in (failed := failures(report)):
        print(f"FAILED: {name}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
