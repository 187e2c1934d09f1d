"""The mixture of experts for tables in ``moeapps fit``: what MoEClassifier and MoERegressor train, epoch by epoch."""

# n rows of a batch

import copy
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from torch import Tensor

from moeapps.core.averaging import RisingAverage
from moeapps.core.callbacks import BestWeights
from moeapps.core.checks import check_below_one, check_sizes
from moeapps.core.config import as_arguments, config_from, takes
from moeapps.core.errors import ConfigError
from moeapps.core.labels import beside_kept
from moeapps.core.module import DataDependentModule
from moeapps.core.saved_arguments import arguments_to_json
from moeapps.core.tabledata.ids import with_unused
from moeapps.core.tabledata.scoring import predict_frame
from moeapps.tables.classifier import MoEClassifier
from moeapps.tables.defaults import ONE_BATCH, batch_rows, check_automatic
from moeapps.tables.estimator import TabularEstimator
from moeapps.tables.module import TabularModule, TabularTraining
from moeapps.tables.network import TabularConfig, TabularMoE
from moeapps.tables.numbers import Scaling
from moeapps.tables.regressor import MoERegressor

__all__ = ["TableModule", "TableSettings"]

UNSET_EPOCHS = 1000
"""Lightning's ``max_epochs`` where nobody says how many."""


@dataclass(frozen=True)
class TableSettings(TabularConfig):
    """Settings of :class:`TableModule`, with the defaults of :class:`~moeapps.MoEClassifier`.

    Parameters
    ----------
    dim : int, default=64
        Width of the network.
    hidden_dim : int, optional
        Hidden width of an expert, 64 by default; ``2 * dim`` when None.
    embedding_dim : int, default=16
        Width of a categorical column's embedding.
    dropout : float or "auto", default="auto"
        Probability of dropping a feature in training; "auto" is 0.1, and 0 up to 200 rows.
    route_by : str, optional
        Categorical column by which ``router="hash"`` routes.
    numeric_embedding : {"piecewise", "periodic", "both", "linear"}, default="periodic"
        What a number enters as besides its scaled value.
    scaling : {"standard", "robust"}, default="robust"
        Scaling of numbers by mean and standard deviation, or by median and quartile range, and then bounded smoothly.
    num_members : int or "auto", default="auto"
        Members that share the blocks; "auto" is 4, 2 above 30,000 rows, and 1 above 60,000.
    num_bins : int, default=32
        Quantile bins of a numeric column, at most.
    lr : float, default=0.002
        Learning rate of AdamW, above 0.
    weight_decay : float, default=0.01
        Weight decay of AdamW, on matrices only.
    beta2 : float, default=0.999
        Decay of AdamW's mean of squared gradients.
    warmup : float, default=0.0
        Part of the steps over which the rate first rises.
    final_lr : float, default=0.1
        Part of the rate that is left at the end of the cosine.
    label_smoothing : float, default=0.0
        Fraction of a label's weight that is spread over all classes in training.
    ema_decay : float, default=0.98
        Decay of the moving average of the weights, which is validated and kept; 0 for none.
    patience : int, default=5
        Epochs without a better validation loss before training stops.
    """

    dim: int = 64
    hidden_dim: int | None = 64
    embedding_dim: int = 16
    dropout: float | Literal["auto"] = "auto"  # type: ignore[assignment]
    route_by: str | None = None  # type: ignore[assignment]
    numeric_embedding: Literal["piecewise", "periodic", "both", "linear"] = "periodic"
    scaling: Scaling = "robust"
    num_members: int | Literal["auto"] = "auto"  # type: ignore[assignment]
    num_bins: int = 32
    lr: float = 2e-3
    weight_decay: float = 1e-2
    beta2: float = 0.999
    warmup: float = 0.0
    final_lr: float = 0.1
    label_smoothing: float = 0.0
    ema_decay: float = 0.98
    patience: int = 5


