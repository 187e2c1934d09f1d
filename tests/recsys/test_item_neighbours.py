"""What the nearest items say beside DIN and AW-MoE, and the weight that validation events give it."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Trainer
from scipy.special import expit

import moeapps
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.recsys import (
    AWMoERanker,
    ImplicitData,
    OnnxRanker,
    RankingModule,
    export_ranker,
    implicit_feedback,
    item_neighbours,
    recommend,
)
from moeapps.recsys.encoder import FIRST
from moeapps.recsys.item_neighbours import ALONE, ItemNeighbours, weigh_neighbours
from moeapps.recsys.neighbours import Neighbours

SETTINGS = {"embedding_dim": 4, "max_epochs": 3, "random_state": 0, "accelerator": "cpu"}


def found_neighbours() -> Neighbours:
    """Of four items: 0 and 1 have the cosine 0.5, 1 and 2 0.25, 3 has no neighbour."""
    items = np.array([[1, -1], [0, 2], [1, -1], [-1, -1]], dtype=np.int32)
    similarity = np.array([[0.5, 0], [0.5, 0.25], [0.25, 0], [0, 0]], dtype=np.float32)
    return Neighbours(items, similarity, np.ones(4, dtype=np.float32))


def learned(codes=(6, 3, 4, 5), size=7) -> ItemNeighbours:
    near = ItemNeighbours()
    near.learn(found_neighbours(), torch.tensor(codes, dtype=torch.int32), size)
    return near


HISTORIES = torch.tensor([[0, 6, 4], [0, 0, 0], [3, 3, 5]], dtype=torch.int32)
"""Items 0 and 2; none; item 1 twice and item 3."""


def test_a_candidate_gets_the_cosines_of_the_entries_that_it_is_near():
    candidates = torch.tensor([3, 6, 3, 6, 6, 5], dtype=torch.int32)  # two for each history
    assert learned().sums(HISTORIES, candidates).tolist() == [0.75, 0.0, 0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("cells", [1, 20, 10_000])
def test_all_ways_to_add_them_up_agree(cells, monkeypatch):
    monkeypatch.setattr(item_neighbours, "CELLS", cells)
    near, draw = learned(), torch.Generator().manual_seed(0)
    histories = torch.randint(0, 7, (7, 4), generator=draw, dtype=torch.int32)
    candidates = torch.randint(1, 7, (21,), generator=draw, dtype=torch.int32)
    expected = torch.cat(
        [near._compared(h[None], c[None])[0] for h, c in zip(histories, candidates.split(3), strict=True)]
    )
    torch.testing.assert_close(near.sums(histories, candidates), expected)
    spread = torch.cat([near._spread(h[None], c[None])[0] for h, c in zip(histories, candidates.split(3), strict=True)])
    torch.testing.assert_close(spread, expected)


def test_another_device_does_not_add_up_by_places(monkeypatch):
    near = learned().to("meta")
    monkeypatch.setattr(near, "_spread", None)
    many = torch.zeros(3 * 50, dtype=torch.int32, device="meta")
    assert near.sums(HISTORIES.to("meta"), many).shape == (150,)


def test_items_without_a_code_of_their_own_have_no_neighbours():
    near = learned(codes=(6, FIRST - 1, 4, 4))  # item 1 is unseen, 2 and 3 are hashed to one code
    assert not near.cosines.any()


def test_no_row_and_no_entry_have_no_sum():
    near = learned()
    assert near.sums(HISTORIES[:0], torch.zeros(0, dtype=torch.int32)).shape == (0,)
    assert near.sums(HISTORIES[:, :0], torch.tensor([3, 6, 3], dtype=torch.int32)).tolist() == [0.0, 0.0, 0.0]


def rows_of(n=4000, seed=0):
    """Logits and sums that count half as much again as the logits say, and labels."""
    rng = np.random.default_rng(seed)
    logits, sums = rng.normal(size=n), rng.exponential(size=n)
    labels = (rng.random(n) < 1 / (1 + np.exp(-(0.5 * logits + 0.75 * sums - 1)))).astype(float)
    return logits, sums, labels


def test_logits_and_sums_have_the_weights_of_the_labels():
    logits, sums, labels = rows_of()
    scale, weight, shift = weigh_neighbours(logits, sums, labels)
    assert (scale, weight) == pytest.approx((0.5, 0.75), rel=0.15)
    assert expit(scale * logits + weight * sums + shift).mean() == pytest.approx(expit(logits).mean())


def test_sums_that_tell_all_rows_apart_have_a_finite_weight():
    logits, _, labels = rows_of()
    scale, weight, shift = weigh_neighbours(logits, labels, labels)
    assert 0 < weight <= item_neighbours.LARGEST
    assert np.abs(scale * logits + weight * labels + shift).max() < 2 * item_neighbours.LARGEST


def test_sums_that_say_nothing_have_no_weight():
    logits, sums, labels = rows_of()
    assert weigh_neighbours(logits, np.random.default_rng(1).permutation(sums), labels) == ALONE
    assert weigh_neighbours(logits, sums, 1 - labels) == ALONE  # the contrary: no weight below 0
    assert weigh_neighbours(logits, 0 * sums, labels) == ALONE
    assert weigh_neighbours(logits, sums, np.ones_like(labels)) == ALONE


def test_rows_without_a_label_do_not_count():
    logits, sums, labels = rows_of()
    more = [np.concatenate([part, np.full(9, value)]) for part, value in ((logits, 50), (sums, 50), (labels, np.nan))]
    assert weigh_neighbours(*more) == weigh_neighbours(logits, sums, labels)


def events(seed=0):
    """Items come in pairs that only users who had both tell; the last two items of a user complete pairs of before."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(150):
        (a, b), (c, d), (e, f) = (rng.permutation([2 * pair, 2 * pair + 1]) for pair in rng.permutation(40)[:3])
        rows += [(user, f"i{item}") for item in (a, c, e, f, d, b)]
    return pd.DataFrame(rows, columns=["user_id", "item_id"]).assign(timestamp=range(len(rows)))


