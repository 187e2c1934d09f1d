"""Dense gates of multi-task models."""

import pytest
import torch

from moeapps.core import MultiGate, mix_experts
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.gates import gate_logits


def test_every_task_mixes_by_its_own_softmax():
    gate = MultiGate(8, num_experts=3, num_tasks=2)
    x, outputs = torch.randn(5, 8), torch.randn(5, 3, 4)
    mixed = mix_experts(gate(x), outputs)
    for task in range(2):
        p = (x @ gate.weight[task].T).softmax(-1)
        torch.testing.assert_close(mixed[:, task], sum(p[:, e, None] * outputs[:, e] for e in range(3)))


def test_a_task_gives_no_weight_and_no_gradient_to_experts_it_may_not_use():
    gate = MultiGate(8, 3, 2, allowed=[[True, False, True], [False, True, True]])
    weights = gate(torch.randn(5, 8))
    torch.testing.assert_close(weights.sum(-1), torch.ones(5, 2))
    assert not weights[:, 0, 1].any()
    assert not weights[:, 1, 0].any()
    weights.square().sum().backward()
    assert gate.weight.grad.isfinite().all()
    assert not gate.weight.grad[0, 1].any()


def test_each_task_may_have_an_input_of_its_own():
    gate = MultiGate(8, 3, 2)
    x = torch.randn(5, 8)
    torch.testing.assert_close(gate(x[:, None].expand(5, 2, 8)), gate(x))


def test_gates_stay_in_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert MultiGate(8, 3, 2)(torch.randn(5, 8)).dtype == torch.float32


@pytest.mark.parametrize(
    ("allowed", "message"),
    [([[True, True]], "2 rows of 3"), ([[True] * 3, [False] * 3], "task 1 may use no expert")],
)
def test_impossible_masks_are_refused(allowed, message):
    with pytest.raises(ConfigError, match=message):
        MultiGate(8, 3, 2, allowed=allowed)


def test_wrong_shapes_are_refused():
    for wrong in (torch.randn(5, 7), torch.randn(5, 3, 8), torch.randn(8)):
        with pytest.raises(DataError, match=r"expects \(N, 8\) or \(N, 2, 8\)"):
            MultiGate(8, 3, 2)(wrong)


def test_a_gate_takes_the_logits_of_gate_logits():
    gate = MultiGate(8, 3, 2, allowed=[[True, False, True], [True, True, True]])
    x = torch.randn(5, 8)
    logits = gate_logits(x, gate.weight)
    assert logits.shape == (2, 3, 5)
    torch.testing.assert_close(gate.mixture(logits), gate(x))
