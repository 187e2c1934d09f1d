"""Confidence of an expert in its own prediction: the weight that the prediction gets in the mixture."""

from typing import Literal, NamedTuple

# N nodes, K classes, F features, h hidden units of the gate
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.routers import router_dtype
from moeapps.graph.dispersion import DISPERSIONS, Dispersion

__all__ = ["CONFIDENCES", "Confidence", "ConfidenceMode", "ConfidenceOutput"]

ConfidenceMode = Literal["learned", "learned+x", "hyper", "given"]
CONFIDENCES = ("learned", "learned+x", "hyper", "given")


class ConfidenceOutput(NamedTuple):
    """Confidence c and its logit g = ln c - ln(1 - c), both ``(N,)``."""

    confidence: Tensor
    logit: Tensor


class _MonotoneLinear(nn.Linear):
    """Linear layer whose weights are made non-negative by softplus; the bias is free."""

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, F.softplus(self.weight), self.bias)


class _HyperGate(nn.Module):
    r""":math:`(d\,W_1(x) + b_1(x))\,W_2(x) + b_2(x)`: affine in d; four networks compute the coefficients from x."""

    def __init__(self, in_channels: int, hidden_channels: int) -> None:
        super().__init__()
        sizes = {"w1": 2 * hidden_channels, "b1": hidden_channels, "w2": hidden_channels, "b2": 1}
        self.nets = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(in_channels, hidden_channels), nn.ReLU(), nn.Linear(hidden_channels, size)
                )
                for name, size in sizes.items()
            }
        )

    def forward(self, d: Tensor, x: Tensor) -> Tensor:
        w1, b1, w2, b2 = (net(x) for net in self.nets.values())
        hidden = torch.einsum("nd,ndh->nh", d, w1.unflatten(1, (2, -1))) + b1
        return (hidden * w2).sum(1, keepdim=True) + b2


