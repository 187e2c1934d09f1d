"""What counting says before training, and what files of 0.1 did without."""

import numpy as np
import pandas as pd
import pytest
import torch

import moeapps
from moeapps.core import saved_file
from moeapps.core.errors import DataError
from moeapps.core.module import DEFAULTS_ENTRY
from moeapps.recsys import AWMoE, AWMoERanker, RankingData, RankingModule, add_history, gauc, implicit_feedback
from moeapps.recsys.attention import ActivationUnit, for_each, root_sum
from moeapps.recsys.prior import SMOOTHING, LabelPrior

COLUMNS = ["user_id", "item_id", "item_id_history", "liked"]


def taste(n=1500, seed=0):
    """Items differ in how much they are liked, users do not."""
    rng = np.random.default_rng(seed)
    users, items = rng.integers(0, 40, n), rng.integers(0, 30, n)
    liked = rng.random(n) < 0.1 + 0.8 * (items / 30)
    frame = pd.DataFrame({"user_id": users, "item_id": items, "rating": np.where(liked, 5, 2), "timestamp": range(n)})
    frame = add_history(frame, max_history=5)
    return frame.assign(user_id=frame["user_id"].map("u{}".format), liked=liked.astype(int))[COLUMNS]


def events(n=600, seed=0):
    rng = np.random.default_rng(seed)
    items = np.minimum(rng.geometric(0.15, n), 29)  # some are taken far more often than others
    frame = pd.DataFrame({"user_id": rng.integers(0, 60, n), "item_id": items, "timestamp": range(n)})
    return implicit_feedback(frame.drop_duplicates(["user_id", "item_id"]))


def test_the_prior_begins_at_the_smoothed_log_odds_of_the_labels():
    prior = LabelPrior([0], [4])
    positive, negative = np.array([0.0, 30.0, 5.0, 1.0]), np.array([0.0, 10.0, 50.0, 4.0])
    prior.start_at({0: (positive, negative)})
    share = 36 / 100
    base = np.log(share / (1 - share))
    expected = np.log((positive + SMOOTHING * share) / (negative + SMOOTHING * (1 - share)))
    found = (prior.base + prior.tables[0].weight[:, 0]).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found[0], base, rtol=1e-5)  # a category without rows is average


@pytest.mark.parametrize("model", ["din", "aw_moe", "sasrec"])
def test_a_ranker_is_as_good_as_counting_from_the_first_step(model):
    frame = taste()
    ranker = AWMoERanker(model, lr=1e-6, max_epochs=1, user="user_id", random_state=0, accelerator="cpu")
    ranker.fit(frame[:1200], "liked", validation=frame[1200:])
    found = ranker.predict_proba(frame[1200:])["liked"]
    rate = frame[1200:]["item_id"].map(frame[:1200].groupby("item_id")["liked"].mean())
    truth, users = frame[1200:]["liked"], frame[1200:]["user_id"]
    assert gauc(truth, found, users) > gauc(truth, rate, users) - 0.02 > 0.7
    assert abs(found.mean() - frame[:1200]["liked"].mean()) < 0.05


def test_counts_of_negatives_are_those_expected_of_the_draws():
    feedback = events()
    ranker = AWMoERanker("din", max_epochs=1, lr=1e-6, random_state=0, accelerator="cpu").fit(feedback)
    scores = ranker.recommend(feedback, 3)
    most = np.argsort(-np.bincount(feedback.events.item, minlength=len(feedback.items)))[:6]
    assert set(scores["item_id"]) & set(feedback.items["item_id"].iloc[most])


@pytest.mark.parametrize("gate", ["softmax", "mean"])
def test_a_normalised_gate_does_not_grow_with_the_history(gate):
    model = AWMoE(4, 7, num_experts=3, gate=gate)
    entry, target = torch.randn(2, 1, 4), torch.randn(2, 4)
    once = model.gates(entry, target, torch.ones(2, 1, dtype=torch.bool))[0]
    often = model.gates(entry.expand(2, 9, 4), target, torch.ones(2, 9, dtype=torch.bool))[0]
    torch.testing.assert_close(often, once)
    if gate == "softmax":
        torch.testing.assert_close(once.sum(-1), torch.ones(2))


@pytest.mark.parametrize("length", [2, 9])  # fewer and more entries than the width, which are computed otherwise
@pytest.mark.parametrize("unit", [ActivationUnit(6), ActivationUnit(6, (5, 3), 4)])
def test_a_unit_is_its_mlp_on_the_four_inputs_side_by_side(unit, length):
    behaviour, target = torch.randn(7, length, 6), torch.randn(7, 6)
    wide = target[:, None].expand_as(behaviour)
    joint = torch.cat([behaviour, wide, behaviour - wide, behaviour * wide], dim=-1).flatten(0, 1)
    expected = unit.mlp(joint)[:, 0].unflatten(0, (7, length))
    torch.testing.assert_close(unit(behaviour, target), expected, atol=1e-6, rtol=1e-5)


