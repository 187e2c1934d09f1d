"""From noise to images: DDPM, DDIM, and DPM-Solver++ through diffusers, all with classifier-free guidance."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moeapps.core.checks import check_at_least_zero, check_one_of, check_sizes
from moeapps.core.errors import ConfigError
from moeapps.vision.diffusion import Diffusion, between

__all__ = ["SAMPLERS", "Noise", "Watcher", "draw", "spaced_timesteps"]

SAMPLERS = ("ddim", "ddpm", "dpm++")

Watcher = Callable[[int, Tensor, Tensor], None]
"""Number of the step, noisy images, predicted images, both in [-1, 1]."""


class Noise:
    """Standard noise, of each image from a generator of its own: an image does not depend on those beside it.

    Parameters
    ----------
    seed : int
        Seed of everything.
    first : int
        Number of the first image.
    count : int
        How many images.
    device : torch.device or str, default "cpu"
        Where the noise is needed; it is drawn on the CPU, so that it is the same everywhere.
    """

    def __init__(self, seed: int, first: int, count: int, device: torch.device | str = "cpu") -> None:
        states = [
            np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0] for i in range(first, first + count)
        ]
        self.generators = [torch.Generator().manual_seed(int(state >> np.uint64(1))) for state in states]
        self.device = device

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Noise ``(N, *shape)``."""
        found = torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])
        return found.to(self.device)


def spaced_timesteps(timesteps: int, steps: int) -> list[int]:
    """``steps`` timesteps from T - 1 down to 0, evenly.

    Raises
    ------
    ConfigError
        If there are more steps than timesteps.
    """
    check_sizes(steps=steps)
    if steps > timesteps:
        raise ConfigError(f"steps must be at most the {timesteps} timesteps of the training, got {steps}")
    if steps == 1:
        return [timesteps - 1]
    return [round(t) for t in np.linspace(timesteps - 1, 0, steps)]


@torch.no_grad()
def draw(
    network: nn.Module,
    diffusion: Diffusion,
    shape: tuple[int, int, int],
    noise: Noise,
    y: Tensor | None = None,
    *,
    steps: int = 50,
    sampler: str = "ddim",
    eta: float = 0.0,
    guidance: float = 1.0,
    clip: bool = True,
    watch: Watcher | None = None,
) -> Tensor:
    """Draw images ``(N, C, H, W)`` in [-1, 1].

    Parameters
    ----------
    network : nn.Module
        Of noisy images, timesteps and labels, in evaluation mode.
    diffusion : Diffusion
        What it was trained with.
    shape : tuple[int, int, int]
        Channels, height, width.
    noise : Noise
        Where noise comes from; it says how many images.
    y : Tensor, optional
        Labels ``(N,)``; None for none.
    steps : int, default 50
        Evaluations of the network.
    sampler : str, default "ddim"
        ``"ddim"`` (Song et al. 2021), ``"ddpm"``, or ``"dpm++"`` (needs ``moeapps[diffusers]``).
    eta : float, default 0.0
        Of DDIM: 0 draws no noise on the way, 1 as much as DDPM.
    guidance : float, default 1.0
        How far beyond a prediction without a label (1: not; 0: without labels).
    clip : bool, default True
        Whether predicted images are cut to [-1, 1], as is right for pixels.
    watch : Watcher, optional
        Called after each step with its number, the noisy images and the predicted ones.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    """
    check_one_of("sampler", sampler, SAMPLERS)
    check_at_least_zero(eta=eta, guidance=guidance)
    if guidance != 1 and y is None:
        raise ConfigError("guidance needs labels: give y, or leave guidance at 1")
    x = noise(shape)
    walk = _Walk(network, diffusion, y, guidance, clip)
    if sampler == "dpm++":
        return _dpm(walk, x, steps, watch)
    chosen = spaced_timesteps(diffusion.timesteps, steps)
    for i, (t, before) in enumerate(zip(chosen, [*chosen[1:], -1], strict=True)):
        now, then = (torch.full((len(x),), value, device=x.device) for value in (t, before))
        x0, sigma = walk.predict(x, now)
        if sampler == "ddpm":
            mean, low, high = diffusion.posterior(x0, x, now, then)
            log_variance = low if sigma is None else between(sigma, low, high)
            x = mean if before < 0 else mean + (0.5 * log_variance).exp() * noise(shape)
        else:
            x = _ddim(diffusion, x, x0, now, then, eta, noise)
        if watch is not None:
            watch(i, x, x0)
    return x


def _ddim(diffusion: Diffusion, x: Tensor, x0: Tensor, t: Tensor, before: Tensor, eta: float, noise: Noise) -> Tensor:
    if int(before[0]) < 0:
        return x0
    bar_t, bar_s = (float(diffusion.alphas[int(steps[0])]) for steps in (t, before))
    sigma = eta * math.sqrt((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s))
    direction = math.sqrt(max(1 - bar_s - sigma**2, 0.0))
    x = math.sqrt(bar_s) * x0 + direction * diffusion.to_eps(x, t, x0)
    return x + sigma * noise(tuple(x.shape[1:])) if sigma > 0 else x


class _Walk:
    """What the network predicts for noisy images, with guidance."""

    def __init__(self, network: nn.Module, diffusion: Diffusion, y: Tensor | None, guidance: float, clip: bool) -> None:
        self.network, self.diffusion, self.y, self.guidance, self.clip = network, diffusion, y, guidance, clip

    def output(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Prediction and sigma of the network."""
        channels = x.shape[1]
        if self.guidance in (0, 1) or self.y is None:
            out = self.network(x, t, self.y if self.guidance else None)
            mean = out[:, :channels]
        else:
            none: Any = self.network.num_classes
            both = self.network(x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([self.y, torch.full_like(self.y, none)]))
            out, free = both.chunk(2)
            mean = free[:, :channels] + self.guidance * (out[:, :channels] - free[:, :channels])
        return mean, out[:, channels:] if out.shape[1] > channels else None

    def predict(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Image and sigma."""
        mean, sigma = self.output(x, t)
        x0 = self.diffusion.to_x0(x, t, mean)
        return x0.clamp(-1, 1) if self.clip else x0, sigma


def _dpm(walk: _Walk, x: Tensor, steps: int, watch: Watcher | None) -> Tensor:
    try:
        from diffusers import DPMSolverMultistepScheduler
    except ImportError:
        raise ConfigError("sampler='dpm++' needs diffusers: pip install 'moeapps[diffusers]'") from None
    spaced_timesteps(walk.diffusion.timesteps, steps)
    alphas = walk.diffusion.alphas
    betas = 1 - alphas / torch.cat([alphas.new_ones(1), alphas[:-1]])
    scheduler: Any = DPMSolverMultistepScheduler(
        num_train_timesteps=len(alphas),
        trained_betas=betas.numpy(),
        prediction_type="sample",
        algorithm_type="dpmsolver++",
        timestep_spacing="linspace",
        final_sigmas_type="zero",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy about diffusers' own arrays
        scheduler.set_timesteps(steps, device=x.device)
    for i, t in enumerate(scheduler.timesteps):
        x0, _ = walk.predict(x, torch.full((len(x),), int(t), device=x.device))
        x = scheduler.step(x0, t, x).prev_sample
        if watch is not None:
            watch(i, x, x0)
    return x.clamp(-1, 1) if walk.clip else x
