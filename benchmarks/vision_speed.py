"""What experts cost: WideNet against a ViT of equal FLOPs, Switch-DiT against DiT, and a capacity in evaluation.

    python benchmarks/vision_speed.py [--device cpu] [--rounds 7] [--threads 1]

Both of a pair take turns in one process; a ratio is the median over the rounds, on CPU of processor seconds. Results
are written after every row. A ViT of equal FLOPs has MLPs as wide
as the two experts that a patch of WideNet uses (ratio 4 against 2). Steps are forward, loss, backward and AdamW; that
of Switch-DiT includes the prior loss, its matching every 100 steps is timed apart. Sampling is 4 steps of DDIM with
gates that are remembered. "capacity" is a WideNet trained on digits (3 seeds) that is then evaluated with
`eval_capacity_factor`.
"""

import json
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
from torch import nn

from moeapps.vision import DiffusionModule, ImageSpec, SwitchDiT, WideNetClassifier, load_images
from moeapps.vision.module import make_network

CLASSIFIERS: dict[str, dict[str, Any]] = {
    "8 x 8 pixels, 16 patches, width 64, 6 blocks, 256 images": {
        "shape": (1, 8, 8), "patch_size": 2, "embed_dim": 64, "depth": 6, "num_heads": 4, "images": 256,
    },
    "32 x 32 pixels, 64 patches, width 192, 6 blocks, 64 images": {
        "shape": (3, 32, 32), "patch_size": 4, "embed_dim": 192, "depth": 6, "num_heads": 3, "images": 64,
    },
}  # fmt: skip
GENERATORS: dict[str, dict[str, Any]] = {
    "8 x 8 pixels, 16 patches, width 64, 4 blocks, 64 images": {
        "shape": (1, 8, 8), "patch_size": 2, "dim": 64, "depth": 4, "num_heads": 4, "images": 64,
    },
    "32 x 32 pixels, 64 patches, width 192, 6 blocks, 32 images": {
        "shape": (3, 32, 32), "patch_size": 4, "dim": 192, "depth": 6, "num_heads": 3, "images": 32,
    },
    "32 x 32 pixels, 256 patches, width 384 (S), 4 blocks, 8 images": {
        "shape": (3, 32, 32), "patch_size": 2, "dim": 384, "depth": 4, "num_heads": 6, "images": 8,
    },
}  # fmt: skip


