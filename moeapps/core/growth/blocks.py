"""What a two-layer block of any network is made of: its weights, activation and dropout, in one form.

Shapes: N tokens, d width, h hidden width.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moeapps.core.activations import ACTIVATIONS
from moeapps.core.experts import FeedForward

__all__ = ["Act", "Block", "act_problem", "describe", "gated_block", "linear_problem", "plain_block", "random_rows"]

Act = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Block:
    """A block Linear - activation - Linear, plain or gated.

    Attributes
    ----------
    kind : str
        What it was found as.
    first : Tensor
        ``(h, d)`` weights of the first layer; ``(2 h, d)`` of a gated one, the rows that go through the activation
        first.
    bias1 : Tensor or None
        ``(h,)`` or ``(2 h,)``.
    second : Tensor
        ``(d_out, h)`` weights of the second layer.
    bias2 : Tensor or None
        ``(d_out,)``.
    act : callable
        The activation, elementwise.
    gated : bool, default=False
        Whether the activated half of the first layer is multiplied by the other half.
    dropout : float, default=0.0
        Dropout of the hidden units.
    out_dropout : float, default=0.0
        Dropout of the output.
    """

    kind: str
    first: Tensor
    bias1: Tensor | None
    second: Tensor
    bias2: Tensor | None
    act: Act
    gated: bool = False
    dropout: float = 0.0
    out_dropout: float = 0.0

    @property
    def dim(self) -> int:
        """Width d of the input."""
        return self.first.shape[1]

    @property
    def hidden_dim(self) -> int:
        """Hidden width h."""
        return self.second.shape[1]

    @property
    def out_dim(self) -> int:
        """Width of the output."""
        return self.second.shape[0]

    @property
    def activation(self) -> str | None:
        """Name among :data:`~moeapps.core.activations.ACTIVATIONS`; None for another activation."""
        name = activation_name(self.act)
        return ("swiglu" if name == "silu" else None) if self.gated else name

    @property
    def numel(self) -> int:
        """Number of parameters."""
        return sum(t.numel() for t in (self.first, self.bias1, self.second, self.bias2) if t is not None)

    def shape_problem(self, other: "Block") -> str | None:
        """In what another block differs from this one, so that both cannot be experts of one layer."""
        pairs: dict[str, Callable[[Block], object]] = {
            "shape": lambda b: (b.dim, b.hidden_dim, b.out_dim),
            "gate": lambda b: b.gated,
            "biases": lambda b: (b.bias1 is None, b.bias2 is None),
            "activation": lambda b: activation_name(b.act) or repr(b.act),
            "dropout": lambda b: (b.dropout, b.out_dropout),
        }
        return next((name for name, get in pairs.items() if get(self) != get(other)), None)

    def __call__(self, x: Tensor) -> Tensor:
        """The block's output for tokens ``(..., d)``, in evaluation."""
        hidden = F.linear(x, self.first, self.bias1)
        if self.gated:
            gate, value = hidden.chunk(2, dim=-1)
            hidden = self.act(gate) * value
        else:
            hidden = self.act(hidden)
        return F.linear(hidden, self.second, self.bias2)


_FUNCTIONS: dict[Act, str] = {F.gelu: "gelu", F.relu: "relu", torch.relu: "relu", F.silu: "silu"}


def activation_name(act: Act) -> str | None:
    """Name of an activation that the experts' kernels compute; None for any other."""
    if isinstance(act, nn.GELU):
        return "gelu" if act.approximate == "none" else None
    if isinstance(act, nn.ReLU | nn.SiLU):
        return "relu" if isinstance(act, nn.ReLU) else "silu"
    if type(act).__module__ == "timm.layers.activations":  # the same functions as modules that take inplace=
        return {"GELU": "gelu", "Swish": "silu"}.get(type(act).__name__)
    return None if isinstance(act, nn.Module) else _FUNCTIONS.get(act)


OUTSIDE = "; put Linear, activation and Linear into an nn.Sequential of their own, and the rest before or after it"
"""What to do about a block that does more than experts can."""


