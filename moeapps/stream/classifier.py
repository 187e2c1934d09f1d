"""DriftMoEClassifier: a mixture of Hoeffding trees under an online router, for streams that change."""

from collections.abc import Hashable
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from river.base import MiniBatchClassifier
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, column_or_1d

from moeapps.core.config import store_arguments
from moeapps.core.errors import DataError
from moeapps.core.tabledata.frames import as_frame
from moeapps.stream.compiled.mixture_state import TASK, MixtureSettings
from moeapps.stream.encoding import OnBad
from moeapps.stream.engine import RiverEngine, TreeEngine
from moeapps.stream.estimator import StreamEstimator
from moeapps.stream.labels import LabelEncoder, label_of, targets_of
from moeapps.stream.restoring import check_labels

__all__ = ["DriftMoEClassifier"]


@MiniBatchClassifier.register
class DriftMoEClassifier(ClassifierMixin, StreamEstimator):
    """Experts of different kinds that learn one instance at a time, mixed by a gate that learns with them.

    By default the experts are Hoeffding trees (online bagging, ADWIN, background trees), naive Bayes, nearest
    neighbours, linear models and a small neural network. The gate keeps four ways of mixing them: the mean, weights by
    recent accuracy, stacked log-probabilities, and a softmax over the experts that sees the instance. It answers with
    the way whose log loss over the recent instances is lowest, see :mod:`~moeapps.stream.compiled.online_gate`.

    ``experts=None`` is the mixture of 0.1, trees under a neural router: an MLP that is trained on the multi-hot mask of
    the trees that predicted the label, so it learns which trees are right where. ``DriftMoEClassifier.paper("data")``
    and ``.paper("task")`` are the algorithms of the paper. It is an estimator of river and of scikit-learn.

    Parameters
    ----------
    variant : {"data", "task"}, default "data"
        "data": ``n_experts`` trees that know all classes. "task": one binary tree per class, and the neural router
        predicts the class.
    n_experts : int, default 12
        Number of trees of the data variant, where ``experts`` has no count of them.
    top_k : int, default 3
        Experts that learn each instance where ``learn_with="top_k"``. [1]_
    expert : river classifier, optional
        Cloned ``n_experts`` times in place of the built-in experts. Slower; such a model can be pickled, but not
        saved. [1]_
    experts : list of str, dict of str to int, "auto" or None, default "auto"
        Kinds of experts: "tree" (``n_experts`` of them), "bayes" (2), "neighbours" (3), "linear" (3), "network" (1). A
        list of kinds, or a dict of how many there are of each; those of one kind differ in how much they remember.
        None stands for trees under the neural router. "auto" stands for all kinds, and for None where an argument with
        [1]_ is not at its default.
    gate : {"auto", "mean", "accuracy", "stack", "context"}, default "auto"
        The one way of mixing experts of several kinds; "auto" keeps all and chooses.
    archive : int or "auto", default "auto"
        Trees among experts of several kinds that are kept when a drift alarm retires them, and come back once they are
        better than an expert, see :mod:`~moeapps.stream.compiled.archive`. 0 keeps none, "auto" twice the number of
        trees.
    predict_with : {"mixture", "top"}, default "mixture"
        All trees by weight, or the one with the largest (in the task variant: the router alone). [1]_
    learn_with : {"all", "top_k"}, default "all"
        Which trees learn an instance. [1]_
    bagging : float, default 6.0
        Rate of the Poisson weights of online bagging of the trees, at most 50; 0 gives every instance weight 1.
    drift : {"replace", "reset"} or None, default "replace"
        What follows when ADWIN finds that a tree's error rises: the background tree grown since the warning replaces
        it, it starts anew, or nothing.
    drift_delta, warning_delta : float, default 0.01 and 0.05
        Confidences of the two ADWIN windows of each tree.
    window : int, default 100
        Instances over which recent accuracies are averaged.
    blend : float, default 30.0
        How sharply trees and router are weighted by their recent accuracies; 0 leaves the router's own class
        probabilities out. [1]_
    leaf_prediction : {"mc", "nb", "nba"}, default "nba"
        Leaves predict by majority class, naive Bayes, or the better of the two.
    grace_period : int, default 100
        Weight that a leaf sees between two attempts to split.
    delta : float, default 0.01
        Confidence of the Hoeffding bound.
    tie_threshold : float, default 0.05
        A split is made without a clear winner once the bound is below this.
    feature_share : float or list of float, default 1.0
        Share of the features that each leaf observes; a list is cycled through by the trees.
    max_nodes : int, default 1023
        Largest number of nodes per tree.
    use_router : bool, default True
        Whether the gate (or the neural router) weights the experts; else their recent accuracy does, as with
        ``gate="accuracy"``.
    router_inputs : {"enriched", "raw"}, default "enriched"
        Standardised features and the trees' recent accuracies, or the features as they are. [1]_
    router_hidden : pair of int, default (128, 64)
        Widths of the router's hidden layers. [1]_
    router_lr : float, default 0.003
        Learning rate of the router's Adam. [1]_
    router_dropout : float, default 0.0
        Dropout after the router's first layer, in training. [1]_
    router_period : int, default 8
        Instances per step of the router. [1]_
    temperature : float, default 0.8
        Of the softmax over the trees, with ``predict_with="top"``. [1]_
    max_features, max_categories : int, default 1000 and 256
        Largest number of feature names, and of codes per categorical feature; see ``n_ignored_``.
    on_bad : {"raise", "skip", "impute"}, default "raise"
        What to do with an instance with a bad value (text in a numeric feature, infinity): refuse it, skip it, or take
        the value for missing.
    missing_values : "auto" or list of str, default "auto"
        Texts that mean a missing value; "auto" stands for those of ``pandas.read_csv``, such as "" and "NA", and [] for
        none.
    column_types : dict, optional
        "number" or "category" by feature, in place of what its first value decides; text is read as a number only where
        this asks for it.
    n_jobs : int, optional
        Threads in which experts of several kinds learn many instances at once (``learn_many``, ``test_then_train``,
        ``fit``): with 2 or more, or -1, one has the trees and another the rest. Results do not depend on it. None
        stands for 1, as in scikit-learn.
    seed : int, optional
        Seed of everything; drawn anew for each model when None.

    Attributes
    ----------
    classes_ : array
        Labels seen so far, sorted.
    columns_ : DataFrame
        Features by name: kind, why, and numbers of categories, missing and bad values.
    drift_events_ : DataFrame
        Warnings and renewals of experts.
    activation_ : array
        Sum of each expert's weights in the predictions of all learned instances.
    expert_names_ : list of str
        Kind and number of each expert, in the order of ``activation_``.
    gate_ : DataFrame
        The ways of mixing experts of several kinds: recent log loss, and how often each has answered.
    archive_, recurrences_ : DataFrame
        Retired trees that are kept, and which of them came back.
    n_seen_, n_skipped_, n_bad_, n_ignored_ : int
        Instances learned, instances skipped, bad values imputed, values ignored.

    Notes
    -----
    .. [1] Of trees under the neural router (``experts=None``).

    References
    ----------
    "DriftMoE: A Mixture of Experts Approach to Handle Concept Drifts", 2025. Online bagging: Oza and Russell 2001;
    leveraging bagging: Bifet et al. 2010; background trees: Gomes et al. 2017.

    Examples
    --------
    >>> from river import datasets, evaluate, metrics
    >>> model = DriftMoEClassifier(seed=1)
    >>> score = evaluate.progressive_val_score(datasets.Phishing(), model, metrics.Accuracy())
    >>> score.get() > 0.88
    True
    """

    _not_in_0_1: ClassVar[dict[str, Any]] = {
        "missing_values": [], "experts": None, "gate": "auto", "archive": 0, "n_jobs": None,
    }  # fmt: skip

    def __init__(
        self,
        variant: Literal["data", "task"] = "data",
        n_experts: int = 12,
        top_k: int = 3,
        *,
        expert: Any = None,
        experts: list[str] | dict[str, int] | Literal["auto"] | None = "auto",
        gate: Literal["auto", "mean", "accuracy", "stack", "context"] = "auto",
        archive: int | Literal["auto"] = "auto",
        predict_with: Literal["mixture", "top"] = "mixture",
        learn_with: Literal["all", "top_k"] = "all",
        bagging: float = 6.0,
        drift: Literal["replace", "reset"] | None = "replace",
        drift_delta: float = 0.01,
        warning_delta: float = 0.05,
        window: int = 100,
        blend: float = 30.0,
        leaf_prediction: Literal["mc", "nb", "nba"] = "nba",
        grace_period: int = 100,
        delta: float = 0.01,
        tie_threshold: float = 0.05,
        feature_share: float | list[float] = 1.0,
        max_nodes: int = 1023,
        use_router: bool = True,
        router_inputs: Literal["enriched", "raw"] = "enriched",
        router_hidden: tuple[int, int] = (128, 64),
        router_lr: float = 3e-3,
        router_dropout: float = 0.0,
        router_period: int = 8,
        temperature: float = 0.8,
        max_features: int = 1000,
        max_categories: int = 256,
        on_bad: OnBad = "raise",
        missing_values: Literal["auto"] | list[str] = "auto",
        column_types: dict[Any, Literal["number", "category"]] | None = None,
        n_jobs: int | None = None,
        seed: int | None = None,
    ) -> None:
        store_arguments(self, locals())
        self._reset()

    @classmethod
    def paper(cls, variant: Literal["data", "task"] = "data", *, n_experts: int = 12, seed: int | None = None) -> Self:
        """The algorithm of the DriftMoE paper, without additions.

        Router MLP of 256 and 128 units on the raw features, dropout 0.2, Adam 2e-3; Hoeffding trees with grace period
        50 and delta 1e-7. ``"data"``: the tree with the largest softmax(logits / 0.8) predicts, the 3 with the largest
        learn, one router step per 256 instances. ``"task"``: the router predicts, all binary trees learn, one step per
        instance.
        """
        return cls(
            variant, n_experts, 3, experts=None, predict_with="top", learn_with="top_k", bagging=0.0, drift=None,
            blend=0.0, grace_period=50, delta=1e-7, router_inputs="raw", router_hidden=(256, 128), router_lr=2e-3,
            router_dropout=0.2, router_period=256 if variant == "data" else 1, temperature=0.8, seed=seed,
        )  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickle; a pickle of 0.1 has trees under the neural router."""
        super().__setstate__({**self._not_in_0_1, **state})

    def _reset(self) -> None:
        super()._reset()
        self._labels = LabelEncoder()

    def _check_targets(self, targets: Any) -> dict[Hashable, int]:
        return self._labels.check(targets)

    def _add_labels(self, labels: list[Hashable], engine: TreeEngine | RiverEngine) -> None:
        self._labels.add(labels)
        engine.add_classes(len(labels))

    def _codes(self, targets: Any) -> NDArray[np.int64]:
        return self._labels.encode(targets)

    def _label_of(self, code: Any) -> Any:
        return None if code < 0 else self._labels.labels[int(code)]

    @property
    def _multiclass(self) -> bool:
        return True

    def _probabilities(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        out, _ = self._outputs(table)
        total = out.sum(axis=1, keepdims=True)
        known = total > 0
        probabilities: NDArray[np.float64] = np.where(known, out / np.where(known, total, 1.0), 1.0 / out.shape[1])
        return probabilities

    def predict_proba_one(self, x: dict[Hashable, Any], **kwargs: Any) -> dict[Any, float]:
        """Probability of every label seen so far; empty before any was. Nothing is changed."""
        if self._engine is None:
            return {}
        return dict(zip(self._labels.codes, self._probabilities(self._encode_one(x))[0].tolist(), strict=True))

    def predict_one(self, x: dict[Hashable, Any], **kwargs: Any) -> Any:
        """Most probable label; None before any was seen. Nothing is changed."""
        if self._engine is None:
            return None
        return self._labels.labels[int(self._outputs(self._encode_one(x))[0][0].argmax())]

    def predict_proba_many(self, X: pd.DataFrame) -> pd.DataFrame:
        """Probabilities, one row per row of ``X``, one column per label seen so far."""
        X = as_frame(X, "X")
        if self._engine is None:
            return pd.DataFrame(index=X.index)
        table = self._probabilities(self._encode_frame(X))
        return pd.DataFrame(
            table, index=X.index, columns=pd.Index(self._labels.labels, dtype=self._labels.pandas_dtype)
        )

    def predict_many(self, X: pd.DataFrame) -> pd.Series:
        """Most probable label of each row."""
        X = as_frame(X, "X")
        if self._engine is None:
            return pd.Series(index=X.index, dtype=object)
        best = self._probabilities(self._encode_frame(X)).argmax(axis=1)
        labels = [self._labels.labels[code] for code in best]
        return pd.Series(labels, index=X.index, dtype=self._labels.pandas_dtype)

    @property
    def classes_(self) -> NDArray[Any]:
        """Labels seen so far, sorted."""
        if self._engine is None:
            raise AttributeError("classes_ is there once a label was learned")
        return self._labels.array()[self._labels.order()]

    def partial_fit(self, X: Any, y: Any, classes: Any = None, **unsupported: Any) -> Self:
        """Learn rows on top of what was learned before.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.
        classes : array, optional
            All labels that will occur; any other is refused. When None, new labels may appear at any time.
        **unsupported
            Refused, as ``sample_weight`` is.
        """
        self._refuse(unsupported)
        first = self._width is None
        with self._columns_kept_on_error():
            table = self._table(X, reset=first)
            labels, dtype = _labels_of(y)
            check_consistent_length(table, labels)
            if classes is not None:
                known = LabelEncoder()
                known.add(known.check(targets_of(classes)))
                self._expect([known.labels[code] for code in known.order()], labels)
            elif first and not self._labels.codes:
                known = LabelEncoder()
                known.add(known.check(labels))
                self._announce([known.labels[code] for code in known.order()])
            if first:
                self._labels.dtype = dtype
            self.learn_many(table, labels)
        return self

    def _expect(self, classes: list[Any], labels: list[Any]) -> None:
        unknown = [label for label in labels if label not in classes]
        if unknown:
            raise DataError(f"y has the label {unknown[0]!r}, which is not among classes={classes}")
        known = self._labels.labels
        if self._width is not None and known and not set(known) <= set(classes):
            raise DataError(f"classes={classes} lack labels that were learned: {sorted(set(known) - set(classes))}")
        self._announce([label for label in classes if label not in known])

    def _announce(self, labels: list[Any]) -> None:
        """Make room for labels before an instance has them."""
        self._labels.check(labels)
        if labels:
            self._engine = self._engine or self._start()
            self._add_labels(labels, self._engine)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities, shape (n, number of classes); columns in the order of ``classes_``."""
        self._need_fitted()
        return self._probabilities(self._encode_frame(self._table(X, reset=False)))[:, self._labels.order()]

    def predict(self, X: Any) -> NDArray[Any]:
        """Most probable label of each row."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def saved_state(self) -> dict[str, Any]:
        """Names, categories, labels and counters."""
        return {**super().saved_state(), "labels": self._labels.state(), "label_dtype": self._labels.dtype}

    def _restore(self, state: dict[str, Any]) -> None:
        self._labels.restore(state["labels"])
        check_labels(self._labels, state["labels"], state.get("label_dtype"))
        self._labels.dtype = state.get("label_dtype")

    def _number_of_labels(self) -> int:
        return len(self._labels.codes)

    def _resize(self, engine: TreeEngine) -> None:
        super()._resize(engine)
        engine.n_classes = len(self._labels.codes)
        if isinstance(engine.settings, MixtureSettings) and engine.settings.variant == TASK:
            engine.settings = engine.settings._replace(n_experts=engine.n_classes)
            engine.pool = engine._new_pool()


def _labels_of(y: Any) -> tuple[list[Hashable], str | None]:
    """Labels of a batch for scikit-learn's methods, and the dtype in which they are returned; None for the natural one.

    As in scikit-learn's classifiers, numbers that are not whole are refused.
    """
    if isinstance(y, pd.DataFrame) or getattr(y, "ndim", 1) != 1:
        y = column_or_1d(y, warn=True)
    kind = getattr(y, "dtype", None)
    labels = [label_of(label) for label in targets_of(y)]
    if any(isinstance(label, float) for label in labels):
        check_classification_targets(np.array(labels))
    if isinstance(kind, np.dtype) and kind.kind in "biuf":
        return labels, kind.str
    return labels, "object" if getattr(kind, "kind", None) == "O" else None
