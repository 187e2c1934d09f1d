"""STAR, PEPNet and HoME's heads per scenario: one model for several countries, surfaces or age groups."""

# Shapes: N rows, d input width, T tasks, S scenarios, E networks, h width of a representation, i and o widths of a
# layer

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.checks import check_sizes
from moeapps.core.config import takes
from moeapps.core.dense_experts import DenseExperts
from moeapps.core.errors import ConfigError
from moeapps.recsys.home import HoME
from moeapps.recsys.multigate import MultiGateConfig, MultiTaskModel

__all__ = ["STAR", "GateUnit", "PEPNet", "PEPNetConfig", "PartitionedNorm", "ScenarioHoME", "StarLayers"]

PRIOR_ROWS = 16.0
"""Rows of the whole batch that a scenario's statistics are mixed with, in partitioned batch norm."""

GATE_SCALE = 2.0
"""Largest value of PEPNet's gates (gamma in the paper), so that a gate of zero logits changes nothing."""


class PartitionedNorm(nn.Module):
    r"""Batch norm with statistics, scale and shift of each scenario (Sheng et al., CIKM 2021, eq. 3-4).

    A row of scenario s becomes :math:`\gamma \gamma_s (x - \mu_s) / \sqrt{\sigma_s^2 + \epsilon} + \beta + \beta_s`.
    The paper's batches hold one scenario each; here a batch may hold all of them, so that a scenario may have few rows
    in it. Its statistics are therefore those of its rows and of :data:`PRIOR_ROWS` average rows of the batch. In
    evaluation the running statistics count, as in batch norm.

    Parameters
    ----------
    dim : int
        Width d of the rows.
    num_scenarios : int
        Number of scenarios S. Scenario 0 stands for rows of an unknown one, 1 to S are the known ones.
    momentum : float, default=0.1
        Weight of a batch in the running statistics, once a scenario was in ten batches; before, it is their mean.
    eps : float, default=1e-5
        Added to variances.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, dim: int, num_scenarios: int, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        check_sizes(dim=dim, num_scenarios=num_scenarios)
        self.momentum, self.eps = momentum, eps
        # Row 0 is shared; a scenario's own rows are what it adds, so that it starts, and decays, to the shared ones
        self.scale = nn.Parameter(torch.zeros(num_scenarios + 1, dim))
        self.shift = nn.Parameter(torch.zeros(num_scenarios + 1, dim))
        self.register_buffer("mean", torch.zeros(num_scenarios + 1, dim))
        self.register_buffer("variance", torch.ones(num_scenarios + 1, dim))
        self.register_buffer("batches", torch.zeros(num_scenarios + 1))

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Normalise rows ``(N, d)`` of the scenarios ``(N,)``."""
        scenario = scenario.long()
        mean, variance = self._batch_statistics(x, scenario) if self.training else (self.mean, self.variance)
        first = torch.zeros_like(self.scale[:1])
        scale = (1 + self.scale[0]) * (1 + torch.cat([first, self.scale[1:]]))  # (S + 1, d)
        shift = self.shift[0] + torch.cat([first, self.shift[1:]])
        factor = scale * (variance + self.eps).rsqrt()
        offset = shift - mean * factor
        return x * F.embedding(scenario, factor) + F.embedding(scenario, offset)

    def _batch_statistics(self, x: Tensor, scenario: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance ``(S + 1, d)``; row 0 is the whole batch's, for rows of an unknown scenario."""
        member = F.one_hot(scenario, len(self.batches)).to(x.dtype)[:, 1:]  # (N, S)
        count, total = member.sum(0)[:, None], x.mean(0)  # (S, 1), (d,)
        mean = torch.cat([total[None], (member.T @ x + PRIOR_ROWS * total) / (count + PRIOR_ROWS)])
        # Around each row's own mean, so that what is mixed in is the spread within scenarios
        square = (x - F.embedding(scenario, mean)) ** 2
        own = (member.T @ square + PRIOR_ROWS * square.mean(0)) / (count + PRIOR_ROWS)
        variance = torch.cat([x.var(0, correction=0)[None], own])
        with torch.no_grad():
            present = torch.cat([torch.ones_like(count[:1]), (count > 0).to(x.dtype)])
            self.batches += present[:, 0]
            momentum = present * self.batches.clamp_min(1).reciprocal().clamp_min(self.momentum)[:, None]
            self.mean.lerp_(mean.detach().to(self.mean.dtype), momentum)
            self.variance.lerp_(variance.detach().to(self.variance.dtype), momentum)
        return mean, variance


class StarLayers(nn.Module):
    r"""MLPs whose weights are shared ones times a scenario's own (Sheng et al., CIKM 2021, eq. 6-7).

    A layer is :math:`\phi(x (W \otimes W_s) + b + b_s)`. A row of an unknown scenario uses the shared W and b alone.
    All scenarios' weights are one product, of which a row keeps its own scenario's part: the cost grows with the number
    of scenarios. That number is meant to be tens.

    Parameters
    ----------
    dim : int
        Width d of the input.
    widths : sequence of int
        Widths of the layers.
    num_scenarios : int
        Number of scenarios S.
    num_networks : int, default=1
        Number of networks E beside each other, each with shared and own weights.
    activation : {"relu", "silu", "gelu"}, default="relu"
        Activation of the layers.
    last_linear : bool, default=False
        Whether the last layer has no activation.
    dropout : float, default=0.0
        Dropout probability after hidden layers, in [0, 1).
    """

    def __init__(
        self,
        dim: int,
        widths: Sequence[int],
        num_scenarios: int,
        num_networks: int = 1,
        activation: str = "relu",
        last_linear: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(num_scenarios=num_scenarios)
        self.shared = DenseExperts(dim, widths, num_networks, activation, last_linear=last_linear, dropout=dropout)
        # A scenario's factors less 1, so that it starts as the shared network, and weight decay leads there
        self.own_weights = nn.ParameterList(torch.zeros(num_scenarios, *w.shape) for w in self.shared.weights)
        self.own_biases = nn.ParameterList(torch.zeros(num_scenarios, *b.shape) for b in self.shared.biases)

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:
        """Rows ``(N, d)``, or ``(N, E, d)`` with an input per network, of the scenarios ``(N,)``: ``(N, E, o)``."""
        shared, last = self.shared, len(self.own_weights) - 1
        if x.ndim == 2:
            x = x[:, None].expand(-1, shared.num_experts, -1)
        layers = zip(shared.weights, shared.biases, self.own_weights, self.own_biases, strict=True)
        for index, (weight, bias, own_weight, own_bias) in enumerate(layers):
            weights = torch.cat([weight[None], weight * (1 + own_weight)])  # (S + 1, E, i, o)
            biases = torch.cat([bias[None], bias + own_bias])
            every = torch.einsum("nei,seio->nseo", x, weights) + biases
            x = _own_part(every, scenario)
            if index == last and shared.last_linear:
                break
            x = shared.act(x)
            if shared.dropout > 0 and index < last:
                x = F.dropout(x, shared.dropout, self.training)
        return x


class STAR(MultiTaskModel):
    r"""Star topology: each scenario's network is the shared one times its own weights (Sheng et al., CIKM 2021).

    1. Partitioned batch norm of the input.
    2. Layers of ``expert``, then a tower per task, all of them :class:`StarLayers`.
    3. An auxiliary network on the input, which holds the scenario's embedding and is not normalised; its logits are
       added.

    The paper has one task. With several, the layers of ``expert`` are shared by the tasks.

    Parameters
    ----------
    dim, num_tasks : int
        Input width d and number of tasks T.
    num_scenarios : int
        Number of scenarios S.
    **settings
        The fields of :class:`MultiGateConfig`: ``expert`` are the shared layers, ``tower`` also the hidden layers of
        the auxiliary network, ``norm`` is the partitioned norm.

    Examples
    --------
    >>> import torch
    >>> model = STAR(dim=20, num_tasks=2, num_scenarios=3)
    >>> model(torch.randn(4, 20), torch.tensor([1, 3, 2, 0])).shape  # 0: an unknown scenario
    torch.Size([4, 2])
    """

    gated = False

    @takes(MultiGateConfig)
    def __init__(self, dim: int, num_tasks: int, num_scenarios: int, layers: MultiGateConfig) -> None:
        super().__init__(num_tasks, layers.expert, layers.tower, layers.dropout)
        self.norm = PartitionedNorm(dim, num_scenarios) if layers.norm else None
        options: dict[str, Any] = {"activation": layers.activation, "dropout": layers.dropout}
        self.layers = StarLayers(dim, layers.expert, num_scenarios, **options)
        self.towers = StarLayers(self.width, [*layers.tower, 1], num_scenarios, num_tasks, last_linear=True, **options)
        self.auxiliary = DenseExperts(
            dim, [*layers.tower, num_tasks], 1, layers.activation, last_linear=True, dropout=layers.dropout
        )

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:  # type: ignore[override]
        """Outputs ``(N, T)`` of rows ``(N, d)``; ``scenario`` ``(N,)`` is 1 to S, or 0 for an unknown one."""
        normed = x if self.norm is None else self.norm(x, scenario)
        return self.towers(self.layers(normed, scenario)[:, 0], scenario)[..., 0] + self.auxiliary(x)[:, 0]


class ScenarioHoME(HoME):
    """HoME whose groups are the scenarios: each scenario has heads, experts and gates for every task.

    A row uses the heads of its own scenario, so that the other scenarios' experts on the task level get no gradient
    from it; the scenarios meet in the shared experts. A row of an unknown scenario gets the mean of all scenarios'
    outputs.

    Parameters
    ----------
    dim, num_tasks : int
        Input width d and number of tasks T.
    num_scenarios : int
        Number of scenarios S; the model has S x T heads and computes all of them.
    names : sequence of str, optional
        Names of the scenarios in a diagnosis; their numbers by default.
    **options
        Further arguments of :class:`HoME`, except ``groups``.
    """

    def __init__(
        self, dim: int, num_tasks: int, num_scenarios: int, names: Sequence[str] | None = None, **options: Any
    ) -> None:
        check_sizes(num_tasks=num_tasks, num_scenarios=num_scenarios)
        names = [str(s + 1) for s in range(num_scenarios)] if names is None else list(names)
        groups = {name: range(s * num_tasks, (s + 1) * num_tasks) for s, name in enumerate(names)}
        super().__init__(dim, num_tasks * num_scenarios, groups=groups, **options)
        self.num_scenarios = num_scenarios

    def forward(self, x: Tensor, scenario: Tensor) -> Tensor:  # type: ignore[override]
        """Outputs ``(N, T)`` of rows ``(N, d)``; ``scenario`` ``(N,)`` is 1 to S, or 0 for an unknown one."""
        every = super().forward(x).unflatten(1, (self.num_scenarios, -1))  # (N, S, T)
        return _own_part(torch.cat([every.mean(1, keepdim=True), every], dim=1), scenario)


class GateUnit(nn.Module):
    r"""PEPNet's gate: :math:`\gamma\, \sigma(\mathrm{relu}(x W) W')` with gamma = 2 (Chang et al., KDD 2023, eq. 1-2).

    Parameters
    ----------
    dim : int
        Width of what it reads.
    out_dim : int
        Number of gates.
    hidden : int
        Width of the hidden layer.
    """

    def __init__(self, dim: int, out_dim: int, hidden: int) -> None:
        super().__init__()
        check_sizes(dim=dim, out_dim=out_dim, hidden=hidden)
        self.narrow, self.wide = nn.Linear(dim, hidden), nn.Linear(hidden, out_dim)
        # Zero, so that every gate starts as 1
        nn.init.zeros_(self.wide.weight)
        nn.init.zeros_(self.wide.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Gates ``(N, out_dim)`` between 0 and 2."""
        return GATE_SCALE * self.wide(self.narrow(x).relu()).sigmoid()


@dataclass(frozen=True)
class PEPNetConfig:
    """Gates of PEPNet.

    Parameters
    ----------
    gate : int, default=32
        Hidden width of the gates' networks, at least 1.
    """

    gate: int = 32


class PEPNet(MultiTaskModel):
    r"""Gates by scenario on the input, gates by user and item on every layer of the towers (Chang et al., KDD 2023).

    1. EPNet: a gate that reads the scenario's embedding and the input multiplies the input.
    2. Each task has a tower of its own, with the layers of ``expert`` and then of ``tower``.
    3. PPNet: a gate that reads the embeddings of user and item and the gated input multiplies the hidden units of
       every layer, of each task.

    No gradient flows through what a gate reads besides the embeddings that it is for.

    Parameters
    ----------
    dim, num_tasks : int
        Input width d and number of tasks T.
    scenario : sequence of int
        Which of the d inputs are the scenario's embedding.
    personal : sequence of int
        Which of them are embeddings of user and item.
    **settings
        The fields of :class:`PEPNetConfig`, then those of :class:`MultiGateConfig`.

    Raises
    ------
    ConfigError
        If ``scenario`` or ``personal`` is empty or names an input that is not there.

    Examples
    --------
    >>> import torch
    >>> PEPNet(dim=20, num_tasks=2, scenario=range(4), personal=range(4, 12))(torch.randn(3, 20)).shape
    torch.Size([3, 2])
    """

    gated = False
    scenario: Tensor
    personal: Tensor

    @takes(PEPNetConfig, MultiGateConfig)
    def __init__(
        self,
        dim: int,
        num_tasks: int,
        scenario: Sequence[int],
        personal: Sequence[int],
        config: PEPNetConfig,
        layers: MultiGateConfig,
    ) -> None:
        widths = [*layers.expert, *layers.tower]
        super().__init__(num_tasks, widths, (), layers.dropout)
        for name, chosen in (("scenario", list(scenario)), ("personal", list(personal))):
            if not chosen or not 0 <= min(chosen) <= max(chosen) < dim:
                raise ConfigError(f"{name} must name some of the inputs 0 to {dim - 1}, got {chosen}")
            self.register_buffer(name, torch.tensor(chosen), persistent=False)
        self.input_gate = GateUnit(len(self.scenario) + dim, dim, config.gate)
        self.layers, self.layer_gates = nn.ModuleList(), nn.ModuleList()
        for n_in, n_out in zip([dim, *widths[:-1]], widths, strict=True):
            self.layers.append(DenseExperts(n_in, [n_out], num_tasks, layers.activation, layers.norm))
            self.layer_gates.append(GateUnit(len(self.personal) + dim, num_tasks * n_out, config.gate))
        self.dropout = layers.dropout

    def represent(self, x: Tensor) -> Tensor:
        """Gated input, then gated layers: ``(N, d)`` to ``(N, T, h)``."""
        domain, personal = x.index_select(1, self.scenario), x.index_select(1, self.personal)
        x = x * self.input_gate(torch.cat([domain, x.detach()], dim=1))
        prior = torch.cat([personal, x.detach()], dim=1)
        for layer, gate in zip(self.layers, self.layer_gates, strict=True):
            x = layer(x) * gate(prior).unflatten(1, (self.num_tasks, -1))
            x = F.dropout(x, self.dropout, self.training) if self.dropout > 0 else x
        return x


def _own_part(every: Tensor, scenario: Tensor) -> Tensor:
    """Of ``(N, S + 1, ...)`` what belongs to each row's scenario ``(N,)``: ``(N, ...)``."""
    # gather, whose gradient adds at most one number to each place, so that its order does not matter
    index = scenario.long().reshape(-1, *[1] * (every.ndim - 1)).expand(-1, 1, *every.shape[2:])
    return every.gather(1, index)[:, 0]