def act_problem(act: object) -> str | None:
    """Why something cannot be the activation of experts; None where it can.

    It has to be a function of each number for itself: the rows of an expert come from anywhere, and hidden units may be
    divided among experts.
    """
    if not callable(act):
        return f"its activation is {act!r}, which is no function"
    if activation_name(act) is not None:
        return None
    name = type(act).__name__ if isinstance(act, nn.Module) else getattr(act, "__name__", repr(act))
    if isinstance(act, nn.Module):
        if next(act.parameters(), None) is not None or next(act.buffers(), None) is not None:
            return f"between its layers is {name}, which has parameters of its own{OUTSIDE}"
        act = copy.deepcopy(act).eval()
    x = torch.linspace(-3, 3, 24, device="cpu").reshape(4, 6)
    try:
        with torch.no_grad():
            y = act(x.clone())  # some work in place
            alone = act(x[1:2, 2:4].clone())
            turned = act(x.flip(0, 1)).flip(0, 1)
    except Exception as error:  # any error of a foreign function
        return f"its activation {name} cannot be tried: {error}"
    if y.shape != x.shape or not torch.equal(turned, y) or not torch.allclose(alone, y[1:2, 2:4]):
        return f"between its layers is {name}, which is not elementwise"
    return None


def linear_problem(linear: Any) -> str | None:
    """Why a layer cannot be taken as a plain Linear; None where it can."""
    kind = type(linear)
    plain = kind in (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)
    if not plain and kind.__module__ != "torch_geometric.nn.dense.linear":
        return f"has a {kind.__name__} where a Linear was expected"
    if isinstance(linear.weight, nn.parameter.UninitializedParameter):
        return "its weights are not initialised yet: let the network see one batch first"
    return hook_problem(linear)


def hook_problem(module: nn.Module) -> str | None:
    """Whether hooks or parametrizations are attached, which would be lost."""
    for part in module.modules():
        if nn.utils.parametrize.is_parametrized(part):
            return "has parametrized weights"
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            if getattr(part, kind, None):
                return "has hooks, which would be lost: remove them first"
    return None


def plain_block(
    kind: str, first: Any, second: Any, act: Act, dropout: float = 0.0, out_dropout: float = 0.0
) -> Block | str:
    """A block of two Linear layers, or why it cannot be one."""
    problem = linear_problem(first) or linear_problem(second) or act_problem(act)
    if problem:
        return problem
    if first.weight.shape[0] != second.weight.shape[1]:
        return f"its layers do not follow each other: {first.weight.shape[0]} units into {second.weight.shape[1]}"
    return Block(
        kind, first.weight, first.bias, second.weight, second.bias, act, dropout=dropout, out_dropout=out_dropout
    )


def gated_block(
    kind: str,
    gate: Any,
    value: Any,
    second: Any,
    act: Act,
    *,
    gate_last: bool = False,
    dropout: float = 0.0,
    out_dropout: float = 0.0,
) -> Block | str:
    """A gated block, or why it cannot be one.

    Parameters
    ----------
    kind : str
        What it was found as.
    gate : Module
        Layer whose output goes through the activation; of both halves where ``value`` is None.
    value : Module or None
        Layer that it is multiplied by.
    second : Module
        The last layer.
    act : callable
        The activation.
    gate_last : bool, default=False
        Whether, of one layer with both halves, the second one goes through the activation.
    dropout : float, default=0.0
        Dropout of the hidden units.
    out_dropout : float, default=0.0
        Dropout of the output.
    """
    layers = [gate, second] if value is None else [gate, value, second]
    problem = next((found for found in map(linear_problem, layers) if found), None) or act_problem(act)
    if problem:
        return problem
    first, bias = gate.weight, gate.bias
    if value is not None:
        if (gate.bias is None) != (value.bias is None):
            return "only one of its gate and value has a bias"
        if gate.weight.shape != value.weight.shape:
            return "its gate and value differ in shape"
        first = _joined([gate.weight, value.weight])
        bias = None if gate.bias is None else _joined([gate.bias, value.bias])
    elif gate_last:
        first, bias = _swapped(first), None if bias is None else _swapped(bias)
    if first.shape[0] != 2 * second.weight.shape[1]:
        return "its gate and its last layer differ in width"
    return Block(
        kind, first, bias, second.weight, second.bias, act, gated=True, dropout=dropout, out_dropout=out_dropout
    )


def _swapped(stacked: Tensor) -> Tensor:
    first, second = stacked.chunk(2)
    return _joined([second, first])


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """Parts of a first layer in one tensor, which says as they do whether it is trained."""
    return torch.cat([part.detach() for part in parts]).requires_grad_(any(part.requires_grad for part in parts))


