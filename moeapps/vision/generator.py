"""Generation of images behind scikit-learn's interface."""

# Shapes: N images, C channels, S = H = W side of an image

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from moeapps.core.checks import check_sizes
from moeapps.core.config import config_from, field_names
from moeapps.core.errors import ConfigError, DataError
from moeapps.vision.diffusion_module import DiffusionModule, DiffusionModuleConfig
from moeapps.vision.dit import DiTConfig
from moeapps.vision.estimator import ImageEstimator
from moeapps.vision.images import ImageSpec, as_images
from moeapps.vision.switch_dit import SwitchDiT, SwitchDiTConfig

__all__ = ["SwitchDiTGenerator"]


class SwitchDiTGenerator(ImageEstimator):
    """Draws images like those it was fitted on, by class, with Switch-DiT (Park et al., ECCV 2024) or a plain DiT.

    Parameters
    ----------
    model : str
        ``"switch_dit"`` or ``"dit"``.
    dim, depth, num_heads : int
        Width, blocks, and heads.
    mlp_ratio : float
        Hidden width of the MLPs, as a multiple of the width.
    patch_size : int
        Side of a patch in pixels; it divides that of the images.
    num_experts, top_k : int
        Experts per block, and how many of them a timestep uses. Not for ``"dit"``.
    timesteps : int
        Timesteps of the diffusion.
    schedule : str
        ``"linear"`` or ``"cosine"``.
    prediction : str
        What the network predicts: the noise ``"eps"`` or the velocity ``"v"``.
    learn_sigma : bool
        Whether the scale of the noise is learned too; DDPM uses it.
    snr_gamma : float, optional
        Of the min-SNR weights; None for none.
    class_dropout : float
        Probability with which training hides a label, for guidance.
    prior_weight, prior_alpha : float
        Weight and exponent of Switch-DiT's prior loss.
    match_every : int
        Steps between two matchings of experts to the prior.
    lr, warmup : float
        Rate of AdamW, and the part of the training over which it rises.
    ema_decay : float
        Of the moving average of the weights; 0 for none.
    batch_size : int
        Images per step.
    max_epochs : int
        Passes over the images.
    validation_fraction : float
        Part of the images whose denoising error is logged as ``val/loss``; no epoch is chosen by it.
    accelerator : str
        Lightning's accelerator.
    precision : str
        Lightning's precision of the training.
    verbose : bool
        Whether to show a progress bar.
    log_dir : str, optional
        Where to log and write checkpoints; nowhere when None.
    random_state : int, RandomState or None
        Seed of the training.

    Attributes
    ----------
    classes_ : array or None
        Class labels; None if it was fitted without.
    spec_ : ImageSpec
        What the images are like.
    model_ : DiffusionModule
        What was trained; ``model_.network`` is the network.
    history_ : DataFrame
        What was logged, one row per epoch.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from moeapps.vision import SwitchDiTGenerator
    >>> X, y = load_digits().images, load_digits().target
    >>> model = SwitchDiTGenerator(dim=32, depth=2, max_epochs=1, random_state=0).fit(X, y)
    >>> model.sample(3, y=[7, 7, 1], steps=10).shape
    (3, 8, 8)
    """

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
        timesteps: int = 1000,
        schedule: str = "cosine",
        prediction: str = "v",
        learn_sigma: bool = False,
        snr_gamma: float | None = None,
        class_dropout: float = 0.1,
        prior_weight: float = 1.0,
        prior_alpha: float = 4.0,
        match_every: int = 100,
        lr: float = 2e-3,
        warmup: float = 0.05,
        ema_decay: float = 0.995,
        batch_size: int = 64,
        max_epochs: int = 100,
        validation_fraction: float = 0.0,
        accelerator: str = "auto",
        precision: str = "32-true",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.dim = dim
        self.depth = depth
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.patch_size = patch_size
        self.num_experts = num_experts
        self.top_k = top_k
        self.timesteps = timesteps
        self.schedule = schedule
        self.prediction = prediction
        self.learn_sigma = learn_sigma
        self.snr_gamma = snr_gamma
        self.class_dropout = class_dropout
        self.prior_weight = prior_weight
        self.prior_alpha = prior_alpha
        self.match_every = match_every
        self.lr = lr
        self.warmup = warmup
        self.ema_decay = ema_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.validation_fraction = validation_fraction
        self.accelerator = accelerator
        self.precision = precision
        self.verbose = verbose
        self.log_dir = log_dir
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Learn to draw.

        Parameters
        ----------
        X : array of shape (n, S, S), (n, C, S, S) or (n, S, S, C)
            Square images with 1, 3 or 4 channels, uint8 or float.
        y : array of shape (n,), optional
            Labels; None to draw without classes.

        Returns
        -------
        self
            Fitted. If fitting fails, an earlier fit stays as it was.

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
        images = as_images(X)
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

    def _build_model(self) -> DiffusionModule:
        config = config_from(DiffusionModuleConfig, self, options=self._sizes(), conditional=self.classes_ is not None)
        module = DiffusionModule.from_config(config=config)
        module.attach(self.spec_)
        return module

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
    ) -> NDArray[Any]:
        """Draw images.

        Parameters
        ----------
        n : int
            How many.
        y : label or array of shape (n,), optional
            Their classes; all classes one after the other when None. Not for a generator without classes.
        guidance : float
            How much more of its class an image gets than the network would give it (1: not; usually 1 to 4).
        steps : int
            Evaluations of the network per image.
        sampler : str
            ``"ddim"``, ``"ddpm"``, or ``"dpm++"`` (needs ``moeapps[diffusers]``).
        eta : float
            Of DDIM: 0 draws no noise on the way, 1 as much as DDPM.
        seed : int
            Image i of a seed is always the same, whatever n is.

        Returns
        -------
        array
            Images in the layout, the type and the range of those of the training.

        Raises
        ------
        ValueError
            Naming what cannot be.
        """
        labels = self._labels(n, y)
        return self._to_user(self._draw(labels, seed, guidance=guidance, steps=steps, sampler=sampler, eta=eta))

    def trajectory(
        self, n: int = 1, y: Any = None, *, frames: int = 8, steps: int = 50, seed: int = 0, **options: Any
    ) -> NDArray[Any]:
        """Images on their way from noise, of ``frames`` evenly spaced steps: an array ``(n, frames, ...)``.

        Parameters
        ----------
        n, y, steps, seed
            As in :meth:`sample`.
        frames : int
            How many; the last one is the image itself.
        **options
            Further arguments of :meth:`sample`.
        """
        check_sizes(frames=frames, steps=steps)
        labels = self._labels(n, y)
        shown = {round(i) for i in np.linspace(0, steps - 1, min(frames, steps))}
        seen: list[Tensor] = []

        def watch(step: int, x: Tensor, x0: Tensor) -> None:
            if step in shown:
                seen.append(x.cpu())

        self._draw(labels, seed, steps=steps, watch=watch, batch_size=n, **options)
        every = torch.stack(seen, dim=1)
        flat = self._to_user(((every + 1) / 2).clamp(0, 1).flatten(0, 1))
        return flat.reshape(every.shape[0], every.shape[1], *flat.shape[1:])

    def gate_table(self) -> NDArray[np.float32]:
        """Gates ``(blocks, timesteps, experts)``: which experts a timestep uses, and how much; 0 for those it does not.

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
        """Codes of the classes to draw, or their number where there are no classes."""
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
        return images

    def _to_user(self, images: Tensor) -> NDArray[Any]:
        """From [0, 1] and ``(N, C, S, S)`` to what training had."""
        values = images.double() * (self.high_ - self.low_) + self.low_
        array = values.round().to(torch.uint8).numpy() if self.whole_ else values.float().numpy()
        if self.layout_ == "HW":
            found: NDArray[Any] = array[:, 0]
        elif self.layout_ == "HWC":
            found = array.transpose(0, 2, 3, 1)
        else:
            found = array
        return found
