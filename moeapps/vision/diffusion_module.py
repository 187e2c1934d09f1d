"""Training of DiT and Switch-DiT: the diffusion's losses, the prior and its matching, averaged weights."""

# Shapes: N images, C channels, H height, W width, T timesteps, E experts, L blocks

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_avg_fn

from moeapps.core.averaging import RisingAverage
from moeapps.core.checks import check_at_least_zero, check_below_one, check_one_of, check_sizes
from moeapps.core.config import Configurable, config_from, field_names, takes
from moeapps.core.errors import ConfigError
from moeapps.core.files import atomic_write
from moeapps.core.optimizers import fused_where_possible
from moeapps.core.search import Distribution, Float
from moeapps.core.views import Map, Views
from moeapps.vision.diffusion import Diffusion, DiffusionConfig
from moeapps.vision.dit import SIZES, DiT, DiTConfig
from moeapps.vision.images import ImageSpec, to_float
from moeapps.vision.module import SpecModule
from moeapps.vision.plots import plot_images
from moeapps.vision.prior import TimestepPrior
from moeapps.vision.sampling import Noise, Watcher, draw
from moeapps.vision.switch_dit import SwitchDiT, TimestepRouter

__all__ = ["NETWORKS", "DiffusionModule", "DiffusionModuleConfig", "MovingAverage", "SampleImages"]

NETWORKS: dict[str, type[DiT]] = {"switch_dit": SwitchDiT, "dit": DiT}


class MovingAverage(RisingAverage):
    """The moving average of the weights, which is validated, saved, and kept at the end.

    Buffers (the matching of the prior) are copied, not averaged.

    Parameters
    ----------
    decay : float, default=0.9999
        Weight of the average in each step; the new weights have the rest.
    rising : bool, default=True
        Whether the decay rises to that value (:class:`~moeapps.core.averaging.RisingAverage`) or has it from the first
        step on, as in moeapps 0.1 and the released code.
    """

    def __init__(self, decay: float = 0.9999, rising: bool = True) -> None:
        super().__init__(decay)
        self.decay = decay
        if not rising:
            self._kwargs = {"avg_fn": get_ema_avg_fn(decay)}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Average what a checkpoint of 0.1 has, whose gates have no bias, and as it did."""
        known = checkpoint.get("hyper_parameters", {})
        if self._average_model is not None and "prior_gates" not in known:
            drop_gate_biases(self._average_model)
        if self._average_model is not None and "ema_rising" not in known:
            self._average_model.multi_avg_fn, self._average_model.avg_fn = None, get_ema_avg_fn(self.decay)
        super().on_load_checkpoint(trainer, pl_module, checkpoint)


def drop_gate_biases(network: nn.Module) -> None:
    """Make every gate one without bias, as in moeapps 0.1."""
    for module in network.modules():
        if isinstance(module, TimestepRouter):
            module.without_bias()


class SampleImages(L.Callback):
    """Samples a grid of images, one row per class, at every ``every``-th validation, into the run's folder ``samples``.

    Parameters
    ----------
    every : int, default=1
        Number of validations from one grid to the next.
    columns : int, default=8
        Images per class.
    steps : int, default=50
        Evaluations of the network per image.
    guidance : float, default=2.0
        Scale of classifier-free guidance, for images with classes.
    """

    def __init__(self, every: int = 1, columns: int = 8, steps: int = 50, guidance: float = 2.0) -> None:
        check_sizes(every=every, columns=columns, steps=steps)
        self.every, self.columns, self.steps, self.guidance = every, columns, steps, guidance
        self._seen = 0

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Sample with the weights that are validated, the averaged ones."""
        self._seen += not trainer.sanity_checking
        if trainer.sanity_checking or self._seen % self.every or trainer.log_dir is None or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, DiffusionModule)
        classes = len(pl_module.spec.classes) if pl_module.conditional else 0
        labels = torch.arange(classes).repeat_interleave(self.columns) if classes else 4 * self.columns
        images = pl_module.sample(labels, steps=self.steps, guidance=self.guidance if classes else 1.0)
        with atomic_write(Path(trainer.log_dir) / "samples" / f"epoch_{trainer.current_epoch:04d}.png") as file:
            plot_images(images, columns=self.columns).savefig(file, format="png", dpi=100)


