"""What each expert is for: how often it leads, on which classes, and where, as rules of a shallow tree."""

# n rows, E experts, F readable features

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.tree import DecisionTreeClassifier

from moeapps.core.rules import Readable, leaf_rules
from moeapps.core.views import Map
from moeapps.report.judged import Judged, Target
from moeapps.report.sections import Section, Table, listed, number, percent, plural

__all__ = ["expert_roles", "readable_features"]

DEPTH = 3
"""Conditions per rule, at most."""

LEAF = 0.03
"""A rule holds for at least this part of the rows."""

RULE = 0.25
"""Part of the rows not led by the most frequent leader that a tree must get right, for its rules to be shown."""

ROWS = 5000
"""Rows that a tree is fitted to, at most."""

CATEGORIES = 10
"""Categories of a column that a rule may name: the most frequent ones."""

SHOWN = 24
"""Experts of the table, at most: those that lead most rows."""

ALIKE = 0.02
"""Largest difference between weights that are called alike."""


def expert_roles(judged: Judged, model: Any, seed: int) -> list[Section]:
    """Tables, a map and rules about the experts; none for a model without.

    Parameters
    ----------
    judged : Judged
        Rows with ``weights``.
    model
        The model; a mixture of estimators says by region how its experts score.
    seed : int
        Of the tree.
    """
    weights = judged.weights
    if judged.maps:
        return [Section("What the experts are for", maps=judged.maps)]
    if weights is None or weights.shape[1] < 2 or len(judged) < 2:
        return []
    section = Section("What each expert is for")
    if judged.layer:
        section.text.append(f"Experts {judged.layer}.")
    values = weights.to_numpy(dtype=np.float64)
    leaders = values.argmax(axis=1)
    if float(np.ptp(values, axis=1).max()) <= ALIKE:
        section.text.append(f"All experts have the same weight in every {judged.row_name}: none has a task of its own.")
        return [section]
    section.tables.append(_leading(judged, values, leaders))
    if float(np.ptp(values, axis=0).max()) <= ALIKE:
        section.text.append(f"Every {judged.row_name} gets the same weights.")
        return [section]
    _by_class(judged.first, weights, section)
    if hasattr(model, "regions") and judged.frame is not None and judged.opinions:
        _regions(model, judged, section)
    elif judged.frame is not None:
        _rules(judged, leaders, section, seed)
    return [section]


def _leading(judged: Judged, values: NDArray[np.float64], leaders: NDArray[np.int64]) -> Table:
    """How often each expert has the largest weight, and how well these rows are predicted."""
    target, names = judged.first, list(judged.weights.columns)  # type: ignore[union-attr]
    counts = np.bincount(leaders, minlength=len(names))
    good = (target.best == target.truth).astype(float) if target.classification else target.losses
    measure = "accuracy there" if target.classification else "mean absolute error there"
    columns = ["expert", "mean weight", "leads in", measure]
    columns += ["its own accuracy there" if target.classification else "its own error there"] if judged.opinions else []
    columns += ["most frequent class there"] if target.classification else ["mean prediction there"]
    rows = []
    for e in np.argsort(-counts, kind="stable")[:SHOWN]:
        led = leaders == e
        cells = [str(names[e]), percent(values[:, e].mean()), percent(counts[e] / len(leaders))]
        cells.append(_score(good[led], target) if led.any() else "")
        if judged.opinions:
            own = judged.opinions.get(str(names[e]))
            cells.append(_score(_right(target, own)[led], target) if own is not None and led.any() else "")
        cells.append(_typical(target, led) if led.any() else "")
        rows.append(cells)
    top = int(counts.argmax())
    idle = [str(names[e]) for e in np.flatnonzero(counts == 0)]
    title = f"{names[top]} leads in {percent(counts[top] / len(leaders))} of the {judged.row_name}s"
    title += f"; {listed(idle)} in none" if idle else ""
    return Table(title, columns, rows, numbers=len(columns) - 1)


