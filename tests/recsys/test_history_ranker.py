"""Rankers of a user with a history: what their prior counts, what selects the epoch, what 0.1's checkpoints become."""

import numpy as np
import pandas as pd
import pytest
import torch

import moeapps
from moeapps.core.checkpoint import AtomicCheckpointIO
from moeapps.core.errors import ConfigError
from moeapps.recsys import (
    AWMoERanker,
    RankingData,
    RankingModule,
    SequenceFeature,
    export_ranker,
    implicit_feedback,
)
from moeapps.recsys.encoder import FIRST, UNKNOWN, Rows
from moeapps.recsys.implicit_data import ImplicitData
from moeapps.recsys.prior import LabelPrior
from moeapps.recsys.schema import Schema, SparseFeature
from tests.recsys.test_prior import as_0_1, taste

SCHEMA = Schema(
    (
        SparseFeature("user_id"),
        SparseFeature("item_id"),
        SequenceFeature("item_id_history", shares="item_id", max_len=5),
    )
)
SMALL = {"schema": SCHEMA, "embedding_dim": 4, "max_epochs": 1, "accelerator": "cpu", "random_state": 0}


def attached(**settings):
    """A module with its network, not trained, and its data."""
    data = RankingData(taste(400), targets=["liked"], schema=SCHEMA, validation_fraction=0.2)
    data.setup("fit")
    module = RankingModule(embedding_dim=4, **settings)
    module.attach_data(data)
    return module, data


def test_parts_of_users_and_items_sum_up_to_the_prior():
    prior = LabelPrior([0, 1], [4, 4])
    for table in prior.tables:
        torch.nn.init.normal_(table.weight)
    rows = Rows(torch.tensor([[2, 3], [1, 2]], dtype=torch.int32), torch.zeros(2, 0), ())
    torch.testing.assert_close(prior.of_items(rows, 1) + prior.of_users(rows, 1), prior(rows))


def test_labels_are_counted_in_the_training_rows_only():
    data = attached(model="din")[1]
    positive, negative = data.label_counts("item_id")
    assert positive.sum() + negative.sum() == 320  # of 400 rows, 80 validate
    codes, labels = data._train.columns[0][:, 1].numpy(), data._train.columns[2][:, 0].detach().numpy()
    for code in range(len(positive)):
        assert positive[code] == ((codes == code) & (labels == 1)).sum()
        assert negative[code] == ((codes == code) & (labels == 0)).sum()


def test_of_implicit_feedback_the_prior_orders_items_by_their_events():
    events = pd.DataFrame({"user_id": [1, 1, 2, 2, 3], "item_id": [1, 2, 1, 3, 1], "timestamp": range(5)})
    data = ImplicitData(implicit_feedback(events), validation_fraction=0)
    data.setup("fit")
    module = RankingModule(model="din", embedding_dim=4)
    module.attach_data(data)
    weight = module.network.prior.tables[0].weight[:, 0].tolist()
    assert weight[FIRST] > 0 > weight[FIRST + 1]
    assert weight[UNKNOWN] == pytest.approx(0, abs=1e-6)  # an unseen item is average


def test_without_a_prior_there_is_none():
    assert attached(model="din", label_prior=False)[0].network.prior is None


def test_only_a_given_user_has_a_prior():
    assert attached(model="din")[0].network.prior.columns == [1]
    assert attached(model="din", user="user_id")[0].network.prior.columns == [1, 0]


def test_a_prior_of_items_and_users_is_saved(tmp_path):
    ranker = AWMoERanker(user="user_id", **SMALL).fit(taste(300), "liked")
    ranker.save(tmp_path / "ranker.safetensors")
    again = moeapps.load(tmp_path / "ranker.safetensors")
    pd.testing.assert_frame_equal(again.predict_proba(taste(20)), ranker.predict_proba(taste(20)))


def test_the_option_softmax_is_that_of_the_sum_still():
    model = attached(model="aw_moe", options={"softmax": True})[0].network.model
    assert (model.gate, model.softmax) == (None, True)