def random_rows(dim: int, rows: int = 64) -> Tensor:
    """Rows ``(N, d)`` to try a block with; no generator of the user's is advanced."""
    return torch.randn(rows, dim, generator=torch.Generator("cpu").manual_seed(0), device="cpu")


def _unknown(module: nn.Module) -> Block | str | None:
    """A block of a class that nobody has told us of: its forward is run on a copy with random weights.

    Its Linear layers are tried with the activations and gates that are in use; only what gives the same numbers, in
    training too, is taken for the block.
    """
    linears: list[tuple[str, Any]] = [(name, m) for name, m in module.named_children() if _is_linear(m)]
    if any(isinstance(child.weight, nn.parameter.UninitializedParameter) for _, child in linears):
        return "its weights are not initialised yet: let the network see one batch first" if len(linears) > 1 else None
    if not 2 <= len(linears) <= 3 or isinstance(module, nn.ModuleList | nn.ModuleDict):
        return None
    widths = [tuple(child.weight.shape) for _, child in linears]
    if len(widths) == 2 and widths[0][0] not in (widths[1][1], 2 * widths[1][1]):
        return None  # an attention's layers, a trunk with two heads
    kind = type(module).__name__
    rest = [child for child in module.children() if not _is_linear(child)]
    acts = [child for child in rest if not isinstance(child, nn.Dropout | nn.Identity)]
    if len(acts) > 1 or any(True for act in acts for _ in act.children()):
        return _has(kind, acts)
    if acts and (problem := act_problem(acts[0])):
        return problem
    if problem := next((p for p in (linear_problem(child) for _, child in linears) if p), None) or hook_problem(module):
        return problem
    own = {id(p) for _, child in linears for p in child.parameters()}
    if any(id(p) not in own for p in module.parameters()):
        return "has parameters besides those of its Linear layers"
    return _recognised(kind, module, [name for name, _ in linears], acts[0] if acts else None)


def _recognised(kind: str, module: nn.Module, names: Sequence[str], act: nn.Module | None) -> Block | str:
    """What a block computes, found by trying."""
    probe = copy.deepcopy(module)
    if any(p.is_meta for p in probe.parameters()):
        probe = probe.to_empty(device="cpu")
    probe = probe.to("cpu", torch.float64)
    generator = torch.Generator("cpu").manual_seed(0)
    with torch.no_grad():
        for p in probe.parameters():  # a layer that starts at zero would look like any other
            p.copy_(torch.randn(p.shape, generator=generator, device="cpu") * p.shape[-1] ** -0.5)
    dropouts = _dropout_places(probe, names[-1])
    if isinstance(dropouts, str):
        return dropouts
    first: Any = probe.get_submodule(names[0])
    x = random_rows(first.weight.shape[1], 7).double()[None]
    try:
        with torch.no_grad():
            expected = probe.eval()(x)
            trained = _without_dropout(probe).train()(x)
    except Exception as error:  # any error of foreign code
        return f"its forward cannot be tried with tokens: {' '.join(str(error).split())[:120]}"
    if not isinstance(expected, Tensor):
        return "its forward does not return one tensor"
    if not torch.allclose(expected, trained, rtol=1e-6, atol=1e-9):
        return "its forward does something else in training than in evaluation"
    tried: Sequence[Act] = [act] if act is not None else [F.gelu, F.relu, F.silu, _gelu_tanh]
    for function in tried:
        for build in _forms(kind, names, function):
            block = build(probe)
            if isinstance(block, str) or block.dim != x.shape[-1]:
                continue
            with torch.no_grad():
                found = block(x)
            if found.shape == expected.shape and torch.allclose(expected, found, rtol=1e-6):
                real = build(module)
                assert isinstance(real, Block)
                return replace(real, dropout=dropouts[0], out_dropout=dropouts[1])
    return "its forward computes something else than Linear - activation - Linear"


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _forms(kind: str, names: Sequence[str], act: Act) -> list[Callable[[nn.Module], Block | str]]:
    """How Linear layers may be put together."""

    def take(module: nn.Module) -> list[Any]:
        return [module.get_submodule(name) for name in names]

    if len(names) == 2:
        return [
            lambda m: plain_block(kind, take(m)[0], take(m)[1], act),
            lambda m: gated_block(kind, take(m)[0], None, take(m)[1], act),
            lambda m: gated_block(kind, take(m)[0], None, take(m)[1], act, gate_last=True),
        ]
    orders = [(0, 1, 2), (1, 0, 2), (0, 2, 1), (2, 0, 1)]

    def form(a: int, b: int, c: int) -> Callable[[nn.Module], Block | str]:
        return lambda m: gated_block(kind, take(m)[a], take(m)[b], take(m)[c], act)

    return [form(*order) for order in orders]


