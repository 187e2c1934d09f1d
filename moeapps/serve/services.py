"""What the worker does with each kind of model: describe the requests it takes, predict them, learn from them.

Every operation takes a list of requests and returns a list with one answer per request: its value, or a
:class:`~moeapps.serve.refusal.Refusal`. The service of a model is found by the methods that the model has, so that a
subclass in another package is served like the class it derives from.
"""

import base64
import inspect
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

import moeapps
from moeapps.core.errors import ConfigError, DataError
from moeapps.core.labels import probability_columns
from moeapps.core.tabledata.scoring import MixtureModel, TableModel, label_columns, predict_frame
from moeapps.core.tabledata.vocabulary import ImputedValues, UnseenCategories
from moeapps.serve.drawing import BLOCK, png
from moeapps.serve.files import decode_file
from moeapps.serve.refusal import (
    HALF_LEARNED,
    Refusal,
    half_learned,
    model_failed,
    no_worker,
    not_saved,
    refused_data,
    timed_out,
)

__all__ = [
    "SERVICES", "GraphService", "ImageService", "RecommendService", "SampleService", "Service", "StreamService",
    "TableService",
    "open_service",
]  # fmt: skip

log = logging.getLogger("moeapps.serve")

Request = dict[str, Any]
"""A request's body, checked against the description: lists, numbers, text."""


@runtime_checkable
class StreamModel(Protocol):
    """A model that predicts and learns events, one by one as river's do or many at once."""

    def learn_one(self, x: dict[str, Any], y: Any) -> Any:
        """Learn an event."""

    def learn_many(self, X: pd.DataFrame, y: Any) -> Any:
        """Learn events in their order, or none of them."""

    def predict_one(self, x: dict[str, Any]) -> Any:
        """Predict an event."""


@runtime_checkable
class ImageModel(Protocol):
    """A classifier that knows the shape of its images (``spec_.shape``)."""

    spec_: Any

    def predict_proba(self, X: Any) -> Any:
        """Class probabilities of images."""


@runtime_checkable
class SampleModel(Protocol):
    """A generator of images of a known shape (``spec_.shape``)."""

    spec_: Any
    classes_: Any
    timesteps: int

    def sample(self, n: int, y: Any) -> Any:
        """Images of classes."""

    def to_pixels(self, images: Any) -> Any:
        """Images as pixels of 0 to 255."""


class Service:
    """A model, and how requests reach it.

    Parameters
    ----------
    model
        The model; :meth:`serves` is true of it.
    """

    kind = ""
    learns = False

    def __init__(self, model: Any) -> None:
        self.model = model

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether the model has the methods that this service calls."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """What the server has to know to check requests."""
        return {"kind": self.kind, "model": type(self.model).__name__, "learns": self.learns}

    def info(self, requests: list[Any]) -> list[Any]:
        """The description as it is now, for each who asks."""
        return [self.describe()] * len(requests)

    def ping(self, requests: list[Any]) -> list[Any]:
        """Nothing, but an answer."""
        return [None] * len(requests)

    def predict(self, requests: list[Request]) -> list[Any]:
        """One answer per request: a list of predictions, or a refusal."""
        return [_attempt(self.answer, request) for request in requests]

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """Predictions for one request."""
        raise NotImplementedError


class TableService(Service):
    """Estimators and rankers for tables; rows of all the requests are predicted at once.

    A mixture of estimators also answers with the weights of its experts, which cost nothing more.
    """

    kind = "table"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        unnamed = hasattr(model, "n_features_in_") and not hasattr(model, "feature_names_in_")
        self.width = int(model.n_features_in_) if unnamed else 0
        self.weights = isinstance(model, MixtureModel)
        self.columns = {} if unnamed else {str(name): kind for name, kind in model.column_kinds().items()}

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether the model can say which columns it reads."""
        return isinstance(model, TableModel)

    def describe(self) -> dict[str, Any]:
        """Columns with their kinds, or the number of columns where they have no names; and those not used."""
        unused = list(self.model.unused_columns()) if hasattr(self.model, "unused_columns") else []
        return {**super().describe(), "columns": self.columns, "width": self.width, "unused": unused}

    def predict(self, requests: list[Request]) -> list[Any]:
        """All rows at once; where that fails, request by request, so that the others are answered."""
        rows = [row for request in requests for row in request["rows"]]
        try:
            predictions = self.answer({"rows": rows})
        except Exception:  # whatever it is: who alone is refused alone is told why
            return super().predict(requests)
        answers, start = [], 0
        for request in requests:
            answers.append(predictions[start : start + len(request["rows"])])
            start += len(request["rows"])
        return answers

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """The columns that :func:`~moeapps.core.tabledata.scoring.predict_file` would write."""
        if self.width:
            array = np.array(request["rows"], dtype=np.float64).reshape(-1, self.width)
            return _records(predict_frame(self.model, array, self.weights))
        columns: dict[str, Any] = {}
        for name, kind in self.columns.items():
            values = [row[name] for row in request["rows"]]
            columns[name] = np.array(values, dtype=np.float64) if kind == "number" else _objects(values)
        with warnings.catch_warnings():  # a line of the log per request is nothing that anybody reads
            warnings.simplefilter("ignore", UnseenCategories)
            warnings.simplefilter("ignore", ImputedValues)
            return _records(predict_frame(self.model, pd.DataFrame(columns), self.weights))


