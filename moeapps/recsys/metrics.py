"""Metrics of a ranking: AUC, per-user AUC, log loss, NDCG, calibration; per task and per slice of users.

``gauc`` and ``ndcg_at_k`` are computed for all users at once. ``torchmetrics.retrieval`` and ``sklearn.metrics`` loop
over users (10 to 40 times slower on 20,000 rows of 900 users) and measure something else: their NDCG has the gain y
instead of 2^y - 1 and averages over ties, their AUC per user is not weighted by the user's rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import log_loss, mean_absolute_error, r2_score, roc_auc_score

from moeapps.core.checks import check_sizes
from moeapps.core.errors import DataError
from moeapps.core.views import Map
from moeapps.recsys.encoder import FIRST, TableEncoder
from moeapps.recsys.targets import Targets

__all__ = [
    "ScenarioScores",
    "auc",
    "calibration",
    "gauc",
    "ndcg_at_k",
    "number_table",
    "scenario_slices",
    "slice_masks",
    "task_table",
]


def auc(y: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve.

    Parameters
    ----------
    y : array of shape (N,)
        Labels 0 and 1, NaN where not known.
    score : array of shape (N,)
        Scores; higher means more likely.

    Returns
    -------
    float
        NaN if the known labels are of one class, or there is none.

    Raises
    ------
    DataError
        If lengths differ, a score is NaN or infinite, or a label is neither 0 nor 1.
    """
    truth, scores = _known(y, score)
    _check_binary(truth)
    return float(roc_auc_score(truth, scores)) if 0 < truth.sum() < len(truth) else float("nan")


def gauc(y: ArrayLike, score: ArrayLike, group: ArrayLike) -> float:
    """AUC within each user, averaged over users with the number of their rows as weight (Zhu et al., KDD 2018).

    Parameters
    ----------
    y, score : array of shape (N,)
        As in :func:`auc`, which also has the errors.
    group : array of shape (N,)
        User of each row. Users whose labels are of one class are left out.

    Returns
    -------
    float
        NaN if no user has labels of both classes.
    """
    # The area is the Mann-Whitney statistic: with R the sum of the ranks of the P positive rows among all,
    # (R - P (P + 1) / 2) / (P * negative rows). Ties have their mean rank.
    truth, scores, users = _known(y, score, group)
    _check_binary(truth)
    frame = pd.DataFrame({"y": truth, "group": users, "score": scores})
    frame["ranks"] = frame.groupby("group")["score"].rank() * frame["y"]
    per = frame.groupby("group").agg(n=("y", "size"), positive=("y", "sum"), ranks=("ranks", "sum"))
    per = per[(per["positive"] > 0) & (per["positive"] < per["n"])]
    if len(per) == 0:
        return float("nan")
    positive, negative = per["positive"], per["n"] - per["positive"]
    areas = (per["ranks"] - positive * (positive + 1) / 2) / (positive * negative)
    return float(np.average(areas, weights=per["n"]))


def ndcg_at_k(y: ArrayLike, score: ArrayLike, group: ArrayLike, k: int = 10) -> float:
    """Normalised discounted cumulative gain of each user's k best rows, mean over users with a positive row.

    Gains are ``2^y - 1``; rows with equal scores keep their order.

    Parameters
    ----------
    y : array of shape (N,)
        Relevance, at least 0; NaN where not known.
    score : array of shape (N,)
        Scores; higher means more relevant.
    group : array of shape (N,)
        User of each row.
    k : int, default=10
        Number of rows per user.

    Returns
    -------
    float
        NaN if no user has a row of relevance above 0.

    Raises
    ------
    DataError
        If lengths differ, a score is NaN or infinite, or a relevance is below 0.
    """
    check_sizes(k=k)
    truth, scores, users = _known(y, score, group)
    if (truth < 0).any():
        raise DataError(f"y must be relevance of at least 0, got {truth.min():g}")
    frame = pd.DataFrame({"gain": np.exp2(truth) - 1, "score": scores, "group": users})
    gains = {}
    for kind, by in (("dcg", "score"), ("ideal", "gain")):
        rank = frame.sort_values(by, ascending=False, kind="stable").groupby("group").cumcount()
        discount = np.where(rank < k, 1 / np.log2(rank + 2.0), 0.0)
        gains[kind] = (frame["gain"].loc[rank.index] * discount).groupby(frame["group"]).sum()
    ideal = gains["ideal"][gains["ideal"] > 0]
    return float((gains["dcg"][ideal.index] / ideal).mean()) if len(ideal) else float("nan")


