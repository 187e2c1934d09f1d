"""MoE backends and rival packages against a dense MLP chain and the machine's limit, in one process.

    python benchmarks/core_dispatch.py [--repeats 20] [--threads 2] [--device cuda] [--dtype bfloat16] [--rivals]
    python benchmarks/core_dispatch.py --measure     # the table by which the layer chooses its backend on the CPU

The yardstick is a dense d -> h -> d chain on k*N rows: what the experts compute, without any routing. A training step
is forward and backward, gradients of the input included; inference is a forward pass without gradients. Each cell is
the lower quartile of a candidate's times divided by that of the yardstick, all measured in turn, so that a machine that
slows down slows all. With one thread on the CPU times are those of the processor, which other processes lengthen least.
Memory is the peak of what is allocated during a training step, parameters' gradients included. ``auto`` is the layer's
default choice, named in brackets.

The limit (roofline) of a step is the larger of two times: its multiply-adds, those of the router included, at the dense
chain's rate, and the bytes that it must move at the rate at which large tensors are copied. A training step reads all
weights of the experts twice and writes their gradients, reads or writes tokens and outputs and their gradients
(5 N d numbers) and the first layer's outputs (2 k N h); inference reads the weights and 2 N d numbers.

With ``--rivals`` three packages from PyPI are measured too, with their default settings at the same N, d, E and as near
to h and k as they can be set (``pip install st-moe-pytorch mixture-of-experts soft-moe-pytorch``); they take one batch
of N tokens. st-moe-pytorch and mixture-of-experts always use two experts per token. A package that takes more than 5
times as long as the dense chain is measured once. ``--sizes`` measures some sizes and keeps the results of the others.

On CUDA the sizes are those of large layers.

``--measure`` times loop and padded product of even loads on a grid of sizes. Their ratio is how many rows, per real
row, padding may compute before the loop is faster; it prints the table for ``moeapps/core/backends.py``.
"""

import json
import os
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from command_line import script_parser
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from moeapps.core import MoE
from moeapps.core.backends import ROWS, Backend, choose_backend
from moeapps.core.buffers import kept_bytes
from moeapps.core.kernels import sorted_mlp

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
MEASURED = [(64, 128), (128, 512), (384, 1536)]  # d, h of the table
MEASURED_EXPERTS = (8, 64)
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


def clock() -> float:
    """Seconds: the processor's where one thread computes, else the wall's."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def training(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """One forward and backward pass, gradients of the input included."""

    def run() -> None:
        module.train()
        x.grad = None
        module.zero_grad(set_to_none=True)
        module(x).square().mean().backward()
        if x.is_cuda:
            torch.cuda.synchronize()

    return run


def inference(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """One forward pass in evaluation."""

    @torch.no_grad()
    def run() -> None:
        module.eval()
        module(x)
        if x.is_cuda:
            torch.cuda.synchronize()

    return run


def peak_memory(run: Callable[[], None], module: nn.Module, device: str) -> float:
    """Most MiB allocated at once during a pass, above what was allocated before it, and what is kept for gradients."""
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
    return (peak + kept_bytes(module.parameters())) / 2**20


def seconds(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Lower quartile of each candidate's times, all measured in turn; slow rivals once."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            if name in RIVALS and times[name] and times[name][0] > 5 * times["dense"][0]:
                continue
            start = clock()
            run()
            times[name].append(clock() - start)
    return {name: sorted(values)[len(values) // 4] for name, values in times.items()}


def copy_rate(device: str) -> float:
    """Bytes per second, read and written, of copying a large tensor."""
    source = torch.ones(2**26, device=device)
    target = torch.zeros_like(source)
    times = []
    for _ in range(10):
        start = clock()
        target.copy_(source)
        if source.is_cuda:
            torch.cuda.synchronize()
        times.append(clock() - start)
    return 2 * source.nbytes / sorted(times)[2]


def roofline(size: tuple[int, ...], dense: float, trains: bool, rate: float, itemsize: int) -> dict[str, float]:
    """Seconds that products and memory take at least; ``dense`` is the dense chain's time."""
    n, d, h, e, k = size
    products = 2 * k * n * d * h  # multiply-adds of a forward pass
    weights, tokens, inner = e * (2 * d * h + h + d), n * d, k * n * h
    moved = 3 * weights + 5 * tokens + 2 * inner if trains else weights + 2 * tokens
    return {"products": dense * (1 + n * d * e / products), "bytes": moved * itemsize / rate}