def test_the_users_own_auc_selects_the_epoch_where_users_are_known():
    data = attached(model="din", user="user_id")[1]
    assert AWMoERanker("din", user="user_id")._monitor(data) == ("val/gauc/liked", "max")
    assert AWMoERanker("din")._monitor(data) == ("val/auc/liked", "max")
    ranker = AWMoERanker("din", user="user_id", **SMALL).fit(taste(400), "liked")
    assert ranker.history_["val/gauc/liked"].between(0, 1).all()


def test_where_no_user_has_both_labels_the_auc_of_all_rows_selects_the_epoch():
    rows = taste(400).assign(user_id=lambda f: f["liked"].map("u{}".format))
    data = RankingData(rows, targets=["liked"], schema=SCHEMA, validation_fraction=0.2)
    data.setup("fit")
    assert AWMoERanker("din", user="user_id")._monitor(data) == ("val/auc/liked", "max")


def test_of_implicit_feedback_the_users_are_known():
    events = pd.DataFrame({"user_id": [1, 1, 1, 2, 2, 2] * 5, "item_id": range(30), "timestamp": range(30)})
    data = ImplicitData(implicit_feedback(events), validation_fraction=0.2)
    data.setup("fit")
    assert AWMoERanker("din")._monitor(data) == ("val/gauc/interaction", "max")


def test_a_history_that_several_rows_have_gives_each_the_score_that_it_has_alone():
    network, data = attached(model="sasrec", user="user_id")
    rows = data.encoder.transform(taste(6).iloc[[0, 0, 1, 2, 2, 2]])
    network = network.network.eval()
    with torch.no_grad():
        alone = torch.cat([network(rows.at(slice(n, n + 1))) for n in range(6)])
        torch.testing.assert_close(network(rows), alone, atol=1e-6, rtol=1e-5)


@pytest.fixture(scope="module")
def encoding_ranker():
    options = {"history_options": {"layers": 2, "heads": 1}}
    return AWMoERanker("din", history_encoder="sasrec", options=options, **SMALL).fit(taste(300), "liked")


def test_a_ranker_with_an_encoder_is_saved_and_exported_with_it(encoding_ranker, tmp_path):
    assert len(encoding_ranker.model_.model.encoder.layers) == 2
    encoding_ranker.save(tmp_path / "ranker.safetensors")
    again, expected = moeapps.load(tmp_path / "ranker.safetensors"), encoding_ranker.predict_proba(taste(20))
    pd.testing.assert_frame_equal(again.predict_proba(taste(20)), expected)
    program = torch.export.load(export_ranker(again, tmp_path, "torch")).module()
    rows = again.encoder_.transform(taste(20))
    found = program(rows.sparse, rows.dense, *rows.sequences)[:, 0].detach().numpy()
    np.testing.assert_allclose(found, expected["liked"], atol=1e-5)


def test_a_pickled_ranker_of_before_encoders_has_none(encoding_ranker):
    state = encoding_ranker.__getstate__()
    older = AWMoERanker.__new__(AWMoERanker)
    older.__setstate__({name: value for name, value in state.items() if name != "history_encoder"})
    assert older.get_params()["history_encoder"] is None


def long_histories(rows):
    """The rows of taste(), with histories of 12 entries."""
    frame = taste(rows)
    return frame.assign(item_id_history=[([*history, 1] * 12)[:12] for history in frame["item_id_history"]])


