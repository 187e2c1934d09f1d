"""Dispatch backends against a dense MLP chain with the same multiply-adds, forward and backward, in one process.

    python benchmarks/core_dispatch.py [--repeats 20] [--output benchmarks/results/core_dispatch.json]

The yardstick is a dense d -> h -> d chain on k*N rows: what the experts compute, without any routing. Each cell is the
median time of a backend divided by the median time of the yardstick; the two are measured alternately, so that a
machine that slows down slows both. ``auto`` is the layer's default choice, named in brackets.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from moeapps.core import MoE
from moeapps.core.kernels import choose_backend

SIZES = [  # N, d, h, E, k
    (4096, 128, 512, 8, 2),
    (4096, 128, 512, 64, 2),
    (1024, 384, 1536, 8, 2),
    (1024, 384, 1536, 64, 2),
    (256, 64, 128, 16, 2),
    (16384, 64, 256, 16, 1),
]
BACKENDS = ("loop", "bmm", "grouped", "auto")


def step(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """One forward and backward pass, gradients of the input included."""

    def run() -> None:
        x.grad = None
        module.zero_grad(set_to_none=True)
        module(x).square().mean().backward()
        if x.is_cuda:
            torch.cuda.synchronize()

    return run


def measure(size: tuple[int, ...], repeats: int, device: str, dtype: torch.dtype) -> dict[str, object]:
    n, d, h, e, k = size
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(d, h), nn.GELU(), nn.Linear(h, d)).to(device, dtype)
    runs = {"dense": step(dense, torch.randn(k * n, d, device=device, dtype=dtype, requires_grad=True))}
    for backend in BACKENDS:
        layer = MoE(d, e, k, h, backend=backend).to(device, dtype)
        runs[backend] = step(layer, torch.randn(n, d, device=device, dtype=dtype, requires_grad=True))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    chosen = choose_backend(
        "auto", device=torch.device(device), dtype=dtype, rows=n * k, num_experts=e, widths=(d, h, d)
    )
    return {
        "size": dict(zip("NdhEk", size, strict=True)),
        "dense_ms": 1e3 * medians["dense"],
        "auto_is": chosen,
        "ratio": {name: medians[name] / medians["dense"] for name in BACKENDS},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/core_dispatch.json"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    rows = [measure(size, options.repeats, options.device, dtype) for size in SIZES]
    table = Table(title=f"time / dense time, forward + backward, {options.device}, {options.dtype}")
    table.add_column("N, d, h, E, k", no_wrap=True)
    for name in ("dense ms", *BACKENDS):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        ratio = row["ratio"]
        assert isinstance(ratio, dict)
        cells = [f"{ratio[name]:.2f}" for name in BACKENDS]
        cells[-1] += f" ({row['auto_is']})"
        table.add_row(", ".join(str(v) for v in row["size"].values()), f"{row['dense_ms']:.1f}", *cells)  # type: ignore[attr-defined]
    Console(width=100).print(table)
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    result = {
        "rows": rows,
        "machine": {"device": device, "threads": torch.get_num_threads()},
        "torch": torch.__version__,
        "dtype": options.dtype,
        "repeats": options.repeats,
        "date": time.strftime("%Y-%m-%d"),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
