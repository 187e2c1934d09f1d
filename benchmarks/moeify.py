"""Experts out of a trained dense network, and fine-tuning that trains a part of them, on CIFAR-10.

    python benchmarks/moeify.py [--parts grow tune] [--seeds 5] [--table] [--validate]

The images are JPEG copies of CIFAR-10 (figures do not compare to those of the lossless set in the third digit); a
timm ViT with patches of 8 x 8, width 64, 4 blocks, MLPs of twice the width, one thread, AdamW with a cosine schedule,
shifts and flips. The settings were chosen with ``--validate``, which holds 5,000 training images out and never sees a
test image.

- grow: trained dense on 4,000 images, then (a) trained on as it is, (b) turned into a mixture by ``moeify`` (copies of
  each MLP, all four blocks) and trained on, (c) turned into a mixture by ``init="split"``, whose two experts per token
  are as large as the MLP together, for the same epochs over the same images in the same order, from the same weights.
- tune: a mixture trained on classes 0 to 4 (600 images of each) learns classes 5 to 9 (300 images of each), by
  training everything, the experts that carry the new classes' load and the head (ESFT), low-rank experts and the head,
  or the head alone. The head has ten outputs. Training compares the five outputs of the new classes, so that those of
  the old ones are not trained; accuracy is that among the five classes of a task. "Forgotten" are the points that the
  old classes lose.

Results are kept after every training; what is there is not trained again.
"""

import copy
import json
import math
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import script_parser
from rich.console import Console
from rich.table import Table
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core import collect_losses, freeze_except, lora_experts, moeify, relevant_experts, update_routers
from moeapps.vision import load_images

OLD, NEW = tuple(range(5)), tuple(range(5, 10))
GROW = {"images": 4_000, "dense_epochs": 8, "more_epochs": 5, "lr": 2e-3, "more_lr": 2e-3}
EXPERTS = {"num_experts": 8, "top_k": 2, "every": 1, "init": "copy"}
TUNE = {"old": 600, "new": 300, "old_epochs": 6, "epochs": 6, "lr": 2e-3}
METHODS: dict[str, dict[str, Any]] = {
    "everything": {"lr": 2e-3},
    "relevant experts": {"lr": 5e-3},
    "low-rank experts": {"lr": 6e-3},
    "head alone": {"lr": 1e-2},
}
"""Each rate is the one, of two to four, with the best accuracy on new classes of the validation part."""

SHARE = 0.3
BATCH = 64


def vit() -> VisionTransformer:
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=4, num_heads=4, mlp_ratio=2.0, num_classes=10,
        global_pool="avg", class_token=False,
    )  # fmt: skip


def augmented(images: Tensor) -> Tensor:
    """Shifts of up to four pixels, and flips."""
    n = len(images)
    windows = F.pad(images, (4, 4, 4, 4)).unfold(2, 32, 1).unfold(3, 32, 1)
    down, right = torch.randint(9, (2, n))
    images = windows[torch.arange(n), :, down, right]
    return torch.where(torch.rand(n, 1, 1, 1) < 0.5, images.flip(3), images)


def fit(network: nn.Module, images: Tensor, labels: Tensor, epochs: int, lr: float, seed: int,
        classes: tuple[int, ...] = tuple(range(10))) -> float:  # fmt: skip
    """Train what is not frozen; the loss compares the outputs of these classes only. Returns seconds of CPU time."""
    start = time.process_time()
    torch.manual_seed(seed)
    parameters = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=lr
    )
    steps = epochs * (len(images) // BATCH)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: min(1.0, (s + 1) / warmup) * (0.5 + 0.5 * math.cos(math.pi * s / steps))
    )
    mixture = any(hasattr(m, "last_routing") for m in network.modules())
    own = torch.tensor(classes)
    network.train()
    step = 0
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            logits = network(augmented(images[rows]))[:, own]
            loss = F.cross_entropy(logits, labels[rows] - classes[0], label_smoothing=0.1)
            if mixture:
                loss = loss + collect_losses(network)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            step += 1
            if mixture:
                update_routers(network, step / steps)
    network.eval()
    return time.process_time() - start


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor, classes: tuple[int, ...] = tuple(range(10))) -> float:
    own = torch.tensor(classes)
    inside = torch.isin(labels, own)
    found = torch.cat([network(part)[:, own].argmax(1) for part in images[inside].split(500)])
    return float((found + classes[0] == labels[inside]).float().mean())


