"""What the worker does with each kind of model: say which requests it takes, predict them, learn from them."""

import base64
import binascii
import io
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import moeapps
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.tabledata.scoring import label_columns, predict_frame

__all__ = ["Service", "open_service"]

Request = dict[str, Any]
"""A request's body, checked against the description: lists, numbers, text."""


class Service:
    """A model, and how requests reach it.

    Args:
        model: The model.
    """

    kind = ""
    learns = False

    def __init__(self, model: Any) -> None:
        self.model = model

    def describe(self) -> dict[str, Any]:
        """What the server has to know to check requests."""
        return {"kind": self.kind, "model": type(self.model).__name__, "learns": self.learns}

    def predict(self, requests: list[Request]) -> list[Any]:
        """One answer per request: a list of predictions, or a :class:`DataError`."""
        return [_attempt(self.answer, request) for request in requests]

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """Predictions for one request."""
        raise NotImplementedError


class TableService(Service):
    """Estimators and rankers for tables; rows of all the requests are predicted at once."""

    kind = "table"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        from moeapps.tables.estimator import TabularEstimator

        self.width = 0
        self.columns: dict[str, str] = {}
        if isinstance(model, TabularEstimator) and not hasattr(model, "feature_names_in_"):
            self.width = int(model.n_features_in_)
        else:
            self.columns = {str(name): kind for name, kind in model.column_kinds().items()}

    def describe(self) -> dict[str, Any]:
        """Columns with their kinds, or the number of columns where they have no names."""
        return {**super().describe(), "columns": self.columns, "width": self.width}

    def predict(self, requests: list[Request]) -> list[Any]:
        """All rows at once; where one of them is refused, request by request, so that no other suffers."""
        rows = [row for request in requests for row in request["rows"]]
        try:
            found = self.answer({"rows": rows})
        except DataError:
            return super().predict(requests)
        answers, start = [], 0
        for request in requests:
            answers.append(found[start : start + len(request["rows"])])
            start += len(request["rows"])
        return answers

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """The columns that :func:`~moeapps.core.tabledata.scoring.predict_file` would write."""
        if self.width:
            array = np.array(request["rows"], dtype=np.float64).reshape(-1, self.width)
            if hasattr(self.model, "predict_proba"):
                return _records(label_columns(self.model.classes_, self.model.predict_proba(array)))
            return _records(pd.DataFrame({"prediction": self.model.predict(array)}))
        columns: dict[str, Any] = {}
        for name, kind in self.columns.items():
            values = [row[name] for row in request["rows"]]
            columns[name] = np.array(values, dtype=np.float64) if kind == "number" else _objects(values)
        frame = pd.DataFrame(columns)
        return _records(predict_frame(self.model, frame))


class StreamService(Service):
    """Models of streams, which also learn."""

    kind, learns = "stream", True

    def describe(self) -> dict[str, Any]:
        """With the features seen so far; others are welcome."""
        features = [str(name) for name in self.model.router_features_]
        return {**super().describe(), "features": features, "learned": self.model.n_seen_}

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """The prediction, and of a classifier the probability of every class."""
        found = []
        for row in request["rows"]:
            record: dict[str, Any] = {"prediction": self.model.predict_one(row)}
            if hasattr(self.model, "predict_proba_one"):
                probabilities = self.model.predict_proba_one(row)
                record.update({f"probability_{label}": value for label, value in probabilities.items()})
            found.append(_plain(record))
        return found

    def learn(self, requests: list[Request]) -> list[Any]:
        """Learn request by request; one of which a row is refused is not learned at all."""
        return [_attempt(self._learn, request) for request in requests]

    def _learn(self, request: Request) -> dict[str, Any]:
        rows, labels = [row["x"] for row in request["rows"]], [row["y"] for row in request["rows"]]
        frame = pd.DataFrame(
            {name: [row.get(name) for row in rows] for name in dict.fromkeys(k for r in rows for k in r)}
        )
        frame = frame.astype(object) if len(frame.columns) else pd.DataFrame(index=range(len(rows)))
        self.model.learn_many(frame, labels)
        return {"learned": len(rows), "total": int(self.model.n_seen_)}

    def save(self, path: str) -> None:
        """Write the model."""
        self.model.save(path)


class ImageService(Service):
    """Classifiers of images; files come as base64."""

    kind = "images"

    def describe(self) -> dict[str, Any]:
        """With channels, height and width."""
        return {**super().describe(), "shape": list(self.model.spec_.shape), "resizes": bool(self.model.image_size)}

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """Most probable class, and the probability of every class."""
        from moeapps.vision.folders import read_images

        files = []
        for number, text in enumerate(request["images"]):
            try:
                files.append(io.BytesIO(base64.b64decode(text, validate=True)))
            except binascii.Error as error:
                raise DataError(f"images.{number} is not base64: {error}") from None
        channels = self.model.spec_.shape[0]
        names = [f"images.{number}" for number in range(len(files))]
        probabilities = self.model.predict_proba(read_images(files, channels, self.model.image_size, names))
        return _records(label_columns(self.model.classes_, probabilities))


class GraphService(Service):
    """Classifiers of nodes; a request is a graph."""

    kind = "graph"

    def describe(self) -> dict[str, Any]:
        """With the number of features of a node."""
        return {**super().describe(), "width": int(self.model.n_features_in_)}

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """For each node that is asked about: its class, and the probability of every class."""
        x = np.array(request["x"], dtype=np.float32)
        edges = np.array(request["edges"], dtype=np.int64).reshape(-1, 2).T
        probabilities = self.model.predict_proba(x, edges, nodes=request.get("nodes"))
        return _records(label_columns(self.model.classes_, probabilities))


def open_service(path: str | os.PathLike[str]) -> Service:
    """Load a model for serving.

    Args:
        path: A file that ``save`` wrote, or the checkpoint folder of ``moeapps stream run``.

    Raises:
        ConfigError: If it is a model that does not predict.
        FileFormatError, FileNotFoundError: As :func:`moeapps.load`.
    """
    file = Path(path)
    if file.is_dir() and (file / "stream.safetensors").exists():
        file = file / "stream.safetensors"
    model = moeapps.load(file)
    if type(model).__name__ == "StreamCheckpoint":
        model = model.model
    package = type(model).__module__.split(".")[1]
    if package == "stream":
        return StreamService(model)
    if package == "graph" and hasattr(model, "predict_proba"):
        return GraphService(model)
    if package == "vision" and hasattr(model, "predict_proba"):
        return ImageService(model)
    if hasattr(model, "column_kinds"):
        return TableService(model)
    raise ConfigError(
        f"{path} holds a {type(model).__name__}, which does not answer requests: save an estimator that predicts"
    )


def _objects(values: list[Any]) -> Any:
    """An array of any values, lists among them."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def _attempt(function: Callable[[Request], Any], request: Request) -> Any:
    try:
        return function(request)
    except DataError as error:
        return error


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [_plain(record) for record in frame.to_dict("records")]


def _plain(record: dict[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in record.items():
        value = value.item() if isinstance(value, np.generic) else value
        found[str(name)] = None if isinstance(value, float) and not math.isfinite(value) else value
    return found