def measure(size: tuple[int, ...], repeats: int, device: str, dtype: torch.dtype, rivals: bool) -> dict[str, Any]:
    """One row of the table: training, inference and memory of all candidates."""
    n, d, h, e, k = size
    torch.manual_seed(0)

    def tokens(rows: int) -> Tensor:
        return torch.randn(rows, d, device=device, dtype=dtype, requires_grad=True)

    x = tokens(n)
    candidates = {"dense": (nn.Sequential(nn.Linear(d, h), nn.GELU(), nn.Linear(h, d)), tokens(k * n))}
    for backend in BACKENDS:
        torch.manual_seed(0)  # the same routing for all
        candidates[backend] = (MoE(d, e, k, h, backend=backend), x)
    if rivals:
        candidates |= {name: (Rival(name, *size), tokens(n)) for name in RIVALS}
    runs = {name: training(module.to(device, dtype), x) for name, (module, x) in candidates.items()}
    for name in ("dense", *BACKENDS):  # once before it counts
        runs[name]()
    memory = {name: peak_memory(run, candidates[name][0], device) for name, run in runs.items()}
    train = seconds(runs, repeats)
    layer = candidates["auto"][0]
    assert isinstance(layer, MoE)
    assert layer.last_routing is not None
    counts = layer.last_routing.counts
    on = torch.device(device)
    chosen = choose_backend(
        "auto", device=on, dtype=dtype, counts=None if on.type == "cuda" else counts, widths=(d, h, d)
    )
    runs = {name: inference(*candidate) for name, candidate in candidates.items()}
    for name in ("dense", *BACKENDS):
        runs[name]()
    infer = seconds(runs, repeats)
    rate = copy_rate(device)
    row = {
        "size": dict(zip("NdhEk", size, strict=True)),
        "dense_ms": 1e3 * train["dense"],
        "auto_is": chosen,
        "max_load": float(counts.max() / counts.double().mean()),
        "ratio": {name: train[name] / train["dense"] for name in runs if name != "dense"},
        "inference_dense_ms": 1e3 * infer["dense"],
        "inference_ratio": {name: infer[name] / infer["dense"] for name in runs if name != "dense"},
        "peak_mib": memory,
        "parameters_mib": sum(p.nbytes for p in layer.parameters()) / 2**20,
        "copy_gb_per_s": rate / 1e9,
    }
    for name, times, trains in (("roofline", train, True), ("inference_roofline", infer, False)):
        limits = roofline(size, times["dense"], trains, rate, dtype.itemsize)
        row[name] = {f"{key}_ms": 1e3 * value for key, value in limits.items()}
        row[name]["auto_times"] = times["auto"] / max(limits.values())
    return row


def even_load(rows: int, d: int, h: int, experts: int, backend: Backend) -> Callable[[], None]:
    """Forward and backward pass of the experts alone, each with the same number of rows."""
    torch.manual_seed(0)
    shapes = [(experts, d, h), (experts, h), (experts, h, d), (experts, d)]
    w1, b1, w2, b2 = (nn.Parameter(torch.randn(shape)) for shape in shapes)
    x, grad = torch.randn(experts * rows, d, requires_grad=True), torch.randn(experts * rows, d)
    offsets = torch.arange(0, experts * rows + 1, rows, dtype=torch.int32)

    def run() -> None:
        for tensor in (w1, b1, w2, b2, x):
            tensor.grad = None
        sorted_mlp(x, offsets, (w1, b1, w2, b2), "gelu", backend).backward(grad)

    return run


def measure_padding(repeats: int) -> list[dict[str, Any]]:
    """By d, h, E and rows per expert, what padding may cost: the loop's time over that of the padded product."""
    table = []
    for d, h in MEASURED:
        for experts in MEASURED_EXPERTS:
            pays = {}
            for rows in ROWS:
                runs = {name: even_load(rows, d, h, experts, name) for name in ("loop", "bmm", "grouped")}
                for run in runs.values():
                    run()
                times = seconds(runs, repeats)
                pays[rows] = {name: times["loop"] / times[name] for name in ("bmm", "grouped")}
            table.append({"d": d, "h": h, "E": experts, "pays": {r: round(v["bmm"], 2) for r, v in pays.items()}})
            table[-1]["grouped"] = {r: round(v["grouped"], 2) for r, v in pays.items()}
            print(f"    ({d}, {h}, {experts}): {tuple(table[-1]['pays'].values())},", flush=True)
    return table


