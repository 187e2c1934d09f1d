"""Decay of embeddings by how rare their ids are."""

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch

from moeapps.core.errors import ConfigError
from moeapps.recsys import AWMoERanker, MultiTaskRanker, RankingData, RankingModule, Schema, implicit_feedback
from moeapps.recsys.embedding_decay import EmbeddingDecay, code_counts
from moeapps.recsys.encoder import FIRST, UNKNOWN, Rows
from moeapps.recsys.features import FeatureEmbedding
from moeapps.recsys.implicit_data import ImplicitData
from tests.recsys.test_history_ranker import SCHEMA, SMALL
from tests.recsys.test_prior import taste

ROWS = Rows(torch.tensor([[3, 4], [3, 5]]), torch.zeros(2, 0), (torch.tensor([[0, 3], [4, 4]]),))


@pytest.fixture
def embedding():
    """Two tables of six codes, a sequence of the second one's."""
    torch.manual_seed(0)
    return FeatureEmbedding([6, 6], 2, 0, [1], 4)


def test_occurrences_are_those_in_columns_and_sequences_without_padding(embedding):
    assert code_counts(embedding, ROWS).tolist() == [0, 0, 0, 2, 0, 0, 0, 0, 0, 1, 3, 1]
    weighted = code_counts(embedding, ROWS, torch.tensor([10.0, 1.0]))
    assert weighted.tolist() == [0, 0, 0, 11, 0, 0, 0, 0, 0, 10, 12, 1]


def test_what_a_step_has_seen_shrinks_once_and_the_rest_stays(embedding):
    counts = torch.arange(1.0, 13.0)
    decay, before = EmbeddingDecay(embedding, counts, 0.5), embedding.table.weight.detach().clone()
    decay.see(ROWS)
    decay.see(ROWS)  # as an accumulated batch
    decay.shrink(0.1)
    expected = before.clone()
    for code in (3, 6, 9, 10, 11):  # 6 is padding
        expected[code] *= 1 - 0.1 * 0.5 / counts[code]
    torch.testing.assert_close(embedding.table.weight.detach(), expected)
    decay.shrink(0.1)
    torch.testing.assert_close(embedding.table.weight.detach(), expected)


def test_a_decay_does_not_go_beyond_zero(embedding):
    decay = EmbeddingDecay(embedding, torch.ones(12), 100.0)
    decay.see(ROWS)
    decay.shrink(0.1)
    assert (embedding.table.weight[3] == 0).all()


def trained(decay, **settings):
    data = RankingData(taste(300), targets=["liked"], schema=SCHEMA, validation_fraction=0.2, batch_size=64)
    L.seed_everything(0)
    module = RankingModule("din", embedding_dim=4, embedding_decay=decay, **settings)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", **quiet)
    trainer.fit(module, data)
    return module


@pytest.mark.parametrize("sparse", [False, True])
def test_training_with_decay_ends_at_smaller_embeddings(sparse):
    norms = []
    for decay in (0.0, 1000.0):
        table = trained(decay, sparse_gradients=sparse, sparse_optimizer="adam").network.embedding.table.weight
        norms.append(float(table.detach().norm()))
    assert norms[1] < 0.9 * norms[0]


@pytest.mark.parametrize("left_out", [[], ["user_id"]])
def test_a_hidden_category_counts_as_often_as_it_is_expected(left_out):
    schema = Schema([feature for feature in SCHEMA.features if feature.name not in left_out], ignored=left_out)
    data = RankingData(taste(300), targets=["liked"], schema=schema, validation_fraction=0)
    data.setup("fit")
    module = RankingModule("din", embedding_dim=4, embedding_decay=1.0, unknown_rate=0.1)
    module.attach_data(data)
    module._trainer = type("Trainer", (), {"datamodule": data})()
    rate = module._embedding_decay().rate
    assert float(rate[UNKNOWN]) == pytest.approx(1 / 30)


def test_of_implicit_feedback_ids_count_as_events_negatives_and_histories_have_them():
    rng = np.random.default_rng(0)
    events = pd.DataFrame(
        {"user_id": rng.integers(0, 9, 60), "item_id": rng.integers(0, 30, 60), "timestamp": range(60)}
    )
    feedback = implicit_feedback(events, max_history=3, negatives=2)
    data = ImplicitData(feedback, validation_fraction=0)
    data.setup("fit")
    module = RankingModule("din", embedding_dim=4)
    module.attach_data(data)
    embedding = module.network.embedding
    found = sum(code_counts(embedding, rows, weights) for rows, weights in data.counted_rows())
    draws = [code_counts(embedding, data._sampled("train").take(slice(None))[0])]
    users = slice(FIRST, int(embedding.starts[1]))
    assert found[users].tolist() == draws[0][users].tolist()
    assert float(found.sum()) == pytest.approx(float(draws[0].sum()))
    histories = feedback.histories(slice(None))
    assert (
        feedback.history_counts().tolist()
        == np.bincount(histories[histories >= 0], minlength=len(feedback.items)).tolist()
    )


def test_both_rankers_take_and_save_the_decay():
    ranker = AWMoERanker("din", embedding_decay=5.0, **SMALL).fit(taste(300), "liked")
    assert ranker._module().config.embedding_decay == 5.0
    assert MultiTaskRanker(embedding_decay=2.0)._module().config.embedding_decay == 2.0


def test_an_impossible_decay_is_named():
    with pytest.raises(ConfigError, match="embedding_decay must be a number of at least 0, got -1.0"):
        RankingModule("din", embedding_decay=-1.0)
