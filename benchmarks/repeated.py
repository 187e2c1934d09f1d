"""Do committed results still hold? A part of each is measured again, and compared number by number.

``run_all.py --repeat`` calls the scripts with the arguments below, each into a file of its own, and compares what both
files have at the same place. Times, rates and memory are left out: they belong to a machine and a moment. The same
seeds give the same bits on the same kind of processor with the same packages; elsewhere trainings differ by rounding,
and a score by about its spread over seeds.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["REPEATS", "Comparison", "compare"]

REPEATS = {
    "mixtures": ("--tables wine,bananas,diabetes --splits 1 --output {output}",),
    "tabular_ablation": ("--sets concrete --seeds 1 --output {output}",),
    "table_outliers": ("--seeds 1 --output {output}",),
    "surgery": ("--seeds 1 --output {output}",),
    "graph_accuracy": ("--data Cora --seeds 1 --output {output}",),
    "graph_cost": ("--pictures {scratch} --output {output}",),
    "graph_tasks": ("links --seeds 1 --output {output}", "graphs --seeds 1 --output {output}"),
    "stream_accuracy": (
        "--streams sea_abrupt rbf_fast digits --models DriftMoE --seeds 1 --cache {scratch} --output {output}",
    ),
    "stream_regression": ("--seeds 1 --models DriftMoE --output {output}",),
    "recsys_ranking": ("--data {data}/recsys --sets sparse --seeds 1 --models DIN|AW-MoE|SASRec --output {output}",),
    "recsys_tasks": ("--data {data}/recsys --sets census --seeds 1 --models HoME --output {output}",),
    "recsys_diagnosis": ("--seeds 1 --output {output}",),
    "vision_accuracy": ("--sets digits --seeds 1 --models WideNet ViT --output {output}",),
    "vision_diffusion": ("--seeds 1 --epochs 100 --cifar-epochs 0 --cache {scratch} --output {output}",),
    "moeify": ("--parts grow --seeds 1 --cifar10 {data}/vision/cifar10-jpeg.tar.xz --output {output}",),
    "routers": ("--seeds 1 --output {output}",),
}
"""Arguments of a script that measure a part of its results as they were measured, within minutes. Scripts of times, of
memory and of reliability have no such part."""

_MACHINE = re.compile(
    r"^(s|fit|predict|cost|load|date|threads|seeds)$|(^|[ _])(seconds?|ms|mib|gib|bytes|memory|rss|times?|cpu)($|[ _])"
    r"|budget=",
    re.IGNORECASE,
)
"""Keys of what belongs to a machine. A budget is a share of measured seconds, so that what it chooses does, too."""


@dataclass(frozen=True)
class Comparison:
    """What a repetition found.

    Attributes
    ----------
    same, close : int
        Numbers equal to 6 digits, and those that differ by less than 1 % of the committed one.
    others : list of (str, committed, now)
        Every other number that both have, the largest relative difference first.
    """

    same: int
    close: int
    others: list[tuple[str, Any, Any]]

    def __str__(self) -> str:
        told = f"{self.same} the same, {self.close} within 1 %, {len(self.others)} further away"
        return "\n".join([told, *(f"    {place}: {then:.4g}, now {now:.4g}" for place, then, now in self.others[:5])])


def _pairs(then: Any, now: Any, place: str) -> Iterator[tuple[str, float, float]]:
    if isinstance(then, dict) and isinstance(now, dict):
        for key in then.keys() & now.keys():
            if not _MACHINE.search(key):
                yield from _pairs(then[key], now[key], f"{place}, {key}" if place else key)
    elif isinstance(then, list) and isinstance(now, list):
        for number, (one, other) in enumerate(zip(then, now, strict=False)):
            yield from _pairs(one, other, f"{place}, {number}")
    elif all(isinstance(value, int | float) for value in (then, now)):
        yield place, float(then), float(now)


def compare(then: Any, now: Any) -> Comparison:
    """Numbers that both results have at one place; lists are compared as far as the shorter one goes.

    Raises
    ------
    ValueError
        The two have no number in common.
    """
    same, close, others = 0, 0, []
    for place, one, other in _pairs(then, now, ""):
        gap = abs(one - other) / max(abs(one), 1e-12)
        if one == other or gap < 1e-6 or (one != one and other != other):
            same += 1
        elif gap < 0.01:
            close += 1
        else:
            others.append((gap, (place, one, other)))
    if not same + close + len(others):
        raise ValueError("the committed and the repeated results have no number in common")
    return Comparison(same, close, [entry for _, entry in sorted(others, key=lambda found: -found[0])])
