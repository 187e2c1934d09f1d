"""Networks that were trained alone, and a gate over their predictions that was fitted on validation nodes."""

# N nodes of the graph, B of them predicted, F features, K classes, E experts

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from moeapps.core.checks import check_one_of
from moeapps.core.errors import ConfigError, FileFormatError
from moeapps.core.layer import RoutedLayer
from moeapps.core.mixing import Cascade, GatedMixture, fit_cascade, fit_mixture
from moeapps.core.mixing.selection import GATES, Gate
from moeapps.core.routing import Routing
from moeapps.core.saved_arguments import check_fields
from moeapps.graph.experts import FeatureExpert, NodeExpert, node_expert
from moeapps.graph.inference import INFERENCES, Inference, MowstOutput, Run
from moeapps.graph.networks import NetworkConfig, build_network
from moeapps.graph.portfolio import Spec

__all__ = ["FITTED_INFERENCES", "GraphMixture"]

FITTED_INFERENCES = ("mix", "cascade")


MARGIN = 1.0
"""The rule of one standard error: the networks have stopped where they do best on the very nodes that fit the gate."""


class GraphMixture(RoutedLayer):
    """Several networks on one graph, each trained alone, whose predictions a fitted gate mixes.

    The gate is the core's (:func:`~moeapps.core.mixing.fit_mixture`): each network alone, their mean, constant weights,
    weights by how sure each network is, and a regression on their log-probabilities compete on validation nodes, and
    each may have a bias per class. Until it is fitted, all networks count the same.

    Parameters
    ----------
    in_channels : int
        Features per node F.
    out_channels : int
        Classes K, at least 2.
    networks : mapping of str to dict or torch.nn.Module
        Networks by name, in the order of their cost; ``"weak"``, which sees no edges, first where it is among them.
    config : NetworkConfig, optional
        Sizes that a network does not name.

    Attributes
    ----------
    experts : torch.nn.ModuleDict
        The networks.
    names : tuple of str
        Those of them that the mixture has.
    fitted : GatedMixture or None
        Gate and calibration.
    cascade : Cascade or None
        The order in which the networks are asked with ``inference="cascade"``, and when a node stops.
    strongest : str
        The network that predicts alone where something is compared with one network.
    """

    sees_x = False
    """The gate looks at predictions alone."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        networks: Mapping[str, Spec | nn.Module],
        config: NetworkConfig | None = None,
    ) -> None:
        super().__init__()
        if out_channels < 2:
            raise ConfigError(f"out_channels must be at least 2 classes, got {out_channels!r}")
        self.in_channels, self.out_channels = in_channels, out_channels
        sizes = NetworkConfig() if config is None else config
        self.experts = nn.ModuleDict(
            {name: build_network(network, in_channels, out_channels, sizes) for name, network in networks.items()}
        )
        self.names = tuple(self.experts)
        self.fitted: GatedMixture | None = None
        self.cascade: Cascade | None = None
        self.strongest = self.names[-1]

    def expert(self, name: str) -> NodeExpert:
        """How one network is run; the weak one sees no edges."""
        network = self.experts[name]
        return FeatureExpert(network) if name == "weak" else node_expert(network)

    def part(self, name: str) -> nn.Module:
        """A network by its name."""
        return self.experts[name]

    gates: Mapping[str, Any] = MappingProxyType({})
    """No network has a confidence of its own."""

    def unused_experts(self, mode: Inference = "mix", threshold: float | None = None) -> set[str]:
        """Networks whose predictions change nothing."""
        if self.fitted is None:
            return set()
        used = self.fitted.needed
        if mode == "cascade" and self.cascade is not None:
            used = used | np.isin(np.arange(len(used)), self.cascade.order)
        return {name for name, needed in zip(self.names, used, strict=True) if not needed}

    def fit(
        self,
        logits: Mapping[str, Tensor],
        y: Tensor,
        weight: Tensor | None,
        costs: Mapping[str, float],
        *,
        gate: Gate = "auto",
        budget: float | None = None,
        tolerance: float | None = None,
        seed: int = 0,
    ) -> None:
        """Fit gate and cascade to what the networks predict for nodes that they were not trained on.

        Parameters
        ----------
        logits : mapping of str to Tensor of shape (V, K)
            Of every network, at V nodes.
        y : int64 Tensor of shape (V,)
            Their labels.
        weight : Tensor of shape (K,), optional
            Weight of each class.
        costs : mapping of str to float
            Work of one prediction by each network, in any unit.
        gate : str, default="auto"
            See :func:`~moeapps.core.mixing.fit_mixture`.
        budget, tolerance : float, optional
            For the cascade; see :func:`~moeapps.core.mixing.fit_cascade`.
        seed : int, default=0
            Seed of folds and gates.

        Raises
        ------
        ConfigError
            If there is no such gate.
        """
        check_one_of("gate", gate, GATES)
        predictions = _stacked([logits[name] for name in self.names])
        target = y.cpu().numpy()
        of_row = None if weight is None else weight.cpu().double().numpy()[target]
        nothing = np.zeros((len(target), 0))
        rows = nothing, predictions, target, of_row
        # Training nodes are often drawn evenly from the classes, and validation nodes are not. The best network alone
        # stays as it is: mixtures are compared with it.
        biased = gate != "best"
        self.fitted = fit_mixture(*rows, names=self.names, gate=gate, class_bias=biased, seed=seed, margin=MARGIN)
        given = [costs[name] for name in self.names]
        self.cascade = fit_cascade(self.fitted, *rows, costs=given, budget=budget, tolerance=tolerance, seed=seed)

    def forward(self, x: Tensor, edges: Any, **options: Any) -> MowstOutput:
        """Predict all nodes of a graph; options as in :meth:`infer`."""

        def run(name: str, rows: Tensor | None) -> Tensor:
            logits = self.expert(name).run(x, edges)
            return logits if rows is None else logits[rows]

        output = self.infer(run, x, **options)
        self.last_routing = output.routing
        return output

    def infer(
        self,
        run: Run,
        x: Tensor,
        *,
        mode: Inference = "mix",
        threshold: float | None = None,
        generator: torch.Generator | None = None,
    ) -> MowstOutput:
        """Predict nodes from the logits that ``run`` computes.

        Parameters
        ----------
        run : callable
            Computes the logits of a network, by its name, for some of the rows.
        x : Tensor of shape (N, F)
            Features of the rows.
        mode : {"mix", "cascade"}, default="mix"
            Whether every network that has a weight runs on every node, or one after another, from the cheapest, as
            far as that is expected to bring something.
        threshold : float, optional
            For ``"cascade"``: a node stops where the mixture of the networks so far gives a class at least this
            probability. When None, where going on is expected to bring too little for its cost.
        generator : torch.Generator, optional
            Not used.

        Raises
        ------
        ConfigError
            If the mode is another one.
        """
        if mode not in FITTED_INFERENCES:
            check_one_of("inference", mode, INFERENCES)
            raise ConfigError(
                f"inference={mode!r} is that of variant='mowst_star' and 'mowst': a mixture of networks that were "
                "trained alone has 'mix' and 'cascade'"
            )
        if mode == "cascade" and self.cascade is not None:
            return self._one_after_another(run, x, threshold)
        return self._all(run, x)

    def _all(self, run: Run, x: Tensor) -> MowstOutput:
        unused = self.unused_experts()
        asked: dict[str, Tensor | None]
        asked = {name: None if name in unused else run(name, None) for name in self.names}
        any_logits = next(z for z in asked.values() if z is not None)
        filler = any_logits.new_full(any_logits.shape, -float(np.log(self.out_channels)))
        predictions = _stacked([filler if z is None else z for z in asked.values()])
        if self.fitted is None:
            weights = np.full(predictions.shape[:2], 1 / len(self.names))
            mixed = np.exp(predictions).mean(axis=1)
        else:
            weights, mixed = self.fitted.weigh(np.zeros((len(predictions), 0)), predictions)
        ran = np.array([[name not in unused for name in self.names]]).repeat(len(weights), axis=0)
        return self._output(mixed, weights, ran, asked, any_logits)

    def _one_after_another(self, run: Run, x: Tensor, threshold: float | None) -> MowstOutput:
        assert self.cascade is not None
        cascade = self.cascade
        if threshold is not None:
            cascade = replace(cascade, criterion="confidence", gains=(), threshold=1 - threshold)
        asked: dict[str, Tensor | None] = dict.fromkeys(self.names)

        def ask(expert: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
            name = self.names[expert]
            everywhere = len(rows) == len(x)
            z = run(name, None if everywhere else torch.from_numpy(rows).to(x.device))
            at = z.new_full((len(x), self.out_channels), torch.nan)
            at[torch.from_numpy(rows).to(x.device)] = z
            asked[name] = at
            return z.detach().log_softmax(-1).cpu().double().numpy()

        answer = cascade.run(np.zeros((len(x), 0)), ask)
        like = next((z for z in asked.values() if z is not None), x)
        return self._output(answer.mixed, answer.weights, answer.asked, asked, like)

    def _output(
        self,
        mixed: NDArray[np.float64],
        weights: NDArray[np.float64],
        ran: NDArray[np.bool_],
        asked: Mapping[str, Tensor | None],
        like: Tensor,
    ) -> MowstOutput:
        share = torch.from_numpy(weights).to(like.device, like.dtype)
        log_probs = torch.from_numpy(np.log(np.maximum(mixed, 1e-30))).to(like.device, like.dtype)
        number = len(self.names)
        last = torch.from_numpy(np.where(ran, np.arange(number), 0).max(axis=1)).to(like.device)
        weak = share[:, self.names.index("weak")] if "weak" in self.names else torch.zeros_like(share[:, 0])
        expert = torch.arange(number, device=like.device).expand(len(share), number)
        routing = Routing.from_topk(
            expert,
            share,
            logits=share.clamp(min=torch.finfo(share.dtype).tiny).log(),
            probabilities=share,
            keep=torch.from_numpy(ran).to(like.device),
        )
        graph = torch.from_numpy(ran[:, [name != "weak" for name in self.names]].any(axis=1)).to(like.device)
        return MowstOutput(log_probs, asked, weak, share, last, routing, graph)

    def keep(self, names: Sequence[str]) -> None:
        """Leave some networks out of the mixture; their weights stay in :attr:`experts`."""
        self.names = tuple(name for name in self.names if name in names)

    def drop_unused(self) -> None:
        """Remove the networks that were left out."""
        for name in set(self.experts) - set(self.names):
            del self.experts[name]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What a file has to hold beside the networks' weights: JSON values, and tensors by name."""
        document: dict[str, Any] = {"names": list(self.names), "strongest": self.strongest, "cascade": None}
        if self.cascade is None:
            return document, {}
        document["cascade"], tensors = self.cascade.state()
        return document, tensors

    def load_state(self, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Undo :meth:`state`.

        Raises
        ------
        FileFormatError
            If a value or tensor is missing, of another kind or shape, or for other networks.
        """
        check_fields(_State, document)
        names = tuple(document["names"])
        if not names or not set(names) <= set(self.experts) or document["strongest"] not in names:
            raise FileFormatError(f"a mixture of the networks {list(self.experts)} cannot have the names {names}")
        cascade = None if document["cascade"] is None else Cascade.from_state(document["cascade"], tensors)
        if cascade is not None and (cascade.mixture.names, cascade.mixture.num_outputs) != (names, self.out_channels):
            raise FileFormatError(
                f"the gate in the file is not for {self.out_channels} classes and the networks {names}"
            )
        self.names, self.strongest, self.cascade = names, document["strongest"], cascade
        self.fitted = None if cascade is None else cascade.mixture


class _State:
    """Kinds of the values of :meth:`GraphMixture.state`."""

    names: list[str]
    strongest: str
    cascade: dict[str, Any] | None


def _stacked(logits: Sequence[Tensor]) -> NDArray[np.float64]:
    """Log-probabilities ``(N, E, K)`` from logits ``(N, K)`` of each network."""
    out: NDArray[np.float64] = torch.stack([z.detach().double().log_softmax(-1) for z in logits], dim=1).cpu().numpy()
    return out