@pytest.fixture(scope="module")
def feedback():
    return implicit_feedback(events(), max_history=5)


@pytest.fixture(scope="module", params=["din", "aw_moe"])
def ranker(request, feedback):
    train, validation, _ = feedback.leave_last_out()
    return AWMoERanker(request.param, **SETTINGS).fit(train, validation=validation)


def test_neighbours_that_help_have_a_weight_and_are_recommended(ranker, feedback):
    test = feedback.leave_last_out()[2]
    assert ranker.model_.neighbours.terms[1] > 1
    assert ranker.history_["val/neighbour_weight"].iloc[-1] > 1
    found = ranker.evaluate_recommendations(test).loc[0, "hr@10"]
    train, validation, _ = feedback.leave_last_out()
    alone = AWMoERanker(ranker.model, item_neighbours=False, **SETTINGS).fit(train, validation=validation)
    assert alone.model_.neighbours is None
    assert found > alone.evaluate_recommendations(test).loc[0, "hr@10"] + 0.2


def test_the_weight_is_that_of_the_epoch_that_is_kept(ranker):
    best = ranker.history_["val/gauc/interaction"].idxmax()
    assert ranker.history_.loc[best, "val/neighbour_weight"] == pytest.approx(float(ranker.model_.neighbours.terms[1]))


def test_logits_of_single_rows_have_them_too(ranker, feedback):
    rows = ranker.encoder_.transform(feedback.leave_last_out()[2].rows())
    terms = ranker.model_.neighbours.terms
    kept = terms.clone()
    with torch.no_grad():
        logits, sums = ranker.model_(rows)[:, 0], ranker.model_.neighbour_sums(rows)
        ranker.model_.neighbours.set(*ALONE)
        without = ranker.model_(rows)[:, 0]
        terms.copy_(kept)
    torch.testing.assert_close(logits, kept[0] * without + kept[1] * sums + kept[2])
    assert sums.max() - sums.min() > 0.5


def test_probabilities_are_those_of_events_among_items(ranker, feedback):
    test = feedback.leave_last_out()[2]
    rows = test.rows()
    interaction, probability = rows["interaction"], ranker.predict_proba(rows)["interaction"]
    loss = -np.log(np.where(interaction == 1, probability, 1 - probability).clip(1e-30)).mean()
    assert loss < 0.5  # 0.5 without looking: one event in five rows


