"""Switch-DiT against DiT on scikit-learn's digits and on three classes of CIFAR-10: the same steps, seeds and network.

    python benchmarks/vision_diffusion.py [--seeds 3] [--epochs 100] [--cifar-epochs 20] [--pictures FOLDER]

Digits: width 64, 4 blocks, patches of 2 x 2, 1,437 images of 8 x 8 to learn from, 360 whose denoising error is the loss
shown. CIFAR-10 (with MOEAPPS_DATA, seed 0 only): cars, horses and ships, halved to 16 x 16 pixels, 15,000 and 3,000
images, width 96, 4 blocks. T = 1,000, cosine schedule, v-prediction, batches of 64, warm-up and a moving average.

Quality is class-balanced (moeapps.vision.quality.class_quality) and in the feature space of a small convolutional
network that the script trains to classify the training images: figures compare to each other only. Images are drawn by
the averaged weights (DDIM, 25 steps, no guidance), as many of each class as real ones. "real images" is what other
training images get in their place. One thread.

A run that was stopped goes on where it was after its last epoch (the checkpoints stand in --cache), and one that is in
the JSON file is not run again; more epochs than a checkpoint has make it go on from there.
"""

import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from command_line import script_parser
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from moeapps.core.callbacks import LastCheckpoint, StepSeeding, seed_everything
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.vision import DiffusionModule, ImageDataModule, ImageSpec, LabelledImages, load_images
from moeapps.vision.data import ImageArrays
from moeapps.vision.images import to_float
from moeapps.vision.plots import plot_timesteps, plot_trajectory
from moeapps.vision.quality import class_quality
from moeapps.vision.sampling import Noise, draw

MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # arguments of the module, and further ones of the network
    "DiT": ({"model": "dit"}, {}),
    "Switch-DiT": ({"model": "switch_dit"}, {}),
    # gates without bias and a prior of the chosen experts
    "Switch-DiT, as in 0.1": ({"model": "switch_dit", "prior_gates": "chosen"}, {"gate_bias": False}),
}
EVERY = 20
CIFAR_CLASSES = ("automobile", "horse", "ship")


@dataclass
class Setting:
    """A data set, and what is trained on it."""

    train: LabelledImages
    test: LabelledImages
    epochs: int
    every: int  # epochs from one figure to the next
    per_class: int  # images that are drawn of each class
    models: tuple[str, ...] = tuple(MODELS)
    network: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


def digits(epochs: int) -> Setting:
    train, test = load_images("digits")
    network = {"patch_size": 2}
    training = {"lr": 2e-3, "ema_decay": 0.995}
    return Setting(train, test, epochs, EVERY, 60, network=network, training=training)


def cifar(epochs: int, cache: Path) -> Setting | None:
    """Three classes that differ in shape and ground, at half the size; None without the data."""
    file = cache / "cifar16.npz"
    if not file.exists():
        data = Path(os.environ.get("MOEAPPS_DATA", "")) / "vision" / "cifar10-jpeg.tar.xz"
        if not data.exists():
            return None
        parts = [_halved(part) for part in load_images("cifar10", data)]
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, *[array.numpy() for part in parts for array in part])
    arrays = [torch.from_numpy(array) for array in np.load(file).values()]
    train, test = (LabelledImages(*arrays[i : i + 2], list(CIFAR_CLASSES)) for i in (0, 2))
    network = {"patch_size": 2, "dim": 96, "depth": 4, "num_heads": 4}
    training = {"lr": 1e-3, "ema_decay": 0.999}
    return Setting(train, test, epochs, 5, 200, ("DiT", "Switch-DiT"), network, training)


def _halved(part: LabelledImages) -> tuple[Tensor, Tensor]:
    codes = torch.tensor([part.classes.index(name) for name in CIFAR_CLASSES])
    rows = torch.isin(part.labels, codes)
    small = torch.nn.functional.avg_pool2d(part.images[rows].float(), 2).round().to(torch.uint8)
    return small, (part.labels[rows][:, None] == codes).long().argmax(1)


