"""Every kind of task: our default untouched beside the best of its own parts and beside what a user would take instead.

    python benchmarks/defaults.py                       # the table out of what the other scripts have measured
    python benchmarks/defaults.py --run --data FOLDER   # first measure what no other script does and is missing
    python benchmarks/defaults.py --page                # write the tables into the pages, too

Most figures are those of other scripts: their files in benchmarks/results are read (``defaults_lines.py`` says which),
and the commit of each is noted. ``benchmarks/run_all.py`` runs those scripts. Only one thing is measured here: each
kind of expert of DriftMoEClassifier alone, on the first seed of the streams that ``stream_accuracy.py --parts`` leaves
out (``--data`` as there). What has been measured is kept.

"Best part" is the one of the default's own parts with the best mean on the very rows that are compared, "best rival"
that of the other models; nobody knows either beforehand, which is hard on the default. Gaps are paired by seed (or
split), ours minus theirs and turned so that more is better; a line is ahead or behind if the gap is beyond one standard
error. What was run on some of the default's seeds is compared on these; where that is one, any gap counts.
"""

import argparse
import functools
import json
import platform
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from command_line import script_parser
from defaults_lines import SOURCES, collect
from page_tables import write_tables
from stream_models import PARTS, evaluate
from stream_sets import STREAMS, available, load

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"
PAGES = (DOCS / "benchmarks.md", DOCS / "benchmarks/defaults.md")
KINDS_ALONE = {label: change for label, change in PARTS.items() if label.endswith(" alone")}
Line = dict[str, Any]
Gap = tuple[str, float, float]
"""Name of the other model, mean gap (more is better for ours), and its standard error (0 with one seed)."""


def results(name: str) -> dict[str, Any]:
    """What a benchmark has written."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


# --------------------------------------------------------------------------------------------------------- comparison


def gap(line: Line, name: str, other: dict[str, float]) -> Gap | None:
    """The default's gap to another model; None if they have no seed in common."""
    ours = line["ours"]
    if line["fixed"] and len(other) == 1:
        other = dict.fromkeys(ours, next(iter(other.values())))
    seeds = [seed for seed in ours if seed in other]
    if not seeds:
        return None
    gaps = np.array([(other[seed] - ours[seed]) * (1 if line["less"] else -1) for seed in seeds])
    return name, float(gaps.mean()), float(gaps.std(ddof=1) / len(gaps) ** 0.5) if len(gaps) > 1 else 0.0


def best(line: Line, of: str) -> Gap | None:
    """The gap to the best of ``of``, "parts" or "rivals"; None where none was run."""
    gaps = [found for name, scores in line[of].items() if (found := gap(line, name, scores))]
    return min(gaps, key=lambda found: found[1], default=None)


def verdict(found: Gap) -> str:
    """Ahead or behind by more than one standard error, or level."""
    _, mean, error = found
    return "ahead" if mean > error else "behind" if mean < -error else "level"


def count(lines: list[Line], of: str) -> dict[str, int]:
    """Number of lines by verdict."""
    found = [verdict(one) for line in lines if (one := best(line, of))]
    return {word: found.count(word) for word in ("ahead", "level", "behind")}


def kinds(lines: list[Line]) -> dict[tuple[str, str, str], list[Line]]:
    """Lines by task, model and metric."""
    found: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line["task"], line["model"], line["metric"]), []).append(line)
    return found


# ------------------------------------------------------------------------------------------------------------- tables


def shown(line: Line, values: list[float], sign: str = "", spread: float | None = None) -> str:
    """Mean ± spread; three digits for scores that are not shares."""
    digits, scale = (2 if line["scale"] == 100 else 4 if abs(np.mean(values)) < 1 and not sign else 3), line["scale"]
    text = f"{scale * np.mean(values):{sign}.{digits}f}"
    return f"{text} ± {scale * spread:.{digits}f}" if spread is not None and len(values) != 1 else text


def compared(line: Line, of: str) -> str:
    """Two cells: the best model with its score, and the gap with the number of standard errors."""
    found = best(line, of)
    if found is None:
        return "not run | "
    name, mean, error = found
    values = list(line[of][name].values())
    common = 1 if error == 0 else 2
    distance = f", {mean / error:+.1f} s.e." if error else "" if len(line["ours"]) == 1 else ", one seed"
    text = f"{shown(line, [mean] * common, '+', error)}{distance}"
    text = f"**{text}**" if verdict(found) == "behind" else text
    return f"{name} {shown(line, values, spread=float(np.std(values)))} | {text}"


