"""A mixture seen from inside: weights by row, load by group, what the gate looks at, cost against score."""

# n rows, E experts, K classes or targets

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import r2_score
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from moeapps.core.checks import check_sizes
from moeapps.core.plots import new_figure, plot_load
from moeapps.tables.mixture.folds import take
from moeapps.tables.mixture.regions import REGION_DEPTH, find_regions

if TYPE_CHECKING:
    from moeapps.core.mixing import GatedMixture
    from moeapps.tables.mixture.features import TableFeatures

__all__ = ["MixtureInspection"]

PREDICTIONS = "(experts' predictions)"
"""Row of :meth:`MixtureInspection.gate_importance` for what the gate reads off the experts' own predictions."""


class MixtureInspection:
    """Methods to inspect gate and experts."""

    task: Any
    mixture_: "GatedMixture"
    _fitted_cascade: Any
    gate_features_: "TableFeatures"
    expert_names_: list[str]
    random_state: Any
    _table: Any
    _answers: Any
    _ask: Any
    _features: Any
    _check_target: Any
    _encode_target: Any
    _decode_target: Any

    def _row_scores(self, mixed: NDArray[np.float64], target: NDArray[Any]) -> NDArray[np.float64]:
        """Accuracy or root of the mean squared error of each row."""
        raise NotImplementedError

    def _groups(self, X: Any) -> NDArray[Any]:
        """Groups of rows where the caller names none."""
        raise NotImplementedError

    def weights(self, X: Any) -> pd.DataFrame:
        """Weight of each expert for each row; rows sum to 1.

        Parameters
        ----------
        X : DataFrame or array of shape (n, P)
            Rows.

        Returns
        -------
        DataFrame of shape (n, E)
            A column per expert. In a cascade an expert that was not run has the weight 0.
        """
        return pd.DataFrame(self._answers(X).weights, columns=self.expert_names_, index=_index(X))

    def experts_asked(self, X: Any) -> pd.DataFrame:
        """Which experts run for each row: a DataFrame (n, E) of bool.

        Parameters
        ----------
        X : DataFrame or array of shape (n, P)
            Rows.
        """
        return pd.DataFrame(self._answers(X).asked, columns=self.expert_names_, index=_index(X))

    def expert_predictions(self, X: Any) -> dict[str, NDArray[np.float64]]:
        """Predictions of each expert alone, as the gate gets them; also of those that a cascade would not run.

        Parameters
        ----------
        X : DataFrame or array of shape (n, P)
            Rows.

        Returns
        -------
        dict of str to array
            By expert: calibrated class probabilities ``(n, K)``, or targets ``(n,)`` or ``(n, T)``.
        """
        check_is_fitted(self, "mixture_")
        table = self._table(X, reset=False)
        found = self.mixture_.calibrated(self._ask(table, np.ones(len(self.expert_names_), dtype=bool)))
        by_expert = dict(zip(self.expert_names_, found.transpose(1, 0, 2), strict=True))
        if self.task == "classification":
            return {name: np.exp(logs) for name, logs in by_expert.items()}
        return {name: self._decode_target(values) for name, values in by_expert.items()}

    def expert_load(self, X: Any, groups: Any = None) -> pd.DataFrame:
        """Mean weight of each expert in each group of rows; each line sums to 1.

        Parameters
        ----------
        X : DataFrame or array of shape (n, P)
            Rows.
        groups : array of shape (n,), optional
            What to group rows by; when None, the predicted class, and for regression all rows together.

        Returns
        -------
        DataFrame
            A line per group, a column per expert.
        """
        weights = self._answers(X).weights
        groups = np.asarray(self._groups(X) if groups is None else groups)
        check_consistent_length(weights, groups)
        frame = pd.DataFrame(weights, columns=self.expert_names_)
        return frame.groupby(pd.Index(groups, name="group")).mean()

    def plot_expert_load(self, X: Any, groups: Any = None) -> Figure:
        """Plot :meth:`expert_load` as a heat map; returns a matplotlib Figure."""
        return plot_load(self.expert_load(X, groups))

    def gate_importance(self, X: Any, n_repeats: int = 5) -> pd.DataFrame:
        """How much the weights depend on each column: what part of them moves when the column is shuffled.

        The experts' predictions stay as they are, so that this is the gate's use of a column, not the experts'. The row
        ``(experts' predictions)`` shuffles these instead: how much the gate goes by the experts' own certainty.

        Parameters
        ----------
        X : DataFrame or array of shape (n, P)
            Rows.
        n_repeats : int, default=5
            Shuffles per column.

        Returns
        -------
        DataFrame
            ``column``, ``importance`` (mean over rows of half the sum of absolute changes: 0 for a gate that does not
            look, 1 at most) and ``std`` over the shuffles; most important first.
        """
        check_is_fitted(self, "mixture_")
        check_sizes(n_repeats=n_repeats)
        table = self._table(X, reset=False)
        features = self._features(table)
        predictions = self._ask(table, self.mixture_.needed)
        weights = self.mixture_.weights(features, predictions)
        rng = check_random_state(self.random_state)
        names = (
            list(table.columns) if isinstance(table, pd.DataFrame) else [f"column {i}" for i in range(table.shape[1])]
        )
        moved: dict[Any, list[float]] = {name: [] for name in [*names, PREDICTIONS]}
        for _ in range(n_repeats):
            order = rng.permutation(len(table))
            for position, name in enumerate(names):
                shuffled = self._features(_shuffled(table, position, order))
                now = self.mixture_.weights(shuffled, predictions)
                moved[name].append(float(np.abs(now - weights).sum(axis=1).mean() / 2))
            now = self.mixture_.weights(features, predictions[order])
            moved[PREDICTIONS].append(float(np.abs(now - weights).sum(axis=1).mean() / 2))
        frame = pd.DataFrame(
            {
                "column": list(moved),
                "importance": [float(np.mean(values)) for values in moved.values()],
                "std": [float(np.std(values)) for values in moved.values()],
            }
        )
        return frame.sort_values("importance", ascending=False, kind="stable", ignore_index=True)

    def regions(self, X: Any, y: Any = None, max_depth: int = REGION_DEPTH) -> pd.DataFrame:
        """Where which expert leads, as rules: the leaves of a shallow tree on the gate's weights.

        Parameters
        ----------
        X : DataFrame or array of shape (n, P)
            Rows.
        y : array of shape (n,) or (n, T), optional
            Targets; then every expert is scored in every region: accuracy, or root of the mean squared error.
        max_depth : int, default=2
            Conditions per rule, at most.

        Returns
        -------
        DataFrame
            ``where`` ("age <= 30 and city is Ulm"), ``rows``, ``leader`` (expert of the largest mean weight),
            ``weight <expert>`` for each and, with ``y``, ``score <expert>`` and ``score mixture``; largest first.
        """
        check_is_fitted(self, "mixture_")
        check_sizes(max_depth=max_depth)
        table = self._table(X, reset=False)
        answer = self._answers(X)
        scores: dict[str, NDArray[np.float64]] = {}
        if y is not None:
            check_consistent_length(table, y)
            target = self._encode_target(self._check_target(y))
            predictions = self.mixture_.calibrated(self._ask(table, np.ones(len(self.expert_names_), dtype=bool)))
            for index, name in enumerate(self.expert_names_):
                scores[name] = self._row_scores(predictions[:, index], target)
            scores["mixture"] = self._row_scores(answer.mixed, target)
        return find_regions(self.gate_features_, table, answer.weights, self.expert_names_, scores, max_depth)

    def cost_curve(self, X: Any, y: Any) -> pd.DataFrame:
        """Loss and score of a cascade against its cost, measured on these rows.

        Parameters
        ----------
        X : DataFrame or array of shape (n, P)
            Rows that the mixture was not fitted on.
        y : array of shape (n,) or (n, T)
            Their targets.

        Returns
        -------
        DataFrame
            A line per threshold: ``threshold``, ``cost`` (mean per row, as a fraction of running all), ``loss`` and
            ``accuracy`` or, for regression, ``r2``.
        """
        features, predictions, target = self._judged(X, y)
        return self._fitted_cascade().curve(features, predictions, target, np.ones(len(target)))

    def plot_cost_curve(self, X: Any, y: Any) -> Figure:
        """Plot :meth:`cost_curve`, with a point for each expert alone; returns a matplotlib Figure."""
        features, predictions, target = self._judged(X, y)
        curve = self._fitted_cascade().curve(features, predictions, target, np.ones(len(target)))
        measure = "accuracy" if self.task == "classification" else "r2"
        figure = new_figure()
        axes = figure.axes[0]
        curve = curve.sort_values("cost")
        axes.plot(curve["cost"], curve[measure], marker=".", linewidth=1.3, label="cascade")
        costs: Any = self.costs_  # type: ignore[attr-defined]
        for index, name in enumerate(self.expert_names_):
            score = _total_score(predictions[:, index], target, self.task)
            axes.plot(costs[name] / costs.sum(), score, "o", label=str(name))
        mixed = self.mixture_.mix(features, predictions)
        score = _total_score(mixed, target, self.task)
        axes.axhline(score, color="black", linewidth=0.8, linestyle=":", label="all asked")
        axes.set(xlabel="mean cost per row, as a fraction of asking all experts", ylabel=measure)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
        return figure

    def _judged(self, X: Any, y: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[Any]]:
        """Features, predictions of all experts, and targets of rows."""
        check_is_fitted(self, "mixture_")
        table = self._table(X, reset=False)
        check_consistent_length(table, y)
        target = self._encode_target(self._check_target(y))
        predictions = self._ask(table, np.ones(len(self.expert_names_), dtype=bool))
        return self._features(table), predictions, target


def _total_score(predicted: NDArray[np.float64], target: NDArray[Any], task: str) -> float:
    if task == "classification":
        return float((predicted.argmax(axis=1) == target).mean())
    return float(r2_score(target, predicted))


def _index(X: Any) -> Any:
    return X.index if isinstance(X, pd.DataFrame) else None


def _shuffled(table: Any, position: int, order: NDArray[np.int64]) -> Any:
    """The table with one column in another order."""
    copied = table.copy()
    if isinstance(table, pd.DataFrame):
        column = table.iloc[order, position]
        column.index = table.index
        copied.isetitem(position, column)
    else:
        copied[:, position] = take(table, order)[:, position]
    return copied
