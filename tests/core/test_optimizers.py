"""The fused form of an optimiser is taken where it changes nothing but the time."""

import pytest
import torch
from torch import nn

from moeapps.core.errors import FileFormatError
from moeapps.core.optimizers import fused_where_possible, with_checked_state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_fused_steps_are_those_of_the_default_up_to_rounding(kind, dtype):
    torch.manual_seed(0)
    start = [torch.randn(5, 3, dtype=dtype), torch.randn(7, dtype=dtype)]
    gradients = [[torch.randn_like(p) for p in start] for _ in range(20)]
    ends = []
    for fused in (True, False):
        parameters = [nn.Parameter(p.clone()) for p in start]
        arguments = fused_where_possible(parameters) if fused else {"fused": False}
        assert arguments == {"fused": fused}
        optimizer = kind(parameters, lr=0.1, weight_decay=0.01, **arguments)
        for step in gradients:
            for p, gradient in zip(parameters, step, strict=True):
                p.grad = gradient.clone()
            optimizer.step()
        ends.append(parameters)
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_an_optimiser_goes_on_from_the_state_of_the_other_form():
    parameter = nn.Parameter(torch.ones(4))
    plain = torch.optim.AdamW([parameter], lr=0.1, fused=False)
    parameter.grad = torch.full((4,), 0.5)
    plain.step()
    fused = torch.optim.AdamW([parameter], lr=0.1, **fused_where_possible([parameter]))
    fused.load_state_dict(plain.state_dict())
    before = parameter.detach().clone()
    fused.step()
    assert (parameter < before).all()
    assert int(fused.state[parameter]["step"]) == 2


@pytest.mark.parametrize(
    "parameter", [nn.Parameter(torch.ones(2, device="meta")), nn.Parameter(torch.ones(2, dtype=torch.bfloat16))]
)
def test_torch_decides_for_other_parameters(parameter):
    assert fused_where_possible([nn.Parameter(torch.ones(2)), parameter]) == {}


def stepped(width):
    """A layer of four outputs after one step, and its optimiser."""
    layer = nn.Linear(width, 4)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, **fused_where_possible(layer.parameters()))
    layer(torch.ones(2, width)).sum().backward()
    optimizer.step()
    return layer, with_checked_state(optimizer, layer)


@pytest.mark.parametrize("entry", ["exp_avg", "exp_avg_sq", "step"])
def test_a_state_of_other_shapes_is_refused_and_changes_nothing(entry):
    layer, optimizer = stepped(3)
    state = optimizer.state_dict()
    state["state"][0] = state["state"][0] | {entry: torch.zeros(4, 2)}
    with pytest.raises(
        FileFormatError, match=rf"^the optimiser's state does not fit the model: {entry} of weight .*4, 2"
    ):
        optimizer.load_state_dict(state)
    assert optimizer.state[layer.weight]["exp_avg"].shape == (4, 3)


def test_a_state_with_less_memory_than_its_shape_is_refused():
    _, optimizer = stepped(3)
    state = optimizer.state_dict()
    state["state"][1] = state["state"][1] | {"exp_avg": torch.zeros(1).expand(4)}
    with pytest.raises(FileFormatError, match="exp_avg of bias lies in memory"):
        optimizer.load_state_dict(state)


def test_the_state_of_the_same_model_is_taken():
    (layer, optimizer), (_, other) = stepped(3), stepped(3)
    optimizer.load_state_dict(other.state_dict())
    optimizer.step()
    assert optimizer.state[layer.weight]["step"] == 2
