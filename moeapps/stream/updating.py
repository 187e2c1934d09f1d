"""A stream model as a function from state to state, for engines that keep the state themselves (Flink, Spark)."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.saved_arguments import arguments_to_json
from moeapps.core.saving import from_bytes
from moeapps.core.tabledata.cells import missing_texts
from moeapps.stream.checkpoint import StreamCheckpoint
from moeapps.stream.classifier import DriftMoEClassifier
from moeapps.stream.estimator import StreamEstimator
from moeapps.stream.io.rows import FrameSource
from moeapps.stream.io.values import is_empty, plain_fields, plain_label

__all__ = ["update"]


def update(
    state: bytes | None,
    rows: pd.DataFrame | Sequence[Mapping[str, Any]],
    *,
    target: str,
    model: StreamEstimator | None = None,
) -> tuple[bytes, list[Any]]:
    """Predict each row, then learn it, and return the model as bytes.

    The predictions, and the model, are those of one process that learns all rows in their order, however they are cut
    into calls. Each call reads and writes the whole model, so rows should come in batches.

    Parameters
    ----------
    state : bytes or None
        What the last call returned, which stays as it is; None to begin. It holds no pickle: reading it runs nothing.
        The content of a file that ``save`` or ``moeapps stream run`` wrote is a state, too.
    rows : DataFrame or sequence of mapping
        Rows by names of fields. One whose target is missing is only predicted.
    target : str
        Field that holds the label. It is no feature.
    model : StreamEstimator, optional
        The model to begin with, which is not changed; ``DriftMoEClassifier(seed=0)`` when None. With a state, it has to
        be of the same class with the same arguments.

    Returns
    -------
    state : bytes
        The model after these rows; ``moeapps.core.saving.from_bytes(state)`` is the model.
    predictions : list
        A prediction for each row, made before it was learned; None (a regressor's NaN) before the first label, and for
        a row that cannot be used, if the model has ``on_bad="skip"``.

    Raises
    ------
    FileFormatError
        If the state is damaged, of a newer version, or of something else than a stream model.
    ConfigError
        If the state is of another model than ``model``, or an argument is of another type.
    DataError
        If a row cannot be used, naming it; the state of before is still valid.

    Examples
    --------
    >>> rows = [{"a": float(i % 5), "y": "up" if i % 5 > 2 else "down"} for i in range(300)]
    >>> state, _ = update(None, rows[:200], target="y")
    >>> state, predictions = update(state, rows[200:], target="y")
    >>> predictions[-3:]
    ['down', 'up', 'up']
    """
    learner = _learner(state, model)
    features, labels = _split(rows, target, missing_texts(learner.missing_values or ()))
    predictions: list[Any] = []
    begin = 0
    while begin < len(features):
        end = begin
        while end < len(features) and labels[end] is not None:
            end += 1
        if end > begin:  # rows with labels that follow each other are learned in one compiled call
            found, refused = learner.test_then_train(features[begin:end], labels[begin:end])
            for place, error in refused.items():
                _refuse(begin + place, error, learner)
            predictions += found
        else:
            predictions.append(_predict(learner, features[begin], begin))
            end += 1
        begin = end
    return learner.to_bytes(), predictions


def _learner(state: bytes | None, model: StreamEstimator | None) -> StreamEstimator:
    """A model of one's own to learn with."""
    if model is not None and not isinstance(model, StreamEstimator):
        raise ConfigError(f"model must be a stream model such as DriftMoEClassifier(), got {type(model).__name__}")
    if state is None:
        state = (DriftMoEClassifier(seed=0) if model is None else model).to_bytes()
        model = None
    if not isinstance(state, bytes | bytearray | memoryview):
        raise ConfigError(f"state must be bytes that update returned, or None, got {type(state).__name__}")
    found = from_bytes(bytes(state))
    found = found.model if isinstance(found, StreamCheckpoint) else found
    if not isinstance(found, StreamEstimator):
        raise FileFormatError(f"the state holds a {type(found).__name__}, which is not a model of streams")
    if model is not None:
        _compare(found, model)
    return found


def _compare(found: StreamEstimator, model: StreamEstimator) -> None:
    if type(found) is not type(model):
        raise ConfigError(f"the state holds a {type(found).__name__}, model is a {type(model).__name__}")
    then, now = (arguments_to_json(estimator.saved_arguments()) for estimator in (found, model))
    for name, value in now.items():
        if then.get(name) != value:
            raise ConfigError(
                f"the state is of a model with {name}={then.get(name)!r}, model has {value!r}: give the same, or "
                "state=None to begin anew"
            )


def _split(rows: Any, target: str, missing: frozenset[str]) -> tuple[list[dict[Any, Any]], list[Any]]:
    """Features and labels of the rows, as a stream run reads them; a label of None is missing, as those texts are."""
    if isinstance(rows, pd.DataFrame):
        source = FrameSource(rows)
        rows = [event.fields for event in source.read(len(rows))]
    features, labels = [], []
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise DataError(f"row {number}: expected a mapping of names to values, got {type(row).__name__}")
        try:
            fields = plain_fields(row, (target,))
            label = plain_label(fields.pop(target, None), missing)
        except DataError as error:
            raise DataError(f"row {number}: {error}") from None
        if is_empty(fields):
            raise DataError(f"row {number}: it has no features")
        features.append(fields)
        labels.append(label)
    return features, labels


def _predict(learner: StreamEstimator, fields: dict[Any, Any], number: int) -> Any:
    try:
        return learner.predict_one(fields)
    except DataError as error:
        _refuse(number, error, learner)
        return None


def _refuse(number: int, error: DataError, learner: StreamEstimator) -> None:
    if learner.on_bad != "skip":
        raise DataError(f"row {number}: {error}") from None
