"""What all services share: their operations, and how answers and arrays are made of JSON."""

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from moeapps.core.errors import ConfigError, DataError
from moeapps.serve.refusal import model_failed, refused_data

__all__ = ["Request", "Service", "attempt", "object_array", "plain", "records"]

log = logging.getLogger("moeapps.serve")

Request = dict[str, Any]
"""A request's body, checked against the description: lists, numbers, text."""


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

    def hold_tables(self, nodes: str, edges: str) -> None:
        """Read the graph that all requests are about.

        Raises
        ------
        ConfigError
            If the model is none of graphs in tables.
        """
        raise ConfigError(
            f"--nodes and --edges are for models of graphs in two tables, not {type(self.model).__name__}"
        )

    def info(self, requests: list[Any]) -> list[Any]:
        """The description as it is now, for each who asks."""
        return [self.describe()] * len(requests)

    def ping(self, requests: list[Any]) -> list[Any]:
        """Nothing, but an answer."""
        return [None] * len(requests)

    def predict(self, requests: list[Request]) -> list[Any]:
        """One answer per request: a list of predictions, or a refusal."""
        return [attempt(self.answer, request) for request in requests]

    def answer(self, request: Request) -> list[dict[str, Any]]:
        """Predictions for one request."""
        raise NotImplementedError


def object_array(values: list[Any]) -> Any:
    """An array of any values, lists among them."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def attempt(operation: Callable[[Any], Any], content: Any) -> Any:
    """The operation's result; an error of the content, or a bug that it finds, as a refusal."""
    try:
        return operation(content)
    except (DataError, OverflowError, UnicodeError) as error:  # a number or text that nothing can hold
        return refused_data(error)
    except Exception:  # a bug, which costs only the request that found it; the log has the traceback
        log.exception("%s failed", operation.__qualname__)
        return model_failed()


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a frame as JSON values."""
    return [plain(record) for record in frame.to_dict("records")]


def plain(record: dict[Any, Any]) -> dict[str, Any]:
    """JSON values: numpy's scalars become Python's, NaN and infinity None."""
    plain: dict[str, Any] = {}
    for name, value in record.items():
        value = value.item() if isinstance(value, np.generic) else value
        plain[str(name)] = None if isinstance(value, float) and not math.isfinite(value) else value
    return plain