def test_a_saved_ranker_has_the_same_neighbours_and_weight(ranker, feedback, tmp_path):
    ranker.save(tmp_path / "ranker.safetensors")
    loaded = moeapps.load(tmp_path / "ranker.safetensors")
    assert "network.neighbours.neighbours" not in ranker.saved_tensors()  # the catalogue has them
    torch.testing.assert_close(loaded.model_.neighbours.terms, ranker.model_.neighbours.terms)
    pd.testing.assert_frame_equal(loaded.recommend(feedback, 5), ranker.recommend(feedback, 5))


@pytest.mark.parametrize("ranker", ["din"], indirect=True)
def test_a_program_of_torch_has_them(ranker, feedback, tmp_path):
    program = torch.export.load(export_ranker(ranker, tmp_path, "torch")).module()
    frame = feedback.leave_last_out()[2].rows()
    rows = ranker.encoder_.transform(frame)
    found = program(rows.sparse, rows.dense, *rows.sequences)[:, 0].detach().numpy()
    np.testing.assert_allclose(found, ranker.predict_proba(frame).iloc[:, 0], atol=1e-5)


@pytest.mark.slow  # ONNX of rankers is in test_export.py, the neighbours in a program just above
@pytest.mark.parametrize("ranker", ["din"], indirect=True)
def test_an_exported_ranker_has_them(ranker, feedback, tmp_path):
    pytest.importorskip("onnxruntime")
    export_ranker(ranker, tmp_path / "ranker.onnx")
    rows = feedback.leave_last_out()[2].rows()
    exported = OnnxRanker(tmp_path / "ranker.onnx").predict_proba(rows)
    pd.testing.assert_frame_equal(exported, ranker.predict_proba(rows), atol=1e-5)


def test_a_checkpoint_has_the_weight_of_its_epoch(feedback, tmp_path):
    train, validation, _ = feedback.leave_last_out()
    data, module = ImplicitData(train, validation, batch_size=256), RankingModule(model="din", embedding_dim=4)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module, data)
    weight = module.network.neighbours.terms.clone()
    assert weight[1] > 0
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    restored = RankingModule.load_from_checkpoint(tmp_path / "a.ckpt")
    torch.testing.assert_close(restored.network.neighbours.terms, weight)
    trainer.validate(restored, data, verbose=False)  # which is no training: the weight stays
    torch.testing.assert_close(restored.network.neighbours.terms, weight)
    found = AWMoERanker.from_module(restored).recommend(feedback, 3)
    assert len(found) == 3 * len(feedback.users)


@pytest.mark.parametrize(("model", "options"), [("sasrec", {}), ("din", {"item_neighbours": False})])
def test_there_are_none_where_they_are_not_wanted(model, options, feedback):
    train, validation, _ = feedback.leave_last_out()
    ranker = AWMoERanker(model, **{**SETTINGS, "max_epochs": 1}, **options).fit(train, validation=validation)
    assert ranker.model_.neighbours is None
    assert "val/neighbour_weight" not in ranker.history_


def test_without_validation_events_they_have_no_weight(feedback):
    ranker = AWMoERanker("din", **{**SETTINGS, "max_epochs": 1}, validation_fraction=0.0).fit(feedback)
    assert ranker.model_.neighbours.terms.tolist() == list(ALONE)


def test_a_table_of_labels_has_no_neighbours(feedback):
    ranker = AWMoERanker("din", **{**SETTINGS, "max_epochs": 1}).fit(feedback.rows(), "interaction")
    assert not ranker.model_.neighbours.known
    assert "val/neighbour_weight" not in ranker.history_


def test_blocks_of_pairs_hold_all_items_of_their_users(ranker, feedback, monkeypatch):
    seen, forward = [], type(ranker.model_).forward
    monkeypatch.setattr(recommend, "PAIR_ROWS", 200)
    monkeypatch.setattr(
        type(ranker.model_), "forward", lambda self, rows: (seen.append(len(rows)), forward(self, rows))[1]
    )
    small = ranker.recommend(feedback, 5)
    assert all(rows % len(feedback.items) == 0 for rows in seen), set(itertools.islice(seen, 5))
    monkeypatch.undo()
    pd.testing.assert_frame_equal(small, ranker.recommend(feedback, 5), atol=1e-5)
