"""What the worker does with each kind of model: describe the requests it takes, predict them, learn from them.

Every operation takes a list of requests and returns a list with one answer per request: its value, or a
:class:`~moeapps.serve.refusal.Refusal`. The service of a model is found by the methods that the model has, so that a
subclass in another package is served like the class it derives from.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

import moeapps
from moeapps.core.errors import ConfigError
from moeapps.core.labels import probability_columns
from moeapps.core.tabledata.scoring import MixtureModel, TableModel, instead, predict_frame
from moeapps.core.tabledata.vocabulary import ImputedValues, UnseenCategories
from moeapps.serve.graph_service import GraphService
from moeapps.serve.image_services import ImageService, SampleService
from moeapps.serve.link_service import LinkService
from moeapps.serve.refusal import (
    HALF_LEARNED,
    Refusal,
    half_learned,
    no_worker,
    not_saved,
)
from moeapps.serve.service import Request, Service, attempt, object_array, plain, records

__all__ = [
    "SERVICES", "GraphService", "ImageService", "LinkService", "RecommendService", "SampleService", "Service",
    "StreamService", "TableService", "open_service",
]  # fmt: skip


@runtime_checkable
class StreamModel(Protocol):
    """A model that predicts and learns events, one by one as river's do or many at once."""

    def learn_one(self, x: dict[str, Any], y: Any) -> Any:
        """Learn an event."""

    def learn_many(self, X: pd.DataFrame, y: Any) -> Any:
        """Learn events in their order, or none of them."""

    def predict_one(self, x: dict[str, Any]) -> Any:
        """Predict an event."""


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
        """Columns with their kinds, or the number of columns where they have no names; those not used; scenarios."""
        unused = list(self.model.unused_columns()) if hasattr(self.model, "unused_columns") else []
        described = {**super().describe(), "columns": self.columns, "width": self.width, "unused": unused}
        if getattr(self.model, "scenario", None) is not None and hasattr(self.model, "scenario_values"):
            described["scenario"] = {"column": self.model.scenario, "values": self.model.scenario_values()}
        return described

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
            return records(predict_frame(self.model, array, self.weights))
        columns: dict[str, Any] = {}
        for name, kind in self.columns.items():
            values = [row[name] for row in request["rows"]]
            columns[name] = np.array(values, dtype=np.float64) if kind == "number" else object_array(values)
        with warnings.catch_warnings():  # a line of the log per request is nothing that anybody reads
            warnings.simplefilter("ignore", UnseenCategories)
            warnings.simplefilter("ignore", ImputedValues)
            return records(predict_frame(self.model, pd.DataFrame(columns), self.weights))


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
        return [attempt(self._lists, request) for request in requests]

    def _lists(self, request: Request) -> list[list[dict[str, Any]]]:
        rows, catalogue = request["rows"], self.model.catalogue_
        names = self.describe()["recommends"]["users"]
        users = pd.DataFrame(
            {name: object_array([row[name] for row in rows]) for name in names}, index=range(len(rows))
        )
        exclude = [row["exclude"] or [] for row in rows]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnseenCategories)
            warnings.simplefilter("ignore", ImputedValues)
            # The place of the user, since an id may come twice
            found = self.model.recommend(
                users, request["k"], exclude=exclude, exclude_seen=request["exclude_seen"], by_row=True
            )
        lists: list[list[dict[str, Any]]] = [[] for _ in rows]
        for record in records(found[["row", catalogue.item, "score"]]):
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
        """The prediction, of a classifier the probability of every class, and features that were never learned.

        A stream's features come and go, so that none is refused; but a misspelled one, which has no effect, is named.
        """
        known = set(self.model.router_features_)  # empty before anything was learned
        predictions = []
        for row in request["rows"]:
            record: dict[str, Any] = {"prediction": self.model.predict_one(row)}
            if hasattr(self.model, "predict_proba_one"):
                probabilities = self.model.predict_proba_one(row)
                record.update(zip(probability_columns(probabilities), probabilities.values(), strict=True))
            if known and (unseen := [name for name in row if name not in known]):
                record["unseen_features"] = unseen
            predictions.append(plain(record))
        return predictions

    def learn(self, requests: list[Request]) -> list[Any]:
        """Learn request by request; one of which a row is refused is not learned at all.

        After one that the model broke at, nothing more is learned: this model will be thrown away.
        """
        answers: list[Any] = []
        for request in requests:
            before = self._state()
            answer = attempt(self._learn, request)
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


SERVICES: Sequence[type[Service]] = (
    StreamService,
    LinkService,
    GraphService,
    ImageService,
    SampleService,
    RecommendService,
    TableService,
)
"""The services; of several that would do, the first one counts."""


def open_service(path: str | os.PathLike[str], tables: tuple[str, str] | None = None) -> Service:
    """Load a model for serving.

    Parameters
    ----------
    path : path-like
        A file that ``save`` wrote, or the checkpoint folder of ``moeapps stream run``.
    tables : tuple of str, optional
        Paths of the nodes and the edges of the graph that requests are about; without, each request brings its own.

    Raises
    ------
    ConfigError
        If it is a model that neither predicts nor samples, or there are tables and it is none of graphs in tables.
    DataError
        If the tables cannot be read.
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
                found = service(model)
                if tables is not None:
                    found.hold_tables(*tables)
                return found
    raise ConfigError(
        f"{path} holds a {type(loaded).__name__}, which does not answer requests"
        f"{instead(loaded) or ': save an estimator that predicts'}"
    )