@dataclass(frozen=True)
class DiffusionModuleConfig:
    """A network, its diffusion, and how it is trained.

    Parameters
    ----------
    model : {"switch_dit", "dit"}, default="switch_dit"
        Network.
    size : {"tiny", "S", "B", "L", "XL"}, default="tiny"
        Name of the network's width, number of blocks and heads.
    options : dict, optional
        Further arguments of the network (``patch_size``, ``num_experts``, ``top_k``, ``mlp_ratio``, or ``dim``,
        ``depth`` and ``num_heads`` instead of those of ``size``).
    conditional : bool, default=True
        Whether images are generated by class.
    timesteps : int, default=1000
        Number of timesteps T.
    schedule : {"linear", "cosine"}, default="linear"
        How the noise grows with the timestep.
    prediction : {"eps", "v"}, default="eps"
        What the network predicts: the noise or the velocity.
    learn_sigma : bool, default=True
        Whether the network also predicts the variance of the noise, which DDPM sampling uses.
    snr_gamma : float, optional
        Gamma of the min-SNR weights; None weights all timesteps alike.
    class_dropout : float, default=0.1
        Probability with which training replaces a label by "no class", for classifier-free guidance.
    prior_weight : float, default=1.0
        Factor of Switch-DiT's diffusion prior loss; 0 for none.
    prior_alpha : float, default=4.0
        Exponent of the prior, see :class:`~moeapps.vision.TimestepPrior`.
    match_every : int, default=100
        Steps between two matchings of experts to the prior's units.
    lr : float, default=1e-4
        Learning rate of AdamW.
    weight_decay : float, default=0.0
        Weight decay of AdamW.
    warmup : float, default=0.0
        Fraction of the training over which the learning rate rises; it is constant then. Below 1.
    ema_decay : float, default=0.9999
        Decay of the exponential moving average of the weights, below 1; 0 for none.
    compile : bool, default=False
        Whether ``torch.compile`` compiles the network.
    prior_gates : {"all", "chosen"}, default="all"
        What the prior compares with its windows: the probabilities of all experts, as the released code does, or the
        weights of the chosen experts alone, as moeapps 0.1 did.
    ema_rising : bool, default=True
        Whether the decay rises to ``ema_decay`` in the first steps, so that the first weights are soon forgotten. False
        is the released code's and moeapps 0.1's: a short training then keeps much of its untrained weights.
    """

    model: str = "switch_dit"
    size: str = "tiny"
    options: dict[str, Any] | None = None
    conditional: bool = True
    timesteps: int = DiffusionConfig.timesteps
    schedule: str = DiffusionConfig.schedule
    prediction: str = DiffusionConfig.prediction
    learn_sigma: bool = DiTConfig.learn_sigma
    snr_gamma: float | None = DiffusionConfig.snr_gamma
    class_dropout: float = DiTConfig.class_dropout
    prior_weight: float = 1.0
    prior_alpha: float = 4.0
    match_every: int = 100
    lr: float = 1e-4
    weight_decay: float = 0.0
    warmup: float = 0.0
    ema_decay: float = 0.9999
    compile: bool = False
    prior_gates: str = "all"
    ema_rising: bool = True

    def check(self) -> None:
        """Refuse impossible values.

        Raises
        ------
        ConfigError
            Naming the argument.
        """
        check_one_of("model", self.model, NETWORKS)
        check_one_of("size", self.size, SIZES)
        check_one_of("prior_gates", self.prior_gates, ("all", "chosen"))
        check_sizes(match_every=self.match_every)
        check_at_least_zero(prior_weight=self.prior_weight, lr=self.lr, weight_decay=self.weight_decay)
        check_below_one(warmup=self.warmup, ema_decay=self.ema_decay)
        own = self.shared_with_network & set(self.options or {})
        if own:
            raise ConfigError(f"options must not hold {', '.join(sorted(own))}: the module has arguments of that name")

    @property
    def shared_with_network(self) -> set[str]:
        """Arguments that the network has too."""
        return set(field_names(DiTConfig)) & set(field_names(type(self)))

    def network_arguments(self) -> dict[str, Any]:
        """Arguments of the network except those that the images decide."""
        shared = {name: getattr(self, name) for name in self.shared_with_network}
        return {**SIZES[self.size], **shared, **(self.options or {})}