class RecommendService(TableService):
    """Rankers that know a catalogue of items: rows of a user and an item are predicted, users get a list of items."""

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether the model can recommend from a catalogue."""
        return super().serves(model) and getattr(model, "catalogue_", None) is not None and hasattr(model, "recommend")

    def describe(self) -> dict[str, Any]:
        """With the columns of a user, and the number of items."""
        catalogue = self.model.catalogue_
        names = [*catalogue.user_features, *([] if catalogue.history is None else [catalogue.history])]
        users = {name: self.columns[name] for name in names}
        return {**super().describe(), "recommends": {"users": users, "item": catalogue.item, "items": len(catalogue)}}

    def recommend(self, requests: list[Request]) -> list[Any]:
        """For each request a list of items per user, best first, or a refusal."""
        return [_attempt(self._lists, request) for request in requests]

    def _lists(self, request: Request) -> list[list[dict[str, Any]]]:
        rows, catalogue = request["rows"], self.model.catalogue_
        names = self.describe()["recommends"]["users"]
        users = pd.DataFrame({name: _objects([row[name] for row in rows]) for name in names}, index=range(len(rows)))
        exclude = [row["exclude"] or [] for row in rows]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnseenCategories)
            warnings.simplefilter("ignore", ImputedValues)
            # The place of the user, since an id may come twice
            found = self.model.recommend(
                users, request["k"], exclude=exclude, exclude_seen=request["exclude_seen"], by_row=True
            )
        lists: list[list[dict[str, Any]]] = [[] for _ in rows]
        for record in _records(found[["row", catalogue.item, "score"]]):
            lists[record.pop("row")].append(record)
        return lists


class StreamService(Service):
    """Models of streams, which also learn."""

    kind, learns = "stream", True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        from moeapps.serve.prequential import Prequential  # numba, which other models need not load

        self.prequential = Prequential(model)

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether the model predicts and learns single events."""
        return isinstance(model, StreamModel)

    def describe(self) -> dict[str, Any]:
        """With the features seen so far; requests may have others."""
        features = [str(name) for name in self.model.router_features_]
        learned = {"learned": self.model.n_seen_, "learning": self.prequential.learning()}
        return {**super().describe(), "features": features, **learned}

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """The prediction, and of a classifier the probability of every class."""
        predictions = []
        for row in request["rows"]:
            record: dict[str, Any] = {"prediction": self.model.predict_one(row)}
            if hasattr(self.model, "predict_proba_one"):
                probabilities = self.model.predict_proba_one(row)
                record.update(zip(probability_columns(probabilities), probabilities.values(), strict=True))
            predictions.append(_plain(record))
        return predictions

    def learn(self, requests: list[Request]) -> list[Any]:
        """Learn request by request; one of which a row is refused is not learned at all.

        After one that the model broke at, nothing more is learned: this model will be thrown away.
        """
        answers: list[Any] = []
        for request in requests:
            before = self._state()
            answer = _attempt(self._learn, request)
            if isinstance(answer, Refusal) and self._state() != before:
                answer = half_learned()
            answers.append(answer)
            if isinstance(answer, Refusal) and answer.code == HALF_LEARNED:
                return answers + [no_worker() for _ in requests[len(answers) :]]
        return answers

    def _state(self) -> tuple[Any, ...]:
        """What changes when something is learned, be it a part of it."""
        classes = getattr(self.model, "classes_", ())
        return int(self.model.n_seen_), len(self.model.router_features_), len(classes)

    def _learn(self, request: Request) -> dict[str, Any]:
        if "ids" not in request:
            answer = self.prequential.learn(request)
        else:
            predictions = self.answer(request)
            self.prequential.remember(request)
            answer = {"predictions": predictions, "total": int(self.model.n_seen_)}
        return {**answer, "learning": self.prequential.learning()}

    def restore(self, states: list[Any]) -> list[Any]:
        """Take over what :meth:`save` has answered; the answer is what the server tells of it."""
        for state in states:
            self.prequential.restore(state)
        return [self.prequential.learning()] * len(states)

    def save(self, paths: list[str]) -> list[Any]:
        """Write the model to each path; the answer is what it does not hold: scores, and events without a label."""
        return [self._save(path) for path in paths]

    def _save(self, path: str) -> Any:
        try:
            self.model.save(path)
        except OSError as error:
            return not_saved(error)
        return self.prequential.state()


