"""MoE backends and rival packages against a dense MLP chain with the same multiply-adds, in one process.

    python benchmarks/core_dispatch.py [--repeats 20] [--device cuda] [--dtype bfloat16] [--rivals]

The yardstick is a dense d -> h -> d chain on k*N rows: what the experts compute, without any routing. Time is forward
and backward, gradients of the input included; each cell is the median of a candidate divided by the median of the
yardstick, all measured in turn, so that a machine that slows down slows all. Memory is the peak of what is allocated
during that pass, parameters' gradients included. ``auto`` is the layer's default choice, named in brackets.

With ``--rivals`` three packages from PyPI are measured too, with their default settings at the same N, d, E and as near
to h and k as they can be set (``pip install st-moe-pytorch mixture-of-experts soft-moe-pytorch``); they take one batch
of N tokens. st-moe-pytorch and mixture-of-experts always use two experts per token.

On CUDA the sizes are those of large layers, and the table also says which part of the dense chain's throughput is
reached.
"""

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

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
CUDA_SIZES = [
    (16384, 1024, 4096, 8, 2),
    (16384, 1024, 4096, 64, 2),
    (32768, 2048, 8192, 16, 2),
]
BACKENDS = ("loop", "bmm", "grouped", "auto")
RIVALS = ("st-moe-pytorch", "mixture-of-experts", "soft-moe-pytorch")


class Rival(nn.Module):
    """A package's layer with its own call."""

    def __init__(self, name: str, n: int, d: int, h: int, e: int, k: int) -> None:
        super().__init__()
        if name == "st-moe-pytorch":
            from st_moe_pytorch import MoE as Layer

            self.layer = Layer(dim=d, num_experts=e, expert_hidden_mult=h // d, gating_top_n=max(k, 2))
        elif name == "mixture-of-experts":
            from mixture_of_experts import MoE as Layer

            self.layer = Layer(dim=d, num_experts=e, hidden_dim=h)
        else:
            from soft_moe_pytorch import SoftMoE as Layer

            self.layer = Layer(dim=d, seq_len=k * n, num_experts=e, expert_mult=h // d)  # k N slots

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, d)`` to ``(1, N, d)``: one batch of N tokens."""
        out: Any = self.layer(x[None])
        return out if isinstance(out, Tensor) else out[0]


def step(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """One forward and backward pass, gradients of the input included."""

    def run() -> None:
        x.grad = None
        module.zero_grad(set_to_none=True)
        module(x).square().mean().backward()
        if x.is_cuda:
            torch.cuda.synchronize()

    return run


def peak_memory(run: Callable[[], None], device: str) -> float:
    """Most MiB allocated at once during a pass, above what was allocated before it."""
    run()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak / 2**20


def measure(size: tuple[int, ...], repeats: int, device: str, dtype: torch.dtype, rivals: bool) -> dict[str, Any]:
    n, d, h, e, k = size
    torch.manual_seed(0)

    def tokens(rows: int) -> Tensor:
        return torch.randn(rows, d, device=device, dtype=dtype, requires_grad=True)

    def released(module: nn.Module) -> nn.Module:
        return module.to(device, dtype)

    dense = nn.Sequential(nn.Linear(d, h), nn.GELU(), nn.Linear(h, d))
    runs = {"dense": step(released(dense), tokens(k * n))}
    layers = {}
    x = tokens(n)
    for backend in BACKENDS:
        torch.manual_seed(0)  # the same routing for all
        layers[backend] = MoE(d, e, k, h, backend=backend)
        runs[backend] = step(released(layers[backend]), x)
    if rivals:
        for name in RIVALS:
            runs[name] = step(released(Rival(name, *size)), tokens(n))
    memory = {name: peak_memory(run, device) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            if name in RIVALS and len(times[name]) >= max(3, repeats // 4):
                continue
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    routing = layers["auto"].last_routing
    assert routing is not None
    chosen = choose_backend(
        "auto",
        device=torch.device(device),
        dtype=dtype,
        counts=None if device == "cuda" else routing.counts,
        widths=(d, h, d),
    )
    return {
        "size": dict(zip("NdhEk", size, strict=True)),
        "dense_ms": 1e3 * medians["dense"],
        "auto_is": chosen,
        "max_load": float(routing.counts.max() / routing.counts.double().mean()),
        "ratio": {name: medians[name] / medians["dense"] for name in runs if name != "dense"},
        "peak_mib": memory,
        "parameters_mib": sum(p.numel() * p.element_size() for p in layers["auto"].parameters()) / 2**20,
    }


def show(rows: list[dict[str, Any]], title: str) -> None:
    console = Console(width=150)
    names = list(rows[0]["ratio"])
    table = Table(title=f"time / dense time, {title}")
    memory = Table(title="peak MiB of a pass, gradients included")
    for each, first in ((table, "dense ms"), (memory, "dense")):
        each.add_column("N, d, h, E, k", no_wrap=True)
        for name in (first, *names):
            each.add_column(name, justify="right")
    memory.add_column("parameters", justify="right")
    for row in rows:
        size = ", ".join(str(v) for v in row["size"].values())
        cells = {name: f"{row['ratio'][name]:.2f}" for name in names}
        cells["auto"] += f" ({row['auto_is']})"
        table.add_row(size, f"{row['dense_ms']:.1f}", *cells.values())
        peaks = [f"{row['peak_mib'][name]:.1f}" for name in ("dense", *names)]
        memory.add_row(size, *peaks, f"{row['parameters_mib']:.1f}")
    console.print(table)
    console.print(memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/core_dispatch.json"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--sizes", help="which sizes, by number from 0, comma-separated; all when absent")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the rivals
    dtype = getattr(torch, options.dtype)
    sizes = CUDA_SIZES if options.device == "cuda" else SIZES
    if options.sizes is not None:
        sizes = [sizes[int(index)] for index in options.sizes.split(",")]
    rows = []
    for size in sizes:
        rows.append(measure(size, options.repeats, options.device, dtype, options.rivals))
        print(json.dumps(rows[-1]["ratio"]), flush=True)
    show(rows, f"forward + backward, {options.device}, {options.dtype}")
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
