"""Mixture of experts as a classifier of tables, behind scikit-learn's interface."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils import compute_sample_weight

from moeapps.core.config import store_arguments
from moeapps.core.errors import DataError, FileFormatError
from moeapps.core.labels import UNKNOWN, class_labels, classes_from_json, encode, labels_to_json
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.tables.estimator import TabularEstimator
from moeapps.tables.targets import refuse_several_labels

__all__ = ["MoEClassifier"]


class MoEClassifier(ClassifierMixin, TabularEstimator):
    """Mixture-of-experts classifier for tables: embedded columns, residual MoE blocks, any router.

    Parameters
    ----------
    router : str, default="topk"
        Name of the routing method, as in ``moeapps list routers``.
    router_args : dict, optional
        Further arguments of that router.
    route_by : name or position of a column, optional
        Categorical column by which ``router="hash"`` routes: each category is assigned to an expert in ``fit``, so that
        all get about the same number of rows. None routes by the row.
    num_experts : int, default=8
        Experts per block.
    top_k : int, default=2
        Experts per row, for routers with such an argument.
    dim : int, default=64
        Width of the network.
    hidden_dim : int or None, default=64
        Hidden width of an expert; ``2 * dim`` when None.
    num_blocks : int, default=2
        Number of residual MoE blocks.
    share_router : bool, default=False
        Whether all blocks use one router (Omni-router).
    capacity_factor : float, optional
        In training an expert takes at most this multiple of its fair share of rows; None means no limit.
    embedding_dim : int, default=16
        Width of a categorical column's embedding.
    num_bins : int, default=32
        Quantile bins of a numeric column's piecewise-linear encoding, at most.
    numeric_embedding : {"piecewise", "periodic", "both", "linear"}, default="periodic"
        Encoding of a number in addition to its scaled value: its position among the column's quantiles ("piecewise"),
        learned waves ("periodic", PBLD of Holzmüller et al. 2024), both, or nothing ("linear").
    numeric_dim : int, default=8
        Width of the embedding of a numeric column's waves.
    scaling : {"standard", "robust"}, default="robust"
        Scaling of numbers by mean and standard deviation, or by median and quartile range, and then bounded smoothly.
    num_members : int or "auto", default="auto"
        Members that share the blocks and have scales, shifts and heads of their own (TabM, Gorishniy et al. 2025); the
        prediction is their mean. "auto" is 4, 2 above 30,000 rows, and 1 above 60,000.
    dropout : float or "auto", default="auto"
        Probability of dropping a feature in training; "auto" is 0.1, and 0 while all rows make one batch.
    balance_weight : float, default=0.01
        Factor of the router's balance loss.
    z_weight : float, default=0.001
        Factor of the router z-loss.
    balance_loss : {"load", "mutual_information"}, default="load"
        The router's own balance loss, or ModuleFormer's in its place: minus the mutual information of rows and experts.
    iterations : int, default=1
        How often each block applies its experts in turn, chosen anew each time (chain of experts).
    expert_sizes : {"arithmetic", "geometric"} or sequence of int, optional
        Experts of different hidden widths (HMoE): a name, by which they share the units of ``hidden_dim``, or the
        widths; all alike when None.
    penalty_weight : float, default=0.1
        Factor of the parameter penalty of experts of different widths.
    lr : float, default=0.002
        Learning rate of AdamW, above 0.
    weight_decay : float, default=0.01
        Weight decay of AdamW.
    beta2 : float, default=0.999
        Decay of AdamW's mean of squared gradients.
    warmup : float, default=0.0
        Fraction of the steps over which the learning rate rises from a tenth; afterwards it falls along a cosine.
    final_lr : float, default=0.1
        Fraction of the learning rate that is left after the last epoch.
    label_smoothing : float, default=0.0
        Fraction of a label's weight that is spread over all classes in training.
    ema_decay : float, default=0.98
        Decay of the moving average of the weights that is validated and kept, below 1: it covers about
        1 / (1 - ``ema_decay``) steps. 0 takes the weights as they are.
    batch_size : int or "auto", default="auto"
        Rows per step; "auto" takes all rows up to 200, then n / 20 between 32 and 512, and 1,024 above
        60,000 rows.
    max_epochs : int or "auto", default="auto"
        Passes over the data, at most; "auto" is 100, 60 up to 200 rows, and 8 above 60,000.
    early_stopping : bool or "auto", default="auto"
        Whether to set ``validation_fraction`` aside, stop after ``patience`` epochs without a better validation loss
        and keep the best epoch; "auto" does for more than 200 rows.
    validation_fraction : float, default=0.1
        Fraction of the rows that is set aside.
    patience : int, default=5
        Epochs without a better validation loss before training stops.
    class_weight : dict or "balanced", optional
        Weights of the classes.
    categorical_features : "auto", list of names or positions, or None, default="auto"
        Which columns are categories; "auto" means text, bool, category and object columns of a DataFrame.
    column_types : dict, optional
        Kinds of columns of a DataFrame, where they should not be inferred, such as ``{"zip": "category", "joined":
        "time"}``; one of "number", "category", "id", "time".
    missing_values : "auto" or list of str, default="auto"
        Texts that mean a missing value; "auto" takes those of ``pandas.read_csv`` ("", "NA", "None", "nan", ...).
    ignore_columns : list of names or positions, optional
        Columns that are not used. Ids (a different value in nearly every row) are not used either, with a warning,
        unless ``column_types`` says what they are. A frame to predict may have these columns or not.
    dtype : "auto", "float32" or "float64", default="auto"
        Precision of training; "auto" is float64 while all rows make one batch. Prediction is always float64.
    accelerator : str, default="auto"
        Lightning's accelerator for training. Prediction is done on the CPU.
    verbose : bool, default=False
        Whether to show a progress bar.
    log_dir : str, optional
        Folder for logs and checkpoints; none are written when None.
    logger : str, Logger or list of Logger, default=None
        ``"csv"``, ``"tensorboard"``, ``"wandb"`` or ``"mlflow"``, several with commas, in a new folder of ``log_dir``;
        or loggers of Lightning. None logs to CSV where there is a ``log_dir``.
    random_state : int or RandomState, optional
        Seed of all random numbers.

    Attributes
    ----------
    classes_ : array
        Class labels.
    model_ : torch.nn.Module
        The network.
    history_ : DataFrame
        Logged metrics, one row per epoch.
    n_iter_ : int
        Number of epochs.
    auto_ : dict
        What ``num_members``, ``dropout`` and ``max_epochs`` are where they are "auto".
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from moeapps import MoEClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = MoEClassifier(num_experts=4, max_epochs=60, random_state=0).fit(X, y)
    >>> model.score(X, y) > 0.9
    True
    """

    task = "classification"
    classes_: np.ndarray

    def __init__(
        self,
        router: str = "topk",
        *,
        router_args: Mapping[str, Any] | None = None,
        route_by: Any = None,
        num_experts: int = 8,
        top_k: int = 2,
        dim: int = 64,
        hidden_dim: int | None = 64,
        num_blocks: int = 2,
        share_router: bool = False,
        capacity_factor: float | None = None,
        embedding_dim: int = 16,
        num_bins: int = 32,
        numeric_embedding: Literal["piecewise", "periodic", "both", "linear"] = "periodic",
        numeric_dim: int = 8,
        scaling: Literal["standard", "robust"] = "robust",
        num_members: int | Literal["auto"] = "auto",
        dropout: float | Literal["auto"] = "auto",
        balance_weight: float = 0.01,
        z_weight: float = 0.001,
        balance_loss: Literal["load", "mutual_information"] = "load",
        iterations: int = 1,
        expert_sizes: str | Sequence[int] | None = None,
        penalty_weight: float = 0.1,
        lr: float = 2e-3,
        weight_decay: float = 1e-2,
        beta2: float = 0.999,
        warmup: float = 0.0,
        final_lr: float = 0.1,
        label_smoothing: float = 0.0,
        ema_decay: float = 0.98,
        batch_size: int | Literal["auto"] = "auto",
        max_epochs: int | Literal["auto"] = "auto",
        early_stopping: bool | Literal["auto"] = "auto",
        validation_fraction: float = 0.1,
        patience: int = 5,
        class_weight: Any = None,
        categorical_features: Literal["auto"] | Sequence[Any] | None = "auto",
        column_types: Mapping[str, ColumnKind] | None = None,
        missing_values: Literal["auto"] | Sequence[str] = "auto",
        ignore_columns: Sequence[Any] | None = None,
        dtype: Literal["auto", "float32", "float64"] = "auto",
        accelerator: str = "auto",
        verbose: bool = False,
        log_dir: str | None = None,
        random_state: Any = None,
        logger: Any = None,
    ) -> None:
        store_arguments(self, locals())

    def partial_fit(  # type: ignore[override]  # the order of arguments is scikit-learn's
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> Self:
        """Learn one pass over these rows, on top of what was learned before.

        Parameters
        ----------
        X, y, sample_weight
            As in :meth:`fit`.
        classes : array, optional
            All classes of the stream. Required in the first call unless its rows contain every class; a later label
            that is not among them raises an error and changes nothing.
        """
        self._refuse_mixing()
        if hasattr(self, "model_"):
            self._refuse_other_network()
        with self._all_or_nothing(continued=hasattr(self, "model_")) as fitted:
            if hasattr(self, "model_"):
                if classes is not None and not np.array_equal(np.unique(classes), self.classes_):
                    known = f"differ from those of the first call: {self.classes_}"
                    raise DataError(f"classes {np.unique(classes)} {known}")
                fitted._continue(X, y, sample_weight)
            else:
                fitted._announced = None if classes is None else np.unique(classes)
                fitted._fit(X, y, sample_weight, passes=1)
            fitted.__dict__.pop("_announced", None)
        return self

    _announced: np.ndarray | None = None

    def _check_target(self, y: Any) -> NDArray[Any]:
        refuse_several_labels(y, self)
        return class_labels(y)

    def _learn_target(self, y: NDArray[Any], weight: NDArray[np.float64]) -> None:
        self.classes_ = np.unique(y) if self._announced is None else self._announced
        if len(self.classes_) < 2:
            raise DataError(
                f"{type(self).__name__} needs samples of at least 2 classes in y, got one class: "
                f"{self.classes_.tolist()[0]!r}"
            )
        self.n_outputs_ = len(self.classes_)

    def _encode_target(self, y: NDArray[Any]) -> NDArray[np.int64]:
        codes = encode(y, self.classes_)
        new = codes == UNKNOWN
        if new.any():
            raise DataError(
                f"y has the label {y[new][:1].tolist()[0]!r}, which is not among the classes "
                f"{self.classes_.tolist()}: name all classes in the first call of partial_fit"
            )
        return codes

    def _validated(self, X: Any, y: Any, sample_weight: Any, reset: bool) -> Any:
        table, y, weight = super()._validated(X, y, sample_weight, reset)
        if self.class_weight is not None:
            weight = weight * compute_sample_weight(self.class_weight, y)
        return table, y, weight

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities, shape (n, number of classes); columns in the order of ``classes_``."""
        probabilities: NDArray[np.float64] = softmax(self._outputs(X), axis=1)
        return probabilities

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Logarithms of the class probabilities."""
        logs: NDArray[np.float64] = log_softmax(self._outputs(X), axis=1)
        return logs

    def predict(self, X: Any) -> NDArray[Any]:
        """Most probable class of each row."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def saved_state(self) -> dict[str, Any]:
        """Fitted attributes, columns and class labels."""
        return {**super().saved_state(), "classes_": labels_to_json(self.classes_)}

    def _restore(self, state: dict[str, Any]) -> None:
        self.classes_ = classes_from_json(state["classes_"])
        super()._restore(state)
        if len(self.classes_) != self.n_outputs_:
            raise FileFormatError(f"it has {len(self.classes_)} classes and {self.n_outputs_} outputs")
