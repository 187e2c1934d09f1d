"""Training of a gate by the likelihood of the mixture that it makes.

Gates without hidden layer are trained on all rows by L-BFGS (their problem is small and smooth), the others and those
with a sparse router by Adam in batches, with early stopping on rows that are held out.

Shapes: n rows, E experts, K classes or targets, I inputs.
"""

import copy
import math

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from moeapps.core.losses import mixture_loss
from moeapps.core.mixing.calibration import picked
from moeapps.core.mixing.gate import GateConfig, PredictionGate, dense_weights
from moeapps.core.mixing.inputs import MixingData, uncertainty
from moeapps.core.splits import hold_out

__all__ = ["MAX_ROWS", "gate_loss", "train_gate"]

MAX_ROWS = 50_000
"""A gate has few parameters: of more rows, that many are drawn."""

BATCH, EPOCHS, PATIENCE, HELD_OUT = 256, 40, 4, 0.15
LEARNING_RATE = 5e-3
BALANCE_WEIGHT = 1e-3
"""Factor of a sparse router's balance and z loss: enough to keep every expert in the race, as in the MoE layer."""


def gate_loss(weights: Tensor, scored: Tensor, target: Tensor | None, row_weight: Tensor) -> Tensor:
    """Loss of mixed predictions.

    Parameters
    ----------
    weights : Tensor of shape (n, E)
        Mixture weights.
    scored : Tensor of shape (n, E) or (n, E, K)
        Classification: log-probability that each expert gives the row's class. Regression: predictions.
    target : Tensor of shape (n, K) or None
        Targets of regression; None in classification.
    row_weight : Tensor of shape (n,)
        Weight of each row.

    Returns
    -------
    Tensor
        Scalar: log loss of the mixture, or mean squared error of the mixed prediction.
    """
    if target is None:
        return mixture_loss(weights, scored, row_weight)
    errors = (torch.einsum("ne,nek->nk", weights, scored) - target).square().mean(dim=1)
    return (errors * row_weight).sum() / row_weight.sum()


def train_gate(config: GateConfig, data: MixingData, seed: int = 0) -> PredictionGate:
    """Train a gate on calibrated out-of-fold predictions.

    Parameters
    ----------
    config : GateConfig
        What to train.
    data : MixingData
        Rows whose predictions are calibrated already.
    seed : int, default=0
        Seed of initial weights, batches and held-out rows. The global random state is left as it was.

    Returns
    -------
    PredictionGate
        In evaluation mode, without gradients.
    """
    if len(data) > MAX_ROWS:
        data = data.rows(np.sort(np.random.default_rng(seed).choice(len(data), MAX_ROWS, replace=False)))
    with isolate_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        features = torch.from_numpy(data.features)
        uncertain = torch.from_numpy(uncertainty(data.predictions, data.task))
        gate = PredictionGate.from_config(features.shape[1], uncertain.shape[1], data.num_experts, config=config)
        gate.standardize(features, uncertain)
        if data.task == "classification":
            scored, target = torch.from_numpy(picked(data.predictions, data.target)), None
        else:
            scored, target = torch.from_numpy(data.predictions), torch.from_numpy(data.target)
        rows = _Rows(gate.inputs(features, uncertain), scored, target, torch.from_numpy(data.weight))
        gate.train()
        if gate.hidden is None and gate.is_dense:
            _train_smooth(gate, rows, config.penalty)
        else:
            codes = data.target if data.task == "classification" else None
            _train_in_batches(gate, rows, config.penalty, *hold_out_rows(len(data), seed, codes))
    return gate.eval().requires_grad_(False)


def hold_out_rows(n: int, seed: int, codes: np.ndarray | None) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to stop early by; all rows are both where there are fewer than 20."""
    if n < 20:
        return torch.arange(n), torch.arange(n)
    train, held = hold_out(n, HELD_OUT, seed, codes)
    return torch.from_numpy(train), torch.from_numpy(held)


class _Rows:
    """Tensors that the loss needs, by row."""

    def __init__(self, inputs: Tensor, scored: Tensor, target: Tensor | None, weight: Tensor) -> None:
        self.inputs, self.scored, self.target, self.weight = inputs, scored, target, weight
        self.progress = 0.0

    def loss(self, gate: PredictionGate, chosen: Tensor | slice = slice(None)) -> Tensor:
        """Loss of the mixture on some of the rows, in training with a sparse router's own losses."""
        inputs, weight = self.inputs[chosen], self.weight[chosen]
        target = None if self.target is None else self.target[chosen]
        if gate.is_dense:  # what the routing's weights are, without sorting assignments
            weights = gate.router.scores(gate.tokens(inputs), None, None).softmax(dim=-1)
            return gate_loss(weights, self.scored[chosen], target, weight)
        routing = gate.route(inputs)
        loss = gate_loss(dense_weights(routing), self.scored[chosen], target, weight)
        if gate.training:
            for name, value in gate.router.losses(routing, weight).items():
                loss = loss + value * (BALANCE_WEIGHT if name in ("balance", "z") else 1)
            gate.router.update(routing, self.progress)
        return loss


def _train_smooth(gate: PredictionGate, rows: _Rows, penalty: float) -> None:
    """L-BFGS on all rows with a squared penalty on all scores' weights, the bias's too: towards the mean of experts."""
    parameters = list(gate.parameters())
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=60, tolerance_grad=1e-5, tolerance_change=1e-8, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = rows.loss(gate) + penalty / (2 * len(rows.inputs)) * sum(p.square().sum() for p in parameters)
        loss.backward()
        return loss

    before = copy.deepcopy(gate.state_dict())
    optimizer.step(closure)
    if not all(bool(p.isfinite().all()) for p in parameters):  # a failed line search: equal weights are safe
        gate.load_state_dict(before)


def _train_in_batches(gate: PredictionGate, rows: _Rows, penalty: float, train: Tensor, held: Tensor) -> None:
    """Adam in batches; keep the state with the lowest loss on the held-out rows, the initial one among them."""
    parameters: list[nn.Parameter] = list(gate.parameters())
    batch = max(BATCH, math.ceil(len(train) / 30))
    optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
    best, best_state, since = math.inf, copy.deepcopy(gate.state_dict()), 0
    for epoch in range(EPOCHS + 1):
        gate.eval()
        with torch.no_grad():
            held_loss = float(rows.loss(gate, held))
        if held_loss < best - 1e-5 * abs(best if math.isfinite(best) else 0):
            best, best_state, since = held_loss, copy.deepcopy(gate.state_dict()), 0
        else:
            since += 1
        if since > PATIENCE or epoch == EPOCHS:
            break
        gate.train()
        rows.progress = epoch / EPOCHS
        for chosen in train[torch.randperm(len(train))].split(batch):
            optimizer.zero_grad()
            loss = rows.loss(gate, chosen)
            loss = loss + penalty / (2 * len(train)) * sum(p.square().sum() for p in parameters)
            loss.backward()
            optimizer.step()
    gate.load_state_dict(best_state)
