"""WideNet against a ViT-MoE and a plain ViT of the same width and depth on scikit-learn's digits.

    python benchmarks/vision_accuracy.py [--seeds 5] [--epochs 30]

1,797 images of 8 x 8 pixels, a quarter for testing (stratified, another one for each seed), patches of 2 x 2, width 64,
4 blocks, no augmentation, all epochs, no model is selected by a score. Seconds are those of training on one thread,
images per second those of predicting the test images. Results are kept after every training.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from moeapps.vision import WideNetClassifier

MODELS: dict[str, dict[str, Any]] = {
    "ViT": {"model": "vit"},
    "ViT-MoE": {"model": "vit_moe"},
    "WideNet": {"model": "widenet"},
    "WideNet, Soft MoE": {"model": "widenet", "router": "soft"},
    "WideNet, norms shared": {"model": "widenet", "options": {"individual_norms": False}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "vision_accuracy.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_digits()
    found: dict[str, Any] = {"machine": platform.machine(), "torch": torch.__version__, "runs": {}}
    if options.output.exists():
        found["runs"] = json.loads(options.output.read_text())["runs"]
    for seed in range(options.seeds):
        X, X_test, y, y_test = train_test_split(
            digits.images, digits.target, test_size=0.25, random_state=seed, stratify=digits.target
        )
        for name, arguments in MODELS.items():
            runs = found["runs"].setdefault(name, {})
            if str(seed) in runs:
                continue
            model = WideNetClassifier(
                embed_dim=64, depth=4, patch_size=2, max_epochs=options.epochs, validation_fraction=0,
                random_state=seed, accelerator="cpu", **arguments,
            )  # fmt: skip
            start = time.perf_counter()
            model.fit(X, y)
            middle = time.perf_counter()
            accuracy = float(model.score(X_test, y_test))
            runs[str(seed)] = {
                "accuracy": accuracy,
                "parameters": sum(parameter.numel() for parameter in model.model_.parameters()),
                "seconds": middle - start,
                "images_per_second": len(X_test) / (time.perf_counter() - middle),
            }
            print(name, seed, json.dumps(runs[str(seed)]), flush=True)
            options.output.write_text(json.dumps(found, indent=1) + "\n")
    table = Table("model", "accuracy", "parameters", "seconds", "images/s", title="digits")
    for name, runs in found["runs"].items():
        rows = list(runs.values())
        scores = [row["accuracy"] for row in rows]
        table.add_row(
            name,
            f"{np.mean(scores):.4f} ± {np.std(scores):.4f}",
            f"{rows[0]['parameters']:,}",
            f"{np.mean([row['seconds'] for row in rows]):.0f}",
            f"{np.median([row['images_per_second'] for row in rows]):,.0f}",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
