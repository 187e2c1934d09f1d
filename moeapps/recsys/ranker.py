"""Rankers behind scikit-learn's interface: a frame in, a frame with a column per task out."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from moeapps.core.callbacks import seed_everything
from moeapps.core.checks import check_fraction, check_sizes
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.estimator import LightningEstimator
from moeapps.recsys.data import RowsDataModule
from moeapps.recsys.diagnosis import Diagnosis, diagnose
from moeapps.recsys.encoder import TableEncoder
from moeapps.recsys.metrics import task_table
from moeapps.recsys.module import RankingModule
from moeapps.recsys.network import MultiTaskNetwork, SequenceNetwork
from moeapps.recsys.schema import Schema
from moeapps.recsys.targets import TargetKind, Targets

__all__ = ["AWMoERanker", "MultiTaskRanker"]

PREDICT_ROWS = 8192
"""Rows that are predicted at once."""


class _Ranker(LightningEstimator):
    """What both rankers share: schema, encoder, targets, training, prediction, saving."""

    schema: Schema | None
    embedding_dim: int
    batch_size: int
    validation_fraction: float
    weight_decay: float
    encoder_: TableEncoder
    targets_: Targets
    _saved_attributes = ("n_iter_",)

    def _module(self, network: nn.Module) -> RankingModule:
        raise NotImplementedError

    def _check(self) -> None:
        check_sizes(embedding_dim=self.embedding_dim, batch_size=self.batch_size)
        if self.validation_fraction != 0:
            check_fraction(validation_fraction=self.validation_fraction)
        if self.validation_fraction >= 1:
            raise ConfigError(f"validation_fraction must be below 1, got {self.validation_fraction!r}")
        if self.schema is not None and not isinstance(self.schema, Schema):
            raise ConfigError(f"schema must be a Schema or None, got {type(self.schema).__name__}")

    def _fit(self, frame: pd.DataFrame, targets: Sequence[str], ignored: Sequence[str], kinds: Any) -> None:
        self._check()
        if not isinstance(frame, pd.DataFrame) or len(frame) == 0:
            raise DataError("frame must be a pandas DataFrame with at least one row")
        if isinstance(targets, str) or not targets:
            raise ConfigError(f"targets must be a list with the name of at least one column, got {targets!r}")
        schema = self.schema or Schema.infer(frame, targets, ignored)
        if self.schema is not None:
            schema = Schema(schema.features, tuple(targets), (*schema.ignored, *ignored))
        schema.check_columns(frame, targets=True)
        self.targets_ = Targets(targets, kinds)
        self.targets_.fit(frame)
        seed = self._seed()
        held = np.zeros(len(frame), dtype=bool)
        if self.validation_fraction:
            number = max(1, round(len(frame) * self.validation_fraction))
            if number >= len(frame):
                raise DataError(f"validation_fraction leaves no row of {len(frame)} to learn from: set it to 0")
            held[np.random.default_rng(seed).permutation(len(frame))[:number]] = True
        train = frame[~held]
        self.encoder_ = TableEncoder(schema).fit(train)  # what only validation rows have is unknown to the model
        with isolate_rng():
            seed_everything(seed)
            module = self._module(self._build_model())
        parts = [
            (self.encoder_.transform(part), self.targets_.encode(part)) for part in (train, frame[held]) if len(part)
        ]
        watched = len(parts) == 2
        data = RowsDataModule(parts[0], parts[1] if watched else None, self.batch_size, seed)
        self.history_ = self._train(
            module, data, seed, monitor="val/loss" if watched else None, mode="min", validate=watched
        )
        self.n_iter_ = len(self.history_)
        self.model_ = module.network.eval()

    @torch.no_grad()
    def _outputs(self, frame: pd.DataFrame) -> NDArray[Any]:
        check_is_fitted(self, "model_")
        rows = self.encoder_.transform(frame)
        parts = [self.model_(rows.at(slice(i, i + PREDICT_ROWS))) for i in range(0, len(rows), PREDICT_ROWS)]
        return torch.cat(parts).numpy() if parts else np.zeros((0, len(self.targets_.names)))

    def predict_proba(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Probabilities of binary targets, numbers of the others.

        Parameters
        ----------
        frame : DataFrame
            Rows with the features of the schema; targets and ignored columns may be there.

        Returns
        -------
        DataFrame
            One column per target, the index of the frame.

        Raises
        ------
        DataError
            Naming a column that is missing, unknown, or cannot hold what it holds.
        """
        outputs = self._outputs(frame)
        return pd.DataFrame(self.targets_.decode(outputs), columns=self.targets_.names, index=frame.index)

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Likelier value of binary targets, numbers of the others."""
        found = self.predict_proba(frame)
        for name in self.targets_.names:
            if self.targets_.kinds[name] == "binary":
                values = np.array(self.targets_.classes.get(name, [0, 1]))
                found[name] = values[(found[name] > 0.5).to_numpy().astype(int)]
        return found

    def evaluate(
        self, frame: pd.DataFrame, group: ArrayLike | None = None, slices: Mapping[str, ArrayLike] | None = None
    ) -> pd.DataFrame:
        """AUC, log loss, calibration and, with users, GAUC and NDCG@10 of the binary targets.

        Parameters
        ----------
        frame : DataFrame
            Rows with features and targets.
        group : array of shape (n,), optional
            User of each row.
        slices : dict, optional
            Name to mask of rows; they get lines of their own.
        """
        found = self.predict_proba(frame)
        binary = [name for name in self.targets_.names if self.targets_.kinds[name] == "binary"]
        truth = pd.DataFrame(self.targets_.encode(frame), columns=self.targets_.names)
        return task_table(truth[binary], found[binary].reset_index(drop=True), group, slices)

    def rank(
        self,
        user: Mapping[str, Any],
        items: pd.DataFrame,
        n: int = 10,
        by: str | None = None,
    ) -> pd.DataFrame:
        """The n best items for a user.

        Parameters
        ----------
        user : dict
            The features that all candidates share.
        items : DataFrame
            One row per candidate, with the other features.
        n : int
            How many.
        by : str, optional
            Target to rank by; the first one when None.

        Returns
        -------
        DataFrame
            Rows of ``items``, best first, with a column ``score``.
        """
        check_is_fitted(self, "model_")
        check_sizes(n=n)
        by = self.targets_.names[0] if by is None else by
        if by not in self.targets_.names:
            raise ConfigError(f"by must be one of {', '.join(self.targets_.names)}, got {by!r}")
        joint = items.copy()
        for name, value in user.items():
            if name in items.columns:
                raise DataError(f"{name!r} is a feature of the user and a column of the items")
            joint[name] = pd.Series([value] * len(items), index=items.index, dtype=object)
        score = self.predict_proba(joint.infer_objects())[by].to_numpy()
        best = np.argsort(-score, kind="stable")[:n]
        return items.iloc[best].assign(score=score[best])

    def saved_arguments(self) -> dict[str, Any]:
        """Constructor arguments; a schema as JSON."""
        arguments = super().saved_arguments()
        if arguments["schema"] is not None:
            arguments["schema"] = arguments["schema"].to_json()
        return arguments

    def saved_state(self) -> dict[str, Any]:
        """Encoder and targets beside what every estimator keeps."""
        return {**super().saved_state(), "encoder_": self.encoder_.state(), "targets_": self.targets_.state()}

    def _restore(self, state: dict[str, Any]) -> None:
        self.encoder_ = TableEncoder.from_state(state["encoder_"])
        self.targets_ = Targets.from_state(state["targets_"])
        super()._restore(state)

    @classmethod
    def from_saved(
        cls, arguments: dict[str, Any], state: dict[str, Any], tensors: dict[str, Tensor], source: Any
    ) -> Self:
        """Build again."""
        if arguments.get("schema") is not None:
            arguments = {**arguments, "schema": Schema.from_json(arguments["schema"])}
        return super().from_saved(arguments, state, tensors, source)


class MultiTaskRanker(_Ranker):
    """Several targets of one table by a multi-gate mixture of experts.

    Parameters
    ----------
    model : str
        ``"shared_bottom"``, ``"mmoe"``, ``"cgc"``, ``"ple"``, ``"adatt"`` or ``"home"``.
    groups : dict, optional
        For HoME: name of a group to the names of its targets, every target once.
    options : dict, optional
        Further arguments of the model (``num_experts``, ``expert``, ``tower``, ``dropout``, ...).
    schema : Schema, optional
        The features; inferred from the frame when None.
    task_weights : dict, optional
        Weight of a target's loss; 1 for the others.
    positive_weight : dict, optional
        Weight of a binary target's positive rows; 1 for the others.
    embedding_dim : int
        Width of a category's embedding.
    lr, weight_decay : float
        Of AdamW.
    batch_size : int
        Rows per step.
    max_epochs : int
        Passes over the data, at most.
    validation_fraction : float
        Part of the rows to validate on; training stops after ``patience`` epochs without a better loss and keeps the
        best epoch. 0 trains on everything, for all epochs.
    patience : int
        Epochs to wait.
    accelerator : str
        Lightning's accelerator for training. Prediction is done on the CPU.
    verbose : bool
        Whether to show a progress bar.
    log_dir : str, optional
        Where to log and write checkpoints; nowhere when None.
    random_state : int, RandomState or None
        Seed of everything.

    Attributes
    ----------
    model_ : torch.nn.Module
        Embeddings and model.
    encoder_ : TableEncoder
        Categories and numbers.
    targets_ : Targets
        Kinds and classes of the targets.
    history_ : DataFrame
        What was logged, one row per epoch.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from moeapps.recsys import MultiTaskRanker
    >>> rng = np.random.default_rng(0)
    >>> frame = pd.DataFrame({"city": rng.choice(["Ulm", "Bonn"], 600), "age": rng.normal(40, 10, 600)})
    >>> frame["click"] = (frame["age"] > 40).astype(int)
    >>> frame["like"] = ((frame["city"] == "Ulm") & (frame["age"] > 40)).astype(int)
    >>> model = MultiTaskRanker("mmoe", max_epochs=30, batch_size=64, lr=0.01, random_state=0)
    >>> model = model.fit(frame, targets=["click", "like"])
    >>> bool((model.evaluate(frame)["auc"] > 0.95).all())
    True
    """

    def __init__(
        self,
        model: str = "home",
        *,
        groups: Mapping[str, Sequence[str]] | None = None,
        options: Mapping[str, Any] | None = None,
        schema: Schema | None = None,
        task_weights: Mapping[str, float] | None = None,
        positive_weight: Mapping[str, float] | None = None,
        embedding_dim: int = 8,
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        batch_size: int = 1024,
        max_epochs: int = 20,
        validation_fraction: float = 0.1,
        patience: int = 2,
        accelerator: str = "auto",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.groups = groups
        self.options = options
        self.schema = schema
        self.task_weights = task_weights
        self.positive_weight = positive_weight
        self.embedding_dim = embedding_dim
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.accelerator = accelerator
        self.verbose = verbose
        self.log_dir = log_dir
        self.random_state = random_state

    def fit(
        self,
        frame: pd.DataFrame,
        targets: Sequence[str],
        *,
        ignored: Sequence[str] = (),
        kinds: Mapping[str, TargetKind] | None = None,
    ) -> Self:
        """Learn from a frame.

        Parameters
        ----------
        frame : DataFrame
            Rows with features and targets. A target that is NaN is not learned from in that row.
        targets : list of str
            Columns to be predicted.
        ignored : list of str
            Columns not to look at (ids for grouping, weights, time stamps).
        kinds : dict, optional
            ``"binary"``, ``"regression"`` or ``"count"`` by target; inferred for the others.

        Returns
        -------
        self
            Fitted. If fitting fails, an earlier fit stays as it was.
        """
        fitted = copy.copy(self)
        fitted._fit(frame, targets, ignored, kinds)
        self.__dict__ = fitted.__dict__
        return self

    def diagnose(self, frame: pd.DataFrame) -> Diagnosis:
        """Look for collapse, degradation and underfitting of the experts on some rows.

        Parameters
        ----------
        frame : DataFrame
            Rows; a few thousand are enough.

        Returns
        -------
        Diagnosis
            Frames ``experts`` and ``gates``, ``hints()`` in plain words, ``plot()``.
        """
        check_is_fitted(self, "model_")
        return diagnose(self.model_, self.encoder_.transform(frame), self.targets_.names)

    def _build_model(self) -> MultiTaskNetwork:
        names, options = self.targets_.names, dict(self.options or {})
        if self.groups is not None:
            if self.model != "home":
                raise ConfigError(f"groups are for model='home', got model={self.model!r}")
            for group, members in self.groups.items():
                for name in members:
                    if name not in names:
                        raise ConfigError(f"groups: {group!r} has {name!r}, which is not among {', '.join(names)}")
            options["groups"] = {
                group: [names.index(name) for name in members] for group, members in self.groups.items()
            }
        return MultiTaskNetwork(self.encoder_, len(names), self.model, options, self.embedding_dim)

    def _module(self, network: nn.Module) -> RankingModule:
        names = self.targets_.names
        return RankingModule(
            network,
            [self.targets_.kinds[name] for name in names],
            names,
            self._per_task("task_weights"),
            self._per_task("positive_weight"),
            lr=self.lr,
            weight_decay=self.weight_decay,
        )

    def _per_task(self, argument: str) -> list[float]:
        given: Mapping[str, float] = getattr(self, argument) or {}
        for name in given:
            if name not in self.targets_.names:
                raise ConfigError(f"{argument}: {name!r} is not among {', '.join(self.targets_.names)}")
        return [float(given.get(name, 1.0)) for name in self.targets_.names]


class AWMoERanker(_Ranker):
    """One binary target for a user with a history: AW-MoE, or DIN as its baseline.

    The history is the schema's first :class:`~moeapps.recsys.Sequence` that shares a column's categories; that column
    is the candidate.

    Parameters
    ----------
    model : str
        ``"aw_moe"`` or ``"din"``.
    contrastive_weight : float
        Of the contrastive loss on the gate; 0 for none. Only for ``"aw_moe"``.
    mask_probability : float
        Of a behaviour, in the other view of the contrastive loss.
    temperature : float
        Of the contrastive loss.
    options, schema, embedding_dim, lr, weight_decay, batch_size, max_epochs, validation_fraction, patience
        As in :class:`MultiTaskRanker`.
    accelerator, verbose, log_dir, random_state
        As in :class:`MultiTaskRanker`.
    """

    def __init__(
        self,
        model: str = "aw_moe",
        *,
        contrastive_weight: float = 0.05,
        mask_probability: float = 0.2,
        temperature: float = 0.1,
        options: Mapping[str, Any] | None = None,
        schema: Schema | None = None,
        embedding_dim: int = 16,
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        batch_size: int = 1024,
        max_epochs: int = 20,
        validation_fraction: float = 0.1,
        patience: int = 2,
        accelerator: str = "auto",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
    ) -> None:
        self.model = model
        self.contrastive_weight = contrastive_weight
        self.mask_probability = mask_probability
        self.temperature = temperature
        self.options = options
        self.schema = schema
        self.embedding_dim = embedding_dim
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.accelerator = accelerator
        self.verbose = verbose
        self.log_dir = log_dir
        self.random_state = random_state

    def fit(self, frame: pd.DataFrame, target: str, *, ignored: Sequence[str] = ()) -> Self:
        """Learn from a frame.

        Parameters
        ----------
        frame : DataFrame
            Rows with features, a history column of lists (oldest first) and the target.
        target : str
            Binary column to be predicted.
        ignored : list of str
            Columns not to look at.

        Returns
        -------
        self
            Fitted. If fitting fails, an earlier fit stays as it was.
        """
        fitted = copy.copy(self)
        fitted._fit(frame, [target], ignored, {target: "binary"})
        self.__dict__ = fitted.__dict__
        return self

    def _build_model(self) -> SequenceNetwork:
        schema = self.encoder_.schema
        found = [i for i, sequence in enumerate(schema.sequences) if sequence.shares is not None]
        if not found:
            raise DataError(
                "there is no history: AWMoERanker needs a Sequence that shares a Sparse column, such as "
                "Sequence('history', shares='item_id')"
            )
        target = [feature.name for feature in schema.sparse].index(str(schema.sequences[found[0]].shares))
        return SequenceNetwork(self.encoder_, found[0], target, self.model, self.options, self.embedding_dim)

    def _module(self, network: nn.Module) -> RankingModule:
        weight = self.contrastive_weight if self.model == "aw_moe" else 0.0
        return RankingModule(
            network,
            ["binary"],
            self.targets_.names,
            lr=self.lr,
            weight_decay=self.weight_decay,
            contrastive_weight=weight,
            mask_probability=self.mask_probability,
            temperature=self.temperature,
        )
