"""Pictures of Mowst show what they are given."""

import numpy as np
import pandas as pd

from moeapps.graph.plots import plot_confidence_by_neighborhood, plot_cost_curve


def test_buckets_hold_every_node_once_and_show_their_share_of_right_answers():
    rng = np.random.default_rng(0)
    confidence, degree = rng.random(200), rng.integers(0, 50, 200)
    homophily = np.where(degree > 0, rng.random(200), np.nan)
    homophily[:5] = 1.0
    right = rng.random(200) < 0.5
    figure = plot_confidence_by_neighborhood(confidence, right, degree, homophily)
    by_degree, by_homophily = figure.axes
    for axes, expected in ((by_degree, 200), (by_homophily, int((~np.isnan(homophily)).sum()))):
        labels = [label.get_text() for label in axes.get_xticklabels()]
        counts = [int(label.splitlines()[1].split()[0]) for label in labels]
        assert sum(counts) == expected
        shares = axes.lines[-1].get_ydata()
        assert len(shares) == len(counts)
    assert np.dot(by_degree.lines[-1].get_ydata(), [int(t.get_text().splitlines()[1].split()[0])
                                                    for t in by_degree.get_xticklabels()]) == right.sum()  # fmt: skip


def test_a_cost_curve_shows_every_threshold_and_the_experts_alone():
    curve = pd.DataFrame({"strong": [0.0, 0.5, 1.0], "edges": [0.0, 0.7, 1.0], "score": [0.6, 0.8, 0.82]})
    figure = plot_cost_curve({"Mowst*": curve}, {"MLP alone": 0.6, "GNN alone": 0.8}, "Cora")
    for axes, column in zip(figure.axes, ("strong", "edges"), strict=True):
        line = axes.lines[0]
        assert line.get_xdata().tolist() == curve[column].tolist()
        assert line.get_ydata().tolist() == curve["score"].tolist()
        assert {round(float(other.get_ydata()[0]), 3) for other in axes.lines[1:]} == {0.6, 0.8}
