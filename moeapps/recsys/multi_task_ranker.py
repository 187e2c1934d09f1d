"""Several targets of one table, behind scikit-learn's interface."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import pandas as pd
import torch
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from moeapps.core.checks import check_sizes
from moeapps.core.config import store_arguments
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.cells import category_text
from moeapps.core.tabledata.frames import as_frame
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.core.tabledata.source import Table
from moeapps.recsys.building import scenario_column
from moeapps.recsys.diagnosis import Diagnosis, diagnose
from moeapps.recsys.metrics import SCENARIOS, ScenarioScores, scenario_slices
from moeapps.recsys.network import MULTI_TASK_MODELS
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import Schema
from moeapps.recsys.targets import TargetKind
from moeapps.recsys.task_relations import TaskRelations, measure_relations

__all__ = ["MultiTaskRanker"]


class MultiTaskRanker(Ranker):
    """Several targets of one table by a multi-gate mixture of experts.

    Parameters
    ----------
    model : {"shared_bottom", "mmoe", "cgc", "ple", "adatt", "home", "star", "pepnet"}, default="home"
        The network; ``"star"`` and ``"pepnet"`` need a ``scenario``.
    groups : dict or "scenario", optional
        For HoME: name of a group to the names of its targets, every target once. One group of all by default.
        ``"scenario"`` gives each scenario a group with heads of its own for every target.
    products : dict, optional
        Target to the target that it presupposes (``{"buy": "click"}``): the probability of the first is its tower's
        times that of the second (ESMM).
    options : dict, optional
        Further arguments of the network (``num_experts``, ``expert``, ``tower``, ``dropout``, ...).
    schema : Schema, optional
        The features; inferred from the frame by default.
    column_types : dict, optional
        What columns are, where the schema is inferred: ``{"zip": "category"}``; one of "number", "category", "id",
        "time", "list".
    missing_values : "auto" or list of str, default="auto"
        Texts that mean a missing value; "auto" takes those of ``pandas.read_csv`` ("", "NA", "None", "nan", ...).
    ignore_columns : list of str, optional
        Columns that are not used, besides those of ``ignored`` in ``fit``. Where the schema is inferred, ids are not
        used either (a different value in nearly every row), with a warning, unless ``column_types`` says what they are.
    task_weights : dict, optional
        Weight of a target's loss, at least 0; 1 for the others.
    positive_weight : dict, optional
        Weight of a binary target's positive rows, at least 0; 1 for the others.
    embedding_dim : int, default=8
        Width of a category's embedding.
    sparse_gradients : bool, default=False
        Whether the embeddings' gradient holds only the rows of the batch, for tables of many thousand categories.
    sparse_optimizer : {"adagrad", "adam"}, default="adagrad"
        What trains with sparse gradients: Adagrad, or AdamW that moves only the embeddings of the batch.
    unknown_rate : float, default=0.02
        Probability, in [0, 1), with which training replaces a category by the unseen one, so that its embedding is
        trained too.
    lr : float, default=1e-3
        Learning rate of the optimiser, above 0.
    weight_decay : float, default=1e-5
        Weight decay; embeddings, biases and norms have none.
    embedding_decay : float, default=0.0
        Decay of the embeddings of a batch's ids, stronger the rarer an id is: one that no batch has twice shrinks by
        about ``lr * embedding_decay`` of itself in an epoch (section 5.1 of DIN, Zhou et al., KDD 2018). 0 for none.
    batch_size : int, default=1024
        Rows per step.
    max_epochs : int, default=20
        Passes over the data, at most.
    validation_fraction : float, default=0.1
        Part of the rows to validate on, in [0, 1): training stops after ``patience`` epochs without a lower loss and
        keeps the best epoch. 0 trains on everything, for all epochs.
    patience : int, default=2
        Number of epochs without improvement after which training stops.
    accelerator : str, default="auto"
        Lightning's accelerator for training. Prediction runs on the CPU.
    verbose : bool, default=False
        Whether to show a progress bar.
    log_dir : str, optional
        Folder for logs and checkpoints; none are written by default.
    logger : str, Logger or list of Logger, default=None
        ``"csv"``, ``"tensorboard"``, ``"wandb"`` or ``"mlflow"``, several with commas, in a new folder of ``log_dir``;
        or loggers of Lightning. None logs to CSV where there is a ``log_dir``.
    random_state : int, RandomState or None, default=None
        Seed of weights, order, noise and validation rows.
    scenario : str, optional
        Sparse column whose categories are scenarios (country, surface, age group): what ``"star"``, ``"pepnet"`` and
        ``groups="scenario"`` are built on. :meth:`evaluate` and the logs have a line per scenario. A row of an unseen
        or missing scenario is predicted by the shared weights.
    task_weighting : {"fixed", "uncertainty"}, default="fixed"
        ``"uncertainty"`` learns a weight for each target from its noise (Kendall et al., CVPR 2018), beside
        ``task_weights``.
    gradient_surgery : {"pcgrad", "aligned_mtl"}, optional
        How gradients of targets that point against each other are added up on the parameters that targets share
        (``pip install moeapps[tasks]``); a step has a backward pass per target then. Not with ``sparse_gradients``.

    Attributes
    ----------
    model_ : torch.nn.Module
        Embeddings and network.
    encoder_ : TableEncoder
        Categories and numbers.
    targets_ : Targets
        Kinds and classes of the targets.
    history_ : DataFrame
        Logged values, one row per epoch.
    n_iter_ : int
        Number of epochs.

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

    models = MULTI_TASK_MODELS
    scenario: str | None
    sparse_gradients: bool

    def __init__(
        self,
        model: str = "home",
        *,
        groups: Mapping[str, Sequence[str]] | Literal["scenario"] | None = None,
        products: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        schema: Schema | None = None,
        column_types: Mapping[str, ColumnKind] | None = None,
        missing_values: Literal["auto"] | Sequence[str] = "auto",
        ignore_columns: Sequence[str] | None = None,
        task_weights: Mapping[str, float] | None = None,
        positive_weight: Mapping[str, float] | None = None,
        embedding_dim: int = 8,
        sparse_gradients: bool = False,
        sparse_optimizer: str = "adagrad",
        unknown_rate: float = 0.02,
        lr: float = 1e-3,
        weight_decay: float = 1e-5,
        embedding_decay: float = 0.0,
        batch_size: int = 1024,
        max_epochs: int = 20,
        validation_fraction: float = 0.1,
        patience: int = 2,
        accelerator: str = "auto",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
        scenario: str | None = None,
        task_weighting: Literal["fixed", "uncertainty"] = "fixed",
        gradient_surgery: Literal["pcgrad", "aligned_mtl"] | None = None,
        logger: Any = None,
    ) -> None:
        store_arguments(self, locals())

    def fit(
        self,
        frame: Table,
        targets: str | Sequence[str],
        *,
        ignored: Sequence[str] = (),
        kinds: Mapping[str, TargetKind] | None = None,
        validation: Table | None = None,
    ) -> Self:
        """Learn from a frame.

        Parameters
        ----------
        frame : DataFrame or path
            Rows with features and targets, or a CSV or Parquet file, which may be larger than memory. Where a target is
            NaN, the row does not count in its loss.
        targets : str or list of str
            Columns to be predicted.
        ignored : list of str, default=()
            Columns that are not used (ids for grouping, weights, time stamps).
        kinds : dict, optional
            ``"binary"``, ``"regression"`` or ``"count"`` by target; inferred for the others.
        validation : DataFrame or path, optional
            Rows to validate on, instead of a part of ``frame``.

        Returns
        -------
        self
            Fitted. If fitting fails, an earlier fit stays as it was.

        Raises
        ------
        ConfigError, DataError
            Naming the argument, column or target that cannot be used.
        """
        with self._all_or_nothing() as fitted:
            fitted._fit(frame, [targets] if isinstance(targets, str) else targets, ignored, kinds, validation)
        return self

    def evaluate(
        self,
        frame: pd.DataFrame,
        group: ArrayLike | None = None,
        slices: Mapping[str, ArrayLike] | None = None,
        scenario: str | Literal[False] | None = None,
    ) -> pd.DataFrame:
        """AUC, log loss, calibration, GAUC, NDCG@10 of binary targets, R2 and MAE of others, also per scenario.

        Parameters
        ----------
        frame : DataFrame
            Rows with features and targets.
        group : array of shape (N,), optional
            User of each row.
        slices : dict, optional
            Name to a mask ``(N,)`` of rows, which are measured separately, too.
        scenario : str or False, optional
            Column of the frame, each value of which is a slice, ``"<column>=<value>"``. The ranker's own ``scenario``
            by default; False for none.

        Returns
        -------
        DataFrame
            One row per task and slice; see :func:`~moeapps.recsys.task_table`.

        Raises
        ------
        DataError
            If the frame has no column ``scenario``.
        """
        frame = as_frame(frame)
        name = self.scenario if scenario is None else scenario
        by_scenario = {} if not name else scenario_slices(frame, name)
        if name and name != self.scenario:  # it need not be a feature
            check_is_fitted(self, "model_")
            known = {*(feature.name for feature in self.encoder_.schema.features), *self.targets_.names}
            frame = frame.drop(columns=[name] if name not in known else [])
        return super().evaluate(frame, group, {**by_scenario, **(slices or {})})

    def scenario_values(self) -> list[Any]:
        """The scenarios that logs and servers tell apart: the first 20 of the training; none of a hashed column."""
        known = [] if self.scenario is None else self.encoder_.values.get(self.scenario, [])[:SCENARIOS]
        return [value if isinstance(value, str | int | float) else category_text(value) for value in known]

    def scenario_scores(self, frame: pd.DataFrame) -> ScenarioScores:
        """AUC of each binary target in each of the scenarios that logs tell apart, of those that the rows have.

        Parameters
        ----------
        frame : DataFrame
            Rows with features and targets.

        Raises
        ------
        ConfigError
            If the ranker has no ``scenario``.
        """
        if self.scenario is None:
            raise ConfigError("this ranker has no scenario=")
        frame = as_frame(frame)
        codes = self.encoder_.transform(frame).sparse[:, scenario_column(self.encoder_, self.scenario)].numpy()
        labels = self.targets_.encode(frame)
        return ScenarioScores.measure(
            self._outputs(frame), labels, codes, self.targets_, self.encoder_, self.scenario
        ).present()

    def diagnose(self, frame: pd.DataFrame) -> Diagnosis:
        """Measure collapse, degradation and underfitting of the experts on some rows.

        Parameters
        ----------
        frame : DataFrame
            Rows; a few thousand are enough.

        Returns
        -------
        Diagnosis
            Frames ``experts`` and ``gates``, ``hints()`` in words, ``plot()``.

        Raises
        ------
        ConfigError
            If the network has no gates.
        sklearn.exceptions.NotFittedError
            If the ranker is not fitted.
        """
        check_is_fitted(self, "model_")
        return diagnose(self.model_, self.encoder_.transform(frame), self.targets_.names)

    def task_relations(self, frame: pd.DataFrame, batch_size: int = 1024) -> TaskRelations:
        """Which targets help and which hurt each other: cosines of their gradients on the parameters they share.

        Best asked of rows that were not trained on.

        Parameters
        ----------
        frame : DataFrame
            Rows with features and targets; a few thousand are enough.
        batch_size : int, default=1024
            Rows of a batch; the cosines are averaged over batches.

        Returns
        -------
        TaskRelations
            Frames ``cosine``, ``conflicts`` and ``pairs``, ``plot()``.

        Raises
        ------
        ConfigError
            If the ranker has ``sparse_gradients``, or ``batch_size`` is below 1.
        DataError
            If there is one target, or no row.
        sklearn.exceptions.NotFittedError
            If the ranker is not fitted.
        """
        check_is_fitted(self, "model_")
        check_sizes(batch_size=batch_size)
        if self.sparse_gradients:
            raise ConfigError("task_relations needs dense gradients, and sparse_gradients is True")
        frame = as_frame(frame)
        if len(frame) == 0:
            raise DataError("frame must have at least one row, got none")
        rows, labels = self.encoder_.transform(frame), torch.from_numpy(self.targets_.encode(frame))
        parts = (slice(start, start + batch_size) for start in range(0, len(frame), batch_size))
        names = self.targets_.names
        batches = ((rows.at(part), labels[part]) for part in parts)
        return measure_relations(self.model_, batches, names, [self.targets_.kinds[name] for name in names])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle; in 0.1 some arguments did not exist."""
        newer = {"scenario": None, "task_weighting": "fixed", "gradient_surgery": None}
        super().__setstate__({**newer, **state})
