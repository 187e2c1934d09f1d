"""Choice of a threshold on the validation nodes."""

import warnings
from typing import TYPE_CHECKING

import torch

from moeapps.core.checks import check_at_least_zero, check_fraction
from moeapps.graph.inference import Inference
from moeapps.graph.measures import measure

if TYPE_CHECKING:
    from moeapps.graph.module import MowstModule

__all__ = ["UNREACHABLE", "check_choice", "choose_threshold"]

CANDIDATES = 200
UNREACHABLE = 2.0
"""A threshold above every confidence: all nodes go on to the strong expert."""


def check_choice(budget: float | None, tolerance: float) -> None:
    """Check the arguments of :func:`choose_threshold`.

    Raises
    ------
    ConfigError
        If the budget is not in (0, 1], or the tolerance is negative.
    """
    if budget is not None:
        check_fraction(budget=budget)
    check_at_least_zero(tolerance=tolerance)


@torch.no_grad()
def choose_threshold(
    module: "MowstModule", mode: Inference = "cascade", budget: float | None = None, tolerance: float = 0.0
) -> float:
    """Choose the threshold of a trained Mowst on its validation nodes.

    1. Candidates are 0, at most 200 of the confidences of the weak expert, and :data:`UNREACHABLE`.
    2. Keep those that pass on at most ``budget`` of the nodes.
    3. Of these keep the ones whose score (``module.monitor``) is within ``tolerance`` of the best.
    4. Return the one that passes on the fewest nodes.

    Parameters
    ----------
    module : MowstModule
        After training; it holds the logits of its experts at the validation nodes.
    mode : {"cascade", "threshold"}, default="cascade"
        How the threshold will be used.
    budget : float, optional
        Largest fraction of nodes that may be passed on by the weak expert, in (0, 1]; None for all.
    tolerance : float, default=0.0
        How far the score may be below the best, in the score's own unit (0.002 is 0.2 points of accuracy).

    Returns
    -------
    float

    Raises
    ------
    ConfigError
        If the budget is not in (0, 1], or the tolerance is negative.
    """
    check_choice(budget, tolerance)
    confidence = module.held_out.confidence(module.model)
    y = module.held_out.scored(confidence.device)["y"]
    # below the k-th smallest confidence lie at most k nodes
    ordered = confidence.sort().values
    places = torch.linspace(0, len(ordered) - 1, min(CANDIDATES, len(ordered))).long()
    sign = -1.0 if module.monitor == "loss" else 1.0
    scored = []
    for threshold in [0.0, *ordered[places].tolist(), UNREACHABLE]:
        passed_on = float((confidence < threshold).double().mean())
        if budget is None or passed_on <= budget:
            log_probs = module.predict_held_out(mode, threshold).log_probs
            score = measure(log_probs, y, everything=module.monitor in ("auc", "macro_f1"))[module.monitor]
            scored.append((sign * score, passed_on, threshold))
    if budget is not None and all(passed_on == 0 for _, passed_on, _ in scored):
        warnings.warn(
            f"no threshold passes on some nodes and at most budget={budget} of them, because the confidences are all "
            "alike (validation may have kept one expert alone): the weak expert predicts every node",
            UserWarning,
            stacklevel=2,
        )
    best = max(score for score, _, _ in scored)
    return min((passed_on, threshold) for score, passed_on, threshold in scored if score >= best - tolerance)[1]
