"""Dropout by few random bits: how much it drops, what it keeps, what goes back."""

import pytest
import torch

from moeapps.core.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_as_many_elements_are_dropped_as_asked_and_the_rest_keeps_the_mean(p):
    torch.manual_seed(0)
    found = dropout(torch.ones(400, 501), p)
    assert found.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)])
    spread = (p * (1 - p) / found.numel()) ** 0.5
    assert (found == 0).double().mean() == pytest.approx(p, abs=5 * spread)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(200_000), 0.5) > 0).double() - 0.5
    for distance in (1, 2, 3, 4, 8):  # four elements share a number of 64 bits
        assert abs(float((kept[distance:] * kept[:-distance]).mean())) < 0.25 * 5 / 200_000**0.5


def test_the_gradient_is_that_of_what_was_kept():
    x = torch.randn(7, 9, requires_grad=True)
    found = dropout(x, 0.4)
    found.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(found == 0, 0.0, 1 / 0.6))


def test_the_same_seed_drops_the_same():
    found = []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(dropout(torch.ones(10, 10), 0.3))
    assert torch.equal(*found)


def test_nothing_is_dropped_in_evaluation_or_of_nothing():
    x = torch.randn(5)
    assert Dropout(0.5).eval()(x) is x
    assert dropout(x, 0.0) is x
    assert dropout(torch.ones(0, 3), 0.5).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_type_stays(dtype):
    assert dropout(torch.ones(4, 4, dtype=dtype), 0.5).dtype == dtype
