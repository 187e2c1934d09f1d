"""The fused form of an optimiser is taken where it changes nothing but the time."""

import copy as copying

import pytest
import torch
from torch import nn

from moeapps.core.errors import FileFormatError
from moeapps.core.optimizers import LazyAdamW, fused_where_possible, with_checked_state


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


def trained(optimizer_class, sparse, steps, every=True, **arguments):
    """A table and a layer after some steps, each on the rows 2 and 5 or on all of them."""
    torch.manual_seed(0)
    table, layer = nn.Embedding(8, 3, sparse=sparse), nn.Linear(3, 1)
    groups = [{"params": table.parameters(), "weight_decay": 0.0}, {"params": layer.parameters()}]
    optimizer = optimizer_class(groups, lr=0.05, weight_decay=0.01, **arguments)
    draw = torch.Generator().manual_seed(1)
    for _ in range(steps):
        codes = torch.tensor([2, 5, 5, 2, 2])
        if every:
            codes = torch.cat([torch.arange(8), torch.randint(0, 8, (20,), generator=draw)])
        optimizer.zero_grad()
        optimizer.step(lambda codes=codes: layer(table(codes)).square().sum().backward())
    return table.weight.detach(), layer.weight.detach(), optimizer


@pytest.mark.parametrize("arguments", [{}, {"fused": True}])
def test_lazy_adamw_is_adamw_where_every_row_has_a_gradient(arguments):
    lazy = trained(LazyAdamW, True, 15, **arguments)
    plain = trained(torch.optim.AdamW, False, 15, **arguments)
    for one, other in zip(lazy[:2], plain[:2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_lazy_adamw_moves_the_rows_of_the_batch_only():
    torch.manual_seed(0)
    start = nn.Embedding(8, 3).weight.detach()
    end, _, optimizer = trained(LazyAdamW, True, 4, every=False)
    assert (end != start).any(1).nonzero().flatten().tolist() == [2, 5]
    moments = next(iter(optimizer.state.values()))["exp_avg_sq"]
    assert (moments != 0).any(1).nonzero().flatten().tolist() == [2, 5]


def test_lazy_adamw_goes_on_exactly_from_a_saved_state():
    table = nn.Embedding(8, 3, sparse=True)
    optimizer = LazyAdamW(table.parameters(), lr=0.05)
    copy = nn.Embedding(8, 3, sparse=True)
    for step in range(6):
        if step == 3:
            copy.load_state_dict(table.state_dict())
            other = LazyAdamW(copy.parameters(), lr=0.05)
            other.load_state_dict(copying.deepcopy(optimizer.state_dict()))  # else they share moments
        for module, own in [(table, optimizer), *([(copy, other)] if step >= 3 else [])]:
            own.zero_grad()
            module(torch.tensor([step, 3, step])).square().sum().backward()
            own.step()
    assert torch.equal(table.weight, copy.weight)


def test_lazy_adamw_returns_what_the_closure_does_and_leaves_the_gradient():
    table = nn.Embedding(8, 3, sparse=True)
    optimizer = LazyAdamW(table.parameters())

    def closure():
        table(torch.tensor([1])).sum().backward()
        return 7.0

    assert optimizer.step(closure) == 7.0
    assert table.weight.grad.is_sparse