class ImageService(Service):
    """Classifiers of images; files come as base64 or data URLs."""

    kind = "images"

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether the model classifies images of a known shape."""
        return isinstance(model, ImageModel)

    def describe(self) -> dict[str, Any]:
        """With channels, height and width."""
        return {**super().describe(), "shape": list(self.model.spec_.shape), "resizes": bool(self.model.image_size)}

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """Most probable class, and the probability of every class."""
        from moeapps.vision.folders import read_images

        names = [f"images.{number}" for number in range(len(request["images"]))]
        files = [decode_file(text, name) for text, name in zip(request["images"], names, strict=True)]
        channels = self.model.spec_.shape[0]
        probabilities = self.model.predict_proba(read_images(files, channels, self.model.image_size, names))
        return _records(label_columns(self.model.classes_, probabilities))


class SampleService(Service):
    """Generators of images. They have no ``predict``, but ``sample``."""

    kind = "generator"

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether the model samples images."""
        return isinstance(model, SampleModel)

    def describe(self) -> dict[str, Any]:
        """With channels, height and width, the classes (None where there are none) and the most steps."""
        classes = None if self.model.classes_ is None else np.asarray(self.model.classes_).tolist()
        shape, timesteps = list(self.model.spec_.shape), int(self.model.timesteps)
        return {**super().describe(), "shape": shape, "classes": classes, "timesteps": timesteps}

    def sample(self, requests: list[Request]) -> list[Any]:
        """For each request a list of its blocks, or a refusal."""
        return [_attempt(self._blocks, request) for request in requests]

    def _blocks(self, request: Request) -> Any:
        """Blocks of images, each a list of base64 or of nested lists; timed out if they take too long."""
        end = time.monotonic() + request["seconds"]

        def watch(*_: Any) -> None:
            if time.monotonic() > end:
                raise TimeoutError

        options = {name: request[name] for name in ("guidance", "steps", "sampler", "eta", "seed")}
        labels, last, blocks = request["labels"], request["n"], []
        for block in range(request["first_block"], request["first_block"] + request["blocks"]):
            start, stop = block * BLOCK, min((block + 1) * BLOCK, last)
            y = None if labels is None else labels[start:stop]
            try:
                images = self.model.sample(stop - start, y, first=start, watch=watch, **options)
            except TimeoutError:
                return timed_out()
            except ConfigError as error:  # a sampler whose package is not installed
                return refused_data(error)
            blocks.append([self._image(image, request["form"]) for image in images])
        return blocks

    def _image(self, image: Any, form: str) -> Any:
        if form == "array":
            return image.tolist()
        return base64.b64encode(png(self.model.to_pixels(image))).decode()