class Confidence(nn.Module):
    r"""Confidence c in [0, 1] of a prediction p = softmax(logits), one number per node (Zeng et al. 2024, section 2).

    With D the dispersions of p (:func:`~moeapps.graph.variance_dispersion`, :func:`~moeapps.graph.entropy_dispersion`):

    - ``"given"``: :math:`c = D(p)^\alpha` with one dispersion and no parameters,
    - ``"learned"``: :math:`c = \sigma(\mathrm{MLP}([D_{var}(p), D_{ent}(p)]))` with one hidden layer,
    - ``"learned+x"``: the same network with the node's features as further inputs,
    - ``"hyper"``: affine in the dispersions, with coefficients computed from the node's features by networks.

    The last bias of a learned form starts at -3, that is, c near 0.05: training begins close to
    the strong expert alone.

    The buffer ``forced`` overrides the result where it is not NaN: 0 never uses this expert, 1 always. It is part of
    a saved model, for which validation may have kept one expert alone.

    Parameters
    ----------
    mode : ConfidenceMode, default="learned"
        One of the four.
    dispersion : Dispersion, default="variance"
        ``"variance"`` or ``"entropy"``, for ``given``.
    alpha : float, default=1.0
        Exponent, for ``given``; above 0.
    hidden_channels : int, default=16
        Width of the hidden layer of a learned form.
    monotone : bool, default=False
        Whether ``learned`` is kept non-decreasing in both dispersions.
    in_channels : int, optional
        Features per node F, for ``learned+x`` and ``hyper``.

    Raises
    ------
    ConfigError
        If an argument is out of range.

    Examples
    --------
    >>> c, g = Confidence(mode="given")(torch.tensor([[0.0, 0.0], [9.0, -9.0]]))
    >>> tuple(round(float(v), 3) for v in c)
    (0.0, 1.0)
    """

    forced: Tensor

    def __init__(
        self,
        mode: ConfidenceMode = "learned",
        dispersion: Dispersion = "variance",
        alpha: float = 1.0,
        hidden_channels: int = 16,
        monotone: bool = False,
        in_channels: int | None = None,
    ) -> None:
        super().__init__()
        check_one_of("confidence", mode, CONFIDENCES)
        check_one_of("dispersion", dispersion, DISPERSIONS)
        if not alpha > 0:
            raise ConfigError(f"alpha must be above 0, got {alpha!r}")
        if hidden_channels < 1:
            raise ConfigError(f"hidden_channels must be at least 1, got {hidden_channels!r}")
        self.sees_x = mode in ("learned+x", "hyper")
        if self.sees_x and in_channels is None:
            raise ConfigError(f"confidence={mode!r} uses the node's features: in_channels must be given")
        if monotone and self.sees_x:
            raise ConfigError(f"monotone in the dispersion is for confidence='learned', got confidence={mode!r}")
        self.mode, self.dispersion, self.alpha = mode, dispersion, alpha
        self.register_buffer("forced", torch.tensor(torch.nan))
        self.net: nn.Module | None = None
        if mode == "hyper":
            assert in_channels is not None
            self.net = _HyperGate(in_channels, hidden_channels)
        elif mode != "given":
            linear = _MonotoneLinear if monotone else nn.Linear
            width = 2 + (in_channels or 0 if self.sees_x else 0)
            self.net = nn.Sequential(linear(width, hidden_channels), nn.ReLU(), linear(hidden_channels, 1))
        self.reset_parameters()

    def check_buffers(self) -> str | None:
        """What is impossible about buffers that come from a file; None where nothing is."""
        forced = float(self.forced)
        return None if forced != forced or 0 <= forced <= 1 else f"forced={forced} is not in 0..1"

    def reset_parameters(self) -> None:
        """Draw the weights anew and set the last bias to -3."""
        if self.net is None:
            return
        for module in self.net.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        last = self.net.nets["b2"][2] if isinstance(self.net, _HyperGate) else self.net[2]  # type: ignore[index]
        assert isinstance(last, nn.Linear)
        if isinstance(last, _MonotoneLinear):
            # softplus of weights around 0 is 0.7 each, and their sum would drown the bias
            nn.init.constant_(last.weight, -4.0)
        nn.init.constant_(last.bias, -3.0)

    def forward(self, logits: Tensor, x: Tensor | None = None) -> ConfidenceOutput:
        """Confidence of each row, in float32 or better.

        Parameters
        ----------
        logits : Tensor of shape (N, K)
            Of the expert.
        x : Tensor of shape (N, F), optional
            Features, for ``learned+x`` and ``hyper``.

        Raises
        ------
        DataError
            If the features are needed and missing.
        """
        if self.sees_x and x is None:
            raise DataError(f"confidence={self.mode!r} uses the node's features: x is missing")
        with torch.autocast(logits.device.type, enabled=False):
            p = logits.to(router_dtype(logits)).softmax(-1)
            c, logit = self._given(p) if self.net is None else self._learned(p, x)
            forced = self.forced.to(p.dtype)
            free = forced.isnan()  # decided on the device: it neither synchronises with it nor stops an export
            return ConfidenceOutput(torch.where(free, c, forced), torch.where(free, logit, torch.logit(forced)))

    def _given(self, p: Tensor) -> tuple[Tensor, Tensor]:
        d = DISPERSIONS[self.dispersion](p)
        c = d if self.alpha == 1 else d.clamp(min=torch.finfo(d.dtype).tiny) ** self.alpha
        # only the logarithms need c inside (0, 1); a gradient of 0 * inf would be NaN
        return c, torch.logit(c, eps=torch.finfo(c.dtype).eps)

    def _learned(self, p: Tensor, x: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self.net is not None
        features = torch.stack([D(p) for D in DISPERSIONS.values()], dim=-1)  # (N, 2)
        if isinstance(self.net, _HyperGate):
            out: Tensor = self.net(features, x)
        else:
            out = self.net(features if x is None or not self.sees_x else torch.cat([features, x.to(p.dtype)], dim=1))
        logit = out.squeeze(-1)
        return logit.sigmoid(), logit