def test_the_products_of_sasrecs_vectors_are_its_logits():
    frame = taste(300)
    ranker = AWMoERanker("sasrec", max_epochs=1, user="user_id", random_state=0, accelerator="cpu").fit(frame, "liked")
    rows = ranker.encoder_.transform(frame)
    with torch.no_grad():
        users, items = ranker.model_.user_vectors(rows), ranker.model_.item_vectors(rows)
        torch.testing.assert_close((users * items).sum(1), ranker.model_(rows)[:, 0], atol=1e-5, rtol=1e-4)


def as_0_1(**arguments):
    return {"gate": "sum", "label_prior": False, "item_similarity": False, "contrastive_weight": 0.05, **arguments}


@pytest.mark.parametrize("model", ["din", "aw_moe"])
def test_a_file_of_0_1_has_neither_prior_nor_normalised_gate(model, tmp_path):
    frame = taste(300)
    ranker = AWMoERanker(model, max_epochs=1, random_state=0, accelerator="cpu", **as_0_1()).fit(frame, "liked")
    ranker.save(tmp_path / "new.safetensors")
    document, tensors = saved_file.read_document(tmp_path / "new.safetensors")
    del document["defaults"]  # 0.1 wrote none of these
    for name in ("gate", "label_prior", "item_similarity"):
        del document["arguments"][name]
    saved_file.write_document(tmp_path / "old.safetensors", document, tensors)
    loaded = moeapps.load(tmp_path / "old.safetensors")
    pd.testing.assert_frame_equal(loaded.predict_proba(frame), ranker.predict_proba(frame))


def test_a_checkpoint_of_0_1_has_neither_prior_nor_normalised_gate(tmp_path):
    import lightning as L

    frame = taste(300)
    arguments = {key: value for key, value in as_0_1().items() if key != "contrastive_weight"}
    data = RankingData(frame, targets=["liked"], batch_size=64)
    module = RankingModule("aw_moe", **arguments)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.fit(module, data)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    del checkpoint[DEFAULTS_ENTRY]
    for name in arguments:
        checkpoint["hyper_parameters"].pop(name, None)
    torch.save(checkpoint, tmp_path / "old.ckpt")
    old = RankingModule.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True)
    rows = old.encoder.transform(frame)
    with torch.no_grad():
        expected = module.network.cpu().eval()(rows)
        torch.testing.assert_close(old.network.eval()(rows), expected)


def test_the_similarity_is_the_sum_of_products_over_the_root_of_the_length():
    behaviour, target = torch.randn(3, 4, 5), torch.randn(3, 5)
    present = torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 1, 1]], dtype=torch.bool)
    expected = [0.0, behaviour[1, 3] @ target[1], sum(behaviour[2, j] @ target[2] for j in (1, 2, 3)) / 3**0.5]
    found = (root_sum(behaviour, present) * target).sum(1)
    torch.testing.assert_close(found, torch.stack([torch.as_tensor(value) for value in expected]))


def test_the_similarity_can_be_left_out():
    frame = taste(200)
    arguments = {"max_epochs": 1, "random_state": 0, "accelerator": "cpu"}
    ranker = AWMoERanker("din", **arguments).fit(frame, "liked")
    rows = ranker.encoder_.transform(frame)
    with torch.no_grad():
        whole = ranker.model_(rows)[:, 0]
        behaviour, target, present, _ = ranker.model_.parts(rows)
        ranker.model_.similarity = False
        rest = ranker.model_(rows)[:, 0]
    expected = (for_each(root_sum(behaviour, present), len(target)) * target).sum(1)
    torch.testing.assert_close(whole - rest, expected, atol=1e-5, rtol=1e-4)
    assert not AWMoERanker("din", item_similarity=False, **arguments).fit(frame, "liked").model_.similarity


def test_with_a_time_the_newest_rows_validate():
    frame = taste(200).assign(when=pd.date_range("2024-01-01", periods=200)[np.random.default_rng(3).permutation(200)])
    data = RankingData(frame, targets=["liked"], time="when", validation_fraction=0.2)
    data.setup("fit")
    newest = frame.sort_values("when")[-40:].sort_index()
    assert data.val_labels()[:, 0].tolist() == newest["liked"].tolist()
    assert "when" not in [feature.name for feature in data.encoder.schema.features]
    with pytest.raises(DataError, match="when"):
        AWMoERanker("din", time="when", accelerator="cpu").fit(frame.assign(when=None), "liked")
