"""The activations of all experts in one call, or of one expert at a time: the same network."""

import pytest
import torch

from moeapps.core import kernels
from moeapps.core.activations import ACTIVATIONS
from moeapps.core.kernels import sorted_mlp


def run(activation: str, rows: int, padding: int, dtype: torch.dtype, bias: bool) -> list[torch.Tensor | None]:
    torch.manual_seed(0)
    experts, width, hidden = 5, 16, 24
    first = hidden * (2 if ACTIVATIONS[activation].gated else 1)
    weights = [torch.randn(experts, width, first, dtype=dtype), torch.randn(experts, first, dtype=dtype)]
    weights += [torch.randn(experts, hidden, width, dtype=dtype), torch.randn(experts, width, dtype=dtype)]
    expert = torch.randint(0, experts, (rows - padding,)).sort().values
    expert[expert == 2] = 1  # expert 2 has no rows
    offsets = torch.searchsorted(expert, torch.arange(experts + 1), out_int32=True)
    x = torch.randn(rows, width, dtype=dtype, requires_grad=True)
    w1, b1, w2, b2 = (w.requires_grad_() for w in weights)
    out = sorted_mlp(x, offsets, (w1, b1 if bias else None, w2, b2 if bias else None), activation, "loop")
    out.backward(torch.randn(rows, width, dtype=dtype))
    return [out.detach(), x.grad, w1.grad, w2.grad, b1.grad, b2.grad]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_call_for_all_activations_equals_one_per_expert(activation, dtype, padding, bias, monkeypatch):
    results = []
    for most in (0, 2**40):
        monkeypatch.setattr(kernels, "WHOLE", most)
        results.append(run(activation, 300, padding, dtype, bias))
    for each, whole in zip(*results, strict=True):
        if each is None or whole is None:
            assert each is None
            assert whole is None
            continue
        if dtype == torch.float64:  # always one call per expert: predictions of 0.1 are to be the same to the bit
            assert torch.equal(each, whole)
        else:  # the last numbers of a call may be computed by other instructions
            torch.testing.assert_close(each, whole, rtol=1e-5, atol=1e-5)
    assert (results[1][0][300 - padding :] == 0).all()
    assert (results[1][2][2] == 0).all()


@pytest.mark.parametrize("rows", [0, 7])
def test_one_call_takes_rows_that_belong_to_no_expert(rows):
    assert (run("gelu", rows, rows, torch.float32, True)[0] == 0).all()
