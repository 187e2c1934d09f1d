"""Switch-DiT against DiT on scikit-learn's digits: the same steps, seeds and network but for the switches.

    python benchmarks/vision_diffusion.py [--seeds 3] [--epochs 100] [--pictures FOLDER]

Width 64, 4 blocks, patches of 2 x 2, T = 1,000, cosine schedule, v-prediction, batches of 64, rate 0.002, moving
average 0.995; 1,437 images to learn from, 360 whose denoising error is the loss shown. FID, precision and recall are
measured with the averaged weights on as many drawn images as there are training images, of the same classes (DDIM, 25
steps, no guidance), against the training images, in the feature space of a WideNet that was trained to classify them:
figures compare to each other only. The line "test images" is what real images get that were not trained on. One thread.
"""

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from moeapps.core.callbacks import StepSeeding, seed_everything
from moeapps.vision import DiffusionModule, LabelledImages, PublicImageData, WideNetClassifier, load_images
from moeapps.vision.plots import plot_images, plot_timesteps, plot_trajectory
from moeapps.vision.quality import frechet_distance, precision_recall
from moeapps.vision.sampling import Noise, draw

MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # arguments of the module, and further ones of the network
    "DiT": ({"model": "dit"}, {}),
    # gates without bias and a prior of the chosen experts, as the recorded runs of moeapps 0.1 had them
    "Switch-DiT": ({"model": "switch_dit", "prior_gates": "chosen"}, {"gate_bias": False}),
    "Switch-DiT, as released": ({"model": "switch_dit"}, {}),
}
EVERY = 20


class Digits(PublicImageData):
    """All training images to learn from, the test images to validate on."""

    def setup(self, stage: str) -> None:
        super().setup(stage)
        train, test = load_images("digits")
        self.parts["train"].images, self.parts["train"].labels = train.images, train.labels
        self.parts["val"].images, self.parts["val"].labels = test.images, test.labels


class Judge:
    """Quality of drawn images in one feature space."""

    def __init__(self, train: LabelledImages) -> None:
        self.train = train
        self.classifier = WideNetClassifier(
            embed_dim=64, depth=4, patch_size=2, max_epochs=30, validation_fraction=0, random_state=0, accelerator="cpu"
        ).fit(train.images, train.labels)
        self.real = self.classifier.transform(train.images)

    def judge(self, images: torch.Tensor) -> dict[str, float]:
        features = self.classifier.transform(images)
        precision, recall = precision_recall(self.real, features)
        return {"fid": frechet_distance(self.real, features), "precision": precision, "recall": recall}


class Watch(Callback):
    """Judges the averaged weights after every validation."""

    def __init__(self, judge: Judge) -> None:
        self.judge, self.curve = judge, []

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        labels = self.judge.train.labels
        drawn = draw(pl_module.network, pl_module.diffusion, (1, 8, 8), Noise(0, 0, len(labels)), labels, steps=25)
        loss = float(trainer.callback_metrics["val/loss"])
        self.curve.append({"epoch": trainer.current_epoch + 1, "loss": loss, **self.judge.judge((drawn + 1) / 2)})
        print(self.curve[-1], flush=True)


def run(model: str, seed: int, epochs: int, judge: Judge, pictures: Path | None) -> dict[str, Any]:
    seed_everything(seed)
    arguments, further = MODELS[model]
    module = DiffusionModule(
        **arguments, options={"patch_size": 2, **further}, schedule="cosine", prediction="v", learn_sigma=False,
        lr=2e-3, warmup=0.05, ema_decay=0.995,
    )  # fmt: skip
    watch = Watch(judge)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=epochs, check_val_every_n_epoch=EVERY, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[StepSeeding(seed), watch],
    )  # fmt: skip
    start = time.perf_counter()
    trainer.fit(module, datamodule=Digits("digits", batch_size=64, seed=seed))
    if pictures is not None:
        draw_pictures(model, module.eval(), pictures)
    parameters = sum(parameter.numel() for parameter in module.network.parameters())
    return {"curve": watch.curve, "parameters": parameters, "seconds": time.perf_counter() - start}