def show(rows: list[dict[str, Any]], title: str) -> None:
    """Print times, limits and memory."""
    console = Console(width=170)
    names = list(rows[0]["ratio"])
    sizes = [", ".join(str(v) for v in row["size"].values()) for row in rows]
    for kind, limit, first in (
        ("ratio", "roofline", "dense_ms"),
        ("inference_ratio", "inference_roofline", "inference_dense_ms"),
    ):
        table = Table(title=f"time / dense time, {'training step' if kind == 'ratio' else 'inference'}, {title}")
        for column in (
            "N, d, h, E, k",
            "dense ms",
            *names,
            "products ms",
            "bytes ms",
            "auto / limit",
            "ahead of all rivals",
        ):
            table.add_column(column, justify="right")
        for size, row in zip(sizes, rows, strict=True):
            cells = {name: f"{row[kind][name]:.2f}" for name in names}
            cells["auto"] += f" ({row['auto_is']})"
            limits = (
                f"{row[limit]['products_ms']:.1f}",
                f"{row[limit]['bytes_ms']:.1f}",
                f"{row[limit]['auto_times']:.2f}",
            )
            behind = [name for name in RIVALS if row[kind].get(name, torch.inf) < row[kind]["auto"]]
            ahead = "behind " + ", ".join(behind) if behind else "yes" if RIVALS[0] in row[kind] else ""
            table.add_row(size, f"{row[first]:.1f}", *cells.values(), *limits, ahead)
        console.print(table)
    memory = Table(title="peak MiB of a training step, gradients included")
    for column in ("N, d, h, E, k", "dense", *names, "parameters"):
        memory.add_column(column, justify="right")
    for size, row in zip(sizes, rows, strict=True):
        peaks = [f"{row['peak_mib'][name]:.1f}" for name in ("dense", *names)]
        memory.add_row(size, *peaks, f"{row['parameters_mib']:.1f}")
    console.print(memory)


def main() -> None:
    """Measure and write the results."""
    parser = script_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, help="threads of the CPU; torch's own number when absent")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/core_dispatch.json"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--rivals", action="store_true")
    parser.add_argument("--measure", action="store_true", help="the table of backends, instead of the comparison")
    parser.add_argument("--sizes", help="which sizes, by number from 0, comma-separated; all when absent")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the rivals
    result = json.loads(options.output.read_text()) if options.output.exists() else {}
    about = {"torch": torch.__version__, "repeats": options.repeats, "date": time.strftime("%Y-%m-%d")}
    load = os.getloadavg()[0]
    if options.measure:
        result["padding"] = {"rows": measure_padding(options.repeats), "threads": torch.get_num_threads(), **about}
    else:
        dtype = getattr(torch, options.dtype)
        sizes = CUDA_SIZES if options.device == "cuda" else SIZES
        if options.sizes is not None:
            numbers = options.sizes.split(",")
            if not all(number.isdigit() and int(number) < len(sizes) for number in numbers):
                parser.error(
                    f"--sizes takes numbers from 0 to {len(sizes) - 1}, comma-separated, got {options.sizes!r}"
                )
            sizes = [sizes[int(number)] for number in numbers]
        known = {tuple(row["size"].values()): row for row in result.get("rows", [])} if options.sizes else {}
        for size in sizes:
            known[size] = measure(size, options.repeats, options.device, dtype, options.rivals)
            print(json.dumps(known[size]["ratio"]), flush=True)
        rows = [known[size] for size in sizes]
        show(rows, f"{options.device}, {options.dtype}, {torch.get_num_threads()} threads")
        cuda = options.device == "cuda"
        device = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
        threads = torch.get_num_threads()
        machine = {"device": device, "threads": threads, "load": round(max(load, os.getloadavg()[0]), 1)}
        clocked = "processor" if threads == 1 and not cuda else "wall"
        result |= {"rows": list(known.values()), "machine": machine, "dtype": options.dtype, "clock": clocked, **about}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
