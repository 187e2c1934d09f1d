"""A training step of whole models beside a dense model of the same family: time, images or rows a second, idle time."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import timm
import torch
from timing import kernel_share, median_ms, peak_mib
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.graph import Mowst
from moeapps.graph.edges import Edges
from moeapps.graph.experts import node_expert
from moeapps.graph.networks import make_network
from moeapps.recsys import HoME, MMoE
from moeapps.vision import DiT, SwitchDiT

__all__ = ["measure", "show"]


def training_step(module: nn.Module, loss: Callable[[], Tensor], device: str) -> Callable[[], None]:
    """Forward, auxiliary losses, backward, AdamW; in bfloat16 where the device is a GPU."""
    optimizer = torch.optim.AdamW(module.parameters(), 1e-4, fused=device == "cuda")
    layers = [layer for layer in module.modules() if hasattr(layer, "auxiliary_losses")]

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16) if device == "cuda" else nullcontext():
            total = loss()
        for layer in layers:
            total = total + sum(layer.auxiliary_losses().values())
        total.backward()
        optimizer.step()

    return run


def images(device: str, small: bool) -> Iterator[tuple[str, nn.Module, Callable[[], Tensor], int]]:
    """WideNet-B beside ViT-B: 224 x 224 pixels, patches of 16."""
    batch, size, names = (2, 64, ("tiny", "tiny")) if small else (64, 224, ("base", "base"))
    x, y = torch.randn(batch, 3, size, size, device=device), torch.randint(1000, (batch,), device=device)
    for title, name in (("ViT-B", f"vit_{names[0]}_patch16_224"), ("WideNet-B", f"widenet_{names[1]}_patch16_224")):
        model = timm.create_model(name, num_classes=1000, img_size=size).to(device)
        yield title, model, lambda model=model: F.cross_entropy(model(x).float(), y), batch


def diffusion(device: str, small: bool) -> Iterator[tuple[str, nn.Module, Callable[[], Tensor], int]]:
    """Switch-DiT-S/2 beside DiT-S/2 on latents of 4 x 32 x 32."""
    batch, sizes = (
        (2, {"dim": 64, "depth": 2, "num_heads": 4}) if small else (128, {"dim": 384, "depth": 12, "num_heads": 6})
    )
    x, t = torch.randn(batch, 4, 32, 32, device=device), torch.randint(1000, (batch,), device=device)
    y = torch.randint(10, (batch,), device=device)
    for title, kind in (("DiT-S/2", DiT), ("Switch-DiT-S/2", SwitchDiT)):
        model = kind(img_size=32, in_chans=4, patch_size=2, num_classes=10, **sizes).to(device)
        yield title, model, lambda model=model: model(x, t, y).float().square().mean(), batch


def ranking(device: str, small: bool) -> Iterator[tuple[str, nn.Module, Callable[[], Tensor], int]]:
    """HoME beside MMoE: 8 tasks on rows of 512 embedded features."""
    batch, dim = (64, 32) if small else (16384, 512)
    x, y = torch.randn(batch, dim, device=device), torch.randint(2, (batch, 8), device=device).float()
    for title, model in (("MMoE", MMoE(dim, 8)), ("HoME", HoME(dim, 8))):
        model = model.to(device)
        yield title, model, lambda model=model: F.binary_cross_entropy_with_logits(model(x).float(), y), batch


def graphs(device: str, small: bool) -> Iterator[tuple[str, nn.Module, Callable[[], Tensor], int]]:
    """Mowst with a GCN beside that GCN alone, on a random graph in full batch."""
    nodes, links, hidden = (1000, 5000, 16) if small else (200_000, 4_000_000, 256)
    x, y = torch.randn(nodes, 100, device=device), torch.randint(40, (nodes,), device=device)
    edges = Edges(torch.randint(nodes, (2, links)), None, nodes).to(torch.device(device))
    alone = make_network("gcn", 100, 40, hidden_channels=hidden, num_layers=2, dropout=0.5, norm="batch_norm").to(
        device
    )
    yield "GCN", alone, lambda: F.cross_entropy(node_expert(alone).run(x, edges).float(), y), nodes
    mixed = Mowst(100, 40, hidden_channels=hidden).to(device)
    yield "Mowst (MLP + GCN)", mixed, lambda: F.nll_loss(mixed(x, edges).log_probs.float(), y), nodes


def measure(device: str, small: bool) -> list[dict[str, Any]]:
    """Milliseconds a step, samples a second, peak memory, and the part of the time in which kernels run."""
    rows = []
    repeats, warmup = (2, 1) if small else (10, 5)
    for family in (images, diffusion, ranking, graphs):
        dense = None
        for title, model, loss, batch in family(device, small):
            torch.manual_seed(0)
            model.train()
            row: dict[str, Any] = {"model": title, "batch": batch}
            try:
                run = training_step(model, loss, device)
                row["ms"] = median_ms(run, device, repeats, warmup)
                row |= {"peak_mib": peak_mib(run, device), "kernel_share": kernel_share(run, device)}
                row["per_second"] = batch / row["ms"] * 1e3
                dense = row["ms"] if dense is None else dense
                row["times_dense"] = row["ms"] / dense
            except (RuntimeError, ValueError) as error:
                row["error"] = f"{type(error).__name__}: {error}"[:300]
            rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    print(
        f"{'model':<20} {'batch':>7} {'ms a step':>9} {'samples/s':>12} {'x dense':>8} {'kernels':>8} {'peak MiB':>9}"
    )
    for r in rows:
        if "error" in r:
            print(f"{r['model']:<20} {r['error']}")
            continue
        share = "-" if r["kernel_share"] is None else f"{r['kernel_share']:.0%}"
        memory = "-" if r["peak_mib"] is None else f"{r['peak_mib']:.0f}"
        print(f"{r['model']:<20} {r['batch']:>7} {r['ms']:>9.2f} {r['per_second']:>12,.0f} {r['times_dense']:>8.2f} "
              f"{share:>8} {memory:>9}")  # fmt: skip