class Data:
    """Standardised images; of the training images the last 5,000 are the validation part."""

    def __init__(self, path: Path, validate: bool) -> None:
        train, test = load_images("cifar10", path)
        images, labels = tensors(train)
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(images)))
        self.images, self.labels = images[order[:-5000]], labels[order[:-5000]]
        held = order[-5000:]
        self.test_images, self.test_labels = (images[held], labels[held]) if validate else tensors(test)

    def subset(self, count: int, seed: int) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(np.random.default_rng(seed).permutation(len(self.images))[:count])
        return self.images[rows], self.labels[rows]

    def of_classes(self, classes: tuple[int, ...], each: int, seed: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng(seed)
        rows = [rng.permutation(torch.nonzero(self.labels == c)[:, 0].numpy())[:each] for c in classes]
        chosen = torch.from_numpy(np.concatenate(rows))
        return self.images[chosen], self.labels[chosen]


def tensors(part: Any) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(np.asarray(part.images))
    if images.shape[-1] == 3:
        images = images.permute(0, 3, 1, 2)
    labels = np.asarray(part.labels)
    codes = np.unique(labels, return_inverse=True)[1]
    return (images.float() / 255 - 0.47) / 0.25, torch.from_numpy(codes)


def grow(data: Data, seed: int, settings: dict[str, Any], experts: dict[str, Any]) -> dict[str, float]:
    """Accuracy of one network trained on densely and as a mixture."""
    images, labels = data.subset(settings["images"], seed)
    torch.manual_seed(seed)
    dense = vit()
    seconds = fit(dense, images, labels, settings["dense_epochs"], settings["lr"], seed)
    before = accuracy(dense, data.test_images, data.test_labels)
    torch.manual_seed(seed)
    mixture, _ = moeify(dense, **experts)
    split, _ = moeify(dense, **{**experts, "init": "split"})
    with torch.no_grad():
        some = data.test_images[:500]
        difference = max(float((grown(some) - dense(some)).abs().max()) for grown in (mixture, split))
    found = {"before": before, "difference": difference, "first_seconds": seconds}
    for name, network in (("dense", copy.deepcopy(dense)), ("mixture", mixture), ("split", split)):
        spent = fit(network, images, labels, settings["more_epochs"], settings["more_lr"], seed + 1000)
        found |= {
            name: accuracy(network, data.test_images, data.test_labels),
            f"{name}_seconds": spent,
            f"{name}_parameters": sum(p.numel() for p in network.parameters()),
        }
    return found


def prepare(network: nn.Module, method: str, images: Tensor) -> tuple[nn.Module, float, Callable[[], object]]:
    """A copy of which a part is trained, the share of that part, and what to call afterwards."""
    nothing: Callable[[], object] = lambda: None  # noqa: E731
    tuned = copy.deepcopy(network)
    if method == "relevant experts":
        chosen = relevant_experts(tuned, images[:500], share=SHARE)
        freezing = freeze_except(tuned, chosen, also="head")
        return tuned, freezing.share, freezing.undo
    if method == "low-rank experts":
        tuned, report = lora_experts(tuned, rank=8, num_experts=4, layers="blocks.*", also="head")
        return tuned, report.share, nothing
    if method == "head alone":
        freezing = freeze_except(tuned, also="head")
        return tuned, freezing.share, nothing
    return tuned, 1.0, nothing


def tune(data: Data, seed: int, settings: dict[str, Any], methods: dict[str, Any]) -> dict[str, Any]:
    """Accuracy on new and old classes of one mixture after each method."""
    torch.manual_seed(seed)
    mixture, _ = moeify(vit(), **{**EXPERTS, "init": "noise"})
    old = data.of_classes(OLD, settings["old"], seed)
    fit(mixture, *old, settings["old_epochs"], settings["lr"], seed, OLD)
    before = accuracy(mixture, data.test_images, data.test_labels, OLD)
    images, labels = data.of_classes(NEW, settings["new"], seed)
    found: dict[str, Any] = {"before": before}
    for method, own in methods.items():
        torch.manual_seed(seed)
        network, share, undo = prepare(mixture, method, images)
        seconds = fit(network, images, labels, settings["epochs"], own["lr"], seed + 1000, NEW)
        undo()
        after = accuracy(network, data.test_images, data.test_labels, OLD)
        found[method] = {
            "new": accuracy(network, data.test_images, data.test_labels, NEW),
            "forgotten": 100 * (before - after),
            "share": share,
            "seconds": seconds,
        }
    return found


def cell(values: list[float], digits: int = 4) -> str:
    """Mean and standard error."""
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{np.mean(values):.{digits}f} ± {error:.{digits}f}"


def show(found: dict[str, Any]) -> None:
    console = Console(width=110)
    if runs := list(found.get("grow", {}).values()):
        table = Table(
            "network", "top-1", "parameters", "CPU s", title=f"grow, {len(runs)} seeds, mean ± standard error"
        )
        table.add_row("before", cell([r["before"] for r in runs]), f"{runs[0]['dense_parameters']:,}", "")
        names = {"dense": "(a) trained on dense", "mixture": "(b) copies", "split": "(c) split"}
        for name, text in names.items():
            seconds = f"{np.mean([r[f'{name}_seconds'] for r in runs]):.0f}"
            table.add_row(text, cell([r[name] for r in runs]), f"{runs[0][f'{name}_parameters']:,}", seconds)
        for name, text in (("mixture", "(b) - (a), same seed"), ("split", "(c) - (a), same seed")):
            table.add_row(text, cell([r[name] - r["dense"] for r in runs]), "", "")
        console.print(table)
        console.print(f"largest difference of logits at step 0: {max(r['difference'] for r in runs):.1e}")
    if runs := list(found.get("tune", {}).values()):
        title = (
            f"tune, {len(runs)} seeds, mean ± standard error; old classes before {cell([r['before'] for r in runs])}"
        )
        table = Table("trained", "new classes", "points forgotten", "share trained", "CPU s", title=title)
        for method in METHODS:
            rows = [r[method] for r in runs if method in r]
            if rows:
                share, seconds = (np.mean([r[key] for r in rows]) for key in ("share", "seconds"))
                scores = cell([r["new"] for r in rows]), cell([r["forgotten"] for r in rows], 2)
                table.add_row(method, *scores, f"{share:.1%}", f"{seconds:.0f}")
        console.print(table)


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=["grow", "tune"], default=["grow", "tune"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--validate", action="store_true", help="score on held-out training images")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=JSON", help="other settings, for --validate")
    data_folder = Path(os.environ.get("MOEAPPS_DATA", "data"))
    parser.add_argument("--cifar10", type=Path, default=data_folder / "vision" / "cifar10-jpeg.tar.xz")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "moeify.json")
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {}
    if not options.table:
        if options.set and not options.validate:
            parser.error("--set is for --validate: the settings of the published figures stand in this file")
        changes = dict(entry.split("=", 1) for entry in options.set)
        changed = {name: json.loads(value) for name, value in changes.items()}
        take = lambda settings: {key: changed.get(key, value) for key, value in settings.items()}  # noqa: E731
        torch.set_num_threads(1)
        data = Data(options.cifar10, options.validate)
        found["machine"] = {"device": platform.processor() or platform.machine(), "threads": 1}
        for seed in range(options.seeds):
            for part in options.parts:
                runs = found.setdefault(part, {})
                if str(seed) in runs:
                    continue
                if part == "grow":
                    runs[str(seed)] = grow(data, seed, take(GROW), take(EXPERTS))
                else:
                    runs[str(seed)] = tune(data, seed, take(TUNE), METHODS)
                print(part, seed, json.dumps(runs[str(seed)]), flush=True)
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(found, indent=1) + "\n")
    show(found)


if __name__ == "__main__":
    main()