@pytest.mark.parametrize(
    ("model", "changed", "rows", "encoder"),
    [
        ("aw_moe", {}, long_histories, "sasrec"),
        ("aw_moe", {}, taste, None),
        ("aw_moe", {"embedding_dim": 5}, long_histories, None),
        ("aw_moe", {"history_encoder": None}, long_histories, None),
        ("din", {}, long_histories, None),
        ("sasrec", {}, long_histories, None),
    ],
)
def test_by_itself_aw_moe_has_an_encoder_where_histories_are_long(model, changed, rows, encoder, tmp_path):
    history = SequenceFeature("item_id_history", shares="item_id", max_len=20)
    schema = Schema((*SCHEMA.features[:2], history))
    ranker = AWMoERanker(model, **{**SMALL, "schema": schema, **changed}).fit(rows(60), "liked")
    assert ranker.auto_ == {"history_encoder": encoder}
    assert (getattr(ranker.model_.model, "history_encoder", None)) == encoder
    ranker.save(tmp_path / "ranker.safetensors")
    again = moeapps.load(tmp_path / "ranker.safetensors")
    assert again.auto_ == ranker.auto_
    assert {**again.get_params(), "schema": schema} == ranker.get_params()
    pd.testing.assert_frame_equal(again.predict_proba(rows(20)), ranker.predict_proba(rows(20)))


def test_the_mean_length_of_histories_is_that_of_the_entries_in_training():
    table = RankingData(long_histories(30), targets=["liked"], schema=SCHEMA, validation_fraction=0)
    table.setup("fit")
    assert table.mean_history() == 5  # the schema keeps five
    events = pd.DataFrame({"user_id": [1] * 6, "item_id": range(6), "timestamp": range(6)})
    data = ImplicitData(implicit_feedback(events, max_history=3), validation_fraction=0)
    data.setup("fit")
    assert data.mean_history() == pytest.approx((0 + 1 + 2 + 3 + 3 + 3) / 6)


def test_an_encoder_is_refused_where_there_is_nothing_to_encode_for():
    with pytest.raises(ConfigError, match="history_encoder is for model='din' and 'aw_moe', got model='sasrec'"):
        RankingModule(model="sasrec", history_encoder="sasrec")
    with pytest.raises(ConfigError, match="heads=2 must divide the width of an embedding, 5"):
        AWMoERanker(history_encoder="sasrec", **{**SMALL, "embedding_dim": 5}).fit(taste(60), "liked")


@pytest.fixture
def checkpoint_of_0_1(tmp_path):
    """A module with 0.1's network and its checkpoint, which names none of the newer settings."""
    then = {name: value for name, value in as_0_1().items() if name != "contrastive_weight"}
    settings = {"model": "aw_moe", "embedding_dim": 4}
    data = attached(model="aw_moe")[1]
    module = RankingModule(**settings, **then)
    module.attach_data(data)
    content = {"state_dict": module.state_dict(), "hyper_parameters": settings, module.entry: module.data_state()}
    AtomicCheckpointIO().save_checkpoint({**content, "pytorch-lightning_version": "2.5.0"}, tmp_path / "old.ckpt")
    return module, data, tmp_path / "old.ckpt"


@pytest.mark.filterwarnings("ignore:.*Lightning automatically upgraded")
def test_a_checkpoint_of_0_1_becomes_an_estimator_that_is_saved_as_it_is(checkpoint_of_0_1, tmp_path):
    module, _, path = checkpoint_of_0_1
    ranker = moeapps.load(path)
    assert (ranker.gate, ranker.label_prior, ranker.item_similarity) == ("sum", False, False)
    rows = ranker.encoder_.transform(taste(20))
    with torch.no_grad():
        expected = module.network.eval()(rows)
        torch.testing.assert_close(ranker.model_(rows), expected)
        ranker.save(tmp_path / "ranker.safetensors")
        torch.testing.assert_close(moeapps.load(tmp_path / "ranker.safetensors").model_(rows), expected)


def test_training_goes_on_from_a_checkpoint_of_0_1_with_the_network_of_then(checkpoint_of_0_1):
    module, data, path = checkpoint_of_0_1
    resumed = RankingModule(model="aw_moe", embedding_dim=4)
    resumed.attach_data(data)
    drawn, content = torch.get_rng_state(), AtomicCheckpointIO().load_checkpoint(path)
    resumed.on_load_checkpoint(content)
    resumed.load_state_dict(content["state_dict"])
    assert torch.equal(torch.get_rng_state(), drawn)  # a network for nothing draws nothing from the caller's generator
    rows = data.encoder.transform(taste(20))
    torch.testing.assert_close(resumed.eval().network(rows), module.eval().network(rows))
