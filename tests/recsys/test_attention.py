"""Models of a user's behaviour: what their attention equals, what gates do, what a score is made of."""

from functools import partial

import pytest
import torch

from moeapps.core.errors import ConfigError
from moeapps.recsys import DIN, AWMoE, SASRec
from moeapps.recsys.attention import distinct
from moeapps.recsys.self_attention import HistoryEncoder, SelfAttention


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
    "make",
    [
        lambda: AWMoE(4, 7, gate="softmax"),
        lambda: AWMoE(4, 7, gate="mean"),
        lambda: SASRec(4, 7),
        lambda: DIN(4, 7, history_encoder="sasrec"),
    ],
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


def test_a_layer_of_self_attention_equals_torchs():
    torch.manual_seed(0)
    ours, present = SelfAttention(8, 2, 0.0).eval(), torch.tensor([[False, True, True], [True, True, True]])
    theirs = torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True).eval()
    own = ours.state_dict()
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([own["query.weight"], own["key_value.weight"]]),
            "self_attn.in_proj_bias": torch.cat([own["query.bias"], own["key_value.bias"]]),
            **{f"self_attn.out_proj.{part}": own[f"out.{part}"] for part in ("weight", "bias")},
            **{f"linear1.{part}": own[f"mlp.0.{part}"] for part in ("weight", "bias")},
            **{f"linear2.{part}": own[f"mlp.3.{part}"] for part in ("weight", "bias")},
            **{f"norm1.{part}": own[f"norm.{part}"] for part in ("weight", "bias")},
            **{f"norm2.{part}": own[f"mlp_norm.{part}"] for part in ("weight", "bias")},
        }
    )
    x = torch.randn(2, 3, 8)
    expected = theirs(x, src_key_padding_mask=~present)
    torch.testing.assert_close(ours(x, present, 3)[present], expected[present], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours(x, present, 1), ours(x, present, 3)[:, -1:])


@pytest.mark.parametrize(
    ("lengths", "each"), [((5, 5, 10), 5), ((4, 6), 2), ((1, 1), 1), ((3,), 3), ((1,), 1), ((), 1)]
)
def test_equal_histories_of_neighbouring_rows_are_found(lengths, each):
    codes = torch.tensor([[n, 1] for n, length in enumerate(lengths) for _ in range(length)]).reshape(-1, 2)
    assert distinct(codes).tolist() == list(range(0, sum(lengths), each))


@pytest.mark.parametrize(
    "make",
    [DIN, AWMoE, SASRec, partial(DIN, history_encoder="sasrec"), partial(AWMoE, history_encoder="sasrec")],
)
def test_a_history_given_once_for_its_rows_scores_as_one_for_each_row(make, rows):
    behaviour, target, present, profile = rows
    model = make(4, 7).eval()
    expected = model(behaviour[1::2].repeat_interleave(2, 0), target, present[1::2].repeat_interleave(2, 0), profile)
    torch.testing.assert_close(model(behaviour[1::2], target, present[1::2], profile), expected)


@pytest.mark.parametrize("make", [DIN, AWMoE])
def test_an_encoder_tells_the_order_of_a_history_which_its_model_alone_does_not(make, rows):
    behaviour, target, present, profile = rows
    for encoder, order_counts in ((None, False), ("sasrec", True)):
        model = make(4, 7, history_encoder=encoder).eval()
        forwards = model(behaviour, target, present, profile)
        backwards = model(behaviour.flip(1), target, present.flip(1), profile)
        assert bool((forwards - backwards)[-1].abs() > 1e-5) == order_counts


def test_an_encoder_does_not_show_a_view_what_its_mask_leaves_out(rows):
    behaviour, target, present, profile = rows
    model, view = AWMoE(4, 7, history_encoder="sasrec").eval(), present.clone()
    view[:, -1] = False
    other = behaviour.clone()
    other[:, -1] += 1.0
    views = [model.with_gates(entries, target, [present, view], profile)[1][1] for entries in (behaviour, other)]
    torch.testing.assert_close(*views)
    torch.testing.assert_close(views[0][1], model.bias)  # the only entry is left out


def test_options_of_an_encoder_are_refused_by_name():
    with pytest.raises(ConfigError, match="history_encoder must be one of sasrec, got 'gru'"):
        DIN(4, 7, history_encoder="gru")
    with pytest.raises(ConfigError, match=r"history_options: .*unexpected keyword argument 'depth'"):
        DIN(4, 7, history_encoder="sasrec", history_options={"depth": 2})
    with pytest.raises(ConfigError, match="history_options are of the history_encoder"):
        AWMoE(4, 7, history_options={"layers": 2})
