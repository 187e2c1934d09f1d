r"""Gaussian diffusion (Ho et al. 2020): the forward process, predictions, losses and the posterior.

:math:`q(x_t | x_0) = N(\sqrt{\bar\alpha_t} x_0, (1 - \bar\alpha_t) I)` for t = 0 to T - 1; t = 0 is the least noisy.
Images are in [-1, 1].
"""

# Shapes: N images, C channels, H height, W width, T timesteps

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from moeapps.core.checks import check_one_of, check_sizes
from moeapps.core.config import Configurable, takes
from moeapps.core.errors import ConfigError, DataError

__all__ = ["Diffusion", "DiffusionConfig", "alphas_cumprod"]

SCHEDULES = ("linear", "cosine")
PREDICTIONS = ("eps", "v")


def alphas_cumprod(schedule: str, timesteps: int) -> Tensor:
    r"""Cumulative products :math:`\bar\alpha_t` of all timesteps, float64 ``(T,)``.

    Parameters
    ----------
    schedule : str
        ``"linear"`` (DDPM: beta from 0.0001 to 0.02 at T = 1000, scaled to other T) or ``"cosine"`` (Nichol and
        Dhariwal 2021, equation 17; beta at most 0.999).
    timesteps : int
        Number of timesteps T, at least 2.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    """
    check_one_of("schedule", schedule, SCHEDULES)
    check_sizes(timesteps=timesteps)
    if timesteps < 2:
        raise ConfigError("timesteps must be at least 2, got 1")
    if schedule == "linear":
        scale = 1000 / timesteps
        betas = torch.linspace(scale * 1e-4, min(scale * 0.02, 0.999), timesteps, dtype=torch.float64)
    else:
        t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
        betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    return (1 - betas).cumprod(0)


@dataclass(frozen=True)
class DiffusionConfig:
    """A Gaussian diffusion.

    Parameters
    ----------
    timesteps : int, default=1000
        Number of timesteps T.
    schedule : {"linear", "cosine"}, default="linear"
        How the noise grows with the timestep, see :func:`alphas_cumprod`.
    prediction : {"eps", "v"}, default="eps"
        What the network predicts: the noise ``"eps"``, or the velocity ``"v"`` (Salimans and Ho 2022).
    snr_gamma : float, optional
        Timesteps are weighted by min(SNR, gamma) (min-SNR, Hang et al. 2023; 5 in the paper). None weights all alike.
    """

    timesteps: int = 1000
    schedule: str = "linear"
    prediction: str = "eps"
    snr_gamma: float | None = None


