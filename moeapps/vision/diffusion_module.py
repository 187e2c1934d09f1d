"""How DiT and Switch-DiT are trained: the diffusion's losses, the prior with its matching, averaged weights."""

import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import Tensor

from moeapps.core.checks import check_at_least_zero, check_one_of, check_sizes
from moeapps.core.distributed import world_size
from moeapps.core.errors import ConfigError
from moeapps.core.files import atomic_write
from moeapps.core.views import Map, Views
from moeapps.vision.diffusion import Diffusion
from moeapps.vision.dit import SIZES, DiT
from moeapps.vision.images import ImageSpec, to_float
from moeapps.vision.module import SpecModule
from moeapps.vision.plots import plot_images
from moeapps.vision.prior import TimestepPrior
from moeapps.vision.sampling import Noise, Watcher, draw
from moeapps.vision.switch_dit import SwitchDiT

__all__ = ["NETWORKS", "DiffusionModule", "MovingAverage", "SampleImages"]

NETWORKS: dict[str, type[DiT]] = {"switch_dit": SwitchDiT, "dit": DiT}


class MovingAverage(EMAWeightAveraging):
    """Lightning's moving average of the weights: it validates, saves and ends with the averaged ones.

    Buffers (which unit is matched to which place) are copied, not averaged.

    Parameters
    ----------
    decay : float, default 0.9999
        How much of the average stays in each step.
    """

    def __init__(self, decay: float = 0.9999) -> None:
        super().__init__(decay=decay, use_buffers=False)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin the average, without Lightning's warning of networks that are built late and then divided."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*WeightAveraging callback with a model that overrides.*")
            super().setup(trainer, pl_module, stage)


