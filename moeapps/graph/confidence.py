"""Confidence of the weak expert: the weight its prediction gets in the mixture."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.errors import ConfigError
from moeapps.core.routers import router_dtype
from moeapps.graph.dispersion import DISPERSIONS

__all__ = ["Confidence", "ConfidenceOutput"]


class ConfidenceOutput(NamedTuple):
    """Confidence c and its logit g = ln c - ln(1 - c), both ``(N,)``."""

    confidence: Tensor
    logit: Tensor


class _MonotoneLinear(nn.Linear):
    """Linear layer whose weights are made non-negative by softplus; the bias is free."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, F.softplus(self.weight), self.bias)


class Confidence(nn.Module):
    r"""Confidence :math:`c = G(D(p))` in [0, 1] of a prediction p = softmax(logits), one number per node.

    ``"given"`` is :math:`c = D(p)^\alpha` with one dispersion D and no parameters. ``"learned"`` is
    :math:`c = \sigma(\mathrm{MLP}([D_{var}(p), D_{ent}(p)]))` with one hidden layer. (Zeng et al. 2024, section 2.)
    The last bias of the learned form starts at -3, that is, c near 0.05: the mixture begins as the strong expert and
    the weak one has to earn its share.

    The buffer ``forced`` overrides the result: 0 means strong expert only, 1 weak expert only, NaN not at all. It is
    how "one expert alone is better" is kept when a model is saved.

    Args:
        mode: ``"learned"`` or ``"given"``.
        dispersion: ``"variance"`` or ``"entropy"``, for ``given``.
        alpha: Exponent, for ``given``; above 0.
        hidden_channels: Width of the hidden layer, for ``learned``.
        monotone: Whether ``learned`` is kept non-decreasing in both dispersions.

    Raises:
        ConfigError: If an argument is out of range.

    Example:
        >>> c, g = Confidence(mode="given")(torch.tensor([[0.0, 0.0], [9.0, -9.0]]))
        >>> tuple(round(float(v), 3) for v in c)
        (0.0, 1.0)
    """

    forced: Tensor

    def __init__(
        self,
        mode: Literal["learned", "given"] = "learned",
        dispersion: Literal["variance", "entropy"] = "variance",
        alpha: float = 1.0,
        hidden_channels: int = 16,
        monotone: bool = False,
    ) -> None:
        super().__init__()
        if mode not in ("learned", "given"):
            raise ConfigError(f"confidence must be 'learned' or 'given', got {mode!r}")
        if dispersion not in DISPERSIONS:
            raise ConfigError(f"dispersion must be one of {', '.join(DISPERSIONS)}, got {dispersion!r}")
        if not alpha > 0:
            raise ConfigError(f"alpha must be above 0, got {alpha!r}")
        if hidden_channels < 1:
            raise ConfigError(f"hidden_channels must be at least 1, got {hidden_channels!r}")
        self.mode, self.dispersion, self.alpha = mode, dispersion, alpha
        self.register_buffer("forced", torch.tensor(torch.nan))
        self.net: nn.Sequential | None = None
        if mode == "learned":
            linear = _MonotoneLinear if monotone else nn.Linear
            self.net = nn.Sequential(linear(2, hidden_channels), nn.ReLU(), linear(hidden_channels, 1))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew and set the last bias to -3."""
        if self.net is not None:
            for layer in (self.net[0], self.net[2]):
                layer.reset_parameters()  # type: ignore[operator]
            if isinstance(self.net[2], _MonotoneLinear):
                # softplus of weights around 0 is 0.7 each, and their sum would drown the bias
                nn.init.constant_(self.net[2].weight, -4.0)
            nn.init.constant_(self.net[2].bias, -3.0)  # type: ignore[arg-type]

    def forward(self, weak_logits: Tensor) -> ConfidenceOutput:
        """Confidence of each row of ``(N, K)`` logits, in float32 or better."""
        with torch.autocast(weak_logits.device.type, enabled=False):
            p = weak_logits.to(router_dtype(weak_logits)).softmax(-1)
            c, logit = self._given(p) if self.net is None else self._learned(p)
            forced = self.forced.to(p.dtype)
            free = forced.isnan()  # decided on the device: no waiting for it, and nothing that stops an export
            return ConfidenceOutput(torch.where(free, c, forced), torch.where(free, logit, torch.logit(forced)))

    def _given(self, p: Tensor) -> tuple[Tensor, Tensor]:
        d = DISPERSIONS[self.dispersion](p)
        c = d if self.alpha == 1 else d.clamp(min=torch.finfo(d.dtype).tiny) ** self.alpha
        # only the logarithms need c inside (0, 1); a gradient of 0 * inf would be NaN
        return c, torch.logit(c, eps=torch.finfo(c.dtype).eps)

    def _learned(self, p: Tensor) -> tuple[Tensor, Tensor]:
        assert self.net is not None
        features = torch.stack([D(p) for D in DISPERSIONS.values()], dim=-1)  # (N, 2)
        logit = self.net(features).squeeze(-1)
        return logit.sigmoid(), logit
