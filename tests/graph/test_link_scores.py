"""What the graph around a pair says, and the scores of predicted links: by their definitions."""

import networkx as nx
import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch_geometric.utils import to_networkx

from moeapps.graph.link_module import link_scores
from moeapps.graph.links import Structure, link_pairs
from tests.graph.helpers import circles


def test_structure_is_what_networkx_computes_with_or_without_the_link_itself():
    graph = circles()
    rng = np.random.default_rng(1)
    pairs = rng.integers(0, 80, (200, 2))
    pairs = np.concatenate([pairs[pairs[:, 0] != pairs[:, 1]], link_pairs(graph.edge_index, 80, False).T[:50].numpy()])
    found = Structure(graph.edge_index, 80)(torch.from_numpy(pairs.T))
    plain = to_networkx(graph, to_undirected=True)
    columns = {
        "adamic_adar": nx.adamic_adar_index, "resource_allocation": nx.resource_allocation_index,
    }  # fmt: skip
    for row, (a, b) in zip(found, pairs.tolist(), strict=True):
        without = plain.copy()
        without.remove_edges_from([(a, b)])
        values = dict(zip(Structure.columns, row, strict=True))
        assert values["common_neighbors"] == len(list(nx.common_neighbors(without, a, b)))
        # the degrees of common neighbours do not depend on the link between a and b
        for name, formula in columns.items():
            assert values[name] == pytest.approx(next(formula(without, [(a, b)]))[2])
        assert values["jaccard"] == pytest.approx(next(nx.jaccard_coefficient(without, [(a, b)]))[2])
        assert sorted([without.degree[a], without.degree[b]]) == [values["degree_low"], values["degree_high"]]


def test_structure_is_the_same_in_pieces(monkeypatch):
    graph = circles()
    pairs = torch.randint(0, 80, (2, 300))
    whole = Structure(graph.edge_index, 80)(pairs)
    monkeypatch.setattr("moeapps.graph.links.CELLS", 50)
    np.testing.assert_array_equal(Structure(graph.edge_index, 80)(pairs), whole)


def test_scores_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 300)
    score = np.round(rng.normal(size=300) + y, 1)  # with equal ones
    log_probs = torch.from_numpy(np.stack([-score, score], axis=1) / 2).log_softmax(1)
    found = link_scores(log_probs, torch.from_numpy(y))
    log_odds = (log_probs[:, 1] - log_probs[:, 0]).numpy()
    assert found["auc"] == pytest.approx(roc_auc_score(y, log_odds))
    assert found["average_precision"] == pytest.approx(average_precision_score(y, log_odds))
    ranks = [1 + sum(other >= one for other in log_odds[y == 0]) for one in log_odds[y == 1]]
    assert found["mrr"] == pytest.approx(np.mean([1 / rank for rank in ranks]))
    for k in (10, 50):
        assert found[f"hits@{k}"] == pytest.approx(np.mean([rank <= k for rank in ranks]))
    assert np.isnan(link_scores(log_probs[y == 1], torch.ones(int(y.sum()), dtype=torch.int64))["auc"])