def own_cells(line: Line) -> list[str]:
    """Cells of a line: data and score, number of seeds, the default's score."""
    values = list(line["ours"].values())
    name = f"{line['model']}: {line['data']}{' (seen)' if line['seen'] else ''}, {line['metric']}"
    return [name + (" ↓" if line["less"] else ""), str(len(values)), shown(line, values, spread=float(np.std(values)))]


def weaknesses(lines: list[Line], of: str) -> Iterator[str]:
    """The lines whose default is behind the best of ``of``, "parts" or "rivals"."""
    heading, column = {"rivals": ("a rival", "best rival"), "parts": ("a part of its own", "best part")}[of]
    yield f"| behind {heading} | seeds | default | {column} | gap |"
    yield "| --- | --- | --- | --- | --- |"
    for line in lines:
        if (found := best(line, of)) and verdict(found) == "behind":
            yield f"| {' | '.join([*own_cells(line), compared(line, of).replace('**', '')])} |"


def tables(found: dict[str, Any]) -> Iterator[str]:
    """The summary, the lines that are behind, and the table of all lines, as Markdown."""
    lines = found["lines"]
    yield "| task, default, score | lines | best part: ahead, level, behind | best rival: ahead, level, behind |"
    yield "| --- | --- | --- | --- |"
    for (task, model, metric), own in kinds(lines).items():
        cells = [", ".join(map(str, count(own, of).values())) for of in ("parts", "rivals")]
        cells = [cell if cell != "0, 0, 0" else "none" for cell in cells]
        yield f"| {task}: {model}, {metric} | {len(own)} | {' | '.join(cells)} |"
    totals = [", ".join(map(str, count(lines, of).values())) for of in ("parts", "rivals")]
    yield f"| all | {len(lines)} | {' | '.join(totals)} |"
    for of in ("rivals", "parts"):
        yield ""
        yield from weaknesses(lines, of)
    yield ""
    yield "| data, score | seeds | default | best part | gap | best rival | gap |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for own in kinds(lines).values():
        for line in own:
            cells = [*own_cells(line), compared(line, "parts")]
            cells += [compared(line, "rivals") if line["rivals"] else "none | "]
            yield f"| {' | '.join(cells)} |".replace("|  |", "| |")


# -------------------------------------------------------------------------------------------------- what is missing


def run(options: argparse.Namespace, own: dict[str, Any], keep: Callable[[], None]) -> None:
    """Measure what no other script does and is missing."""
    from moeapps.stream import DriftMoEClassifier

    names = [name for name in STREAMS if f"{name}, 0" not in results("stream_parts")["runs"]]
    missing = available(tuple(names), options.data)
    for name in (name for name in names if name not in missing):
        runs, stream = own["alone"].setdefault(f"{name}, 0", {}), None
        for label, change in KINDS_ALONE.items():
            if label not in runs:
                stream = stream or load(name, 0, options.n, options.data, options.cache)
                runs[label] = evaluate(DriftMoEClassifier(**change, seed=0), stream)
                print(f"{name}: {label} {runs[label]['accuracy']:.4f}", flush=True)
                keep()


@functools.cache
def origin(name: str) -> dict[str, str]:
    """Commit and date of the last change of a benchmark's results."""
    command = ["git", "log", "-1", "--format=%h %as", "--", str(RESULTS / f"{name}.json")]
    found = subprocess.run(command, cwd=RESULTS, capture_output=True, text=True, check=False).stdout.split()
    machine = results(name).get("machine") or results(name).get("processor") or ""
    return {"commit": found[0] if found else "", "date": found[1] if found else "", "machine": str(machine)}


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--run", action="store_true", help="measure what is missing first")
    parser.add_argument("--data", help="folder of Electricity, with --run")
    parser.add_argument("--n", type=int, default=100_000, help="instances of a synthetic stream")
    parser.add_argument("--cache", type=Path, default=Path("benchmarks/cache"))
    parser.add_argument("--page", action="store_true", help="write the tables into the pages")
    parser.add_argument("--output", type=Path, default=RESULTS / "defaults.json")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = json.loads(options.output.read_text()) if options.output.exists() else {}
    own = {"alone": found.get("runs", {}).get("alone", {})}

    def keep() -> None:
        found.update(
            runs=own,
            machine={"device": platform.machine(), "threads": 1, "python": platform.python_version()},
            sources={name: origin(name) for name in SOURCES},
            lines=collect(results, own),
        )
        options.output.write_text(json.dumps(found, indent=1) + "\n")

    if options.run:
        run(options, own, keep)
    keep()
    text = "\n".join(tables(found))
    print(text)
    if options.page:
        write_tables(PAGES, text)


if __name__ == "__main__":
    main()