class TableModule(DataDependentModule, TabularModule):
    """Trains the network of :class:`~moeapps.MoEClassifier` or :class:`~moeapps.MoERegressor` on a table.

    Which of the two the target decides. Columns, categories and quantiles are those of the training rows, and are kept
    in the checkpoint. The best epoch by ``val/loss`` is kept, and training stops after ``patience`` epochs without a
    better one. Without a number of epochs (``--trainer.max_epochs``) it trains as long as the estimator, at most 100.

    Parameters
    ----------
    **settings
        The fields of :class:`TableSettings`.

    Raises
    ------
    ConfigError
        If a setting is impossible.
    """

    entry = "moeapps_tabular"
    model: TabularMoE
    estimator: TabularEstimator

    @takes(TableSettings)
    def __init__(self, config: TableSettings) -> None:
        L.LightningModule.__init__(self)  # TabularModule's own constructor takes a network
        check_automatic(config.num_members, "auto", config.dropout)
        check_sizes(num_bins=config.num_bins, patience=config.patience)
        check_below_one(ema_decay=config.ema_decay)
        self.settings = config
        self.prepare(config_from(TabularTraining, config))
        self._rows: dict[str, tuple[Tensor, Tensor]] = {}

    # ------------------------------------------------------------------ what the table decides

    @property
    def network(self) -> TabularMoE:  # type: ignore[override]
        """The network, once attached."""
        return self.model

    @property
    def attached(self) -> bool:
        """Whether the network is there."""
        return hasattr(self, "model")

    @property
    def classes(self) -> Any:
        """Labels of a classification; None of a regression."""
        return getattr(self.estimator, "classes_", None)

    def column_kinds(self) -> Any:
        """Columns of the table and what they are."""
        return self.estimator.column_kinds()

    def batch_rows(self, n: int) -> int:
        """Rows per step for a table of n rows."""
        return batch_rows(n)

    def attach_data(self, data: Any) -> None:
        """Learn columns and target from the training rows, and build the network."""
        if not hasattr(data, "columns"):
            return
        train = data.part("train")
        kind = MoEClassifier if data.task == "classification" else MoERegressor
        known = {name: value for name, value in as_arguments(self.settings).items() if name in kind._get_param_names()}
        unused = dict(sorted(getattr(data, "unused", {}).items()))
        kinds = {name: column.kind for name, column in data.columns.items()}
        kinds |= {column.name: "id" for column in unused.values() if column.kind == "id"}
        ignored = [column.name for column in unused.values() if column.kind == "ignored"] or None
        estimator: Any = kind(
            **known,
            column_types=kinds,
            missing_values=data.missing_values,
            ignore_columns=ignored,
            random_state=data.seed,
        )
        if data.task == "classification":
            estimator._announced = data.classes
        names = list(train.frame.columns)
        for i, column in unused.items():
            names.insert(i, column.name)
        # empty columns in their places: the estimator takes rows with and without them
        model, rows, _ = estimator.begin(with_unused(train.frame, names, unused), train.target, train.weight)
        for i, column in unused.items():
            estimator.encoder_.columns[i] = column
        estimator.__dict__.pop("_announced", None)
        if len(train.frame) <= ONE_BATCH:
            model.double()
        self._attach(estimator, model)
        self._rows["train"] = self._encoded(*rows[:2])

    def _attach(self, estimator: Any, model: TabularMoE) -> None:
        estimator.history_, estimator.n_iter_ = pd.DataFrame(), 0
        estimator.model_, estimator._fit_params = model, estimator.get_params(deep=False)
        self.estimator, self.model, self.task = estimator, model, estimator.task

    def attach_state(self, state: dict[str, Any]) -> None:
        """Take everything from the checkpoint."""
        kind: Any = MoEClassifier if state["task"] == "classification" else MoERegressor
        estimator = kind(**kind._from_savable(state["arguments"]))
        estimator._restore(state["state"])
        self._attach(estimator, estimator._build_model())
        if state["double"]:
            self.model.double()

    def data_state(self) -> dict[str, Any]:
        """Columns, target and arguments."""
        double = next(self.model.parameters()).dtype == torch.float64
        arguments = arguments_to_json(self.estimator.saved_arguments())
        return {"task": self.task, "arguments": arguments, "state": self.estimator.saved_state(), "double": double}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over columns and weights: those of the best epoch, unless the training goes on.

        Raises
        ------
        FileFormatError
            If it is not such a checkpoint, or one of other data.
        """
        trainer = self._trainer
        if trainer is None or trainer.state.fn != "fit":
            for name, state in checkpoint.get("callbacks", {}).items():
                if str(name).startswith(BestWeights.__name__) and state.get("weights"):
                    checkpoint["state_dict"] = state["weights"]
        super().on_load_checkpoint(checkpoint)

    # ------------------------------------------------------------------ training

    def configure_callbacks(self) -> list[Callback]:
        """The moving average of the weights, early stopping, and the best epoch."""
        callbacks: list[Callback] = []
        data: Any = getattr(self._trainer, "datamodule", None)
        if self.trainer.state.fn != "fit":
            return callbacks
        if self.settings.ema_decay > 0:
            callbacks.append(RisingAverage(self.settings.ema_decay))
        if data is not None and (data.validation_fraction or data.load("val") is not None):
            callbacks += [
                # not strict: a training may end by max_steps before the first validation
                EarlyStopping("val/loss", patience=self.settings.patience, mode="min", strict=False),
                BestWeights("val/loss", "min"),
            ]
        return callbacks

    def on_fit_start(self) -> None:
        """As many epochs as the estimator has, unless the Trainer was given a number."""
        super().on_fit_start()
        if self.trainer.max_epochs == UNSET_EPOCHS:
            self.trainer.fit_loop.max_epochs = int(self.estimator.auto_["max_epochs"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of a batch (row, target, weight)."""
        return super().training_step(self._seen("train", *batch), batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``val/loss``, and ``val/accuracy`` or ``val/rmse``."""
        self._evaluate("val", batch_idx, batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``test/loss``, and ``test/accuracy`` or ``test/rmse``."""
        self._evaluate("test", batch_idx, batch)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """The columns to keep, then what ``moeapps score`` writes."""
        rows, part = batch[0].cpu().numpy(), self._data.part("predict")
        found = predict_frame(self.to_estimator(), part.frame.iloc[rows])
        kept = {name: values.to_numpy()[rows] for name, values in part.kept.items()}
        return beside_kept(kept, {str(name): values.to_numpy() for name, values in found.items()})

    def _evaluate(self, stage: str, batch_idx: int, batch: Any) -> None:
        numbers, codes, target, weight = self._seen(stage, *batch)
        own = self.own_rows(stage, batch_idx, len(target))
        out, target, weight = self.model(numbers, codes)[:own], target[:own], weight[:own]
        logged = {f"{stage}/loss": self.task_loss(out, target, weight)}
        if self.task == "classification":
            right = (out.argmax(dim=1) == target).to(weight.dtype)
            logged[f"{stage}/accuracy"] = (right * weight).sum() / weight.sum()
        else:
            scale = float(self.estimator.target_scale_[0])
            square = ((out - target)[:, 0].square() * weight).sum() / weight.sum()
            logged[f"{stage}/rmse"] = scale**2 * square
        self.log_evaluation(logged, weight.sum(), batch_idx, roots=[f"{stage}/rmse"])

    def _seen(self, name: str, index: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """Numbers, codes, target and weight of rows of a part, which is encoded once."""
        if name not in self._rows:
            encoder = self.estimator.encoder_
            frame = with_unused(self._data.part(name).frame, encoder.names, encoder.unused)
            self._rows[name] = self._encoded(*encoder.transform(frame))
        rows = index.cpu()
        numbers, codes = (part[rows].to(index.device) for part in self._rows[name])
        dtype = next(self.model.parameters()).dtype
        if self.task == "regression":
            mean, scale = (float(getattr(self.estimator, name)[0]) for name in ("target_mean_", "target_scale_"))
            target = ((target - mean) / scale)[:, None].to(dtype)
        return numbers, codes, target, weight.to(dtype)

    @staticmethod
    def _encoded(numbers: Any, codes: Any) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(numbers), torch.from_numpy(codes)

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    # ------------------------------------------------------------------ afterwards

    def to_estimator(self) -> TabularEstimator:
        """The estimator that predicts as the module does, which ``save`` writes for ``moeapps score`` and serve.

        Raises
        ------
        ConfigError
            If nothing was trained.
        """
        if not self.attached:
            raise ConfigError("the module has no network yet: it is built when training begins")
        estimator = copy.copy(self.estimator)
        estimator.model_ = copy.deepcopy(self.model).cpu().double().eval()
        return estimator
