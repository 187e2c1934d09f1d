"""From noise to images: DDPM, DDIM, and DPM-Solver++ through diffusers, all with classifier-free guidance."""

# Shapes: N images, C channels, H height, W width, K classes
#
# DDPM and DDIM are ours although diffusers has them. diffusers is an optional extra, and its DDIM steps to
# t - T // steps, which is not the next of evenly spaced timesteps: with 20 of 1000 steps the images of a random network
# differ by up to 0.17. Where the timesteps agree (DDPM; DDIM with all of them) the images agree to 1e-4, which
# tests/vision/test_diffusion.py checks, but not to the bit, since diffusers computes the factors in float32.

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moeapps.core.checks import check_at_least_zero, check_one_of, check_sizes
from moeapps.core.errors import ConfigError
from moeapps.core.packages import needs
from moeapps.vision.diffusion import Diffusion, between

__all__ = ["SAMPLERS", "Noise", "Watcher", "draw", "spaced_timesteps"]

SAMPLERS = ("ddim", "ddpm", "dpm++")

Watcher = Callable[[int, Tensor, Tensor], None]
"""Called with the number of the step, the noisy images and the predicted images, both about [-1, 1]."""


class Noise:
    """Standard normal noise with one generator per image, so that an image does not depend on its batch.

    Parameters
    ----------
    seed : int
        Seed of all images.
    first : int
        Number of the first image.
    count : int
        Number of images N.
    device : torch.device or str, default="cpu"
        Device of the noise; it is drawn on the CPU, so that it is the same on every device.
    """

    def __init__(self, seed: int, first: int, count: int, device: torch.device | str = "cpu") -> None:
        states = [
            np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0] for i in range(first, first + count)
        ]
        self.generators = [torch.Generator().manual_seed(int(state >> np.uint64(1))) for state in states]
        self.device = device

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """Noise ``(N, *shape)``."""
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in self.generators])
        return noise.to(self.device)


def spaced_timesteps(timesteps: int, steps: int) -> list[int]:
    """``steps`` evenly spaced timesteps, from T - 1 down to 0.

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
    r"""Sample images ``(N, C, H, W)`` in [-1, 1].

    1. Start with noise :math:`x_t` at the last timestep; choose ``steps`` timesteps from T - 1 to 0, evenly spaced.
    2. At each timestep t the network predicts, with guidance, the image :math:`x_0` that the noisy one comes from, and
       where it was trained for that, the variance of the step.
    3. With ``clip``, cut :math:`x_0` to [-1, 1].
    4. Step to the next timestep s. DDIM: :math:`x_s = \sqrt{\bar\alpha_s} x_0 + \sqrt{1 - \bar\alpha_s - \sigma^2}
       \epsilon + \sigma z` with the noise :math:`\epsilon` that :math:`x_0` implies and new noise z, where
       :math:`\sigma` is ``eta`` times DDPM's. DDPM: draw from the posterior :math:`q(x_s | x_t, x_0)`.
    5. After timestep 0 the image is :math:`x_0` itself.

    Parameters
    ----------
    network : nn.Module
        From noisy images, timesteps and labels to predictions, in evaluation mode.
    diffusion : Diffusion
        The diffusion that it was trained with.
    shape : tuple of int
        Channels, height, width.
    noise : Noise
        Where noise comes from; it decides the number of images N.
    y : Tensor, optional
        Labels ``(N,)``; None for none.
    steps : int, default=50
        Number of evaluations of the network.
    sampler : {"ddim", "ddpm", "dpm++"}, default="ddim"
        DDIM (Song et al. 2021), DDPM (Ho et al. 2020), or DPM-Solver++ (Lu et al. 2022; needs ``moeapps[diffusers]``).
    eta : float, default=0.0
        Noise of DDIM's steps: 0 is deterministic, 1 has as much noise as DDPM.
    guidance : float, default=1.0
        Scale of classifier-free guidance (Ho and Salimans 2022): 1 is without, 0 ignores the labels.
    clip : bool, default=True
        Whether predicted images are cut to [-1, 1], as is right for pixels.
    watch : callable, optional
        Called after each step with its number, the noisy images and the predicted images.

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
    denoiser = _Denoiser(network, diffusion, y, guidance, clip)
    if sampler == "dpm++":
        return _dpm(denoiser, x, steps, watch)
    chosen = spaced_timesteps(diffusion.timesteps, steps)
    for i, (t, before) in enumerate(zip(chosen, [*chosen[1:], -1], strict=True)):
        now, then = (torch.full((len(x),), value, device=x.device) for value in (t, before))
        x0, sigma = denoiser.predict(x, now)
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
    """One step from timestep t to an earlier one (Song et al. 2021, equations 12 and 16)."""
    if int(before[0]) < 0:
        return x0
    bar_t, bar_s = (float(diffusion.alphas[int(steps[0])]) for steps in (t, before))
    sigma = eta * math.sqrt((1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s))
    direction = math.sqrt(max(1 - bar_s - sigma**2, 0.0))
    x = math.sqrt(bar_s) * x0 + direction * diffusion.to_eps(x, t, x0)
    return x + sigma * noise(tuple(x.shape[1:])) if sigma > 0 else x


class _Denoiser:
    """What the network predicts for noisy images, with guidance."""

    def __init__(self, network: nn.Module, diffusion: Diffusion, y: Tensor | None, guidance: float, clip: bool) -> None:
        self.network, self.diffusion, self.y, self.guidance, self.clip = network, diffusion, y, guidance, clip

    def output(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Prediction with guidance, and what the network says of the variance, both ``(N, C, H, W)``.

        Guidance applies to the prediction only, as in DiT: the variance is that of the labelled half.
        """
        channels = x.shape[1]
        if self.guidance in (0, 1) or self.y is None:
            out = self.network(x, t, self.y if self.guidance else None)
            mean = out[:, :channels]
        else:  # images with and without labels in one batch
            none: Any = self.network.num_classes
            both = self.network(x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([self.y, torch.full_like(self.y, none)]))
            out, free = both.chunk(2)
            mean = free[:, :channels] + self.guidance * (out[:, :channels] - free[:, :channels])
        return mean, out[:, channels:] if out.shape[1] > channels else None

    def predict(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predicted images, and what the network says of the variance."""
        mean, sigma = self.output(x, t)
        x0 = self.diffusion.to_x0(x, t, mean)
        return x0.clamp(-1, 1) if self.clip else x0, sigma


def _dpm(denoiser: _Denoiser, x: Tensor, steps: int, watch: Watcher | None) -> Tensor:
    with needs("sampler='dpm++'", "moeapps[diffusers]"):
        from diffusers import DPMSolverMultistepScheduler
    spaced_timesteps(denoiser.diffusion.timesteps, steps)
    alphas = denoiser.diffusion.alphas
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
        x0, _ = denoiser.predict(x, torch.full((len(x),), int(t), device=x.device))
        x = scheduler.step(x0, t, x).prev_sample
        if watch is not None:
            watch(i, x, x0)
    return x.clamp(-1, 1) if denoiser.clip else x
