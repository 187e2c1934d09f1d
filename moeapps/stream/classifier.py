"""DriftMoEClassifier: a mixture of Hoeffding trees under an online router, for streams that change."""

from collections.abc import Hashable
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from river.base import MiniBatchClassifier
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, column_or_1d

from moeapps.core.checks import check_at_least_zero, check_one_of
from moeapps.core.errors import DataError
from moeapps.stream.encoding import LabelEncoder, plain
from moeapps.stream.engine import RiverEngine, TreeEngine
from moeapps.stream.estimator import StreamEstimator

__all__ = ["DriftMoEClassifier"]


@MiniBatchClassifier.register
class DriftMoEClassifier(ClassifierMixin, StreamEstimator):
    """Mixture of Hoeffding trees under a neural router that learns with them, instance by instance.

    A router (an MLP) learns which trees are right where, from the multi-hot mask of those that predicted the label; the
    prediction mixes the trees by what it believes. ``DriftMoEClassifier.paper("data")`` and ``.paper("task")`` are the
    algorithms of the paper. The defaults are stronger: every tree learns every instance with a Poisson weight (online
    bagging), all trees speak, a tree whose error rises is replaced by one grown since the warning, the router sees
    standardised features and the trees' recent accuracy, and its own word as a classifier counts as much as it
    has been right of late. It is river's classifier and scikit-learn's at once.

    Parameters
    ----------
    variant : "data" or "task"
        ``"data"``: ``n_experts`` trees that know all classes. ``"task"``: one binary tree per class ("is it this?"),
        and the router predicts the class.
    n_experts : int
        Number of trees of the data variant.
    top_k : int
        Experts that learn each instance, where ``learn_with="top_k"``.
    expert : river classifier, optional
        Cloned once per expert in place of the built-in trees; slower, and such a model can be pickled, not saved.
    predict_with : "mixture" or "top"
        All experts by weight, or the one with the largest (in the task variant: the router alone).
    learn_with : "all" or "top_k"
        Which experts learn an instance.
    bagging : float
        Rate of the Poisson weights of online bagging; 0 gives every instance weight 1.
    drift : "replace", "reset" or None
        When ADWIN sees an expert's error rise: put in the background tree grown since the warning, start it anew, or
        nothing.
    drift_delta, warning_delta : float
        Confidences of the two ADWIN windows of each expert.
    window : int
        Instances over which recent accuracies are counted.
    blend : float
        How sharply the pool and the router's own word are weighed by their recent accuracies; 0 leaves the router's
        word out.
    leaf_prediction : "mc", "nb" or "nba"
        Leaves predict by majority, naive Bayes, or the better of the two.
    grace_period, delta, tie_threshold, feature_share, max_nodes
        Of the trees, see :class:`HoeffdingPool`.
    use_router : bool
        Whether the router weighs the experts; else their recent accuracy does.
    router_inputs : "enriched" or "raw"
        Standardised features and the experts' recent accuracies, or the features as they are.
    router_hidden : pair of int
        Widths of the router's hidden layers.
    router_lr, router_dropout : float
        Of its Adam, and after its first layer.
    router_period : int
        Instances per step of the router.
    temperature : float
        Of the softmax over the experts, with ``predict_with="top"``.
    max_features, max_categories : int
        Names, and values per category, that are remembered; see ``n_ignored_``.
    on_bad : "raise", "skip" or "impute"
        What to do with an instance with a bad value (text in a numeric feature, infinity): refuse it, leave it out, or
        take the value for missing.
    seed : int, optional
        Seed of everything.

    Attributes
    ----------
    classes_ : array
        Labels seen so far, sorted.
    drift_events_ : DataFrame
        Warnings and renewals of experts.
    activation_ : array
        How much each expert has counted.
    n_seen_, n_skipped_, n_bad_, n_ignored_ : int
        Instances learned, instances left out, bad values, ignored values.

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

    def __init__(
        self,
        variant: Literal["data", "task"] = "data",
        n_experts: int = 12,
        top_k: int = 3,
        *,
        expert: Any = None,
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
        on_bad: Literal["raise", "skip", "impute"] = "raise",
        seed: int | None = None,
    ) -> None:
        self.variant = variant
        self.n_experts = n_experts
        self.top_k = top_k
        self.expert = expert
        self.predict_with = predict_with
        self.learn_with = learn_with
        self.bagging = bagging
        self.drift = drift
        self.drift_delta = drift_delta
        self.warning_delta = warning_delta
        self.window = window
        self.blend = blend
        self.leaf_prediction = leaf_prediction
        self.grace_period = grace_period
        self.delta = delta
        self.tie_threshold = tie_threshold
        self.feature_share = feature_share
        self.max_nodes = max_nodes
        self.use_router = use_router
        self.router_inputs = router_inputs
        self.router_hidden = router_hidden
        self.router_lr = router_lr
        self.router_dropout = router_dropout
        self.router_period = router_period
        self.temperature = temperature
        self.max_features = max_features
        self.max_categories = max_categories
        self.on_bad = on_bad
        self.seed = seed
        self._forget()

    @classmethod
    def paper(cls, variant: Literal["data", "task"] = "data", *, n_experts: int = 12, seed: int | None = None) -> Self:
        """The algorithm of the DriftMoE paper, without anything added.

        Router MLP of 256 and 128 units on the raw features, dropout 0.2, Adam 2e-3; Hoeffding trees with grace period
        50 and delta 1e-7. ``"data"``: the tree with the largest softmax(logits / 0.8) predicts, the 3 with the largest
        learn, one router step per 256 instances. ``"task"``: the router predicts, all binary trees learn, one step per
        instance.
        """
        return cls(
            variant, n_experts, 3, predict_with="top", learn_with="top_k", bagging=0.0, drift=None, blend=0.0,
            grace_period=50, delta=1e-7, router_inputs="raw", router_hidden=(256, 128), router_lr=2e-3,
            router_dropout=0.2, router_period=256 if variant == "data" else 1, temperature=0.8, seed=seed,
        )  # fmt: skip

    def _forget(self) -> None:
        super()._forget()
        self._labels = LabelEncoder()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_one_of("variant", self.variant, ("data", "task"))
        check_at_least_zero(blend=self.blend)

    @property
    def _blend(self) -> float:  # type: ignore[override]
        return float(self.blend)

    def _pool_arguments(self) -> dict[str, Any]:
        return {"leaf_prediction": self.leaf_prediction}

    def _check_targets(self, targets: Any) -> dict[Hashable, int]:
        return self._labels.check(targets)

    def _add_labels(self, labels: list[Hashable], engine: TreeEngine | RiverEngine) -> None:
        self._labels.add(labels)
        engine.add_classes(len(labels))

    def _codes(self, targets: Any) -> NDArray[np.int64]:
        codes = self._labels.codes
        return np.array([codes[target] for target in targets], dtype=np.int64)

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
        if self._engine is None:
            return pd.DataFrame(index=X.index)
        return pd.DataFrame(self._probabilities(self._encode_frame(X)), index=X.index, columns=self._labels.labels)

    def predict_many(self, X: pd.DataFrame) -> pd.Series:
        """Most probable label of each row."""
        if self._engine is None:
            return pd.Series(index=X.index, dtype=object)
        best = self._probabilities(self._encode_frame(X)).argmax(axis=1)
        return pd.Series([self._labels.labels[code] for code in best], index=X.index)

    @property
    def classes_(self) -> NDArray[Any]:
        """Labels seen so far, sorted."""
        if self._engine is None:
            raise AttributeError("classes_ is there once a label was learned")
        return np.array(self._labels.labels)[self._order()]

    def _order(self) -> NDArray[np.intp]:
        return np.argsort(np.array(self._labels.labels), kind="stable")

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Learn rows on top of what was learned before.

        Parameters
        ----------
        X, y
            As in :meth:`fit`.
        classes : array, optional
            All labels that will come. Then one that is not among them is refused; without, new ones are welcome.
        """
        first = self._width is None
        width, names = self._width, self._names
        try:
            table = self._table(X, reset=first)
            y = column_or_1d(y, warn=True)
            check_consistent_length(table, y)
            check_classification_targets(y)
            labels = [plain(label) for label in y]
            if classes is not None:
                self._expect(np.unique(classes).tolist(), labels)
            elif first and not self._labels.codes:
                self._labels.check(labels)
                self._announce(sorted(set(labels)))
            self._learn_many(table, labels)
        except BaseException:
            self._width, self._names = width, names
            raise
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
        return self._probabilities(self._encode_frame(self._table(X, reset=False)))[:, self._order()]

    def predict(self, X: Any) -> NDArray[Any]:
        """Most probable label of each row."""
        best = self.predict_proba(X).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def saved_state(self) -> dict[str, Any]:
        """Names, categories, labels and counters."""
        return {**super().saved_state(), "labels": self._labels.state()}

    def _restore(self, state: dict[str, Any]) -> None:
        self._labels.restore(state["labels"])

    def _resize(self, engine: TreeEngine) -> None:
        super()._resize(engine)
        engine.n_classes = len(self._labels.codes)
        if engine.settings.task:
            engine.settings = engine.settings._replace(experts=engine.n_classes)
            engine.pool = engine._new_pool()
