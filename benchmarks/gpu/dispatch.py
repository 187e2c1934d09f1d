"""A training step of one MoE layer beside a dense two-layer network of equal FLOPs on equally many rows, bfloat16.

Layers of other packages are measured beside it where they are installed (:mod:`rivals`).
"""

from importlib.util import find_spec
from typing import Any

import torch
from rivals import RIVALS
from timing import median_ms, peak_mib
from torch import Tensor, nn

from moeapps.core import MoE

__all__ = ["measure", "show"]

# (tokens N, k, width d, hidden h, experts E); N k = 32,768 rows
SIZES = [
    (16384, 2, 1024, 4096, 8),
    (16384, 2, 1024, 4096, 64),
    (16384, 2, 2048, 8192, 8),
    (16384, 2, 2048, 8192, 64),
    (16384, 2, 4096, 14336, 8),
    (4096, 8, 4096, 14336, 64),
]
SMALL = [(256, 2, 64, 256, 4), (256, 2, 64, 256, 16)]


def step(module: nn.Module, x: Tensor) -> Any:
    """Forward and backward pass, gradients of the input included."""

    def run() -> None:
        x.grad = None
        module.zero_grad(set_to_none=True)
        module(x).float().square().mean().backward()

    return run


def measure(device: str, small: bool) -> list[dict[str, Any]]:
    """Milliseconds and peak memory per size, for the dense network and the layer, plain and compiled."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows = []
    repeats, warmup = (2, 1) if small else (20, 5)
    for n, k, d, h, e in SMALL if small else SIZES:
        torch.manual_seed(0)
        flops = 3 * 2 * 2 * n * k * d * h  # forward once, backward twice; two layers

        def tokens(count: int, width: int = d) -> Tensor:
            return torch.randn(count, width, device=device, dtype=dtype, requires_grad=True)

        dense = nn.Sequential(nn.Linear(d, h), nn.GELU(), nn.Linear(h, d)).to(device, dtype)
        run = step(dense, tokens(n * k))
        row: dict[str, Any] = {"tokens": n, "k": k, "d": d, "h": h, "experts": e}
        row["dense_ms"], row["dense_mib"] = median_ms(run, device, repeats, warmup), peak_mib(run, device)
        del dense, run
        layer = MoE(d, e, k, h).to(device, dtype)
        run = step(layer, tokens(n))
        row["moe_ms"], row["moe_mib"] = median_ms(run, device, repeats, warmup), peak_mib(run, device)
        load = layer.last_routing.counts.float() if layer.last_routing is not None else torch.zeros(1)
        row["largest_load"] = float(load.max() / load.mean())
        if device == "cuda":
            torch._dynamo.reset()
            compiled = step(torch.compile(layer), tokens(n))
            row["compiled_ms"] = median_ms(compiled, device, repeats, warmup)
            del compiled
        row |= {"dense_tflops": flops / row["dense_ms"] / 1e9, "moe_tflops": flops / row["moe_ms"] / 1e9}
        row["share_of_dense"] = row["dense_ms"] / row["moe_ms"]
        if "compiled_ms" in row:
            row["compiled_share_of_dense"] = row["dense_ms"] / row["compiled_ms"]
        for name, make in RIVALS.items():
            if find_spec(name) is not None:
                row[name] = measure_rival(
                    make, (d, h, e, k), tokens(n), device, (repeats, warmup), dense_ms=row["dense_ms"]
                )
        rows.append(row)
        del layer, run
        if device == "cuda":
            torch.cuda.empty_cache()
    return rows


def measure_rival(
    make: Any, sizes: tuple[int, ...], x: Tensor, device: str, runs: tuple[int, int], dense_ms: float
) -> dict[str, Any]:
    """Milliseconds, peak memory and part of the dense throughput of another package's layer, or why there are none."""
    try:
        run = step(make(*sizes).to(device, x.dtype), x)
        ms = median_ms(run, device, *runs)
        return {"ms": ms, "mib": peak_mib(run, device), "share_of_dense": dense_ms / ms}
    except Exception as error:  # whatever another package does must not end the acceptance
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(f"{'N k':>6} {'d':>5} {'h':>6} {'E':>3} {'dense ms':>9} {'TFLOP/s':>8} {'MoE ms':>9} {'TFLOP/s':>8} "
          f"{'of dense':>8} {'compiled':>8} {'peak MiB':>9} {'dense':>8}")  # fmt: skip
    for r in rows:
        memory = "-" if r["moe_mib"] is None else f"{r['moe_mib']:.0f}"
        dense = "-" if r["dense_mib"] is None else f"{r['dense_mib']:.0f}"
        compiled = f"{r['compiled_share_of_dense']:.2f}" if "compiled_ms" in r else "-"
        print(f"{r['tokens'] * r['k']:>6} {r['d']:>5} {r['h']:>6} {r['experts']:>3} {r['dense_ms']:>9.2f} "
              f"{r['dense_tflops']:>8.1f} {r['moe_ms']:>9.2f} {r['moe_tflops']:>8.1f} {r['share_of_dense']:>8.2f} "
              f"{compiled:>8} {memory:>9} {dense:>8}")  # fmt: skip
        for name in RIVALS:
            if found := r.get(name):
                print(f"{name:>26}: {found.get('error') or format_rival(found)}")
    missing = [name for name in RIVALS if not any(name in r for r in rows)]
    if missing:
        print(f"not installed, so not compared: {', '.join(missing)}")


def format_rival(found: dict[str, Any]) -> str:
    """One line of another package's layer."""
    memory = "-" if found["mib"] is None else f"{found['mib']:.0f}"
    return f"{found['ms']:.2f} ms, {found['share_of_dense']:.2f} of dense, peak {memory} MiB"
