"""Models of a user's behaviour: what their attention equals, what gates do, what a score is made of."""

import pytest
import torch

from moeapps.core.errors import ConfigError
from moeapps.recsys import AWMoE
from moeapps.recsys.sasrec import HistoryEncoder, SASRec


@pytest.fixture
def rows():
    """Behaviour (6, 5, 4), candidates (6, 4), mask with an empty row, profile (6, 7)."""
    torch.manual_seed(0)
    present = torch.tensor([[False] * (5 - n) + [True] * n for n in (0, 1, 2, 3, 4, 5)])
    return torch.randn(6, 5, 4), torch.randn(6, 4), present, torch.randn(6, 7)


@pytest.mark.parametrize("gate", ["softmax", "mean", "sum"])
def test_an_empty_history_has_the_gate_of_the_bias_alone(gate, rows):
    behaviour, target, present, profile = rows
    model = AWMoE(4, 7, num_experts=3, gate=gate)
    torch.nn.init.normal_(model.bias)
    expected = model.bias.softmax(0) if gate == "softmax" else model.bias
    torch.testing.assert_close(model.gates(behaviour, target, present)[0][0], expected)
    assert model(behaviour, target, present, profile).isfinite().all()


def test_an_impossible_gate_is_named():
    with pytest.raises(ConfigError, match="gate must be one of sum, softmax, mean, got 'max'"):
        AWMoE(4, 7, gate="max")


@pytest.mark.parametrize(
    "make", [lambda: AWMoE(4, 7, gate="softmax"), lambda: AWMoE(4, 7, gate="mean"), lambda: SASRec(4, 7)]
)
def test_padded_entries_change_nothing(make, rows):
    behaviour, target, present, profile = rows
    model = make().eval()
    longer = torch.cat([torch.randn(6, 10, 4), behaviour], dim=1)
    more = torch.cat([torch.zeros(6, 10, dtype=torch.bool), present], dim=1)
    expected = model(behaviour, target, present, profile)
    torch.testing.assert_close(model(longer, target, more, profile), expected, atol=1e-5, rtol=1e-5)


def test_sasrec_reads_the_order_of_a_history(rows):
    behaviour, target, present, profile = rows
    model = SASRec(4, 7).eval()
    forwards = model(behaviour, target, present, profile)
    backwards = model(behaviour.flip(1), target, present.flip(1), profile)
    assert (forwards - backwards)[-1].abs() > 1e-4  # the full history


def test_heads_that_do_not_divide_the_width_are_named():
    with pytest.raises(ConfigError, match="heads=3 must divide the width of an embedding, 4"):
        HistoryEncoder(4, heads=3)
