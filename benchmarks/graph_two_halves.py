"""A made graph on which both experts are needed: MLP alone, GCN alone and Mowst*, test accuracy.

    python benchmarks/graph_two_halves.py [--seeds 4]

Half of the 1,200 nodes carry the label in their features and have edges to random nodes of their half; the other half
has noisy features and edges to nodes of the same label. One feature says which half a node is in.
"""

import numpy as np
import torch
from command_line import script_parser

from moeapps.demo.made import two_halves
from moeapps.graph import GNNClassifier, MowstClassifier


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
    parser = script_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    found = [compare(seed) for seed in range(parser.parse_args().seeds)]
    for name in found[0][0]:
        values = [100 * scores[name] for scores, _ in found]
        print(f"{name:7s} {np.mean(values):.2f} +- {np.std(values, ddof=1) if len(values) > 1 else 0:.2f} %")
    print("confidence, first half minus second half:", " ".join(f"{gap:.2f}" for _, gap in found))


if __name__ == "__main__":
    main()
