"""Timing shared by the parts of the GPU acceptance."""

import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["kernel_share", "median_ms", "peak_mib"]


def median_ms(run: Callable[[], object], device: str, repeats: int = 20, warmup: int = 5) -> float:
    """Milliseconds of one run, the median of several; on CUDA between two events."""
    for _ in range(warmup):
        run()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            run()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            run()
            times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def peak_mib(run: Callable[[], object], device: str) -> float | None:
    """Most memory allocated during a run above what was allocated before it, in MiB; None without a GPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def kernel_share(run: Callable[[], object], device: str, steps: int = 5) -> float | None:
    """Part of the wall time of a step in which a kernel runs; None without a GPU. One stream is assumed."""
    if device != "cuda":
        return None
    run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        run()
    torch.cuda.synchronize()
    wall = time.perf_counter() - began
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:  # the profiler slows the host, not the kernels
        for _ in range(steps):
            run()
        torch.cuda.synchronize()
    busy = sum(event.self_device_time_total for event in profiler.key_averages()) * 1e-6
    return min(busy / wall, 1.0)