def calibration(y: ArrayLike, probability: ArrayLike) -> float:
    """Mean prediction divided by mean label: 1 is calibrated, 2 predicts twice as many positives as there are.

    Parameters
    ----------
    y, probability : array of shape (N,)
        Labels as in :func:`auc`, which also has the errors; predicted probabilities.

    Returns
    -------
    float
        NaN without positive labels.
    """
    truth, predicted = _known(y, probability)
    _check_binary(truth)
    return float(predicted.mean() / truth.mean()) if truth.sum() > 0 else float("nan")


SCENARIOS = 20
"""Number of scenarios whose AUC is logged: more would hide the other metrics of an epoch."""


@dataclass(frozen=True)
class ScenarioScores:
    """AUC of each binary task in each scenario.

    Parameters
    ----------
    column : str
        The scenarios' column.
    auc : DataFrame
        One row per task, one column per scenario; NaN where the known labels are of one class.
    rows : Series
        Number of rows of each scenario.
    """

    column: str
    auc: pd.DataFrame
    rows: pd.Series

    @classmethod
    def measure(
        cls, outputs: Any, labels: Any, codes: Any, targets: Targets, encoder: TableEncoder, column: str
    ) -> Self:
        """Measure outputs ``(N, T)`` against labels ``(N, T)`` for the scenarios that training saw first, at most 20.

        Which scenarios are measured depends on the table only, so that all processes log the same.
        """
        values = encoder.values.get(column)
        number = encoder.table_sizes[encoder.table_names.index(column)] - FIRST
        names = [str(s) for s in (range(number) if values is None else values)][:SCENARIOS]
        binary = [name for name in targets.names if targets.kinds[name] == "binary"]
        masks = {name: codes == s + FIRST for s, name in enumerate(names)}
        areas = [
            [auc(labels[mask, t], outputs[mask, t]) for mask in masks.values()]
            for t in map(targets.names.index, binary)
        ]
        rows = pd.Series({name: int(mask.sum()) for name, mask in masks.items()}, dtype=int)
        return cls(column, pd.DataFrame(areas, index=pd.Index(binary), columns=pd.Index(names)), rows)

    def present(self) -> Self:
        """Without the scenarios that have no row."""
        rows = self.rows[self.rows > 0]
        return replace(self, auc=self.auc[list(rows.index)], rows=rows)

    def metrics(self) -> dict[str, float]:
        """``<task>/<scenario>`` to its AUC."""
        return {
            f"{task}/{name}": float(self.auc.loc[task, name]) for task in self.auc.index for name in self.auc.columns
        }

    def map(self) -> Map:
        """For a report: tasks by scenarios, with the number of rows."""
        shown = self.auc.set_axis([f"{name} ({self.rows[name]:,} rows)" for name in self.auc.columns], axis=1)
        return Map.of(f"AUC by task and {self.column}", shown, "task", self.column)


def scenario_slices(frame: pd.DataFrame, column: str) -> dict[str, NDArray[np.bool_]]:
    """Masks ``(N,)`` of the rows of each value of a column, the most frequent first; missing values are one slice.

    Raises
    ------
    DataError
        If the frame has no such column.
    """
    if column not in frame.columns:
        raise DataError(f"scenario={column!r} is not a column of the frame")
    codes, values = pd.factorize(frame[column], use_na_sentinel=True)
    names = {code: f"{column}={value}" for code, value in enumerate(values)} | {-1: f"{column} missing"}
    return {names[code]: np.asarray(codes == code) for code in pd.Series(codes).value_counts().index}


def task_table(
    truth: pd.DataFrame,
    probability: pd.DataFrame,
    group: ArrayLike | None = None,
    slices: Mapping[str, ArrayLike] | None = None,
    k: int = 10,
) -> pd.DataFrame:
    """One row per binary task (and slice): rows, AUC, log loss, calibration, and with users GAUC and NDCG@k.

    Parameters
    ----------
    truth : DataFrame
        Labels 0 and 1, a column per task; NaN where a label is not known.
    probability : DataFrame
        Predicted probabilities, with the same columns and number of rows.
    group : array of shape (N,), optional
        User of each row.
    slices : dict, optional
        Name to a mask ``(N,)`` of rows, such as those of users with a short history.
    k : int, default=10
        Number of rows per user for NDCG.

    Returns
    -------
    DataFrame
        Columns ``task``, ``slice`` (``"all"`` or its name), ``rows`` (with a known label), ``auc``, ``logloss``,
        ``calibration`` and, with ``group``, ``gauc`` and ``ndcg@<k>``.

    Raises
    ------
    DataError
        If columns or lengths differ.
    """
    if list(truth.columns) != list(probability.columns) or len(truth) != len(probability):
        raise DataError(
            f"truth has {len(truth)} rows of {list(truth.columns)}, probability {len(probability)} rows of "
            f"{list(probability.columns)}, expected the same"
        )
    masks = _masks(len(truth), slices)
    users = None if group is None else np.asarray(group)
    rows = []
    for task in truth.columns:
        for name, mask in masks.items():
            y, p = truth[task].to_numpy(dtype=float)[mask], probability[task].to_numpy(dtype=float)[mask]
            known = ~np.isnan(y)
            row: dict[str, Any] = {"task": task, "slice": name, "rows": int(known.sum()), "auc": auc(y, p)}
            row["logloss"] = float(log_loss(y[known], p[known], labels=[0, 1])) if known.any() else float("nan")
            row["calibration"] = calibration(y, p)
            if users is not None:
                row["gauc"], row[f"ndcg@{k}"] = gauc(y, p, users[mask]), ndcg_at_k(y, p, users[mask], k)
            rows.append(row)
    return pd.DataFrame(rows)


