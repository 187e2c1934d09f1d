"""A made graph on which both experts are needed: MLP alone, GCN alone and Mowst*, test accuracy.

    python benchmarks/graph_two_halves.py [--seeds 4]

Half of the 1,200 nodes carry the label in their features and have edges to random nodes of their half; the other half
has noisy features and edges to nodes of the same label. One feature says which half a node is in.
"""

import argparse

import numpy as np
import torch
from torch_geometric.data import Data

from moeapps.graph import GNNClassifier, MowstClassifier


def two_halves(seed: int) -> Data:
    """Half the nodes carry the label in x and random edges; the other half noise in x and homophilous edges."""
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


def compare(seed: int) -> tuple[dict[str, float], float]:
    """Test accuracy by model, and how much surer the gate is on the half that features decide."""
    data = two_halves(seed)
    common = {"hidden_channels": 16, "random_state": seed, "patience": 20, "dropout": 0.2, "norm": "batch_norm"}
    scores = {name: GNNClassifier(name.lower(), **common).fit(data).score(data) for name in ("MLP", "GCN")}
    mixture = MowstClassifier("gcn", **common).fit(data)
    several = MowstClassifier(**common).fit(data)
    confidence = torch.as_tensor(mixture.predict_confidence(data))
    gap = float(confidence[data.by_feature].mean() - confidence[~data.by_feature].mean())
    return {**scores, "Mowst*": mixture.score(data), "mixture": several.score(data)}, gap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    found = [compare(seed) for seed in range(parser.parse_args().seeds)]
    for name in found[0][0]:
        values = [100 * scores[name] for scores, _ in found]
        print(f"{name:7s} {np.mean(values):.2f} +- {np.std(values, ddof=1) if len(values) > 1 else 0:.2f} %")
    print("confidence, first half minus second half:", " ".join(f"{gap:.2f}" for _, gap in found))


if __name__ == "__main__":
    main()
