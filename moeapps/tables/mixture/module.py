"""A mixture of any estimators for ``moeapps fit``: experts by scikit-learn, then the gate by Lightning."""

# n rows, E experts, K classes or targets, F features of the gate

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from sklearn.base import clone
from torch import Tensor

from moeapps.core.checks import check_at_least_zero, check_sizes
from moeapps.core.config import Configurable, config_from, takes
from moeapps.core.distributed import alone
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.foreign import pack_estimators, unpack_estimators
from moeapps.core.labels import beside_kept, classes_from_json, encode, labels_to_json, probability_columns
from moeapps.core.mixing import Cascade, GateConfig, GatedMixture, PredictionGate, fit_cascade
from moeapps.core.mixing.calibration import Calibration, fit_calibration
from moeapps.core.mixing.gate import dense_weights
from moeapps.core.mixing.inputs import MixingData, uncertainty, uncertainty_width
from moeapps.core.mixing.training import BALANCE_WEIGHT, gate_loss
from moeapps.core.module import DataDependentModule
from moeapps.core.saved_arguments import fits
from moeapps.core.search import Choice, Distribution, Float, Int
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.core.views import Views
from moeapps.tables.mixture.answers import ClassAnswers, TargetAnswers, probability_floor
from moeapps.tables.mixture.classifier import MixtureClassifier
from moeapps.tables.mixture.columns import UnusedColumns
from moeapps.tables.mixture.costs import measure_costs
from moeapps.tables.mixture.estimator import GATE_CATEGORIES
from moeapps.tables.mixture.experts import check_experts, name_experts
from moeapps.tables.mixture.features import TableFeatures
from moeapps.tables.mixture.folds import fit_experts, make_folds
from moeapps.tables.mixture.forms import ColumnForms
from moeapps.tables.mixture.portfolio import default_experts
from moeapps.tables.mixture.regressor import MixtureRegressor
from moeapps.tables.mixture.saving import expert_key, features_from

__all__ = ["MixtureModule", "MixtureTraining"]


@dataclass(frozen=True)
class MixtureTraining:
    """Settings of :class:`MixtureModule`.

    Parameters
    ----------
    experts : list or dict, optional
        Estimators of scikit-learn's kind, in YAML as ``class_path`` and ``init_args``, with names as keys of a
        dictionary. None: a portfolio for the table, as in :class:`~moeapps.MixtureClassifier`.
    gate : {"constant", "confidence", "linear", "mlp"}, default="mlp"
        What the gate looks at: nothing, the experts' uncertainty, or the row's features too, linearly or through a
        hidden layer.
    router : str, default="topk"
        Router of the gate, by its short name; one in which rows choose experts.
    top_k : int, optional
        Experts with a weight per row; all when None.
    hidden_dim : int, default=32
        Hidden units of ``gate="mlp"``.
    cv : int, default=5
        Folds of the experts' predictions that the gate learns from.
    calibrate : bool, default=True
        Whether each expert's probabilities get a temperature.
    lr : float, default=0.005
        Learning rate of AdamW, above 0; it falls along a cosine to a tenth.
    weight_decay : float, default=0.01
        Weight decay of AdamW.
    n_jobs : int, optional
        Processes that fit experts and folds, as in joblib.
    seed : int, default=0
        Seed of the folds, and of experts whose own ``random_state`` is None.
    """

    experts: Any = None
    gate: Literal["constant", "confidence", "linear", "mlp"] = "mlp"
    router: str = "topk"
    top_k: int | None = None
    hidden_dim: int = 32
    cv: int = 5
    calibrate: bool = True
    lr: float = 5e-3
    weight_decay: float = 1e-2
    n_jobs: int | None = None
    seed: int = 0