class SampleImages(L.Callback):
    """Draws a grid of images, a line per class, into the run's folder ``samples`` after every so manieth validation.

    Parameters
    ----------
    every : int, default 1
        Validations between two grids.
    columns : int, default 8
        Images of each class.
    steps : int, default 50
        Evaluations of the network per image.
    guidance : float, default 2.0
        How far beyond a prediction without a label.
    """

    def __init__(self, every: int = 1, columns: int = 8, steps: int = 50, guidance: float = 2.0) -> None:
        check_sizes(every=every, columns=columns, steps=steps)
        self.every, self.columns, self.steps, self.guidance = every, columns, steps, guidance
        self._seen = 0

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw, with the weights that are validated (the averaged ones)."""
        self._seen += not trainer.sanity_checking
        if trainer.sanity_checking or self._seen % self.every or trainer.log_dir is None or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, DiffusionModule)
        classes = len(pl_module.spec.classes) if pl_module.conditional else 0
        labels = torch.arange(classes).repeat_interleave(self.columns) if classes else 4 * self.columns
        images = pl_module.sample(labels, steps=self.steps, guidance=self.guidance if classes else 1.0)
        with atomic_write(Path(trainer.log_dir) / "samples" / f"epoch_{trainer.current_epoch:04d}.png") as file:
            plot_images(images, columns=self.columns).savefig(file, format="png", dpi=100)


class DiffusionModule(SpecModule):
    """Learns to draw images.

    Pixels (uint8 in 0 to 255, floats in 0 to 1) become [-1, 1].

    Parameters
    ----------
    model : str, default "switch_dit"
        ``"switch_dit"`` or ``"dit"``.
    size : str, default "tiny"
        Width, blocks and heads by name: ``"tiny"``, ``"S"``, ``"B"``, ``"L"`` or ``"XL"``.
    options : dict[str, object], optional
        Further arguments of the network (``patch_size``, ``num_experts``, ``top_k``, ``mlp_ratio``, or ``dim``,
        ``depth`` and ``num_heads`` instead of the size's).
    conditional : bool, default True
        Whether images are drawn by class.
    timesteps : int, default 1000
        Number of timesteps T.
    schedule : str, default "linear"
        ``"linear"`` or ``"cosine"``.
    prediction : str, default "eps"
        ``"eps"`` or ``"v"``.
    learn_sigma : bool, default True
        Whether the scale of the noise is learned too.
    snr_gamma : float, optional
        Of the min-SNR weights; None for none.
    class_dropout : float, default 0.1
        Probability with which training hides a label, for guidance.
    prior_weight : float, default 1.0
        Of Switch-DiT's prior loss; 0 for none.
    prior_alpha : float, default 4.0
        Its exponent.
    match_every : int, default 100
        Steps between two matchings of experts to the prior's places.
    lr : float, default 0.0001
        Learning rate of AdamW.
    weight_decay : float, default 0.0
        Its weight decay.
    warmup : float, default 0.0
        Part of the training over which the rate rises; it is constant then.
    ema_decay : float, default 0.9999
        Of the moving average of the weights; 0 for none.
    compile : bool, default False
        Whether torch compiles the network.

    Attributes
    ----------
    network : DiT
        Noisy images, timesteps and labels to predictions, once attached.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    """

    network: DiT

    def __init__(
        self,
        model: str = "switch_dit",
        size: str = "tiny",
        options: dict[str, Any] | None = None,
        conditional: bool = True,
        timesteps: int = 1000,
        schedule: str = "linear",
        prediction: str = "eps",
        learn_sigma: bool = True,
        snr_gamma: float | None = None,
        class_dropout: float = 0.1,
        prior_weight: float = 1.0,
        prior_alpha: float = 4.0,
        match_every: int = 100,
        lr: float = 1e-4,
        weight_decay: float = 0.0,
        warmup: float = 0.0,
        ema_decay: float = 0.9999,
        compile: bool = False,
    ) -> None:
        super().__init__()
        check_one_of("model", model, NETWORKS)
        check_one_of("size", size, SIZES)
        check_sizes(match_every=match_every)
        check_at_least_zero(
            prior_weight=prior_weight, lr=lr, weight_decay=weight_decay, warmup=warmup, ema_decay=ema_decay
        )
        for name, value in (("warmup", warmup), ("ema_decay", ema_decay)):
            if value >= 1:
                raise ConfigError(f"{name} must be below 1, got {value!r}")
        own = {"timesteps", "learn_sigma", "class_dropout"} & set(options or {})
        if own:
            raise ConfigError(
                f"options must not hold {', '.join(sorted(own))}: arguments of the module of that name do"
            )
        self.save_hyperparameters()
        self.diffusion = Diffusion(timesteps, schedule, prediction, snr_gamma)
        self.model, self.conditional, self.compile_network = model, conditional, compile
        self.arguments = {
            **SIZES[size],
            "timesteps": timesteps,
            "learn_sigma": learn_sigma,
            "class_dropout": class_dropout,
            **(options or {}),
        }
        self.prior_weight, self.prior_alpha, self.match_every = prior_weight, prior_alpha, match_every
        self.lr, self.weight_decay, self.warmup, self.ema_decay = lr, weight_decay, warmup, ema_decay
        self.prior: TimestepPrior | None = None

    def attach(self, spec: ImageSpec) -> None:
        """Build the network.

        Raises
        ------
        ConfigError
            If the images do not fit it.
        """
        self.spec = spec
        channels, height, width = spec.shape
        if height != width:
            raise ConfigError(f"images must be square, got {height} x {width}")
        sizes = {"img_size": height, "in_chans": channels, "num_classes": len(spec.classes) if self.conditional else 0}
        try:
            self.network = NETWORKS[self.model](**{**sizes, **self.arguments})
        except TypeError as error:
            raise ConfigError(f"options of model={self.model!r}: {error}") from None
        if isinstance(self.network, SwitchDiT) and self.prior_weight > 0:
            router = self.network.switches[0].router
            self.prior = TimestepPrior(
                len(self.network.blocks), router.num_experts, router.top_k, self.diffusion.timesteps, self.prior_alpha
            )
        if self.compile_network:
            self.network.compile()

    def configure_callbacks(self) -> list[Callback]:
        """The moving average."""
        return [MovingAverage(decay=self.ema_decay)] if self.ema_decay > 0 else []

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predictions for noisy images."""
        out: Tensor = self.network(x, t, y)
        return out

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """From time to time, match experts to the prior's places."""
        if self.prior is not None and self.global_step % self.match_every == 0:
            assert isinstance(self.network, SwitchDiT)
            with torch.no_grad():
                self.prior.match(self.network.gate_table(), seed=self.global_step)

    def _losses(self, images: Tensor, labels: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        x0 = to_float(images) * 2 - 1
        x = self.diffusion.q_sample(x0, t, noise)
        output = self(x, t, labels if self.conditional else None)
        return self.diffusion.losses(output, x0, x, t, noise)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Losses at timesteps drawn evenly."""
        images, labels = batch
        t = torch.randint(self.diffusion.timesteps, (len(images),), device=images.device)
        terms = self._losses(images, labels, t, torch.randn(images.shape, device=images.device))
        if self.prior is not None:
            assert isinstance(self.network, SwitchDiT)
            terms["prior"] = self.prior_weight * self.prior(torch.stack(self.network.last_gates), t)
        return self.total_loss(terms, batch_size=len(images))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log ``val/loss``, the squared error with the same timesteps and noise in every epoch."""
        images, labels = batch
        generator = torch.Generator().manual_seed(batch_idx)
        count = len(images)
        t = (torch.arange(count) * self.diffusion.timesteps // count).to(images.device)
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        terms = self._losses(images, labels, t, noise)
        self.log("val/loss", terms["task"], batch_size=count, sync_dist=world_size() > 1)

    @torch.no_grad()
    def views(self) -> Views:
        """Experts by timestep, block by block: the mean weight over a twentieth of the timesteps."""
        if not isinstance(self.network, SwitchDiT):
            return Views()
        gates = self.network.gate_table().float().cpu()
        parts = min(20, gates.shape[1])
        edges = [round(i * gates.shape[1] / parts) for i in range(parts + 1)]
        rows = [f"{low} to {high - 1}" for low, high in pairwise(edges)]
        means = torch.stack([gates[:, low:high].mean(dim=1) for low, high in pairwise(edges)], dim=1)
        title = "weight of experts by timestep (0: least noise): block"
        return Views(
            [
                Map.of(f"{title} {block}", pd.DataFrame(part.numpy(), index=rows), "timesteps")
                for block, part in enumerate(means)
            ]
        )

    def sample(
        self, y: Tensor | int, *, seed: int = 0, batch_size: int = 128, watch: Watcher | None = None, **options: Any
    ) -> Tensor:
        """Draw images ``(N, C, H, W)`` in [0, 1], on the device of the module and in the mode of evaluation.

        Parameters
        ----------
        y : Tensor or int
            Codes of their classes ``(N,)``; or how many, without classes.
        seed : int, default 0
            Image i of a seed is always the same.
        batch_size : int, default 128
            Images at once.
        watch : Watcher, optional
            As in :func:`~moeapps.vision.sampling.draw`.
        **options
            ``steps``, ``sampler``, ``eta``, ``guidance`` and ``clip``, as there.

        Raises
        ------
        ConfigError
            If an argument is impossible.
        """
        check_sizes(batch_size=batch_size)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigError(f"seed must be a whole number of at least 0, got {seed!r}")
        if isinstance(y, Tensor) and not self.conditional:
            raise ConfigError("the module draws without classes: give a number of images, not labels")
        count = y if isinstance(y, int) else len(y)
        training = self.network.training
        self.network.eval()
        parts = []
        try:
            for first in range(0, count, batch_size):
                size = min(batch_size, count - first)
                noise = Noise(seed, first, size, self.device)
                labels = None if isinstance(y, int) else y[first : first + size].to(self.device)
                parts.append(draw(self.network, self.diffusion, self.spec.shape, noise, labels, watch=watch, **options))
        finally:
            if training:
                self.network.train()
        return (torch.cat(parts) + 1) / 2

    def configure_optimizers(self) -> Any:
        """AdamW, at a constant rate after the warm-up."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        return self.with_cosine_schedule(optimizer, self.warmup, end=1.0)