def number_table(
    truth: pd.DataFrame, predicted: pd.DataFrame, slices: Mapping[str, ArrayLike] | None = None
) -> pd.DataFrame:
    """One row per target that is a number (and slice): rows, R2 and mean absolute error.

    Parameters
    ----------
    truth : DataFrame
        Numbers, a column per task; NaN where one is not known.
    predicted : DataFrame
        Predicted numbers, with the same columns and number of rows.
    slices : dict, optional
        Name to a mask ``(N,)`` of rows.

    Returns
    -------
    DataFrame
        Columns ``task``, ``slice``, ``rows`` (with a known number), ``r2`` (NaN for fewer than two rows) and ``mae``.

    Raises
    ------
    DataError
        If a mask has another length.
    """
    rows: list[dict[str, Any]] = []
    for task in truth.columns:
        for name, mask in _masks(len(truth), slices).items():
            y, p = truth[task].to_numpy(dtype=float)[mask], predicted[task].to_numpy(dtype=float)[mask]
            known = ~np.isnan(y)
            y, p = y[known], p[known]
            scores = {"r2": float(r2_score(y, p)) if len(y) > 1 else float("nan")}
            scores["mae"] = float(mean_absolute_error(y, p)) if len(y) else float("nan")
            rows.append({"task": task, "slice": name, "rows": len(y), **scores})
    return pd.DataFrame(rows)


def _masks(rows: int, slices: Mapping[str, ArrayLike] | None) -> dict[str, NDArray[np.bool_]]:
    """Which rows are measured, by the name of the slice."""
    return {"all": np.ones(rows, dtype=bool), **slice_masks(slices, rows)}


def slice_masks(slices: Mapping[str, ArrayLike] | None, rows: int, what: str = "") -> dict[str, NDArray[np.bool_]]:
    """The masks ``(N,)`` of slices, checked.

    Raises
    ------
    DataError
        If one has another length, or holds something else than True and False (or 1 and 0).
    """
    masks = {}
    for name, given in (slices or {}).items():
        mask = np.asarray(given)
        if mask.shape != (rows,):
            size = f"{len(mask)} rows" if mask.ndim == 1 else f"the shape {mask.shape}"
            raise DataError(f"slices: {name!r} has {size}, expected {what}{rows}")
        # Cells are compared one by one: bool(NaN) and bool("no") are True
        wrong = [] if mask.dtype == bool else [value for value in mask.tolist() if not _is_flag(value)]
        if wrong:
            raise DataError(f"slices: {name!r} must be a mask of True and False, got {wrong[0]!r}")
        masks[name] = mask.astype(bool)
    return masks


def _is_flag(value: object) -> bool:
    return isinstance(value, bool | np.bool_ | int | float) and value in (0, 1)


def _check_binary(truth: NDArray[np.float64]) -> None:
    other = truth[(truth != 0) & (truth != 1)]
    if len(other):
        raise DataError(f"y must be labels 0 and 1, got {other[0]:g}")


def _known(y: ArrayLike, *others: ArrayLike) -> tuple[Any, ...]:
    """Rows whose label is known, of all arrays; the second one holds scores."""
    arrays = [np.asarray(y, dtype=float), *map(np.asarray, others)]
    if len({len(array) for array in arrays}) != 1:
        raise DataError(f"y, scores and groups have {', '.join(str(len(array)) for array in arrays)} rows")
    known = ~np.isnan(arrays[0])
    arrays = [array[known] for array in arrays]
    if len(arrays) > 1 and not np.isfinite(arrays[1].astype(float)).all():
        raise DataError("a score is NaN or infinite")
    return tuple(arrays)