class MixtureModule(Configurable, DataDependentModule):
    """Mixture of any estimators, whose gate is trained batch by batch.

    1. At the beginning of the training every expert is fitted on ``cv`` folds and on all training rows.
    2. Their out-of-fold predictions are calibrated, and the gate learns from them by the mixture's log likelihood
       (regression: squared error of the mixed prediction).
    3. Validation, test and prediction ask the experts once for all rows of their part.

    A checkpoint holds the fitted experts (those of other packages by skops) and their out-of-fold predictions, so that
    a stopped training goes on without fitting them again. Unlike :class:`~moeapps.MixtureClassifier` no other gates
    compete: ``gate`` is what is trained.

    Parameters
    ----------
    **settings
        The fields of :class:`MixtureTraining`.

    Attributes
    ----------
    network : PredictionGate
        The gate, once attached.

    Raises
    ------
    ConfigError
        If a setting is impossible.
    """

    _search_space: ClassVar[Mapping[str, Distribution]] = {
        "hidden_dim": Int(16, 64, log=True),
        "calibrate": Choice((True, False)),
        "lr": Float(1e-3, 2e-2, log=True),
        "weight_decay": Float(1e-4, 1e-1, log=True),
    }

    entry = "moeapps_mixture"
    network: PredictionGate
    features: TableFeatures
    forms: ColumnForms
    task: Literal["classification", "regression"]
    classes: Any
    answers: ClassAnswers | TargetAnswers
    names: list[str]

    @takes(MixtureTraining)
    def __init__(self, config: MixtureTraining) -> None:
        super().__init__()
        check_at_least_zero(lr=config.lr, weight_decay=config.weight_decay)
        check_sizes(cv=config.cv)
        if config.lr == 0 or config.cv < 2:
            raise ConfigError(f"lr must be above 0 and cv at least 2, got lr={config.lr!r}, cv={config.cv!r}")
        self.config, self.lr = config, config.lr
        self._experts: list[Any] | None = None
        self._calibration: Calibration | None = None
        self._costs = np.zeros(0)
        self._out_of_fold = np.zeros((0, 0, 0))
        self._parts: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._routing: Any = None

    def keep_arguments(self, arguments: dict[str, Any]) -> None:
        """As hyperparameters, without the experts: a checkpoint holds no objects, and the fitted ones elsewhere."""
        super().keep_arguments({name: value for name, value in arguments.items() if name != "experts"})

    # ------------------------------------------------------------------ what the table decides

    def attach_data(self, data: Any) -> None:
        """Take columns, target and names of the experts from the data module, and build the gate."""
        if not hasattr(data, "columns"):
            return
        train = data.part("train")
        named = self._named(data)
        # a checkpoint has to know all columns: none is skipped
        self.features = TableFeatures("clipped", GATE_CATEGORIES)
        self.features.fit(train.frame, sample_weight=train.weight)
        self.forms = ColumnForms.of(train.frame)
        if data.task == "classification":
            answers: Any = ClassAnswers(data.classes, probability_floor(len(train.frame), len(data.classes)))
        else:
            mean = np.average(train.target, weights=train.weight)
            spread = float(np.sqrt(np.average(np.square(train.target - mean), weights=train.weight)))
            answers = TargetAnswers(np.array([mean]), np.array([spread or 1.0]))
        self.unused = UnusedColumns(getattr(data, "unused", {}))
        self._attach(data.task, [name for name, _ in named], data.classes, answers)

    def _named(self, data: Any) -> list[tuple[str, Any]]:
        """Names and unfitted experts."""
        train, experts = data.part("train"), self.config.experts
        if experts is None:
            return default_experts(train.frame, train.target, data.task, self.config.seed)
        given = list(experts.items()) if isinstance(experts, Mapping) else list(experts)
        return check_experts(name_experts(given), data.task, ())

    def _attach(self, task: Any, names: list[str], classes: Any, answers: Any) -> None:
        self.task, self.names, self.classes, self.answers = task, names, classes, answers
        config = config_from(GateConfig, self.config, kind=self.config.gate, penalty=0.0)
        width = uncertainty_width(task, len(names), answers.width)
        num_features = len(self.features.get_feature_names_out())
        self.network = PredictionGate.from_config(num_features, width, len(names), config=config)

    def attach_state(self, state: dict[str, Any]) -> None:
        """Take everything from the checkpoint."""
        self.features = features_from(state["features"], state["n_features"])
        self.forms = ColumnForms.from_json(state.get("forms", []))
        unused = state.get("unused", [])
        width = state["n_features"] + (len(unused) if isinstance(unused, list) else 0)
        self.unused = UnusedColumns.from_json(unused, width)
        classes, floor = state["classes"], state["floor"]
        if state["task"] == "classification":
            labels = classes_from_json(classes)
            self._attach("classification", state["names"], labels, ClassAnswers(labels, floor))
        else:
            answers = TargetAnswers(*(np.array(state[key], dtype=float) for key in ("mean", "scale")))
            self._attach("regression", state["names"], None, answers)

    def data_state(self) -> dict[str, Any]:
        """Columns, target and, once they are fitted, the experts with their predictions."""
        answers = self.answers
        state: dict[str, Any] = {
            "task": self.task,
            "names": list(self.names),
            "features": self.features.__getstate__(),
            "n_features": int(self.features.n_features_in_),
            "forms": self.forms.to_json(),
            "unused": self.unused.to_json(),
            "classes": None if self.classes is None else labels_to_json(self.classes),
            "floor": answers.floor if isinstance(answers, ClassAnswers) else None,
            "mean": answers.mean.tolist() if isinstance(answers, TargetAnswers) else None,
            "scale": answers.scale.tolist() if isinstance(answers, TargetAnswers) else None,
        }
        if self._experts is not None:
            assert self._calibration is not None
            pairs = zip(self.names, self._experts, strict=True)
            with warnings.catch_warnings():  # a checkpoint is loaded by the one who trains; to_estimator().save() warns
                warnings.simplefilter("ignore", UserWarning)
                documents, tensors = pack_estimators({expert_key(str(i), n): e for i, (n, e) in enumerate(pairs)})
            state |= {
                "experts": documents,
                "tensors": tensors,
                "out_of_fold": torch.from_numpy(self._out_of_fold),
                "costs": self._costs.tolist(),
                "temperatures": self._calibration.temperatures.tolist(),
                "floors": self._calibration.floors.tolist(),
            }
        return state

    def difference(self, state: dict[str, Any]) -> str | None:
        """In what the checkpoint's table or experts differ; None if they are the same."""
        own = self.data_state()
        for key, what in {"names": "experts", "features": "columns", "classes": "classes", "task": "task"}.items():
            if own[key] != state.get(key):
                return f"its {what} differ"
        return None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take gate and fitted experts from the checkpoint.

        Raises
        ------
        FileFormatError
            If it is not such a checkpoint, one of other data, or holds types that are not trusted.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint[self.entry]
        if "experts" not in state:
            return
        source = Path("the checkpoint")
        experts = unpack_estimators(state["experts"], state["tensors"], source)
        numbers = [state[key] for key in ("costs", "temperatures", "floors")]
        if len(experts) != len(self.names) or not all(fits(n, list[float]) and len(n) == len(experts) for n in numbers):
            raise FileFormatError(f"{source}: its experts are malformed")
        self._experts = list(experts.values())
        self._costs = np.array(numbers[0])
        self._calibration = Calibration(np.array(numbers[1]), np.array(numbers[2]))
        self._out_of_fold = state["out_of_fold"].numpy()

    # ------------------------------------------------------------------ experts

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    def on_fit_start(self) -> None:
        """Fit the experts, unless a checkpoint has brought them, and look up what the gate sees of each row."""
        train = self._data.part("train")
        target = self._encoded(train.target)
        if self._experts is None:
            with alone():  # every process fits all of them: none waits for another longer than its timeout
                self._fit_experts(train, target)
        elif len(self._out_of_fold) != len(train.frame):
            raise FileFormatError(
                f"the checkpoint is one of {len(self._out_of_fold)} training rows, but there are {len(train.frame)}"
            )
        features, uncertain, _ = self._parts.setdefault("train", self._seen(train.frame, self._out_of_fold))
        if self.trainer.global_step == 0 and self.trainer.ckpt_path is None:
            self.network.standardize(features, uncertain)

    def _fit_experts(self, train: Any, target: Any) -> None:
        named = self._named(self._data)
        rng = np.random.RandomState(self.config.seed)
        seeds = [int(seed) for seed in rng.randint(np.iinfo(np.int32).max, size=len(named) + 1)]
        counts = np.ones(len(train.frame), dtype=bool)
        codes = target if self.task == "classification" else None
        folds = make_folds(self.config.cv, train.frame, train.target, seeds[0], codes, counts)
        weight = None if (train.weight == 1).all() else train.weight
        outcome = fit_experts(
            named, train.frame, train.target, weight, folds, self.answers, seeds[1:], self.config.n_jobs
        )
        if outcome.failed:
            name, reason = next(iter(outcome.failed.items()))
            raise DataError(f"expert {name!r} failed, and the gate is built for it: {reason}. Leave it out of experts")
        self._experts = [expert for _, expert in outcome.experts]
        self._out_of_fold = outcome.predictions
        self._costs = measure_costs(outcome.experts, train.frame, self.answers)
        data = self._mixing_data(train, target)
        wanted = self.config.calibrate and self.task == "classification"
        self._calibration = fit_calibration(data) if wanted else Calibration.identity(len(named))

    def _mixing_data(self, train: Any, target: Any) -> MixingData:
        features = self.features.transform(train.frame)
        return MixingData.checked(features, self._out_of_fold, target, train.weight, self.task, self.names)

    def _encoded(self, target: Any) -> Any:
        if self.task == "classification":
            return encode(target, self.classes)
        answers = self.answers
        assert isinstance(answers, TargetAnswers)
        return (target[:, None] - answers.mean) / answers.scale

    def _seen(self, frame: pd.DataFrame, predictions: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Features, uncertainty and calibrated predictions of rows."""
        assert self._calibration is not None
        calibrated = self._calibration(predictions) if self.task == "classification" else predictions
        parts = (self.features.transform(frame), uncertainty(calibrated, self.task), calibrated)
        features, uncertain, scored = (torch.from_numpy(np.ascontiguousarray(part)) for part in parts)
        return features, uncertain, scored

    def _part(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """What the gate sees of the rows of a part; the experts are asked once."""
        if name not in self._parts:
            if self._experts is None:
                raise ConfigError("the experts are not fitted: give the checkpoint of a trained model with --ckpt_path")
            frame = self.forms.restore(self._data.part(name).frame)
            predictions = np.stack([self.answers.read(expert, frame) for expert in self._experts], axis=1)
            self._parts[name] = self._seen(frame, predictions)
        return self._parts[name]

    # ------------------------------------------------------------------ the gate

    def _mixed(self, name: str, index: Tensor) -> tuple[Tensor, Tensor]:
        """Weights ``(b, E)`` and calibrated predictions ``(b, E, K)`` of some rows of a part."""
        rows = index.cpu()
        features, uncertain, scored = (part[rows].to(index.device) for part in self._part(name))
        self._routing = self.network(features, uncertain)
        return dense_weights(self._routing), scored

    def _loss(self, weights: Tensor, scored: Tensor, target: Tensor, row_weight: Tensor) -> Tensor:
        if self.task == "classification":
            chosen = scored.gather(2, target[:, None, None].expand(-1, scored.shape[1], 1))[..., 0]
            return gate_loss(weights, chosen, None, row_weight)
        answers = self.answers
        assert isinstance(answers, TargetAnswers)
        standardised = (target[:, None] - float(answers.mean[0])) / float(answers.scale[0])
        return gate_loss(weights, scored, standardised, row_weight)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of a batch (row, target, weight)."""
        index, target, weight = batch
        weights, scored = self._mixed("train", index)
        terms = {"task": self._loss(weights, scored, target, weight)}
        if not self.network.is_dense:
            for name, value in self.network.router.losses(self._routing, weight).items():
                terms[name] = value * (BALANCE_WEIGHT if name in ("balance", "z") else 1)
        return self.total_loss(terms, batch_size=len(index))

    def optimizer_step(self, epoch: int, batch_idx: int, *args: Any, **kwargs: Any) -> None:
        """After the optimiser's step, update what the router learns without gradients."""
        super().optimizer_step(epoch, batch_idx, *args, **kwargs)
        self.network.router.update(self._routing, self._progress(batch_idx))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``val/loss``, ``val/accuracy`` or ``val/rmse``, and the experts' load."""
        self._evaluate("val", batch_idx, *batch)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log ``test/loss`` and ``test/accuracy`` or ``test/rmse``."""
        self._evaluate("test", batch_idx, *batch)

    def _evaluate(self, stage: str, batch_idx: int, index: Tensor, target: Tensor, weight: Tensor) -> None:
        own = self.own_rows(stage, batch_idx, len(index))
        weights, scored = (part[:own] for part in self._mixed(stage, index))
        target, weight = target[:own], weight[:own]
        logged = {f"{stage}/loss": self._loss(weights, scored, target, weight)}
        if self.task == "classification":
            right = (self._probabilities(weights, scored).argmax(dim=1) == target).double()
            logged[f"{stage}/accuracy"] = (right * weight).sum() / weight.sum()
        else:
            assert isinstance(self.answers, TargetAnswers)
            logged[f"{stage}/rmse"] = float(self.answers.scale[0]) ** 2 * logged[f"{stage}/loss"]
        if stage == "val":
            load = (weights * weight[:, None]).sum(dim=0) / weight.sum()
            logged |= {f"val/moe/gate/load/{e}": share for e, share in enumerate(load)}
        self.log_evaluation(logged, weight.sum(), batch_idx, roots=[f"{stage}/rmse"])

    @staticmethod
    def _probabilities(weights: Tensor, scored: Tensor) -> Tensor:
        return (weights[:, :, None] * scored.exp()).sum(dim=1)

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """The columns to keep, then predictions as ``moeapps score`` writes them, then ``weight_<expert>``."""
        index = batch[0]
        weights, scored = self._mixed("predict", index)
        kept = {name: values.to_numpy()[index.cpu()] for name, values in self._data.part("predict").kept.items()}
        columns: dict[str, Any] = {}
        if self.task == "classification":
            mixed = self._probabilities(weights, scored)
            probabilities = (mixed / mixed.sum(dim=1, keepdim=True)).cpu().numpy()
            columns["prediction"] = self.classes[probabilities.argmax(axis=1)]
            columns |= dict(zip(probability_columns(self.classes), probabilities.T, strict=True))
        else:
            answers = self.answers
            assert isinstance(answers, TargetAnswers)
            standardised = torch.einsum("ne,nek->nk", weights, scored)[:, 0].cpu().numpy()
            columns["prediction"] = standardised * answers.scale[0] + answers.mean[0]
        columns |= {f"weight_{name}": weights[:, e].cpu().numpy() for e, name in enumerate(self.names)}
        return beside_kept(kept, columns)

    def configure_optimizers(self) -> Any:
        """AdamW with a cosine schedule to a tenth of the learning rate."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.lr, weight_decay=self.config.weight_decay)
        return self.with_cosine_schedule(optimizer)

    # ------------------------------------------------------------------ afterwards

    def column_kinds(self) -> dict[str, ColumnKind]:
        """Columns of the table and what they are."""
        return self.features.encoder_.column_kinds()

    def to_estimator(self, data: Any = None) -> MixtureClassifier | MixtureRegressor:
        """The trained mixture behind scikit-learn's interface, which ``save`` writes for ``moeapps score`` and serve.

        Parameters
        ----------
        data : TableData, optional
            The data of the training, from which the cascade is learned (``inference="cascade"``); not needed right
            after the training. Without it the estimator has no cascade.

        Raises
        ------
        ConfigError
            If it is not trained.
        """
        if self._experts is None or self._calibration is None:
            raise ConfigError("the mixture is not trained: its experts are fitted at the beginning of the training")
        names, answers = list(self.names), self.answers
        kind: Any = MixtureClassifier if isinstance(answers, ClassAnswers) else MixtureRegressor
        experts = [(name, clone(expert)) for name, expert in zip(names, self._experts, strict=True)]
        estimator = kind(experts, gate=self.network.config, cv=self.config.cv, calibrate=self.config.calibrate)
        gate = PredictionGate.from_config(
            self.network.num_features, self.network.num_uncertainty, len(names), config=self.network.config
        )
        gate.load_state_dict({key: value.cpu() for key, value in self.network.state_dict().items()})
        estimator.mixture_ = GatedMixture(
            self.task, tuple(names), answers.width, gate.num_features, self.config.gate,
            gate.eval().requires_grad_(False), self._calibration,
        )  # fmt: skip
        estimator.answers_, estimator.gate_features_, estimator.forms_ = answers, self.features, self.forms
        estimator.experts_, estimator.expert_names_, estimator.failed_ = list(self._experts), names, {}
        estimator.costs_ = pd.Series(self._costs, index=pd.Index(names, name="expert"), name="cost per row")
        columns = list(self.column_kinds())
        for i, column in self.unused.columns.items():
            columns.insert(i, column.name)
        estimator.unused_ = self.unused
        estimator.n_features_in_, estimator.feature_names_in_ = len(columns), np.array(columns, dtype=object)
        if isinstance(answers, ClassAnswers):
            estimator.classes_ = answers.classes
        else:
            estimator.target_mean_, estimator.target_scale_ = answers.mean, answers.scale
            estimator.n_outputs_, estimator._one_column = 1, True
        estimator.cascade_ = self._cascade(estimator.mixture_, data)
        estimator._fit_params = estimator.get_params(deep=False)
        return estimator

    def _cascade(self, mixture: GatedMixture, data: Any) -> Cascade | None:
        """A cascade learned from the out-of-fold rows, where their targets are at hand."""
        data = getattr(self._trainer, "datamodule", None) if data is None else data
        if data is None:
            return None
        data.setup("fit")
        train = data.part("train")
        if len(train.frame) != len(self._out_of_fold):
            raise DataError(f"data has {len(train.frame)} training rows, the training had {len(self._out_of_fold)}")
        target = self._encoded(train.target)
        features = self.features.transform(train.frame)
        return fit_cascade(
            mixture, features, self._out_of_fold, target, train.weight, costs=self._costs, seed=self.config.seed
        )

    def views(self) -> Views:
        """Load per expert, regions and cost curve on the validation rows."""
        data = getattr(self._trainer, "datamodule", None)
        if data is None or self._experts is None or not data.has_validation:
            return Views()
        val = data.part("val")
        return self.to_estimator().views(val.frame, val.target)