def _right(target: Target, opinion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Accuracy, or absolute error, of an expert by itself in each row."""
    alone = Target("", target.truth, opinion, target.classes)
    return (alone.best == target.truth).astype(float) if target.classification else alone.losses


def _score(values: NDArray[np.float64], target: Target) -> str:
    return percent(values.mean()) if target.classification else number(values.mean())


def _typical(target: Target, led: NDArray[np.bool_]) -> str:
    if not target.classification:
        return number(target.predicted[led].mean(), 4)
    shares = np.bincount(target.truth[led], minlength=len(target.classes)) / led.sum()
    return f"{target.classes[int(shares.argmax())]} ({percent(shares.max())})"


def _by_class(target: Target, weights: pd.DataFrame, section: Section) -> None:
    if not target.classification or len(target.classes) > 30:
        return
    names = np.asarray(target.classes, dtype=object)[target.truth]
    means = weights.groupby(names).mean().reindex([name for name in target.classes if name in set(names)])
    spread = means.max() - means.min()
    if len(means) < 2 or float(spread.max()) < 2 * ALIKE:
        section.text.append("The experts' mean weights are the same in every class.")
        return
    best = str(spread.idxmax())
    title = (
        f"{best} has {percent(float(means[best].max()))} of the weight for {means[best].idxmax()}, "
        f"{percent(float(means[best].min()))} for {means[best].idxmin()}"
    )
    section.maps.append(Map.of(title, means, "true class", percent=True))


def _regions(model: Any, judged: Judged, section: Section) -> None:
    """Where which expert leads, with the score of each expert there: a mixture of estimators knows."""
    target = judged.first
    y = (
        np.asarray(model.classes_)[target.truth]
        if target.classification
        else np.column_stack([one.truth for one in judged.targets]).squeeze()
    )
    X = judged.frame if hasattr(model, "feature_names_in_") else judged.frame.to_numpy()  # type: ignore[union-attr]
    found = model.regions(X, y, max_depth=2)
    scores = [name for name in found if str(name).startswith("score ")]
    rows = []
    for record in found.to_dict("records"):
        cells = [record["where"], f"{record['rows']:,}", record["leader"]]
        rows.append(cells + [percent(record[s]) if target.classification else number(record[s]) for s in scores])
    measure = "accuracy" if target.classification else "root mean squared error"
    heads = [f"{str(name).removeprefix('score ')}" for name in scores]
    leaders = list(dict.fromkeys(found["leader"]))
    title = (
        f"{leaders[0]} has the largest weight everywhere" if len(leaders) == 1
        else "Which expert has the largest weight depends on the columns"
    )  # fmt: skip
    title += f" ({measure} of each expert and of the mixture there)"
    section.tables.append(
        Table(title, ["where", f"{judged.row_name}s", "leads", *heads], rows, numbers=1 + 1 + len(heads))
    )


def readable_features(frame: pd.DataFrame) -> tuple[list[Readable], NDArray[np.float64]]:
    """Columns as features that a rule can name.

    Parameters
    ----------
    frame : DataFrame of n rows
        Numbers stay (missing ones NaN), times become days since 1970, of other columns each of the ten most frequent
        values becomes a column of 0 and 1. Columns of lists, and of text that differs in nearly every row, are left
        out.

    Returns
    -------
    list of Readable, array of shape (n, F)
        The features.
    """
    named: list[Readable] = []
    columns: list[Any] = []
    for name, column in frame.items():
        if pd.api.types.is_datetime64_any_dtype(column):
            days = (column.dt.tz_localize(None) - pd.Timestamp(0)) / pd.Timedelta(days=1)
            named.append(Readable(str(name), "time"))
            columns.append(days.to_numpy(dtype=float, na_value=np.nan))
        elif pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            named.append(Readable(str(name), "number"))
            columns.append(pd.to_numeric(column).to_numpy(dtype=float, na_value=np.nan))
        else:
            text = column.map(lambda value: "missing" if _gone(value) else str(value)).astype(str)
            counts = text.value_counts()
            if len(counts) > max(0.5 * len(text), CATEGORIES):
                continue
            for value in counts.index[: CATEGORIES if len(counts) > 2 else 1]:
                named.append(Readable(str(name), "category", str(value)))
                columns.append((text == value).to_numpy(dtype=float))
    return named, np.column_stack(columns) if columns else np.zeros((len(frame), 0))


def _gone(value: Any) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _rules(judged: Judged, leaders: NDArray[np.int64], section: Section, seed: int) -> None:
    """Leaves of a tree that predicts the leading expert, or that there is no simple rule."""
    rows = np.arange(len(leaders))
    if len(rows) > ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, ROWS, replace=False))
    readable, features = readable_features(judged.frame.iloc[rows])  # type: ignore[union-attr]
    names, leaders = list(judged.weights.columns), leaders[rows]  # type: ignore[union-attr]
    majority = float(np.bincount(leaders).max() / len(leaders))
    if features.shape[1] == 0 or len(set(leaders.tolist())) < 2 or len(rows) < 50:
        return
    features = np.clip(features, -3e38, 3e38)  # the tree computes in float32
    tree = DecisionTreeClassifier(max_depth=DEPTH, min_samples_leaf=max(5, int(LEAF * len(rows))), random_state=seed)
    folds = KFold(5, shuffle=True, random_state=seed)  # not stratified: an expert may lead a single row
    accuracy = float((cross_val_predict(tree, features, leaders, cv=folds) == leaders).mean())
    if accuracy - majority < RULE * (1 - majority):
        section.text.append(
            f"No simple rule says which expert leads: up to {DEPTH} conditions on the columns get "
            f"{percent(accuracy)} of the {judged.row_name}s right, naming always "
            f"{names[int(np.bincount(leaders).argmax())]} gets {percent(majority)}."
        )
        return
    tree.fit(features, leaders)
    leaves = tree.apply(features)
    rules = leaf_rules(tree.tree_, readable, np.asarray(np.isnan(features).any(axis=0)))
    cells = []
    for leaf in np.unique(leaves):
        inside = leaders[leaves == leaf]
        counts = np.bincount(inside)
        lead = int(counts.argmax())
        cells.append(
            (len(inside), [rules[leaf], str(names[lead]), f"{len(inside):,}", percent(counts[lead] / len(inside))])
        )
    cells.sort(key=lambda cell: -cell[0])
    title = (
        f"A simple rule says which expert leads, right for {percent(accuracy)} of {plural(len(rows), judged.row_name)} "
        f"(always the same expert: {percent(majority)})"
    )
    section.tables.append(
        Table(title, ["where", "expert", f"{judged.row_name}s", "led by it"], [row for _, row in cells], numbers=2)
    )