class DiffusionModule(SpecModule, Configurable):
    """Trains a DiT or a Switch-DiT, and samples images from it.

    Takes the fields of :class:`DiffusionModuleConfig` as arguments. Pixels (uint8 in 0 to 255, floats in 0 to 1) are
    mapped to [-1, 1]. One training step:

    1. Every ``match_every`` steps the experts are matched to the units of the prior (:meth:`TimestepPrior.match`).
    2. A timestep and noise are drawn for each image; :meth:`Diffusion.q_sample` makes the noisy image.
    3. The network predicts the noise (or velocity), and with ``learn_sigma`` the variance.
    4. :meth:`Diffusion.losses` compares: ``task``, and with ``learn_sigma`` also ``vlb``.
    5. With Switch-DiT, the divergence between the gates of the batch's timesteps (``prior_gates``) and the prior is
       added.
    6. After the optimiser's step, the moving average of the weights follows (:class:`MovingAverage`).

    Attributes
    ----------
    network : DiT
        Noisy images, timesteps and labels to predictions, once attached.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    """

    _search_space: ClassVar[Mapping[str, Distribution]] = {
        "lr": Float(1e-4, 5e-3, log=True),
        "warmup": Float(0.0, 0.2),
    }

    network: DiT

    @takes(DiffusionModuleConfig)
    def __init__(self, config: DiffusionModuleConfig) -> None:
        super().__init__()
        config.check()
        self.config = config
        self.diffusion = Diffusion.from_config(config=config_from(DiffusionConfig, config))
        self.conditional = config.conditional
        self.lr = config.lr  # Lightning's learning rate finder sets it
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
            self.network = NETWORKS[self.config.model](**{**sizes, **self.config.network_arguments()})
        except TypeError as error:
            raise ConfigError(f"options of model={self.config.model!r}: {error}") from None
        if isinstance(self.network, SwitchDiT) and self.config.prior_weight > 0:
            router = self.network.switches[0].router
            self.prior = TimestepPrior(
                len(self.network.blocks),
                router.num_experts,
                router.top_k,
                self.diffusion.timesteps,
                self.config.prior_alpha,
            )
        if self.config.compile:
            self.network.compile()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on as 0.1 did where it wrote the checkpoint: gates without bias, a prior of the chosen experts.

        Raises
        ------
        FileFormatError
            If the images, or the weights, are not those of this module.
        """
        if "prior_gates" not in checkpoint.get("hyper_parameters", {}):
            self.config = replace(self.config, prior_gates="chosen")
            if self.config.model == "switch_dit":
                options = {"gate_bias": False, **(self.config.options or {})}
                self.config = replace(self.config, options=options)
            self.hparams.update({"prior_gates": "chosen", "options": self.config.options})
            if hasattr(self, "network"):  # built for the data of a training that goes on
                drop_gate_biases(self.network)
        if "ema_rising" not in checkpoint.get("hyper_parameters", {}):
            self.config = replace(self.config, ema_rising=False)
            self.hparams.update({"ema_rising": False})
        super().on_load_checkpoint(checkpoint)

    def configure_callbacks(self) -> list[Callback]:
        """The moving average."""
        config = self.config
        return [MovingAverage(config.ema_decay, config.ema_rising)] if config.ema_decay > 0 else []

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Predictions for noisy images ``(N, C, H, W)`` at timesteps ``(N,)``."""
        out: Tensor = self.network(x, t, y)
        return out

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Every ``match_every`` steps, match experts to the prior's units."""
        if self.prior is not None and self.global_step % self.config.match_every == 0:
            assert isinstance(self.network, SwitchDiT)
            with torch.no_grad():
                self.prior.match(self.network.gate_table(), seed=self.global_step)

    def _losses(self, images: Tensor, labels: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        x0 = to_float(images) * 2 - 1
        x = self.diffusion.q_sample(x0, t, noise)
        output = self(x, t, labels if self.conditional else None)
        return self.diffusion.losses(output, x0, x, t, noise)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Losses of one batch at uniformly random timesteps."""
        images, labels = batch
        t = torch.randint(self.diffusion.timesteps, (len(images),), device=images.device)
        terms = self._losses(images, labels, t, torch.randn(images.shape, device=images.device))
        if self.prior is not None:
            assert isinstance(self.network, SwitchDiT)
            chosen = self.config.prior_gates == "chosen"
            gates = torch.stack(self.network.last_gates) if chosen else self.network.last_probabilities()
            terms["prior"] = self.config.prior_weight * self.prior(gates, t)
        return self.total_loss(terms, batch_size=len(images))

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log ``val/loss``, the squared error. Timesteps and noise are the same in every epoch, so epochs compare."""
        images, labels = batch
        generator = torch.Generator().manual_seed(batch_idx)
        count, own = len(images), self.own_rows("val", batch_idx, len(images))
        t = (torch.arange(count) * self.diffusion.timesteps // count).to(images.device)
        noise = torch.randn(images.shape, generator=generator).to(images.device)
        terms = self._losses(images[: own or 1], labels[: own or 1], t[: own or 1], noise[: own or 1])
        self.log_evaluation({"val/loss": terms["task"]}, own, batch_idx)

    @torch.no_grad()
    def views(self) -> Views:
        """For each block the weight of its experts, mean over each twentieth of the timesteps."""
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
        self,
        y: Tensor | int,
        *,
        seed: int = 0,
        batch_size: int = 128,
        watch: Watcher | None = None,
        first: int = 0,
        **options: Any,
    ) -> Tensor:
        """Sample images ``(N, C, H, W)`` in [0, 1], on the module's device, in evaluation mode.

        Parameters
        ----------
        y : Tensor or int
            Codes of their classes ``(N,)``; without classes the number of images N.
        seed : int, default=0
            Seed of the noise, at least 0. Image i of a seed does not depend on the other images.
        batch_size : int, default=128
            Images per forward pass.
        watch : Watcher, optional
            As in :func:`~moeapps.vision.sampling.draw`.
        first : int, default=0
            Number i of the first image, at least 0.
        **options
            ``steps``, ``sampler``, ``eta``, ``guidance`` and ``clip`` of that function.

        Raises
        ------
        ConfigError
            If an argument is impossible.
        """
        check_sizes(batch_size=batch_size)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigError(f"seed must be a whole number of at least 0, got {seed!r}")
        check_at_least_zero(first=first)
        if isinstance(y, Tensor) and not self.conditional:
            raise ConfigError("the module has no classes: give a number of images, not labels")
        count = y if isinstance(y, int) else len(y)
        training = self.network.training
        self.network.eval()
        parts = []
        try:
            for start in range(0, count, batch_size):
                size = min(batch_size, count - start)
                noise = Noise(seed, first + start, size, self.device)
                labels = None if isinstance(y, int) else y[start : start + size].to(self.device)
                parts.append(draw(self.network, self.diffusion, self.spec.shape, noise, labels, watch=watch, **options))
        finally:
            if training:
                self.network.train()
        return (torch.cat(parts) + 1) / 2

    def configure_optimizers(self) -> Any:
        """AdamW, with a constant learning rate after the warm-up."""
        config = self.config
        fused = fused_where_possible(self.network.parameters())
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.lr, weight_decay=config.weight_decay, **fused)
        return self.with_cosine_schedule(optimizer, config.warmup, end=1.0)
