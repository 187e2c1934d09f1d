"""Logits of the experts at the validation nodes, on which gates are fitted and all is scored."""

# V validation nodes, F features, K classes

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor

from moeapps.core.views import Curves
from moeapps.graph.batches import NodeBatch
from moeapps.graph.dispersion import variance_dispersion
from moeapps.graph.inference import Inference, MowstOutput
from moeapps.graph.measures import Monitor, confidence_curves, measure, refuse_nan
from moeapps.graph.mixture import GraphMixture
from moeapps.graph.mowst import Mowst
from moeapps.graph.plan import Scores

__all__ = ["EvaluationLogits", "HeldOut", "infer_known", "warn_of_memorising"]


class EvaluationLogits:
    """Logits of experts in evaluation mode, computed once per state of an expert's weights.

    Those of the whole graph are kept, and of mini-batches those of the validation nodes.
    """

    def __init__(self) -> None:
        self._whole: dict[str, Tensor] = {}
        self._batches: dict[str, list[tuple[Tensor, Tensor]]] = {}  # nodes and logits of batches, by expert

    def forget(self, *names: str) -> None:
        """Call this when the weights of these experts have changed; of all experts when none is named."""
        for kept in (self._whole, self._batches):
            for name in names or tuple(kept):
                kept.pop(name, None)

    @torch.no_grad()
    def of(self, model: Mowst | GraphMixture, name: str, batch: NodeBatch) -> Tensor:
        """Logits of one expert, from all neighbours: ``(B, K)`` for the batch's nodes or ``(N, K)`` for all."""
        if batch.nodes is None and name in self._whole:
            return self._whole[name]
        expert = model.expert(name)
        mode = expert.network.training
        expert.network.eval()
        logits = expert.on_nodes(batch.graph.x, batch.edges, batch.nodes, batch_size=batch.batch_size)
        expert.network.train(mode)
        if batch.nodes is None:
            self._whole[name] = logits
        return logits

    def at(self, model: Mowst | GraphMixture, name: str, batch: NodeBatch, mask: str) -> Tensor:
        """Logits of one expert on the batch's nodes of a mask."""
        if batch.nodes is None:
            return self.of(model, name, batch)[batch.chosen(mask)]
        if mask != "val_mask":  # training batches come in another order each time
            return self.of(model, name, batch)
        kept = self._batches.setdefault(name, [])
        for nodes, logits in kept:
            if torch.equal(nodes, batch.nodes):
                return logits
        kept.append((batch.nodes, self.of(model, name, batch)))
        return kept[-1][1]


