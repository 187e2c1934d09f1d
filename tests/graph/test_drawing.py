"""Drawing without replacement from many ranges at once."""

import numpy as np
import pytest
import torch
from scipy import stats

from moeapps.graph.drawing import ONE_BY_ONE, draw
from moeapps.graph.edges import Edges


@pytest.mark.parametrize("limit", [1, 3, ONE_BY_ONE, ONE_BY_ONE + 6])
def test_draws_are_distinct_within_their_range_and_as_many_as_asked(limit):
    torch.manual_seed(0)
    start, length = torch.tensor([0, 50, 200, 300]), torch.tensor([5, 0, 80, 200])
    found = draw(start, length, limit)
    taken = length.clamp(max=limit)
    assert len(found) == int(taken.sum())
    for begin, size, part in zip(start.tolist(), length.tolist(), found.split(taken.tolist()), strict=True):
        assert len(part.unique()) == len(part)
        assert bool(((part >= begin) & (part < begin + size)).all())


@pytest.mark.parametrize("limit", [2, ONE_BY_ONE + 1])
def test_every_subset_has_the_same_chance(limit, monkeypatch):
    """Pairs out of five: all ten come up equally often, by either way of drawing."""
    if limit > ONE_BY_ONE:
        monkeypatch.setattr("moeapps.graph.drawing.ONE_BY_ONE", 0)
    torch.manual_seed(1)
    ranges = 20_000
    found = draw(torch.zeros(ranges, dtype=torch.int64), torch.full((ranges,), 5), 2).view(ranges, 2)
    pairs = np.sort(found.numpy(), axis=1) @ [5, 1]
    _, counts = np.unique(pairs, return_counts=True)
    assert len(counts) == 10
    assert stats.chisquare(counts).pvalue > 0.001


def test_the_seed_decides_and_nothing_is_drawn_where_all_are_taken():
    start, length = torch.tensor([0, 10]), torch.tensor([8, 9])
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(draw(start, length, 4))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    before = torch.get_rng_state()
    assert torch.equal(draw(start, length, 9), torch.cat([torch.arange(8), torch.arange(10, 19)]))
    assert torch.equal(torch.get_rng_state(), before)


def test_numbers_kept_between_calls_do_not_leak_into_the_next():
    edges = Edges(torch.randint(0, 30, (2, 120), generator=torch.Generator().manual_seed(0)), None, 30)
    seeds = torch.tensor([2, 9])
    first = edges.neighborhood(seeds, [-1, -1])
    assert edges.neighborhood(torch.arange(30), [-1, -1], max_edges=1) is None
    again = edges.neighborhood(seeds, [-1, -1])
    assert torch.equal(first.nodes, again.nodes)
    assert torch.equal(first.edge_index, again.edge_index)
    assert bool((edges._spare[0] == -1).all())