class Diffusion(Configurable):
    """The forward process and everything that is computed from a network's output.

    Takes the fields of :class:`DiffusionConfig` as arguments. Its numbers are computed in float64 and used in float32,
    whatever the precision of the network.

    Attributes
    ----------
    alphas : Tensor
        Cumulative product of 1 - beta, ``(T,)`` float64.

    Raises
    ------
    ConfigError
        If an argument is impossible.
    """

    @takes(DiffusionConfig)
    def __init__(self, config: DiffusionConfig) -> None:
        self.timesteps, self.schedule = config.timesteps, config.schedule
        self.prediction, self.snr_gamma = config.prediction, config.snr_gamma
        check_one_of("prediction", self.prediction, PREDICTIONS)
        if self.snr_gamma is not None and not 0 < self.snr_gamma < math.inf:
            raise ConfigError(f"snr_gamma must be a number above 0, or None, got {self.snr_gamma!r}")
        self.alphas = alphas_cumprod(self.schedule, self.timesteps)
        self._tables: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def at(self, t: Tensor, ndim: int = 1) -> tuple[Tensor, Tensor]:
        r""":math:`\bar\alpha` and :math:`1 - \bar\alpha` at timesteps ``(N,)``, with ``ndim`` axes.

        Timestep -1 is the image without noise: the last entry of both tables.
        """
        if t.device not in self._tables:
            # 1 - alpha is taken in float64: at small t float32 would keep few digits of it
            signal = torch.cat([self.alphas, self.alphas.new_ones(1)])
            noise = torch.cat([1 - self.alphas, self.alphas.new_zeros(1)])
            self._tables[t.device] = (signal.float().to(t.device), noise.float().to(t.device))
        shape = (-1, *[1] * (ndim - 1))
        signal, noise = self._tables[t.device]
        return signal[t].view(shape), noise[t].view(shape)

    def _roots(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of image and noise in the noisy image, ``(N, 1, 1, 1)``."""
        if t.is_floating_point() or t.shape != (len(like),):
            raise DataError(f"t must be {len(like)} whole numbers, got {t.dtype} of {tuple(t.shape)}")
        signal, noise = self.at(t.long(), like.ndim)
        return signal.sqrt(), noise.sqrt()

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noisy images ``(N, C, H, W)`` of images, at timesteps ``(N,)``, with standard normal noise."""
        signal, sigma = self._roots(t, x0)
        return signal * x0 + sigma * noise

    def target(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Noise or velocity ``(N, C, H, W)`` that the network is to predict."""
        if self.prediction == "eps":
            return noise
        signal, sigma = self._roots(t, x0)
        return signal * noise - sigma * x0

    def to_x0(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """Images that the network's prediction implies."""
        signal, sigma = self._roots(t, x)
        if self.prediction == "eps":
            return (x - sigma * output) / signal
        return signal * x - sigma * output

    def to_eps(self, x: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """Noise that leads from an image to its noisy version."""
        signal, sigma = self._roots(t, x)
        return (x - signal * x0) / sigma

    def weight(self, t: Tensor) -> Tensor:
        """Weight ``(N,)`` of each timestep in the squared error (min-SNR, Hang et al. 2023)."""
        if self.snr_gamma is None:
            return torch.ones(len(t), device=t.device)
        signal, noise = self.at(t)
        snr = signal / noise
        return snr.clamp(max=self.snr_gamma) / (snr if self.prediction == "eps" else snr + 1)

    def losses(self, output: Tensor, x0: Tensor, x: Tensor, t: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Loss terms, means over the batch.

        1. ``task``: squared error between the prediction and :meth:`target`, per image, times :meth:`weight`.
        2. With learned sigma also ``vlb``, the variational bound in bits per value (Nichol and Dhariwal 2021): the KL
           divergence between the true posterior of the step and the network's, and at t = 0 the negative
           log-likelihood of the 256 levels. The mean is detached, so that only the variance is learned by it.

        Parameters
        ----------
        output : Tensor
            Output of the network, ``(N, C, H, W)``, or ``(N, 2 C, H, W)`` with learned sigma.
        x0 : Tensor
            Images ``(N, C, H, W)`` in [-1, 1].
        x : Tensor
            Noisy images.
        t : Tensor
            Timesteps ``(N,)``.
        noise : Tensor
            The noise that was added.

        Returns
        -------
        dict[str, Tensor]
            ``task``, and ``vlb`` with learned sigma.
        """
        channels = x0.shape[1]
        predicted = output[:, :channels].float()
        error = (predicted - self.target(x0, t, noise)).square().flatten(1).mean(1)
        terms = {"task": (self.weight(t) * error).mean()}
        if output.shape[1] > channels:
            terms["vlb"] = self._bound(predicted.detach(), output[:, channels:].float(), x0, x, t).mean()
        return terms

    def _bound(self, predicted: Tensor, sigma: Tensor, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Variational bound of single steps in bits per value, ``(N,)``."""
        before = t - 1  # -1: the image itself
        true_mean, low, _ = self.posterior(x0, x, t, before)
        mean, _, high = self.posterior(self.to_x0(x, t, predicted).clamp(-1, 1), x, t, before)
        log_variance = between(sigma, low, high)
        distance = (true_mean - mean).square() * (-log_variance).exp()
        kl = 0.5 * (log_variance - low + (low - log_variance).exp() - 1 + distance)
        likelihood = -discrete_log_likelihood(x0, mean, log_variance)
        per_image = torch.where((t == 0)[:, None], likelihood.flatten(1), kl.flatten(1)).mean(1)
        return per_image / math.log(2)

    def posterior(self, x0: Tensor, x: Tensor, t: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""The Gaussian :math:`q(x_s | x_t, x_0)` for an earlier timestep s (-1 for the image itself).

        Parameters
        ----------
        x0 : Tensor
            Images ``(N, C, H, W)``.
        x : Tensor
            Noisy images at t.
        t : Tensor
            Timesteps ``(N,)``.
        before : Tensor
            Earlier timesteps s ``(N,)``.

        Returns
        -------
        mean : Tensor
            ``(N, C, H, W)``.
        low, high : Tensor
            Logarithms of the posterior's variance and of the forward step's, ``(N, 1, 1, 1)``: the bounds of a learned
            variance. Where s is -1 the variance is zero; its logarithm is replaced by that of the step before.
        """
        bar_t, noise_t = self.at(t, x.ndim)
        bar_s, noise_s = self.at(before, x.ndim)
        # 1 - bar_t / bar_s, from whichever of the two differences loses fewer digits
        beta = torch.where(bar_s > 0.5, (noise_t - noise_s) / bar_s, 1 - bar_t / bar_s)
        variance = beta * noise_s / noise_t
        mean = (bar_s.sqrt() * beta * x0 + (bar_t / bar_s).sqrt() * noise_s * x) / noise_t
        first = float((self.alphas[0] - self.alphas[1]) / self.alphas[0] * (1 - self.alphas[0]) / (1 - self.alphas[1]))
        return mean, variance.clamp(min=first).log(), beta.log()


def between(sigma: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Log-variance for a network's output: ``low`` at -1, ``high`` at 1, linear between and beyond."""
    part = (sigma + 1) / 2
    return part * high + (1 - part) * low


def discrete_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log-likelihood of values in [-1, 1], rounded to 256 levels, under a Gaussian, in nats."""
    scale = (-0.5 * log_variance).exp()
    away = x - mean
    # |away| mirrors both ends of the level into the lower tail, where log_ndtr does not saturate
    above = torch.special.log_ndtr((1 / 255 - away.abs()) * scale)
    below = torch.special.log_ndtr((-1 / 255 - away.abs()) * scale)
    inside = above + torch.log1p(-(below - above).clamp(max=-1e-7).exp())
    # the first and the last level also take what lies beyond them
    least, most = (torch.special.log_ndtr(side * scale) for side in (away + 1 / 255, 1 / 255 - away))
    return torch.where(x < -0.999, least, torch.where(x > 0.999, most, inside))