def timed(run: Callable[[], Any], device: str) -> float:
    """Seconds: of the processor on CPU, so that other programs do not count, else of the clock."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def compare(
    ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int, device: str, repeat: int
) -> dict[str, Any]:
    """Median seconds of both, and the median ratio ours / theirs."""
    for run in (ours, theirs):
        for _ in range(2):
            run()
    times = []
    for i in range(rounds):
        pair = [ours, theirs] if i % 2 == 0 else [theirs, ours]
        found = [timed(lambda run=run: [run() for _ in range(repeat)], device) / repeat for run in pair]
        times.append(found if i % 2 == 0 else found[::-1])
    array = np.array(times)
    return {
        "seconds": float(np.median(array[:, 0])),
        "rival": float(np.median(array[:, 1])),
        "ratio": float(np.median(array[:, 0] / array[:, 1])),
    }


def classifier_steps(sizes: dict[str, Any], device: str) -> dict[str, list[Callable[[], Any]]]:
    sizes = dict(sizes)
    shape, count = sizes.pop("shape"), sizes.pop("images")
    images, labels = torch.randn(count, *shape, device=device), torch.randint(10, (count,), device=device)
    networks = [
        make_network("widenet", shape, 10, mlp_ratio=2.0, **sizes).to(device),
        make_network("vit", shape, 10, mlp_ratio=4.0, **sizes).to(device),
    ]

    def predict(network: nn.Module) -> Callable[[], Any]:
        return lambda: torch.no_grad()(network.eval())(images)

    def train(network: nn.Module) -> Callable[[], Any]:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

        def step() -> None:
            loss = nn.functional.cross_entropy(network.train()(images), labels)
            if hasattr(network, "moe"):
                loss = loss + sum(network.moe.auxiliary_losses().values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    return {"predict": [predict(n) for n in networks], "train": [train(n) for n in networks]}


def generator_steps(sizes: dict[str, Any], device: str) -> dict[str, list[Callable[[], Any]]]:
    sizes = dict(sizes)
    shape, count = sizes.pop("shape"), sizes.pop("images")
    spec = ImageSpec(shape, tuple("0123456789"), (0.5,) * shape[0], (0.5,) * shape[0])
    batch = (torch.rand(count, *shape, device=device), torch.randint(10, (count,), device=device))
    modules = []
    for model in ("switch_dit", "dit"):
        module = DiffusionModule(model, options=sizes, learn_sigma=False, ema_decay=0.0)
        module.attach(spec)
        with torch.no_grad():  # away from the zeros of the initialisation
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.02)
        modules.append(module.to(device))
        module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]

    def train(module: DiffusionModule) -> Callable[[], Any]:
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)

        def step() -> None:
            module.train()
            loss = module.training_step(batch, 0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    def sample(module: DiffusionModule) -> Callable[[], Any]:
        return lambda: module.eval().sample(batch[1], steps=4)

    found = {"train": [train(m) for m in modules], "sample": [sample(m) for m in modules]}
    network = modules[0].network
    assert isinstance(network, SwitchDiT)
    assert modules[0].prior is not None
    found["match"] = [lambda: modules[0].prior.match(torch.no_grad()(network.gate_table)())]  # type: ignore[union-attr]
    return found


def capacities(seeds: int) -> list[dict[str, Any]]:
    train, test = load_images("digits")
    rows: dict[Any, list[tuple[float, float]]] = {}
    for seed in range(seeds):
        model = WideNetClassifier(
            embed_dim=64, depth=6, patch_size=2, max_epochs=30, validation_fraction=0, random_state=seed,
            accelerator="cpu",
        ).fit(train.images, train.labels)  # fmt: skip
        moe: Any = model.model_.network.moe  # type: ignore[union-attr]
        for factor in (None, 1.0, 0.75, 0.5, 0.25):
            times, accuracy = [], 0.0
            for _ in range(5):
                moe.eval_capacity_factor = None
                whole = timed(lambda model=model: model.predict(test.images), "cpu")
                moe.eval_capacity_factor = factor
                times.append(timed(lambda model=model: model.predict(test.images), "cpu") / whole)
                accuracy = float(model.score(test.images, test.labels))
            rows.setdefault(factor, []).append((accuracy, float(np.median(times))))
    return [
        {"factor": factor, "accuracy": [a for a, _ in found], "time": float(np.median([t for _, t in found]))}
        for factor, found in rows.items()
    ]


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "vision_speed.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = options.device
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    found: dict[str, Any] = {"machine": name, "threads": options.threads, "torch": torch.__version__}
    table = Table("what", "sizes", "ours, ms", "rival, ms", "time ours / rival", title=name)
    for title, cases, make in (
        ("WideNet | ViT of equal FLOPs", CLASSIFIERS, classifier_steps),
        ("Switch-DiT | DiT", GENERATORS, generator_steps),
    ):
        for sizes, arguments in cases.items():
            steps = make(arguments, device)
            rows = found.setdefault(title, {}).setdefault(sizes, {})
            for what, pair in steps.items():
                if what == "match":
                    rows[what] = {"seconds": float(np.median([timed(pair[0], device) for _ in range(5)]))}
                    table.add_row(f"{title}: {what}", sizes, f"{1000 * rows[what]['seconds']:.1f}", "", "")
                    continue
                rows[what] = row = compare(pair[0], pair[1], options.rounds, device, 1 if device == "cpu" else 20)
                table.add_row(
                    f"{title}: {what}", sizes, f"{1000 * row['seconds']:.1f}", f"{1000 * row['rival']:.1f}",
                    f"{row['ratio']:.2f}",
                )  # fmt: skip
                options.output.write_text(json.dumps(found, indent=1) + "\n")
    Console(width=150).print(table)
    found["capacity"] = capacities(3)
    table = Table("eval_capacity_factor", "accuracy", "time / without", title="WideNet on digits")
    for row in found["capacity"]:
        score = f"{np.mean(row['accuracy']):.4f} ± {np.std(row['accuracy']):.4f}"
        table.add_row(str(row["factor"]), score, f"{row['time']:.2f}")
    Console(width=100).print(table)
    options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
