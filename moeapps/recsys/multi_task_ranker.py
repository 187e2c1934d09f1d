"""Several targets of one table, behind scikit-learn's interface."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import pandas as pd
from sklearn.utils.validation import check_is_fitted

from moeapps.recsys.data import Table
from moeapps.recsys.diagnosis import Diagnosis, diagnose
from moeapps.recsys.network import MULTI_TASK_MODELS
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.schema import Schema
from moeapps.recsys.targets import TargetKind

__all__ = ["MultiTaskRanker"]


class MultiTaskRanker(Ranker):
    """Several targets of one table by a multi-gate mixture of experts.

    Parameters
    ----------
    model : str
        ``"shared_bottom"``, ``"mmoe"``, ``"cgc"``, ``"ple"``, ``"adatt"`` or ``"home"``.
    groups : dict, optional
        For HoME: name of a group to the names of its targets, every target once.
    products : dict, optional
        Target to the target that it presupposes (``{"buy": "click"}``): the probability of the first is its tower's
        times that of the second (ESMM).
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
    sparse_gradients : bool
        Whether the embeddings' gradient holds only the rows that a batch has, for tables of millions of categories;
        everything is trained by Adagrad then.
    unknown_rate : float
        Probability with which training hides a category, so that what an unseen category means is learned too.
    lr, weight_decay : float
        Of AdamW (or Adagrad).
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

    models = MULTI_TASK_MODELS

    def __init__(
        self,
        model: str = "home",
        *,
        groups: Mapping[str, Sequence[str]] | None = None,
        products: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
        schema: Schema | None = None,
        task_weights: Mapping[str, float] | None = None,
        positive_weight: Mapping[str, float] | None = None,
        embedding_dim: int = 8,
        sparse_gradients: bool = False,
        unknown_rate: float = 0.02,
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
        self.products = products
        self.options = options
        self.schema = schema
        self.task_weights = task_weights
        self.positive_weight = positive_weight
        self.embedding_dim = embedding_dim
        self.sparse_gradients = sparse_gradients
        self.unknown_rate = unknown_rate
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
        frame: Table,
        targets: Sequence[str],
        *,
        ignored: Sequence[str] = (),
        kinds: Mapping[str, TargetKind] | None = None,
        validation: Table | None = None,
    ) -> Self:
        """Learn from a frame.

        Parameters
        ----------
        frame : DataFrame or path
            Rows with features and targets, or a CSV or Parquet file, which may be larger than memory. A target that is
            NaN is not learned from in that row.
        targets : list of str
            Columns to be predicted.
        ignored : list of str
            Columns not to look at (ids for grouping, weights, time stamps).
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
        ValueError
            Naming the argument, column or target that cannot be used.
        """
        with self._all_or_nothing() as fitted:
            fitted._fit(frame, targets, ignored, kinds, validation)
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
