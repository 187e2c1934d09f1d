"""WideNet against a ViT-MoE and a plain ViT of the same width and depth: top-1 against parameters.

    python benchmarks/vision_accuracy.py [--sets digits cifar10] [--seeds 5] [--models ViT ...] [--plot FILE]

Width 64, 6 blocks, 4 heads, experts (and MLPs) of twice the width, 4 experts, top-2; all epochs, no model is selected
by a score, one thread.

- digits: 1,797 images of 8 x 8 pixels, a quarter for testing (stratified, another one for each seed), patches of 2 x 2,
  30 epochs of batches of 32, rate 0.003, no augmentation.
- cifar10: 50,000 and 10,000 images, here JPEG copies of them (figures do not compare to those of the lossless set in
  the third digit), patches of 8 x 8, 10 epochs of batches of 128, rate 0.002, shifts and flips.

Results are kept after every training; what is there is not trained again. How fast they are is measured by
vision_speed.py.
"""

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from moeapps.vision import WideNetClassifier, load_images

MODELS: dict[str, dict[str, Any]] = {
    "ViT": {"model": "vit"},
    "ViT-MoE": {"model": "vit_moe"},
    "WideNet": {"model": "widenet"},
    "WideNet, Soft MoE": {"model": "widenet", "router": "soft"},
    "WideNet, norms shared": {"model": "widenet", "options": {"individual_norms": False}},
}
SETS: dict[str, dict[str, Any]] = {
    "digits": {"patch_size": 2, "max_epochs": 30, "batch_size": 32, "lr": 3e-3},
    "cifar10": {"patch_size": 8, "max_epochs": 10, "batch_size": 128, "lr": 2e-3, "augment": "shift_flip"},
}
COMPARED = {"digits": list(MODELS), "cifar10": ["ViT", "ViT-MoE", "WideNet"]}


def load(name: str, path: Path, seed: int) -> tuple[Any, Any, Any, Any]:
    if name == "digits":
        digits = load_digits()
        X, X_test, y, y_test = train_test_split(
            digits.images, digits.target, test_size=0.25, random_state=seed, stratify=digits.target
        )
        return X, y, X_test, y_test
    train, test = load_images("cifar10", path)
    return train.images, train.labels, test.images, test.labels


def run(name: str, model: str, seed: int, path: Path) -> dict[str, float]:
    X, y, X_test, y_test = load(name, path, seed)
    classifier = WideNetClassifier(
        embed_dim=64, depth=6, num_heads=4, mlp_ratio=2.0, validation_fraction=0, random_state=seed, accelerator="cpu",
        **{**SETS[name], **MODELS[model]},
    )  # fmt: skip
    classifier.fit(X, y)
    parameters = sum(parameter.numel() for parameter in classifier.model_.parameters())
    return {"accuracy": float(classifier.score(X_test, y_test)), "parameters": parameters}


def show(found: dict[str, Any]) -> None:
    for name, models in found["sets"].items():
        table = Table("model", "seeds", "top-1", "parameters", title=name)
        for model, runs in models.items():
            rows = list(runs.values())
            scores = [row["accuracy"] for row in rows]
            table.add_row(
                model,
                str(len(rows)),
                f"{np.mean(scores):.4f} ± {np.std(scores):.4f}",
                f"{rows[0]['parameters']:,}",
            )
        Console(width=110).print(table)


def plot(found: dict[str, Any], path: Path) -> None:
    sets = found["sets"]
    figure = Figure(figsize=(5.2 * len(sets), 3.6), layout="constrained")
    for axes, (name, models) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets.items(), strict=True):
        for model, runs in models.items():
            scores = [row["accuracy"] for row in runs.values()]
            parameters = next(iter(runs.values()))["parameters"] / 1000
            axes.errorbar(parameters, np.mean(scores), np.std(scores), marker="o", capsize=3, label=model)
        axes.set(title=name, xlabel="parameters (thousands)", ylabel="top-1 on test images")
        axes.grid(alpha=0.3)
    labelled = figure.axes[0].get_legend_handles_labels()
    figure.legend(*labelled, loc="outside lower center", ncols=len(labelled[1]), frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=["digits"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="only these")
    data = Path(os.environ.get("MOEAPPS_DATA", "data"))
    parser.add_argument("--cifar10", type=Path, default=data / "vision" / "cifar10-jpeg.tar.xz")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "vision_accuracy.json")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        for name in options.sets:
            for model in options.models or COMPARED[name]:
                found: dict[str, Any] = {"machine": platform.machine(), "torch": torch.__version__, "sets": {}}
                if options.output.exists():
                    found = json.loads(options.output.read_text())
                if str(seed) in found["sets"].get(name, {}).get(model, {}):
                    continue
                result = run(name, model, seed, options.cifar10)
                if options.output.exists():  # another process may have added to it
                    found = json.loads(options.output.read_text())
                found["sets"].setdefault(name, {}).setdefault(model, {})[str(seed)] = result
                options.output.write_text(json.dumps(found, indent=1) + "\n")
                print(name, model, seed, json.dumps(result), flush=True)
    found = json.loads(options.output.read_text())
    show(found)
    if options.plot is not None:
        plot(found, options.plot)


if __name__ == "__main__":
    main()
