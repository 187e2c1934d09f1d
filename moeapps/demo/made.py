"""Data that the demo makes: a graph on which both kinds of experts are needed, and a census by age group."""

import pandas as pd
import torch
from torch_geometric.data import Data

__all__ = ["AGES", "by_age_group", "two_halves"]

AGES = {18: "18-34", 35: "35-54", 55: "55 and more"}
"""First age and name of each group."""


def two_halves(seed: int) -> Data:
    """A graph of 1,200 nodes: half have the label in their features, half in those of their neighbours.

    The nodes of the first half have edges to random nodes of it. Those of the second have noisy features and edges to
    nodes of the same label. One feature says which half a node is in.

    Parameters
    ----------
    seed : int
        Of features, labels, edges and split.

    Returns
    -------
    Data
        3 classes, 4 features, masks of the split, and ``by_feature``, the first half.
    """
    generator = torch.Generator().manual_seed(seed)
    nodes = 1200
    y = torch.randint(0, 3, (nodes,), generator=generator)
    by_feature = torch.arange(nodes) < nodes // 2
    noise = torch.randn(nodes, 3, generator=generator)
    x = torch.cat([torch.where(by_feature[:, None], torch.nn.functional.one_hot(y, 3) * 3.0, 0.0) + noise], dim=1)
    x = torch.cat([x, by_feature.float()[:, None]], dim=1)
    source = torch.randint(0, nodes, (40 * nodes,), generator=generator)
    target = torch.randint(0, nodes, (40 * nodes,), generator=generator)
    homophilous = ~by_feature[source] & ~by_feature[target]
    good = torch.where(homophilous, y[source] == y[target], by_feature[source] & by_feature[target])
    keep = good & (torch.rand(40 * nodes, generator=generator) < 0.5)
    # the graph half's features: the label, seen only in the mean over neighbours
    x[~by_feature, :3] = noise[~by_feature] * 1.5 + torch.nn.functional.one_hot(y[~by_feature], 3) * 0.8
    edge_index = torch.stack([source[keep], target[keep]])
    data = Data(x=x, edge_index=torch.cat([edge_index, edge_index.flip(0)], dim=1), y=y)
    part = torch.rand(nodes, generator=generator)
    data.train_mask, data.val_mask, data.test_mask = part < 0.4, (part >= 0.4) & (part < 0.7), part >= 0.7
    data.by_feature = by_feature
    return data


def by_age_group(people: pd.DataFrame) -> pd.DataFrame:
    """The adults of a census with a column ``age_group``; dividends become a target, 1 where there are any.

    Parameters
    ----------
    people : DataFrame
        Of :func:`~moeapps.recsys.census_income`.

    Returns
    -------
    DataFrame
        Rows of age 18 and more.
    """
    adults = people[people["age"] >= min(AGES)].reset_index(drop=True)
    groups = pd.cut(adults["age"], [*AGES, 200], right=False, labels=list(AGES.values())).astype(str)
    return adults.assign(age_group=groups, dividends=(adults["dividends"] > 0).astype(int))