def draw_pictures(model: str, module: DiffusionModule, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = model.lower().replace("-", "_").replace(", ", "_").replace(" ", "_")
    labels = torch.arange(10).repeat_interleave(10)
    drawn = draw(module.network, module.diffusion, (1, 8, 8), Noise(1, 0, 100), labels, steps=50, guidance=2.0)
    plot_images((drawn + 1) / 2, columns=10).savefig(folder / f"{name}_samples.png", dpi=70)
    if model == "Switch-DiT":
        frames: list[torch.Tensor] = []
        draw(
            module.network, module.diffusion, (1, 8, 8), Noise(1, 0, 5), torch.tensor([0, 2, 4, 7, 9]), steps=50,
            guidance=2.0, watch=lambda step, x, x0: frames.append(x.clamp(-1, 1)) if step % 7 == 0 else None,
        )  # fmt: skip
        strip = (torch.stack(frames, 1) + 1) / 2
        plot_trajectory(strip, titles=[0, 2, 4, 7, 9]).savefig(folder / "denoising.png", dpi=80)
        with torch.no_grad():
            plot_timesteps(module.network.gate_table()).savefig(folder / "timesteps.png", dpi=100)


def plot_curves(found: dict[str, Any], path: Path) -> None:
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    for model, runs in found["runs"].items():
        curves = [run["curve"] for run in runs.values()]
        epochs = [point["epoch"] for point in curves[0]]
        for axes, name in zip(panels, ("loss", "fid"), strict=True):
            values = np.array([[point[name] for point in curve] for curve in curves])
            axes.errorbar(epochs, values.mean(0), values.std(0), marker="o", capsize=3, label=model)
            axes.set(xlabel="epoch", ylabel={"loss": "denoising error of test images", "fid": "FID"}[name])
            axes.grid(alpha=0.3)
    panels[1].set_yscale("log")
    panels[1].axhline(found["test images"]["fid"], color="black", linestyle=":", label="test images")
    for axes in panels:
        axes.legend(frameon=False)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "vision_diffusion.json")
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, test = load_images("digits")
    judge = Judge(train)
    found: dict[str, Any] = {"machine": platform.machine(), "torch": torch.__version__, "runs": {}}
    if options.output.exists():
        found["runs"] = json.loads(options.output.read_text())["runs"]
    found["test images"] = judge.judge(test.images)
    found["classifier"] = float(judge.classifier.score(test.images, test.labels))
    for seed in range(options.seeds):
        for model in MODELS:
            runs = found["runs"].setdefault(model, {})
            if str(seed) not in runs:
                print(model, seed, flush=True)
                runs[str(seed)] = run(model, seed, options.epochs, judge, options.pictures if seed == 0 else None)
                options.output.write_text(json.dumps(found, indent=1) + "\n")
    names = ("loss", "fid", "precision", "recall")
    table = Table("model", "parameters", *names, "seconds", title=f"digits, {options.epochs} epochs")
    for model, runs in found["runs"].items():
        last = [run["curve"][-1] for run in runs.values()]
        cells = [f"{np.mean([p[n] for p in last]):.4f} ± {np.std([p[n] for p in last]):.4f}" for n in names]
        seconds = np.mean([run["seconds"] for run in runs.values()])
        table.add_row(model, f"{next(iter(runs.values()))['parameters']:,}", *cells, f"{seconds:.0f}")
    real = found["test images"]
    table.add_row("test images", "", "", *[f"{real[n]:.4f}" for n in names[1:]], "")
    Console(width=120).print(table)
    if options.pictures is not None:
        plot_curves(found, options.pictures / "curves.png")


if __name__ == "__main__":
    main()
