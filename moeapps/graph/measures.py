"""Scores of predictions."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import binary_auroc, multiclass_auroc, multiclass_f1_score

from moeapps.core.errors import DataError, NonFiniteError
from moeapps.core.views import Curves

__all__ = ["MONITORS", "Monitor", "confidence_curves", "measure", "refuse_nan"]

Monitor = Literal["accuracy", "loss", "auc", "macro_f1"]
MONITORS = ("accuracy", "loss", "auc", "macro_f1")


def measure(
    log_probs: Tensor, y: Tensor, everything: bool = False, class_weight: Tensor | None = None
) -> dict[str, float]:
    """Accuracy and mean negative log-likelihood; with ``everything`` also the macro-F1 and the ROC-AUC.

    Parameters
    ----------
    log_probs : Tensor of shape (N, K)
        Log-probabilities.
    y : int64 Tensor of shape (N,)
        Labels.
    class_weight : Tensor of shape (K,), optional
        Weight of each class in accuracy and likelihood; 1 when None.
    everything : bool, default=False
        Whether to compute the slower two. With more than two classes the AUC is the mean over one class against the
        rest; it is NaN where a class is missing.
    """
    best = log_probs.argmax(-1)
    right = (best == y).float()
    accuracy = right.mean() if class_weight is None else (right * class_weight[y]).sum() / class_weight[y].sum()
    found = {"accuracy": float(accuracy), "loss": float(F.nll_loss(log_probs, y, class_weight))}
    if everything:
        classes = log_probs.shape[1]
        found["macro_f1"] = float(multiclass_f1_score(best, y, num_classes=classes, average="macro"))
        if len(y.unique()) < classes:
            found["auc"] = float("nan")
        elif classes == 2:
            found["auc"] = float(binary_auroc((log_probs[:, 1] - log_probs[:, 0]).double().sigmoid(), y))
        else:
            found["auc"] = float(multiclass_auroc(log_probs.exp(), y, num_classes=classes, average="macro"))
    return found


def refuse_nan(log_probs: Tensor, found: dict[str, float], monitor: str, who: str) -> None:
    """Refuse predictions of nodes that are not finite, and a score that does not exist.

    Both would go unnoticed: NaN is never better than the best score so far, so training would select by nothing.

    Parameters
    ----------
    log_probs : Tensor of shape (N, K)
        Log-probabilities of the nodes that are scored.
    found : dict
        What was measured of them.
    monitor : str
        Score that selects.
    who : str
        What predicts, for the error.

    Raises
    ------
    NonFiniteError
        If a prediction is NaN, or their loss infinite.
    DataError
        If the monitored score is NaN, because the validation nodes do not have every class, or none that has a weight.
    """
    bad = int(log_probs.isnan().any(dim=1).sum())
    if bad:
        raise NonFiniteError(
            f"{who} predicts NaN for {bad} of the {len(log_probs)} nodes to score: features or edge weights are too "
            "large for float32 or of a sign that the network cannot take, or lr is too large"
        )
    if found["loss"] == float("inf"):
        raise NonFiniteError(f"the loss of {who} on the nodes to score is infinite")
    if found[monitor] != found[monitor]:
        why = (
            "val_mask must have nodes of every class"
            if monitor == "auc"
            else "no validation node is of a class with a class_weight above 0"
        )
        raise DataError(f"monitor={monitor!r} cannot be computed on the validation nodes: {why}")


def confidence_curves(dispersion: Tensor, confidence: Tensor, right: Tensor, where: str) -> Curves:
    """Mean confidence in the weak expert, and how often it is right, over ten bins of its dispersion.

    Parameters
    ----------
    dispersion : Tensor of shape (N,)
        In [0, 1].
    confidence : Tensor of shape (N,)
        In [0, 1].
    right : bool Tensor of shape (N,)
        Whether the weak expert is right.
    where : str
        Which nodes these are.
    """
    places = (dispersion * 10).long().clamp(0, 9)
    count = torch.bincount(places, minlength=10)
    means = {}
    for name, values in (("confidence c (weight of the weak expert)", confidence), ("weak expert is right", right)):
        means[name] = torch.zeros(10).index_add(0, places, values.float()) / count  # 0 / 0 is a gap
    means["share of the nodes"] = count / max(int(count.sum()), 1)
    return Curves.of(
        f"confidence, {where}",
        [0.05 + 0.1 * i for i in range(10)],
        {name: values.tolist() for name, values in means.items()},
        "dispersion of the weak expert's prediction",
        "fraction",
    )
