"""Histories without their padding give what padded ones give."""

import pytest
import torch

from moeapps.recsys import DIN, AWMoE, SASRec, packing, self_attention
from moeapps.recsys.encoder import FIRST, Rows
from moeapps.recsys.features import FeatureEmbedding
from moeapps.recsys.network import SequenceNetwork
from moeapps.recsys.packing import padding_costs
from moeapps.recsys.prior import LabelPrior

LENGTHS = (0, 3, 1, 0, 9, 2, 0)
MODELS = {
    "DIN": lambda: DIN(4, 8, dropout=0.2),
    **{f"AW-MoE, {gate}": lambda gate=gate: AWMoE(4, 8, dropout=0.2, gate=gate) for gate in ("softmax", "mean", "sum")},
}


def made_rows(lengths, each=1, width=9) -> Rows:
    """Users, items and a history of items, padded in front, for ``each`` rows."""
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(FIRST, FIRST + 20, (len(lengths), width), generator=draw, dtype=torch.int32)
    codes *= torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    number = len(lengths) * each
    sparse = torch.randint(FIRST, FIRST + 20, (number, 2), generator=draw, dtype=torch.int32)
    return Rows(sparse, torch.zeros(number, 0), (codes.repeat_interleave(each, 0),))


def made_network(make, **options) -> SequenceNetwork:
    torch.manual_seed(0)
    embedding = FeatureEmbedding([FIRST + 20] * 2, 2, 0, [1], 4, **options)
    torch.nn.init.normal_(embedding.table.weight)  # large enough that every entry counts
    return SequenceNetwork(embedding, make(), 0, 1, LabelPrior([1], [FIRST + 20]), similarity=True)


def both_ways(monkeypatch, run):
    """What ``run`` gives with the padding and without it."""
    found = []
    for threshold in (-1.0, 1.0):
        monkeypatch.setattr(packing, "PADDED_FROM", threshold)
        torch.manual_seed(0)
        found.append(run())
    return found


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_without_padding_has_the_same_loss_and_gradients(name, each, monkeypatch):
    network, rows = made_network(MODELS[name]), made_rows(LENGTHS, each)

    def step():
        network.zero_grad()
        outputs = network(rows)  # with dropout: what it draws is the same, too
        outputs.square().sum().backward()
        return outputs.detach(), {key: value.grad.clone() for key, value in network.named_parameters()}

    padded, packed = both_ways(monkeypatch, step)
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("lengths", [(0, 0), (0,), (5,)])
def test_empty_histories_need_no_entry(lengths, monkeypatch):
    network, rows = made_network(MODELS["AW-MoE, softmax"]).eval(), made_rows(lengths)
    torch.testing.assert_close(*both_ways(monkeypatch, lambda: network(rows)))


def test_rows_without_a_column_of_a_history_are_scored(monkeypatch):
    network, rows = made_network(MODELS["DIN"]).eval(), made_rows((0, 0), width=0)
    torch.testing.assert_close(*both_ways(monkeypatch, lambda: network(rows)))


def test_sparse_gradients_are_the_same_without_padding(monkeypatch):
    network, rows = made_network(MODELS["DIN"], sparse_gradients=True), made_rows(LENGTHS)

    def gradient():
        network.zero_grad()
        network(rows).sum().backward()
        return network.embedding.table.weight.grad.to_dense()

    torch.testing.assert_close(*both_ways(monkeypatch, gradient))


def test_a_network_under_autocast_scores_alike_without_padding(monkeypatch):
    network, rows = made_network(MODELS["AW-MoE, softmax"]).eval(), made_rows([200] * 4, width=400)

    def scores():
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            return network(rows).float()

    padded, packed = both_ways(monkeypatch, scores)
    torch.testing.assert_close(packed, padded, atol=0.05, rtol=0.02)


def test_only_histories_that_are_mostly_padding_are_packed():
    present = torch.zeros(10, 10, dtype=torch.bool)
    present[:, 5:] = True
    assert padding_costs(present)
    assert not padding_costs(torch.ones(10, 10, dtype=torch.bool))


def test_the_host_does_not_ask_another_device_for_the_number_of_entries():
    assert not padding_costs(torch.zeros(10, 10, dtype=torch.bool, device="meta"))  # which cannot answer


def test_a_traced_program_keeps_the_padding(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not padding_costs(torch.zeros(10, 10, dtype=torch.bool))


def test_histories_are_encoded_in_parts_of_like_lengths(monkeypatch):
    monkeypatch.setattr(self_attention, "PART", 18)  # two histories at once
    monkeypatch.setattr(packing, "PADDED_FROM", 1.0)
    behaviour = torch.zeros(len(LENGTHS), 10, 3)
    present = torch.arange(10) >= 10 - torch.tensor(LENGTHS)[:, None]
    shapes = []

    def encode(behaviour, present):
        shapes.append((*present.shape, int(present.sum())))
        return present.sum(1)

    counts = self_attention.in_parts(encode, behaviour, present)
    assert counts.tolist() == list(LENGTHS)  # in the order of the rows
    assert len(shapes) > 2
    assert sum(rows * length for rows, length, _ in shapes) < present.numel()
    assert sum(entries for *_, entries in shapes) == sum(LENGTHS)


@pytest.mark.parametrize(
    "model",
    [
        lambda: SASRec(4, 8),
        lambda: DIN(4, 8, history_encoder="sasrec"),
        lambda: AWMoE(4, 8, gate="softmax", history_encoder="sasrec"),
    ],
)
def test_self_attention_by_parts_scores_and_learns_the_same(model, monkeypatch):
    monkeypatch.setattr(self_attention, "PART", 18)
    network, rows = made_network(model).eval(), made_rows(LENGTHS)  # dropout would draw other entries

    def scores_and_gradient():
        network.zero_grad()
        scores = network(rows)
        scores.sum().backward()
        return scores.detach(), [parameter.grad for parameter in network.model.encoder.parameters()]

    padded, parts = both_ways(monkeypatch, scores_and_gradient)
    torch.testing.assert_close(parts, padded)
    assert len(parts[0].unique()) > 3


def test_self_attention_by_parts_trains_with_dropout(monkeypatch):
    monkeypatch.setattr(self_attention, "PART", 18)
    network, rows = made_network(lambda: SASRec(4, 8)), made_rows(LENGTHS)
    first, second = (network(rows) for _ in range(2))
    assert not torch.equal(first, second)
    assert first.isfinite().all()
