"""DiT and Switch-DiT: initialisation, the experts that a timestep chooses, and the prior."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from moeapps.core.errors import ConfigError, DataError
from moeapps.vision import (
    DiffusionModule,
    DiT,
    ImageSpec,
    SwitchDiT,
    TimestepPrior,
    TimestepSwitch,
)
from moeapps.vision.prior import js_divergence
from moeapps.vision.switch_dit import SwitchBlock

SMALL = {
    "img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "dim": 32, "depth": 3, "num_heads": 4,
    "timesteps": 50,
}  # fmt: skip


def inputs(n: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return torch.randn(n, 1, 8, 8), torch.tensor([0, 7, 30, 49])[:n], torch.tensor([0, 3, 9, 10])[:n]


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Away from the initialisation, where everything is zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.mark.parametrize("cls", [DiT, SwitchDiT])
def test_at_initialisation_the_output_is_zero(cls):
    x, t, y = inputs()
    out = cls(**SMALL)(x, t, y)
    assert out.shape == (4, 2, 8, 8)
    assert out.abs().max() == 0
    assert cls(**{**SMALL, "learn_sigma": False})(x, t, y).shape == (4, 1, 8, 8)


def test_at_initialisation_switch_dit_equals_dit_with_the_same_weights():
    dit, switch = shaken(DiT(**SMALL)), SwitchDiT(**SMALL).eval()
    missing, unexpected = switch.load_state_dict(dit.state_dict(), strict=False)
    assert not unexpected
    assert all(".switch." in name for name in missing)  # experts still zero: every mask is one
    x, t, y = inputs()
    torch.testing.assert_close(switch(x, t, y), dit(x, t, y), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("tokens", [3, 40])  # with and without matrices of each image
def test_a_mask_is_one_and_the_chosen_experts_with_their_probabilities(tokens):
    switch = shaken(TimestepSwitch(32, num_experts=4, top_k=2))
    x, temb = torch.randn(5, tokens, 32), torch.randn(5, 32)
    gates = switch.gates(temb)
    p = torch.nn.functional.linear(torch.nn.functional.silu(temb), switch.router.weight, switch.router.bias).softmax(-1)
    top, chosen = p.topk(2)
    torch.testing.assert_close(gates, torch.zeros(5, 4).scatter(1, chosen, top))
    expected = torch.ones_like(x)
    for i in range(5):
        for weight, e in zip(top[i], chosen[i], strict=True):
            expected[i] += weight * (x[i] @ switch.weight[e] + switch.bias[e])
    torch.testing.assert_close(switch(x, gates), x * expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(switch(x[:1], gates[:1]), x[:1] * expected[:1], atol=1e-5, rtol=1e-5)


def test_a_block_is_the_papers():
    block = shaken(SwitchBlock(16, 2))
    x, condition = torch.randn(3, 5, 16), torch.randn(3, 16)
    gates = block.switch.gates(torch.randn(3, 16))
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(condition)[:, None].chunk(6, dim=2)
    mask = block.switch(x, gates) / x
    r = x * mask
    r = r + gate1 * block.attn(block.norm1(r) * (1 + scale1) + shift1)
    r = r + gate2 * block.mlp(block.norm2(r) * (1 + scale2) + shift2)
    torch.testing.assert_close(block(x, condition, gates), r + (1 - mask) * x, atol=1e-4, rtol=1e-4)


def test_gates_of_all_timesteps_are_remembered_in_evaluation_and_forgotten_in_training():
    model = shaken(SwitchDiT(**SMALL))
    x, t, y = inputs()
    expected = model(x, t, y).detach()  # with gradients: computed
    calls = []
    for block in model.blocks:
        block.switch.router.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        torch.testing.assert_close(model(x, t, y), expected, atol=1e-5, rtol=1e-5)
        assert len(calls) == 3  # the table of all timesteps, once for each block
        model(x, t, y)
        assert len(calls) == 3
        torch.testing.assert_close(copy.deepcopy(model)(x, t, y), expected, atol=1e-5, rtol=1e-5)
        shaken(model.train())
        assert not torch.allclose(model.eval()(x, t, y), expected)


def test_an_image_does_not_depend_on_its_batch_at_any_timestep():
    model = shaken(SwitchDiT(**SMALL))
    x, t, y = inputs()
    with torch.no_grad():
        whole = model(x, t, y)
        for i in range(4):
            torch.testing.assert_close(
                model(x[i : i + 1], t[i : i + 1], y[i : i + 1]), whole[i : i + 1], atol=1e-4, rtol=0
            )
        same = torch.full((4,), 7)
        torch.testing.assert_close(model(x, same, y)[1], whole[1], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": torch.tensor([0, 1, 2, 50])}, "t must be 0 to 49, got 0 to 50"),
        ({"t": torch.tensor([-1, 1, 2, 3])}, "t must be 0 to 49, got -1 to 3"),
        ({"t": torch.tensor([3.7, 1, 2, 3])}, "t must be 4 whole numbers, got torch.float32"),
        ({"t": torch.tensor([3])}, r"t must be 4 whole numbers, got torch.int64 of \(1,\)"),
        ({"y": torch.tensor([0, 1, 2, 11])}, "y must be 0 to 10, got 0 to 11"),
        ({"y": torch.tensor([0, 1, 2, -1])}, "y must be 0 to 10, got -1 to 2"),
        ({"x": torch.randn(4, 1, 8, 7)}, r"x must be \(N, 1, 8, 8\), got \(4, 1, 8, 7\)"),
    ],
)
def test_impossible_timesteps_labels_and_shapes_are_named(change, message):
    x, t, y = inputs()
    with pytest.raises(DataError, match=message):
        SwitchDiT(**SMALL)(**{"x": x, "t": t, "y": y, **change})
    assert SwitchDiT(**SMALL)(x, t.int(), y).shape == (4, 2, 8, 8)
    with pytest.raises(DataError, match="built for images without labels"):
        DiT(**{**SMALL, "num_classes": 0})(x, t, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 3}, "img_size=8 is not a multiple of patch_size=3"),
        ({"dim": 30}, "dim=30 must be a multiple of num_heads=4"),
        ({"class_dropout": 1.0}, "class_dropout must be"),
        ({"top_k": 4}, "top_k"),
    ],
)
def test_impossible_sizes_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        SwitchDiT(**{**SMALL, **change})


def test_no_label_is_the_reserved_one_and_training_hides_some():
    model = shaken(DiT(**{**SMALL, "class_dropout": 0.5}))
    x, t, _ = inputs()
    with torch.no_grad():
        torch.testing.assert_close(model(x, t), model(x, t, torch.full((4,), 10)))
    torch.manual_seed(0)
    hidden = model.train()._labels(torch.zeros(1000, dtype=torch.int64), x)
    assert (hidden == 10).float().mean() == pytest.approx(0.5, abs=0.05)


def test_windows_have_k_units_a_block_and_neighbours_share_more_than_distant_ones():
    prior = TimestepPrior(depth=4, num_experts=3, top_k=2, timesteps=100)
    windows = prior.windows
    assert windows.shape == (100, 12)
    assert (windows.sum(1) == 8).all()  # (k / E) L E
    overlap = windows @ windows.t()
    assert (overlap.diagonal(1) >= overlap.diagonal(60).min()).all()
    assert overlap[0, 99] < overlap[0, 50] <= overlap[0, 1]


def test_gates_that_are_the_windows_have_no_divergence_whatever_the_units_are_called():
    prior = TimestepPrior(depth=4, num_experts=3, top_k=2, timesteps=100)
    order = torch.randperm(12)
    table = prior.windows[:, order].view(100, 4, 3).transpose(0, 1)  # (L, T, E)
    t = torch.arange(100)
    assert prior(table, t) > 0.01
    prior.match(table)
    assert sorted(prior.place.tolist()) == list(range(12))
    assert prior(table, t) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(DataError, match="table must be of 100 timesteps and 12 units"):
        prior.match(table[:3])


def test_the_prior_teaches_the_gates_to_follow_the_windows():
    torch.manual_seed(0)
    model = SwitchDiT(**SMALL)
    prior = TimestepPrior(depth=3, timesteps=50)
    prior.match(model.gate_table())
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    losses = []
    for _ in range(40):
        loss = prior(model.gate_table(), torch.arange(50))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_the_divergence_is_symmetric_bounded_and_zero_for_equals():
    p, q = torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    torch.testing.assert_close(js_divergence(p, q), torch.tensor([0.6931, 0.0]), atol=1e-4, rtol=0)
    torch.testing.assert_close(js_divergence(p, q), js_divergence(q, p))


# ---------------------------------------------------------------- as released


def released_prior(logits, table, windows, t, depth, top_k):
    """Mean over t of JSD(softmax of all units / L, matched window / its sum), the matching the one of least distance.

    ``logits`` and ``table`` are ``(T, L, E)``; windows ``(T, L E)``.
    """
    p = logits.softmax(-1).flatten(1) / depth
    used = (table.flatten(1) > 0).double()
    cost = (used[:, :, None] - windows[:, None]).abs().sum(0)
    _, columns = linear_sum_assignment(cost.numpy())
    total = 0.0
    for time in t.tolist():
        q = windows[time, columns] / (top_k * depth)
        for x, y in zip(p[time].tolist(), q.tolist(), strict=True):
            m = (x + y) / 2
            total += 0.5 * sum(v * math.log(v / m) for v in (x, y) if v > 0)
    return total / len(t), cost, columns


def test_windows_start_where_the_released_code_has_them():
    for timesteps, alpha in ((1000, 4.0), (50, 2.0), (1, 4.0)):
        prior = TimestepPrior(depth=4, num_experts=3, top_k=2, timesteps=timesteps, alpha=alpha)
        start = (np.linspace(0, 1, timesteps) ** alpha * (12 - 8)).round()
        units = np.arange(12)
        expected = (units >= start[:, None]) & (units < start[:, None] + 8)
        np.testing.assert_array_equal(prior.windows.numpy(), expected)
        assert prior.windows[-1].tolist() == ([0.0] * 4 + [1.0] * 8 if timesteps > 1 else [1.0] * 8 + [0.0] * 4)


def test_the_loss_of_training_is_the_released_one():
    torch.manual_seed(0)
    spec = ImageSpec((1, 8, 8), ("a", "b"), (0.5,), (0.5,))
    module = DiffusionModule(
        size="tiny", options={"dim": 32, "depth": 3, "num_heads": 4, "patch_size": 4}, timesteps=50, prior_weight=0.7
    )
    module.attach(spec)
    network = shaken(module.network.double()).train()
    module.prior.match(network.gate_table())
    t = torch.tensor([0, 7, 20, 33, 49])
    network(torch.randn(5, 1, 8, 8, dtype=torch.float64), t, torch.tensor([0, 1, 0, 1, 0]))
    probabilities = network.last_probabilities()
    silu = F.silu(network.t_embed(torch.arange(50)))
    logits = torch.stack([silu @ s.router.weight.t() + s.router.bias for s in network.switches], 1)
    table = network.gate_table().transpose(0, 1)
    expected, cost, columns = released_prior(
        logits.detach(), table.detach(), module.prior.windows.double(), t, depth=3, top_k=2
    )
    columns = torch.as_tensor(columns)
    ours = cost.gather(1, module.prior.place[:, None]).sum()
    assert float(ours) == pytest.approx(float(cost[torch.arange(9), columns].sum()))  # as good a matching
    module.prior.place.copy_(columns)  # there may be several
    found = module.prior(probabilities, t)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)
    found.backward()
    for switch in network.switches:  # experts that were not chosen take part, and so does the bias
        assert (switch.router.weight.grad.abs().sum(1) > 0).all()
        assert switch.router.bias.grad.abs().sum() > 0


def released_gate(temb, weight, bias, top_k):
    """Softmax of V SiLU(temb) + c; the k largest keep their probability, the others get nothing."""
    silu = temb / (1 + (-temb).exp())
    logits = silu @ weight.T + bias
    p = (logits - logits.max(1, keepdim=True).values).exp()
    p = p / p.sum(1, keepdim=True)
    kept = torch.zeros_like(p)
    for i, row in enumerate(p):
        for e in sorted(range(len(row)), key=lambda e: -float(row[e]))[:top_k]:
            kept[i, e] = row[e]
    return p, kept


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_weights_of_experts_and_the_loss_of_the_prior_are_the_released_ones_to_six_digits(top_k):
    """The whole way from embedded timesteps to the loss, with the 1e-6 in the released logarithms and without."""
    torch.manual_seed(top_k)
    depth, experts, timesteps = 4, 3, 60
    network = shaken(SwitchDiT(**{**SMALL, "depth": depth, "timesteps": timesteps, "top_k": top_k}).double()).train()
    temb = network.t_embed(torch.arange(timesteps)).detach()
    every = [released_gate(temb, s.router.weight.detach(), s.router.bias.detach(), top_k) for s in network.switches]
    p, kept = (torch.stack([pair[i] for pair in every]) for i in (0, 1))  # (L, T, E)
    torch.testing.assert_close(network.gate_table().detach(), kept, atol=1e-6, rtol=1e-6)

    prior = TimestepPrior(depth, experts, top_k, timesteps)
    prior.match(network.gate_table())
    t = torch.tensor([0, 13, 41, 59])
    network(torch.randn(4, 1, 8, 8, dtype=torch.float64), t, torch.tensor([0, 1, 2, 3]))
    found = prior(network.last_probabilities(), t)
    units = p[:, t].transpose(0, 1).flatten(1) / depth
    length = depth * top_k
    start = np.rint(np.linspace(0, 1, timesteps)[t.numpy()] ** 4.0 * (depth * experts - length))
    window = np.array([[first <= u < first + length for u in range(depth * experts)] for first in start])
    wanted = torch.from_numpy(window[:, prior.place.numpy()] / length)
    middle = (units + wanted) / 2
    exact, inside = (
        sum((a * ((a + e).log() - (middle + e).log())).nan_to_num().sum(1) for a in (units, wanted)).mean() / 2
        for e in (0.0, 1e-6)
    )
    assert float(found.detach()) == pytest.approx(float(exact), abs=1e-6)
    assert float(exact) == pytest.approx(float(inside), abs=1e-5)  # what the released 1e-6 changes


def test_gates_as_released_depend_on_the_timestep_alone_and_share_the_embedding_of_the_condition():
    """No task of its own: gates read the embedding that also shifts and scales, and the labels do not reach them."""
    network = shaken(SwitchDiT(**SMALL)).train()
    x, t, y = inputs()
    network(x, t, y)
    first = network.last_probabilities().detach()
    network(torch.randn_like(x), t, y.flip(0))
    assert torch.equal(network.last_probabilities().detach(), first)
    network.last_probabilities()[:, :, 0].sum().backward()
    assert network.t_embed.mlp[0].weight.grad.abs().max() > 0
    assert network.y_embed.weight.grad is None


def test_the_gates_as_in_0_1_give_the_prior_the_chosen_experts_only():
    torch.manual_seed(0)
    network = shaken(SwitchDiT(**SMALL, gate_bias=False)).train()
    assert not [name for name in network.state_dict() if name.endswith("router.bias")]
    network(torch.randn(2, 1, 8, 8), torch.tensor([3, 40]), torch.tensor([1, 2]))
    gates, p = torch.stack(network.last_gates), network.last_probabilities()
    torch.testing.assert_close(gates, torch.where(gates > 0, p, 0.0))
    assert ((gates > 0).sum(-1) == 2).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(3, 2))
    with pytest.raises(ConfigError, match="no router has run yet"):
        SwitchDiT(**SMALL).last_probabilities()


def test_what_0_1_saved_has_gates_without_bias_and_today_says_so(tmp_path):
    torch.manual_seed(0)
    for bias in (False, True):
        network = shaken(SwitchDiT(**SMALL, gate_bias=bias)).eval()
        network.save_pretrained(tmp_path / str(bias))
        config = tmp_path / str(bias) / "config.json"
        if not bias:  # 0.1 did not know the argument
            arguments = json.loads(config.read_text())
            del arguments["gate_bias"]
            config.write_text(json.dumps(arguments))
        twin = SwitchDiT.from_pretrained(tmp_path / str(bias)).eval()
        assert list(twin.state_dict()) == list(network.state_dict())
        x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 40]), torch.tensor([1, 2])
        with torch.no_grad():
            assert torch.equal(twin(x, t, y), network(x, t, y))