class GraphService(Service):
    """Classifiers of nodes; a request is a graph: of numbers, or as two tables where the model was fitted on tables."""

    kind = "graph"

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether ``predict_proba`` takes edges and nodes; a subclass may hide them, so its bases count, too."""
        methods = [vars(base)["predict_proba"] for base in type(model).__mro__ if "predict_proba" in vars(base)]
        return any(
            {"edge_index", "nodes"} <= set(inspect.signature(method).parameters)
            for method in methods
            if inspect.isfunction(method)
        )

    def describe(self) -> dict[str, Any]:
        """With the number of features of a node; or the columns of the nodes, and that of their ids."""
        about = {**super().describe(), "width": int(self.model.n_features_in_)}
        table = getattr(self.model, "node_table_", None)
        if table is None:
            return about
        return {**about, "id": table.tables.id or "node", "columns": dict(table.column_kinds())}

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """For each requested node its class, and the probability of every class."""
        if "predict" in request:
            return self._of_tables(request)
        x = np.array(request["x"], dtype=np.float32)
        edges = np.array(request["edges"], dtype=np.int64).reshape(-1, 2).T
        nodes = request.get("nodes")
        if nodes is not None:  # each once: what is all 0 and 1, with repetitions, would be read as a mask
            nodes, place = np.unique(nodes, return_inverse=True)
        probabilities = self.model.predict_proba(x, edges, nodes=nodes)
        probabilities = probabilities if nodes is None else probabilities[place]
        return _records(label_columns(self.model.classes_, probabilities))

    def _of_tables(self, request: Request) -> list[dict[str, Any]]:
        """The same with the nodes' ids."""
        about = self.describe()
        columns: dict[str, Any] = {about["id"]: _objects([row[about["id"]] for row in request["nodes"]])}
        for name, kind in about["columns"].items():
            values = [row[name] for row in request["nodes"]]
            columns[name] = np.array(values, dtype=np.float64) if kind == "number" else _objects(values)
        nodes = pd.DataFrame(columns)
        if self.model.node_table_.tables.id is None:
            nodes = nodes.set_index(about["id"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            predictions = self.model.predict_frame(nodes, self._edges(request["edges"]), nodes=request["predict"])
        return _records(predictions)

    def _edges(self, pairs: list[list[Any]]) -> pd.DataFrame:
        """A table of edges, its columns called as in training."""
        tables = self.model.node_table_.tables
        names = [tables.edge_source or "source", tables.edge_target or "target", tables.edge_weight or "weight"]
        width = max(map(len, pairs), default=2)
        if any(len(pair) != width for pair in pairs):
            raise DataError("edges: some have a weight and some have none, expected one for all or for none")
        columns = zip(*pairs, strict=True) if pairs else [[], []]
        return pd.DataFrame({name: _objects(list(values)) for name, values in zip(names, columns, strict=False)})


SERVICES: Sequence[type[Service]] = (
    StreamService,
    GraphService,
    ImageService,
    SampleService,
    RecommendService,
    TableService,
)
"""The services; of several that would do, the first one counts."""


def open_service(path: str | os.PathLike[str]) -> Service:
    """Load a model for serving.

    Parameters
    ----------
    path : path-like
        A file that ``save`` wrote, or the checkpoint folder of ``moeapps stream run``.

    Raises
    ------
    ConfigError
        If it is a model that neither predicts nor samples.
    FileFormatError, FileNotFoundError
        As :func:`moeapps.load`.
    """
    file = Path(path)
    if file.is_dir() and (file / "stream.safetensors").exists():
        file = file / "stream.safetensors"
    loaded = moeapps.load(file)
    for model in (loaded, getattr(loaded, "model", None)):  # the checkpoint of a stream run holds its model
        for service in SERVICES:
            if service.serves(model):
                return service(model)
    raise ConfigError(
        f"{path} holds a {type(loaded).__name__}, which does not answer requests: save an estimator that predicts"
    )


def _objects(values: list[Any]) -> Any:
    """An array of any values, lists among them."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _attempt(operation: Callable[[Any], Any], content: Any) -> Any:
    try:
        return operation(content)
    except (DataError, OverflowError, UnicodeError) as error:  # a number or text that nothing can hold
        return refused_data(error)
    except Exception:  # a bug, which costs only the request that found it; the log has the traceback
        log.exception("%s failed", operation.__qualname__)
        return model_failed()


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [_plain(record) for record in frame.to_dict("records")]


def _plain(record: dict[Any, Any]) -> dict[str, Any]:
    """JSON values: numpy's scalars become Python's, NaN and infinity None."""
    plain: dict[str, Any] = {}
    for name, value in record.items():
        value = value.item() if isinstance(value, np.generic) else value
        plain[str(name)] = None if isinstance(value, float) and not math.isfinite(value) else value
    return plain