class HeldOut:
    """Labels of the validation nodes and the logits of every expert there, at the last validation.

    A gate that looks at the features has enough parameters to memorise the validation nodes: it is fitted on every
    second one of them and scored on the others. Other gates are fitted and scored on all.

    Parameters
    ----------
    halved : bool
        Whether to split the nodes.

    Attributes
    ----------
    values : dict of str to Tensor
        ``y`` ``(V,)``; logits ``(V, K)`` by expert; ``x`` ``(V, F)`` if a gate looks at the features. A checkpoint
        holds them.
    """

    def __init__(self, halved: bool = False) -> None:
        self.halved = halved
        self.values: dict[str, Tensor] = {}
        self._parts: list[dict[str, Tensor]] = []

    def add(self, model: Mowst | GraphMixture, batch: NodeBatch, logits: EvaluationLogits) -> dict[str, Tensor]:
        """Add the validation nodes of a batch; returns what was added. :meth:`collect` ends the validation."""
        nodes = batch.chosen("val_mask")
        part = {"y": batch.graph.y[nodes]}
        if model.sees_x:
            part["x"] = batch.features("val_mask")
        part |= {name: logits.at(model, name, batch, "val_mask") for name in model.names}
        self._parts.append(part)
        return part

    def collect(self) -> None:
        """Replace the values by those that were added since the last time."""
        parts, self._parts = self._parts, []
        self.values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def refresh(self, model: Mowst | GraphMixture, batches: Iterable[NodeBatch], logits: EvaluationLogits) -> None:
        """Compute all values anew, after weights were restored."""
        for batch in batches:
            self.add(model, batch, logits)
        self.collect()

    def fitted(self, device: torch.device) -> dict[str, Tensor]:
        """Values of the nodes on which gates are fitted."""
        return self._rows(slice(0, None, 2), device)

    def scored(self, device: torch.device) -> dict[str, Tensor]:
        """Values of the nodes on which experts and mixture are scored."""
        return self._rows(slice(1, None, 2), device)

    def _rows(self, half: slice, device: torch.device) -> dict[str, Tensor]:
        rows = half if self.halved else slice(None)
        return {name: value[rows].to(device) for name, value in self.values.items()}

    def gate_loss(self, model: Mowst, class_weight: Tensor | None) -> Tensor:
        """Loss of the model over the nodes of :meth:`fitted`, as a function of the gates alone."""
        values = self.fitted(_device(model))
        return model.loss([values[name] for name in model.names], values["y"], values.get("x"), class_weight)

    @torch.no_grad()
    def predict(
        self, model: Mowst | GraphMixture, mode: Inference = "mix", threshold: float | None = None
    ) -> MowstOutput:
        """Prediction of the model at the nodes of :meth:`scored`."""
        return infer_known(model, self.scored(_device(model)), mode, threshold)

    @torch.no_grad()
    def confidence(self, model: Mowst | GraphMixture) -> Tensor:
        """Confidence of the weak expert at the nodes of :meth:`scored`; its weight in a mixture."""
        if isinstance(model, GraphMixture):
            return self.predict(model).confidence
        values = self.scored(_device(model))
        return model.confidence_of("weak", values["weak"], values.get("x")).confidence

    def scores(
        self, model: Mowst | GraphMixture, monitor: Monitor, class_weight: Tensor | None
    ) -> tuple[Scores, dict[str, dict[str, float]]]:
        """Scores of each expert alone and of ``"mix"``, for the training plan, and all that was measured.

        Raises
        ------
        NonFiniteError, DataError
            If an expert predicts NaN, or the monitored score does not exist.
        """
        values, everything = self.scored(_device(model)), monitor in ("auc", "macro_f1")
        log_probs = {name: values[name].log_softmax(-1) for name in model.names}
        log_probs["mix"] = self.predict(model).log_probs
        measured = {name: measure(z, values["y"], everything, class_weight) for name, z in log_probs.items()}
        for name, z in log_probs.items():
            refuse_nan(z, measured[name], monitor, "the mixture" if name == "mix" else f"the {name} expert")
        # an improvement of less than 0.001 in loss is none: it would stretch a stage without end
        losses = {name: -round(found["loss"], 3) for name, found in measured.items()}
        if monitor == "loss":
            return {name: (loss,) for name, loss in losses.items()}, measured
        return {name: (found[monitor], losses[name]) for name, found in measured.items()}, measured

    @torch.no_grad()
    def curves(self, model: Mowst | GraphMixture) -> Curves:
        """Confidence in the weak expert, and how often it is right, by the dispersion of its prediction."""
        weak, y = (self.scored(_device(model))[name].cpu() for name in ("weak", "y"))
        dispersion, right = variance_dispersion(weak.softmax(-1)), weak.argmax(-1) == y
        return confidence_curves(dispersion, self.confidence(model).cpu(), right, "validation nodes")

    @torch.no_grad()
    def mean_confidence(
        self, model: Mowst | GraphMixture, training: NodeBatch | None, logits: EvaluationLogits
    ) -> dict[str, float]:
        """Mean confidence of the weak expert on validation nodes, and on those of a training batch if there is one."""
        found = {"val": float(self.confidence(model).mean())}
        if training is not None and isinstance(model, Mowst):
            x = training.features("train_mask") if model.sees_x else None
            c, _ = model.confidence_of("weak", logits.at(model, "weak", training, "train_mask"), x)
            found["train"] = float(c.mean())
        return found


@torch.no_grad()
def infer_known(
    model: Mowst | GraphMixture, values: dict[str, Tensor], mode: Inference, threshold: float | None
) -> MowstOutput:
    """Predict nodes whose logits are known already."""

    def run(name: str, rows: Tensor | None) -> Tensor:
        return values[name] if rows is None else values[name][rows]

    return model.infer(run, values.get("x", values["y"][:, None]), mode=mode, threshold=threshold)


def warn_of_memorising(mean: dict[str, float]) -> None:
    """Warn of a weak expert whose mean confidence is more than 0.2 higher on training than on validation nodes."""
    if mean.get("train", 0.0) > mean["val"] + 0.2:
        warnings.warn(
            f"the weak expert is far surer of training nodes (mean confidence {mean['train']:.2f}) "
            f"than of validation nodes ({mean['val']:.2f}): it has memorised them, and the mixture may trust it "
            "too much. Stronger dropout, weight_decay or gate_fit='holdout' help",
            UserWarning,
            stacklevel=2,
        )


def _device(model: Mowst | GraphMixture) -> torch.device:
    return next(model.parameters()).device
