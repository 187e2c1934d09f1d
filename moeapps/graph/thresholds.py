"""Which confidence is enough: a threshold chosen on validation nodes."""

import warnings
from typing import TYPE_CHECKING

import torch

from moeapps.core.checks import check_at_least_zero, check_fraction
from moeapps.graph.measures import measure
from moeapps.graph.mowst import Inference

if TYPE_CHECKING:
    from moeapps.graph.module import MowstModule

__all__ = ["choose_threshold"]

CANDIDATES = 200


@torch.no_grad()
def choose_threshold(
    module: "MowstModule", mode: Inference = "cascade", budget: float | None = None, tolerance: float = 0.0
) -> float:
    """Choose the threshold of a trained Mowst on its validation nodes.

    Among the thresholds that pass on at most ``budget`` of the nodes, take those whose score (``module.monitor``) is
    within ``tolerance`` of the best, and of these the one that passes on the fewest nodes.

    Args:
        module: After training; it remembers what its experts said about the validation nodes.
        mode: ``"cascade"`` or ``"threshold"``.
        budget: Largest fraction of nodes that may be passed on by the weak expert, above 0 and at most 1; None for all.
        tolerance: Score that may be given away, in the score's own unit (0.002 is 0.2 points of accuracy).

    Returns:
        The threshold. 2.0 (nobody is ever sure enough) is a candidate, unless the budget forbids it.
    """
    if budget is not None:
        check_fraction(budget=budget)
    check_at_least_zero(tolerance=tolerance)
    y = module.scored_labels
    confidence = module.predict_held_out(mode, -1.0).confidence
    # below the k-th smallest confidence lie at most k nodes
    ordered = confidence.sort().values
    places = torch.linspace(0, len(ordered) - 1, min(CANDIDATES, len(ordered))).long()
    candidates = [0.0, *ordered[places].tolist(), 2.0]
    sign = -1.0 if module.monitor == "loss" else 1.0
    found = []
    for threshold in candidates:
        passed = float((confidence < threshold).double().mean())
        if budget is None or passed <= budget:
            output = module.predict_held_out(mode, threshold)
            score = (
                sign * measure(output.log_probs, y, everything=module.monitor in ("auc", "macro_f1"))[module.monitor]
            )
            found.append((score, passed, threshold))
    if budget is not None and all(passed == 0 for _, passed, _ in found):
        warnings.warn(
            f"no threshold passes on some nodes and at most budget={budget} of them, because the confidences are all "
            "alike (one expert alone was kept, perhaps): every node is left to the weak expert",
            UserWarning,
            stacklevel=2,
        )
    best = max(score for score, _, _ in found)
    return min((passed, threshold) for score, passed, threshold in found if score >= best - tolerance)[1]