class Judge:
    """Quality of drawn images in the features of one classifier."""

    def __init__(self, setting: Setting) -> None:
        self.train, self.per_class = setting.train, setting.per_class
        classes, channels = len(setting.train.classes), setting.train.images.shape[1]
        seed_everything(0)
        self.body = nn.Sequential(
            nn.Conv2d(channels, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
            nn.Linear(128, 32), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, classes)
        self._learn(max(4, 30_000 // len(setting.train)))
        self.real = self.features(setting.train.images)
        with torch.no_grad():
            found = self.head(torch.from_numpy(self.features(setting.test.images))).argmax(1)
        self.accuracy = float((found == setting.test.labels).float().mean())
        # every choice of real images compares with as many others: the generated ones stand for any here
        _, self.baseline = class_quality(self.real, self.train.labels, *self._subset())

    def _subset(self) -> tuple[Any, Any]:
        rows = np.concatenate(
            [np.flatnonzero(self.train.labels == code)[: self.per_class] for code in range(len(self.train.classes))]
        )
        return self.real[rows], self.train.labels[rows]

    def _learn(self, epochs: int) -> None:
        both = nn.Sequential(self.body, self.head).train()
        optimizer = torch.optim.AdamW(both.parameters(), 2e-3, weight_decay=0.01)
        images, labels = to_float(self.train.images), self.train.labels
        for _ in range(epochs):
            for rows in torch.randperm(len(images)).split(128):
                optimizer.zero_grad()
                nn.functional.cross_entropy(both(images[rows]), labels[rows]).backward()
                optimizer.step()
        both.eval()

    @torch.no_grad()
    def features(self, images: Tensor) -> np.ndarray:
        return torch.cat([self.body(part) for part in to_float(images).split(512)]).numpy()

    def judge(self, images: Tensor, labels: Tensor) -> dict[str, Any]:
        found, _ = class_quality(self.real, self.train.labels, self.features(images), labels)
        return asdict(found)


class Watch(Callback):
    """Judges the averaged weights after every validation; what it has found travels in the checkpoint."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.curve, self.seconds, self._since = judge, [], 0.0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.process_time()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds += time.process_time() - self._since

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # when the loss is there
        labels = torch.arange(len(self.judge.train.classes)).repeat_interleave(self.judge.per_class)
        images = pl_module.sample(labels, steps=25)
        loss = float(trainer.callback_metrics["val/loss"])
        quality = self.judge.judge(images, labels)
        self.curve.append({"epoch": trainer.current_epoch + 1, "loss": loss, **quality})
        print({name: self.curve[-1][name] for name in ("epoch", "loss", "fid", "precision", "recall")}, flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"curve": self.curve, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.curve, self.seconds = state_dict["curve"], state_dict["seconds"]


def run(setting: Setting, model: str, seed: int, judge: Judge, folder: Path) -> dict[str, Any]:
    seed_everything(seed)
    arguments, further = MODELS[model]
    module = DiffusionModule(
        **arguments, **setting.training, options={**setting.network, **further}, schedule="cosine", prediction="v",
        learn_sigma=False, warmup=0.05,
    )  # fmt: skip
    train, test = setting.train, setting.test
    spec = ImageSpec.of(train.images, train.classes)
    parts = [ImageArrays(part.images, part.labels) for part in (train, test)]
    watch = Watch(judge)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=setting.epochs, num_sanity_val_steps=0, logger=False,
        check_val_every_n_epoch=min(setting.every, setting.epochs),
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[StepSeeding(seed), watch, LastCheckpoint(str(folder))], plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    last = folder / "last.ckpt"
    trainer.fit(
        module, datamodule=ImageDataModule(*parts, spec=spec, batch_size=64, seed=seed),
        ckpt_path=last if last.exists() else None, weights_only=True,
    )  # fmt: skip
    parameters = sum(parameter.numel() for parameter in module.network.parameters())
    return {"curve": watch.curve, "parameters": parameters, "seconds": watch.seconds}


def folder_of(cache: Path, name: str, model: str, seed: int) -> Path:
    return cache / f"{name}_{model.lower().replace(', ', '_').replace(' ', '_').replace('-', '_')}_{seed}"


def load(folder: Path) -> DiffusionModule:
    """The averaged weights of a run that was trained, finished or not."""
    return DiffusionModule.load_from_checkpoint(folder / "last.ckpt", weights_only=True).eval()


# ------------------------------------------------------------------------------------------------------- pictures


def plot_samples(setting: Setting, name: str, cache: Path, path: Path, columns: int, guidance: float) -> None:
    """Real images, then those of each model from the same noise, class by class."""
    train = setting.train
    labels = torch.arange(len(train.classes)).repeat_interleave(columns)
    rows = torch.cat([(train.labels == code).nonzero()[:columns, 0] for code in range(len(train.classes))])
    panels = {"training images": to_float(train.images[rows])}
    for model in setting.models:
        folder = folder_of(cache, name, model, 0)
        if model != "Switch-DiT, as in 0.1" and (folder / "last.ckpt").exists():
            panels[model] = load(folder).sample(labels, seed=1, steps=50, guidance=guidance)
    figure = Figure(figsize=(4.2 * len(panels), 4.2 * len(train.classes) / columns + 0.4), layout="constrained")
    smooth = "nearest" if train.images.shape[-1] <= 8 else "bicubic"
    for axes, (title, images) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True):
        axes.imshow(mosaic(images, columns), cmap="gray", vmin=0, vmax=1, interpolation=smooth)
        axes.set_title(title, fontsize=10)
        axes.axis("off")
    figure.savefig(path, dpi=110)


def mosaic(images: Tensor, columns: int) -> np.ndarray:
    """``(rows S, columns S, C)`` of images ``(N, C, S, S)``, with a line of one pixel between them."""
    padded = nn.functional.pad(images.clamp(0, 1), (0, 1, 0, 1), value=1.0)
    grid = padded.unflatten(0, (-1, columns)).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return grid.squeeze(-1).numpy()


def plot_way(module: DiffusionModule, folder: Path) -> None:
    """From noise to images, and the experts of timesteps."""
    frames: list[Tensor] = []
    codes = torch.tensor([0, 2, 4, 7, 9])
    draw(
        module.network, module.diffusion, module.spec.shape, Noise(1, 0, 5), codes, steps=50, guidance=2.0,
        watch=lambda step, x, x0: frames.append(x.clamp(-1, 1)) if step % 7 == 0 else None,
    )  # fmt: skip
    plot_trajectory((torch.stack(frames, 1) + 1) / 2, titles=codes.tolist()).savefig(folder / "denoising.png", dpi=80)
    with torch.no_grad():
        plot_timesteps(module.network.gate_table()).savefig(folder / "timesteps.png", dpi=100)


def plot_curves(runs_of: dict[str, Any], real: float, path: Path) -> None:
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for model, runs in runs_of.items():
        curves = [{point["epoch"]: point for point in run["curve"]} for run in runs.values()]
        epochs = sorted(set(curves[0]).intersection(*curves))  # runs may be of different lengths
        for axes, name in zip(panels, ("loss", "fid"), strict=True):
            values = np.array([[curve[epoch][name] for epoch in epochs] for curve in curves])
            axes.errorbar(epochs, values.mean(0), values.std(0), marker="o", capsize=3, label=model)
            axes.set(xlabel="epoch", ylabel={"loss": "denoising error of test images", "fid": "FID"}[name])
            axes.grid(alpha=0.3)
    panels[1].set_yscale("log")
    panels[1].axhline(real, color="black", linestyle=":", label="real images")
    for axes in panels:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=100)


def draw_pictures(settings: dict[str, Setting], found: dict[str, Any], cache: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    plot_samples(settings["digits"], "digits", cache, folder / "generated_digits.png", 8, guidance=2.0)
    if "cifar" in settings:
        plot_samples(settings["cifar"], "cifar", cache, folder / "generated_cifar.png", 8, guidance=2.0)
    first = folder_of(cache, "digits", "Switch-DiT", 0)
    if (first / "last.ckpt").exists():
        plot_way(load(first), folder)
    if found["digits"]["runs"]:
        plot_curves(found["digits"]["runs"], found["digits"]["real images"]["fid"], folder / "curves.png")


# ----------------------------------------------------------------------------------------------------------- main


def print_table(name: str, setting: Setting, found: dict[str, Any]) -> None:
    names = ("loss", "fid", "precision", "recall")
    table = Table("model", "runs", "parameters", *names, "CPU seconds", title=f"{name}, {setting.epochs} epochs")
    for model, runs in found["runs"].items():
        last = [run["curve"][-1] for run in runs.values()]
        cells = [f"{np.mean([p[n] for p in last]):.4f} ± {np.std([p[n] for p in last]):.4f}" for n in names]
        seconds = np.mean([run["seconds"] for run in runs.values()])
        parameters = next(iter(runs.values()))["parameters"]
        table.add_row(model, str(len(runs)), f"{parameters:,}", *cells, f"{seconds:.0f}")
    real = found["real images"]
    table.add_row("real images", "", "", "", *[f"{real[n]:.4f}" for n in names[1:]], "")
    Console(width=150).print(table)


def planned(settings: dict[str, Setting], seeds: int) -> list[tuple[str, str, int]]:
    """Runs in their order: what the pictures show comes first."""
    plan = [
        (name, model, seed)
        for name, setting in settings.items()
        for model in setting.models
        for seed in range(seeds if name == "digits" else 1)
    ]
    return sorted(plan, key=lambda run: (run[2], run[1] not in ("DiT", "Switch-DiT")))


def main() -> None:
    parser = script_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--cifar-epochs", type=int, default=20, help="0 leaves CIFAR-10 out")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "vision_diffusion.json")
    parser.add_argument("--cache", type=Path, default=Path(__file__).parent / "cache" / "vision_diffusion")
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = {"digits": digits(options.epochs)}
    small = cifar(options.cifar_epochs, options.cache) if options.cifar_epochs else None
    if small is not None:
        settings["cifar"] = small
    found: dict[str, Any] = {"machine": platform.machine(), "torch": torch.__version__}
    if options.output.exists():
        found.update(json.loads(options.output.read_text()))
    judges = {name: Judge(setting) for name, setting in settings.items()}
    for name, judge in judges.items():
        own = found.setdefault(name, {"runs": {}})
        own.update({"real images": asdict(judge.baseline), "classifier": judge.accuracy})
        print(name, f"classifier {judge.accuracy:.4f}", found[name]["real images"], flush=True)
    for name, model, seed in planned(settings, options.seeds):
        runs = found[name]["runs"].setdefault(model, {})
        done = runs.get(str(seed))
        if done is None or done["curve"][-1]["epoch"] < settings[name].epochs:
            print(name, model, seed, flush=True)
            folder = folder_of(options.cache, name, model, seed)
            runs[str(seed)] = run(settings[name], model, seed, judges[name], folder)
            options.output.write_text(json.dumps(found, indent=1) + "\n")
    for name, setting in settings.items():
        print_table(name, setting, found[name])
    if options.pictures is not None:
        draw_pictures(settings, found, options.cache, options.pictures)


if __name__ == "__main__":
    main()
