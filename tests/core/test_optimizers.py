"""The fused form of an optimiser is taken where it changes nothing but the time."""

import pytest
import torch
from torch import nn

from moeapps.core.optimizers import fused_where_possible


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
