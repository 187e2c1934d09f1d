"""Generation of images behind scikit-learn's interface."""

# Shapes: N images, C channels, S = H = W side of an image

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from moeapps.core.checks import check_sizes
from moeapps.core.config import as_arguments, config_from, field_names, store_arguments
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.search import Choice, Distribution, Float, Int
from moeapps.vision.diffusion_module import DiffusionModule, DiffusionModuleConfig
from moeapps.vision.dit import DiTConfig
from moeapps.vision.estimator import ImageEstimator
from moeapps.vision.images import ImageSpec, as_images
from moeapps.vision.sampling import Watcher
from moeapps.vision.switch_dit import SwitchDiT, SwitchDiTConfig

__all__ = ["SwitchDiTGenerator"]

_AS_IN_0_1 = {"gate_bias": False, "prior_gates": "chosen", "ema_rising": False}


class SwitchDiTGenerator(ImageEstimator):
    """Class-conditional image generator with a Switch-DiT (Park et al., ECCV 2024) or a plain DiT.

    Parameters
    ----------
    model : {"switch_dit", "dit"}, default="switch_dit"
        Network.
    dim : int, default=64
        Width of the tokens, a multiple of ``num_heads`` and of 4.
    depth : int, default=4
        Number of blocks.
    num_heads : int, default=4
        Number of attention heads.
    mlp_ratio : float, default=4.0
        Hidden width of the MLPs, as a multiple of ``dim``.
    patch_size : int, default=2
        Side of a patch in pixels; it divides the side of the images.
    num_experts : int, default=3
        Number of experts per block. Not for ``"dit"``.
    top_k : int, default=2
        Experts per timestep and block. Not for ``"dit"``.
    gate_bias : bool, default=True
        Whether the gates have a bias, as in the released code; those of moeapps 0.1 had none. Not for ``"dit"``.
    timesteps : int, default=1000
        Number of timesteps of the diffusion.
    schedule : {"cosine", "linear"}, default="cosine"
        How the noise grows with the timestep.
    prediction : {"v", "eps"}, default="v"
        What the network predicts: the velocity or the noise.
    learn_sigma : bool, default=False
        Whether the network also predicts the variance of the noise, which DDPM sampling uses.
    snr_gamma : float, optional
        Gamma of the min-SNR weights; None weights all timesteps alike.
    class_dropout : float, default=0.1
        Probability with which training replaces a label by "no class", for classifier-free guidance.
    prior_weight : float, default=1.0
        Factor of Switch-DiT's diffusion prior loss; 0 for none.
    prior_alpha : float, default=4.0
        Exponent of the prior.
    prior_gates : {"all", "chosen"}, default="all"
        Whether the prior compares the probabilities of all experts with its windows, as the released code does, or the
        weights of the chosen experts alone, as moeapps 0.1 did.
    match_every : int, default=100
        Steps between two matchings of experts to the prior's units.
    lr : float, default=2e-3
        Learning rate of AdamW.
    warmup : float, default=0.05
        Fraction of the training over which the learning rate rises.
    ema_decay : float, default=0.995
        Decay of the exponential moving average of the weights; 0 for none.
    ema_rising : bool, default=True
        Whether the decay rises to ``ema_decay`` in the first steps, so that the first weights are soon forgotten.
    batch_size : int, default=64
        Images per training step.
    max_epochs : int, default=100
        Number of epochs.
    validation_fraction : float, default=0.0
        Fraction of the images that is held out; their denoising error is logged as ``val/loss``. It selects no epoch.
    accelerator : str, default="auto"
        Lightning's accelerator.
    precision : str, default="32-true"
        Lightning's precision of the training.
    verbose : bool, default=False
        Whether to show a progress bar.
    log_dir : str, optional
        Folder for logs and checkpoints; nothing is written when None.
    logger : str, Logger or list of Logger, default=None
        ``"csv"``, ``"tensorboard"``, ``"wandb"`` or ``"mlflow"``, several with commas, in a new folder of ``log_dir``;
        or loggers of Lightning. None logs to CSV where there is a ``log_dir``.
    random_state : int, RandomState or None, default=None
        Seed of the training.

    Attributes
    ----------
    classes_ : ndarray of shape (K,), or None
        Class labels; None if it was fitted without.
    spec_ : ImageSpec
        Shape of the images, and mean and standard deviation of each channel.
    model_ : DiffusionModule
        The trained module; ``model_.network`` is the network.
    history_ : DataFrame
        Logged metrics, one row per epoch.
    n_iter_ : int
        Number of epochs.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from moeapps.vision import SwitchDiTGenerator
    >>> X, y = load_digits().images, load_digits().target
    >>> model = SwitchDiTGenerator(dim=32, depth=2, max_epochs=1, random_state=0).fit(X, y)
    >>> model.sample(3, y=[7, 7, 1], steps=10).shape
    (3, 8, 8)
    """

    _search_space: ClassVar[Mapping[str, Distribution]] = {
        "dim": Choice((32, 64, 96)),
        "depth": Int(2, 6),
        "num_experts": Int(2, 6),
        "lr": Float(5e-4, 5e-3, log=True),
        "prior_weight": Float(0.1, 3.0, log=True),
        "class_dropout": Float(0.05, 0.2),
    }

    low_: float
    high_: float
    layout_: Literal["HW", "CHW", "HWC"]
    whole_: bool
    _saved_attributes = ("n_iter_", "low_", "high_", "layout_", "whole_")
    model_: DiffusionModule

    def __init__(
        self,
        model: str = "switch_dit",
        *,
        dim: int = 64,
        depth: int = 4,
        num_heads: int = 4,
        mlp_ratio: float = 4.0,
        patch_size: int = 2,
        num_experts: int = 3,
        top_k: int = 2,
        gate_bias: bool = True,
        timesteps: int = 1000,
        schedule: str = "cosine",
        prediction: str = "v",
        learn_sigma: bool = False,
        snr_gamma: float | None = None,
        class_dropout: float = 0.1,
        prior_weight: float = 1.0,
        prior_alpha: float = 4.0,
        prior_gates: str = "all",
        match_every: int = 100,
        lr: float = 2e-3,
        warmup: float = 0.05,
        ema_decay: float = 0.995,
        ema_rising: bool = True,
        batch_size: int = 64,
        max_epochs: int = 100,
        validation_fraction: float = 0.0,
        accelerator: str = "auto",
        precision: str = "32-true",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
        logger: Any = None,
    ) -> None:
        store_arguments(self, locals())

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle; in 0.1 some arguments did not exist."""
        super().__setstate__({**_AS_IN_0_1, **state})

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Path
    ) -> Self:
        """As any estimator; a file of 0.1 lacks arguments, with today's defaults for which it would be another one."""
        return super().from_saved({**_AS_IN_0_1, **arguments}, state, tensors, source)

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Train on images.

        Parameters
        ----------
        X : array of shape (n, S, S), (n, C, S, S) or (n, S, S, C)
            Square images with 1, 3 or 4 channels, uint8 or float.
        y : array of shape (n,), optional
            Labels; None for a generator without classes.

        Returns
        -------
        self
            The fitted estimator. If fitting fails, an earlier fit is kept.

        Raises
        ------
        ValueError
            Naming the argument or image that cannot be used.
        """
        with self._all_or_nothing() as fitted:
            fitted._fit(X, y)
        return self

    def _fit(self, X: Any, y: ArrayLike | None) -> None:
        self._check_settings()
        images = as_images(X, scale_depth=False)  # samples have the numbers of training
        shape = tuple(np.shape(X))
        self.layout_ = "HW" if len(shape) == 3 else "CHW" if shape[1:] == tuple(images.shape[1:]) else "HWC"
        self.whole_ = images.dtype == torch.uint8
        self.low_, self.high_ = (0.0, 255.0) if self.whole_ else (float(images.min()), float(images.max()))
        if self.high_ <= self.low_:
            raise DataError(f"every pixel is {self.low_:g}: there is nothing to learn")
        if not self.whole_:
            images = (images - self.low_) / (self.high_ - self.low_)
        if y is None:
            self.classes_, codes = None, np.zeros(len(images), dtype=np.int64)
        else:
            codes = self._encode(y, len(images))
        seed = self._seed()
        self.spec_ = ImageSpec.of(images, [] if self.classes_ is None else self.classes_)
        self._train_on(*self._split(images, codes, seed), seed)

    def _make_module(self) -> DiffusionModule:
        config = config_from(DiffusionModuleConfig, self, options=self._sizes(), conditional=self.classes_ is not None)
        return DiffusionModule.from_config(config=config)

    @classmethod
    def from_module(cls, module: DiffusionModule) -> Self:
        """See :meth:`LightningEstimator.from_module`. Samples are floats in [0, 1], as those of the module."""
        config = module.config
        networks: list[Any] = [DiTConfig(), *([SwitchDiTConfig()] if config.model == "switch_dit" else [])]
        defaults = {name: value for network in networks for name, value in as_arguments(network).items()}
        sizes = {**defaults, **config.network_arguments()}
        known = {*cls._get_param_names(), *field_names(DiTConfig)}
        if unknown := sorted(set(config.options or {}) - known):
            raise ConfigError(f"options has {', '.join(unknown)}, for which {cls.__name__} has no argument")
        estimator = cls._with_settings(sizes, as_arguments(config))
        estimator.spec_, estimator.model_ = module.spec, module
        estimator.classes_ = np.array(module.spec.classes) if module.conditional else None
        estimator.low_, estimator.high_, estimator.whole_ = 0.0, 1.0, False
        estimator.layout_ = "HW" if module.spec.shape[0] == 1 else "HWC"
        return estimator

    def _sizes(self) -> dict[str, Any]:
        """Arguments of the network that are arguments of the estimator, but not of the module."""
        experts = field_names(SwitchDiTConfig) if self.model == "switch_dit" else ()
        own = set(field_names(DiTConfig)) - set(field_names(DiffusionModuleConfig))
        return {name: getattr(self, name) for name in (*sorted(own), *experts) if hasattr(self, name)}

    def sample(
        self,
        n: int = 1,
        y: Any = None,
        *,
        guidance: float = 1.0,
        steps: int = 50,
        sampler: str = "ddim",
        eta: float = 0.0,
        seed: int = 0,
        first: int = 0,
        watch: Watcher | None = None,
    ) -> NDArray[Any]:
        """Sample images.

        Parameters
        ----------
        n : int, default=1
            Number of images.
        y : label or array of shape (n,), optional
            Their classes; when None, all classes in turn. Not for a generator without classes.
        guidance : float, default=1.0
            Scale of classifier-free guidance; 1 is without, usual are 1 to 4.
        steps : int, default=50
            Evaluations of the network per image.
        sampler : {"ddim", "ddpm", "dpm++"}, default="ddim"
            ``"dpm++"`` needs ``moeapps[diffusers]``.
        eta : float, default=0.0
            Noise of DDIM's steps: 0 is deterministic, 1 has as much noise as DDPM.
        seed : int, default=0
            Seed of the noise. Image i of a seed does not depend on ``n``.
        first : int, default=0
            Number i of the first image: a later part of the images of a seed. With ``y=None`` the classes begin anew.
        watch : callable, optional
            Called after each step, as by :func:`~moeapps.vision.sampling.draw`; what it raises ends the sampling.

        Returns
        -------
        ndarray of shape (n, ...)
            Images in the layout, dtype and range of the training images.

        Raises
        ------
        ValueError
            Naming the argument that is impossible.
        """
        labels = self._labels(n, y)
        options = {"guidance": guidance, "steps": steps, "sampler": sampler, "eta": eta, "first": first, "watch": watch}
        return self._to_user(self._draw(labels, seed, **options))

    def to_pixels(self, images: ArrayLike) -> NDArray[np.uint8]:
        """Images of :meth:`sample`, or one, as pixels of 0 to 255, for a file; channels are the last axis.

        Parameters
        ----------
        images : array-like
            Of the layout and range of the training images.
        """
        check_is_fitted(self, "model_")
        scaled = (np.asarray(images, dtype=np.float64) - self.low_) / (self.high_ - self.low_)
        pixels: NDArray[np.uint8] = (scaled.clip(0, 1) * 255).round().astype(np.uint8)
        if self.layout_ == "CHW":
            pixels = np.moveaxis(pixels, -3, -1)
        return pixels[..., 0] if self.layout_ != "HW" and pixels.shape[-1] == 1 else pixels

    def trajectory(
        self, n: int = 1, y: Any = None, *, frames: int = 8, steps: int = 50, seed: int = 0, **options: Any
    ) -> NDArray[Any]:
        """Noisy images of ``frames`` evenly spaced steps, the last of which is the sample.

        Parameters
        ----------
        n, y, steps, seed
            As in :meth:`sample`.
        frames : int, default=8
            Number of steps to return.
        **options
            Further arguments of :meth:`sample`.

        Returns
        -------
        ndarray of shape (n, frames, ...)
            Images in the layout, dtype and range of the training images.
        """
        check_sizes(frames=frames, steps=steps)
        labels = self._labels(n, y)
        shown_steps = {round(i) for i in np.linspace(0, steps - 1, min(frames, steps))}
        seen: list[Tensor] = []  # (N, C, S, S) each

        def watch(step: int, x: Tensor, x0: Tensor) -> None:
            if step in shown_steps:
                seen.append(x.cpu())

        self._draw(labels, seed, steps=steps, watch=watch, batch_size=n, **options)
        frames_of = torch.stack(seen, dim=1)  # (N, frames, C, S, S)
        flat = self._to_user(((frames_of + 1) / 2).clamp(0, 1).flatten(0, 1))
        return flat.reshape(*frames_of.shape[:2], *flat.shape[1:])

    def gate_table(self) -> NDArray[np.float32]:
        """Weight of each expert at each timestep, ``(blocks, timesteps, experts)``; 0 for experts that are not chosen.

        Raises
        ------
        ConfigError
            If the model has no experts.
        """
        check_is_fitted(self, "model_")
        network = self.model_.network
        if not isinstance(network, SwitchDiT):
            raise ConfigError(f"model={self.model!r} has no experts")
        with torch.no_grad():
            table: NDArray[np.float32] = network.gate_table().numpy()
        return table

    def _labels(self, n: int, y: Any) -> Tensor | int:
        """Codes of the images' classes, or the number of images where there are no classes."""
        check_is_fitted(self, "model_")
        check_sizes(n=n)
        if self.classes_ is None:
            if y is not None:
                raise DataError("the generator was fitted without labels: y must be None")
            return n
        if y is None:
            return torch.arange(n) % len(self.classes_)
        wanted = np.atleast_1d(np.asarray(y))
        wanted = np.repeat(wanted, n) if len(wanted) == 1 else wanted
        if wanted.shape != (n,):
            raise DataError(f"y must be one label, or n={n} labels, got shape {np.shape(y)}")
        unknown = sorted({str(label) for label in wanted[~np.isin(wanted, self.classes_)]})
        if unknown:
            raise DataError(f"y has labels that training lacked: {', '.join(unknown)}")
        return torch.from_numpy(np.searchsorted(self.classes_, wanted))

    def _draw(self, labels: Tensor | int, seed: int, **options: Any) -> Tensor:
        with self._on_device() as module:
            seed = int(seed) if isinstance(seed, np.integer) else seed
            images: Tensor = module.sample(labels, seed=seed, **options).cpu()
        self._finite(images.numpy())
        return images

    def _to_user(self, images: Tensor) -> NDArray[Any]:
        """Images ``(N, C, S, S)`` in [0, 1] to the layout, dtype and range of the training images."""
        values = images.double() * (self.high_ - self.low_) + self.low_
        array = values.round().to(torch.uint8).numpy() if self.whole_ else values.float().numpy()
        layouts: dict[str, NDArray[Any]] = {"HW": array[:, 0], "HWC": array.transpose(0, 2, 3, 1), "CHW": array}
        return layouts[self.layout_]
