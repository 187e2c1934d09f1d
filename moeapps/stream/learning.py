"""How the stream estimators learn: one instance, or a batch that ends in the same state."""

import copy
import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moeapps.core.errors import DataError
from moeapps.core.tabledata.frames import as_frame
from moeapps.stream.encoding import Encoded, FeatureEncoder, OnBad
from moeapps.stream.engine import KindEngine, RiverEngine, TreeEngine
from moeapps.stream.labels import targets_of
from moeapps.stream.row_encoding import NO_FEATURES

__all__ = ["StreamLearning"]


class StreamLearning:
    """Mixed into :class:`~moeapps.stream.estimator.StreamEstimator`.

    How an instance is learned:

    1. The target is checked, and the encoder turns the features into a row (:class:`Encoded`). Nothing has changed so
       far, so an instance with a bad value can be refused.
    2. Where something is unseen (a feature, a category, a label), the engine predicts with what it knows, then features
       and labels are committed and the engine grows.
    3. The engine predicts and learns the row (:mod:`~moeapps.stream.compiled.mixture` lists the steps).

    A batch is cut before each row that has something unseen, so a batch and a loop over its rows end in the same state
    and predict the same.
    """

    on_bad: OnBad
    max_features: int
    max_categories: int
    missing_values: Any
    column_types: Any
    _numbers: bool
    _engine: TreeEngine | RiverEngine | None
    _features: FeatureEncoder
    _skipped: int

    @property
    def _encoder(self) -> FeatureEncoder:
        """The encoder, with the present settings: ``set_params`` may change them between two instances."""
        encoder = self._features
        encoder.configure(
            self.max_features, self.max_categories, self.on_bad, self.missing_values, self.column_types
        )  # fmt: skip
        return encoder

    def _start(self) -> TreeEngine | RiverEngine:
        raise NotImplementedError

    def _checked_votes(self, votes: Any) -> NDArray[Any]:
        raise NotImplementedError

    def _learn_encoded(
        self, encoded: Encoded, targets: Any, added: Mapping[Hashable, int], **late: NDArray[Any]
    ) -> NDArray[Any]:
        """Learn rows, growing where features or labels (``added``: by row) appear for the first time.

        ``late`` may have the experts' ``votes`` of when a single instance came.

        Returns
        -------
        array of shape (n,)
            What was predicted before: classes, or numbers.
        """
        encoder = self._features
        table = encoded.table
        if len(table) > 1 and isinstance(self._engine, KindEngine):
            self._engine.n_jobs = getattr(self, "n_jobs", None)  # set_params may have changed it
        if encoded.unseen is None and not added and self._engine is not None:
            if encoded.bad_names or encoded.ignored:
                encoder.count(encoded)
            return self._engine.learn(table, self._codes(targets), **late)
        engine = self._engine or self._start()
        predictions = np.empty(len(table), dtype=np.float64 if self._numbers else np.int64)
        first_rows = [row for row, _ in encoded.unseen.features.values()] if encoded.unseen else []
        new_codes = encoder.rows_of_new_codes(encoded)
        labels: dict[int, list[Hashable]] = {}
        for label, row in added.items():
            labels.setdefault(row, []).append(label)
        cuts = sorted({0, *first_rows, *new_codes, *labels})
        shift = 0
        for first, last in zip(cuts, [*cuts[1:], len(table)], strict=True):
            unknown = [column + shift for column in new_codes.get(first, [])]
            before = self._predict_before_growth(engine, table[first : first + 1], unknown)
            if self._grow(engine, encoded, first, labels.get(first, [])):
                table, shift = np.column_stack([np.full(len(table), np.nan), table]), 1
            rows = _padded(table[first:last], engine.n_features)
            predictions[first:last] = engine.learn(rows, self._codes(targets[first:last]), **late)
            predictions[first] = before
        encoder.count(encoded)
        self._engine = engine
        return predictions

    def _grow(self, engine: TreeEngine | RiverEngine, encoded: Encoded, row: int, labels: list[Hashable]) -> bool:
        """Commit what is unseen up to a row, and make room for it in the engine.

        Returns
        -------
        bool
            Whether a first column had to be added that is always missing, since no feature is known.
        """
        encoder = self._features
        if encoded.unseen is not None:
            nominal, room = encoder.commit(encoded.unseen, row)
            if nominal:
                engine.add_features(nominal)
            if room:
                engine.add_values(room)
        if labels:
            self._add_labels(labels, engine)
        if engine.n_features > 0:
            return False
        engine.add_features([False])
        encoder.columns[NO_FEATURES] = 0
        encoder.nominal.append(False)
        return True

    def _predict_before_growth(
        self, engine: TreeEngine | RiverEngine, row: NDArray[np.float64], unknown: Sequence[int]
    ) -> float:
        """Prediction for an instance with something unseen, from what was known before it; NaN or -1 for none.

        ``unknown`` are its columns with a new category: the engine gets what :meth:`predict_one` would give it.
        """
        if engine.n_features == 0 or engine.n_classes == 0:
            return math.nan if self._numbers else -1
        known = np.array(row[:, : engine.n_features])
        known[0, [column for column in unknown if column < engine.n_features]] = -1.0
        out, _ = engine.predict(known)
        return float(out[0, 0] if self._numbers else out[0].argmax())

    def _add_labels(self, labels: list[Hashable], engine: TreeEngine | RiverEngine) -> None:
        raise NotImplementedError

    def _codes(self, targets: Any) -> NDArray[Any]:
        raise NotImplementedError

    def _check_targets(self, targets: Any) -> dict[Hashable, int]:
        raise NotImplementedError

    def _label_of(self, code: Any) -> Any:
        """The label, or number, that an engine's prediction stands for."""
        raise NotImplementedError

    def learn_one(self, x: dict[Hashable, Any], y: Any, votes: Any = None) -> None:
        """Learn one instance.

        Parameters
        ----------
        x : dict
            Features by name: numbers, or categories (text, or anything else that can be hashed). A missing feature is
            None, NaN, or absent. New names may appear at any time.
        y : label or float
            The target.
        votes : array, optional
            What :meth:`votes_one` gave when the instance came, where the label is late and other instances have been
            learned since: the experts are then judged by what they knew.

        Raises
        ------
        DataError
            If the target cannot be learned, the votes are not this model's, or a feature has a bad value and ``on_bad``
            is "raise". Nothing has been learned or changed then.
        """
        added = self._check_targets([y])
        late = {} if votes is None else {"votes": self._checked_votes(votes)}
        try:
            encoded = self._encoder.encode(x)
        except DataError:
            if self.on_bad != "skip":
                raise
            self._skipped += 1
            return
        self._learn_encoded(encoded, [y], added, **late)

    def test_then_train(
        self, rows: Sequence[dict[Hashable, Any]], targets: Sequence[Any]
    ) -> tuple[list[Any], dict[int, DataError]]:
        """Predict each instance, then learn it, in one pass, as a prequential evaluation or a stream processor does.

        The same as :meth:`predict_one` and :meth:`learn_one` in turns, but an instance that is refused does not stop
        the others.

        Parameters
        ----------
        rows : sequence of dict
            n instances.
        targets : sequence
            Their n targets.

        Returns
        -------
        predictions : list
            n predictions; None where there was none.
        refused : dict
            Why an instance was refused, by its index.
        """
        predictions: list[Any] = [None] * len(rows)
        refused: dict[int, DataError] = {}
        waiting: list[Sequence[float]] = []  # rows with nothing unseen are learned together, in one compiled call
        indices: list[int] = []

        def learn(encoded: Encoded, indices: list[int], added: Mapping[Hashable, int]) -> None:
            codes = self._learn_encoded(encoded, [targets[index] for index in indices], added)
            for index, code in zip(indices, codes.tolist(), strict=True):
                predictions[index] = self._label_of(code)

        encoder = self._encoder
        for index, (x, y) in enumerate(zip(rows, targets, strict=True)):
            try:
                added = self._check_targets([y])
                encoded = encoder.encode(x)
            except DataError as error:
                if self.on_bad == "skip":
                    self._skipped += 1
                refused[index] = error
                continue
            if encoded.unseen is None and not added and self._engine is not None:
                if encoded.bad_names or encoded.ignored:
                    encoder.count(encoded)
                waiting.extend(encoded.rows)
                indices.append(index)
                continue
            if waiting:
                learn(Encoded(waiting), indices, {})
                waiting, indices = [], []
            learn(encoded, [index], added)
        if waiting:
            learn(Encoded(waiting), indices, {})
        return predictions, refused

    def why_left_out(self, x: dict[Hashable, Any], y: Any) -> DataError | None:
        """Why :meth:`learn_one` would not learn an instance, raising or skipping it; None if it would. Learns nothing.

        Its target is checked first, then its features.
        """
        try:
            self._check_targets([y])
            self._encoder.encode(x)
        except DataError as error:
            return error
        return None

    def check_one(self, x: dict[Hashable, Any], y: Any) -> None:
        """Raise the DataError that :meth:`learn_one` would raise, and learn nothing."""
        self._check_targets([y])
        if self.on_bad != "skip":
            self._encoder.encode(x)

    def learn_many(self, X: pd.DataFrame, y: Any) -> None:
        """Learn the rows of a frame, one after the other: the same as :meth:`learn_one` in a loop, bit for bit.

        Parameters
        ----------
        X : DataFrame of shape (n, F)
            Columns are features; also a polars frame or an Arrow table.
        y : array of shape (n,)
            Targets.

        Raises
        ------
        DataError
            As :meth:`learn_one`; then no row has been learned.
        """
        self._learn_frame(X, y)

    def test_then_train_many(self, X: pd.DataFrame, y: Any) -> list[Any]:
        """:meth:`learn_many`, and what was predicted for each row before it; None where there was no prediction."""
        return self.test_then_train_frame(X, y)[0]

    def test_then_train_frame(self, X: pd.DataFrame, y: Any) -> tuple[list[Any], list[bool]]:
        """:meth:`test_then_train_many`, and which of the rows were learned: with ``on_bad="skip"`` not all may be."""
        codes, good = self._learn_frame(X, y)
        learned = iter(codes.tolist())
        return [self._label_of(next(learned)) if kept else None for kept in good], good.tolist()

    def _learn_frame(self, X: pd.DataFrame, y: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """What was predicted for the learned rows, and which rows these are."""
        X = as_frame(X, "X")
        targets = targets_of(y)
        if len(targets) != len(X):
            raise DataError(f"X has {len(X)} rows, y has {len(targets)}")
        good, skipped = np.ones(len(X), dtype=bool), 0
        try:
            encoded = self._encoder.encode_frame(X)
        except DataError:
            if self.on_bad != "skip":
                raise
            good = self._good_rows(X)
            skipped = int(len(good) - good.sum())
            X, targets = X[good], [target for target, kept in zip(targets, good, strict=True) if kept]
            encoded = self._encoder.encode_frame(X)
        added = self._check_targets(targets)
        self._skipped += skipped
        return (self._learn_encoded(encoded, targets, added) if len(targets) else np.zeros(0)), good

    def _good_rows(self, X: pd.DataFrame) -> NDArray[np.bool_]:
        """Rows without a bad value, found one by one, since what is bad depends on what came before."""
        trial = copy.deepcopy(self._encoder)
        good = np.zeros(len(X), dtype=bool)
        for i, x in enumerate(X.to_dict("records")):
            try:
                encoded = trial.encode(x)
            except DataError:
                continue
            if encoded.unseen is not None:
                trial.commit(encoded.unseen)
            good[i] = True
        return good


def _padded(rows: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """The first ``width`` columns of rows; columns that are not there yet are missing."""
    if rows.shape[1] < width:
        rows = np.column_stack([rows, np.full((len(rows), width - rows.shape[1]), np.nan)])
    return np.ascontiguousarray(rows[:, :width])