def _dropout_places(probe: nn.Module, last: str) -> tuple[float, float] | str:
    """Dropout of the hidden units and of the output, by the order in which the layers are called."""
    drops = [child for child in probe.children() if isinstance(child, nn.Dropout)]
    if not any(drop.p > 0 for drop in drops):
        return 0.0, 0.0
    calls: list[nn.Module] = []
    handles = [child.register_forward_hook(lambda m, *_: calls.append(m)) for child in probe.children()]
    first: Any = next(child for child in probe.children() if _is_linear(child))
    width = first.weight.shape[1]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            probe.train()(torch.zeros(1, 7, width, dtype=torch.float64, device="cpu"))
    except Exception as error:  # any error of foreign code
        return f"its forward cannot be tried with tokens: {' '.join(str(error).split())[:120]}"
    finally:
        for handle in handles:
            handle.remove()
    linears = [i for i, module in enumerate(calls) if _is_linear(module)]
    if not linears:
        return "its forward does not call its layers"
    hidden = [m.p for m in calls[linears[0] : linears[-1]] if isinstance(m, nn.Dropout)]
    out = [m.p for m in calls[linears[-1] :] if isinstance(m, nn.Dropout)]
    if len(hidden) > 1 or len(out) > 1 or any(isinstance(m, nn.Dropout) for m in calls[: linears[0]]):
        return "has dropout in places that experts do not have"
    return (hidden or [0.0])[0], (out or [0.0])[0]


def _without_dropout(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    return module


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__module__ == "torch_geometric.nn.dense.linear"


def _has(kind: str, parts: Sequence[nn.Module]) -> str:
    names = ", ".join(dict.fromkeys(type(part).__name__ for part in parts))
    return f"{kind} has {names} besides its Linear layers{OUTSIDE}"


def _feed_forward(module: FeedForward) -> Block | str:
    if problem := hook_problem(module):
        return problem
    return plain_block("FeedForward", module.first, module.second, ACTIVATIONS[module.activation].forward)


def describe(module: nn.Module) -> Block | str | None:
    """The block that a module is; a text that says why it is none; None where there is nothing like it.

    Parameters
    ----------
    module : Module
        A module that is replaced as a whole. Parts of a Sequential, of a transformer's layer and of PyG's MLP are
        found by :mod:`moeapps.core.growth.sites`.
    """
    if isinstance(module, FeedForward):
        return _feed_forward(module)
    convolutions = [n for n in ("fc1", "fc2") if isinstance(getattr(module, n, None), nn.Conv1d | nn.Conv2d)]
    if len(convolutions) == 2:
        return "its layers are convolutions: only Linear layers become experts"
    if type(module).__module__ == "timm.layers.mlp" and hasattr(module, "fc2"):
        return _timm_block(module)
    return _unknown(module)


def _timm_block(module: Any) -> Block | str | None:
    """Mlp, GluMlp and SwiGLU of timm, known by name so that no forward has to be run."""
    kind = type(module).__name__
    if kind not in ("Mlp", "GluMlp", "SwiGLU"):
        return _unknown(module)
    if problem := hook_problem(module):
        return problem
    if not isinstance(module.norm, nn.Identity):
        return f"has a {type(module.norm).__name__} between its layers"
    drops = {"dropout": module.drop1.p, "out_dropout": module.drop2.p}
    if kind == "Mlp":
        return plain_block("timm Mlp", module.fc1, module.fc2, module.act, **drops)
    if kind == "SwiGLU":
        return gated_block("timm SwiGLU", module.fc1_g, module.fc1_x, module.fc2, module.act, **drops)
    return gated_block(
        "timm GluMlp", module.fc1, None, module.fc2, module.act, gate_last=bool(module.gate_last), **drops
    )
