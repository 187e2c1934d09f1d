"""Pydantic models of the requests, made from a service's description; the OpenAPI page shows them."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from moeapps.serve.files import MAX_IMAGES
from moeapps.serve.limits import Limits

__all__ = ["MAX_ROWS", "learn_model", "predict_model", "recommend_model", "rows_of", "sample_model"]

MAX_ROWS = 10_000
"""Largest number of rows in a request."""

COUNTED = ("rows", "images", "x", "nodes", "pairs", "predict")
"""Fields whose entries are counted; the first that a body has."""

MAX_K = 1000
"""Longest list of recommended items."""


def _exact(value: Any) -> Any:
    """Refuse what JSON can hold, but no column and no file as it is: it would be changed or break later."""
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError(
            "a whole number must be within 64 bits; send a longer one as text, or as a number with a point"
        )
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"not valid text: character {error.start} is half of a surrogate pair") from None
    return value


# The first fault of a list or of a row's cells ends the check. All of them would be 360,000 in a body of 1 MiB, and the
# server would do nothing else for seconds.


def _cell(value: Any) -> Any:
    """A value of a feature: JSON's scalars, but no infinite number."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    if not isinstance(value, int | float | str):
        raise ValueError("must be a number, text, true, false or null")
    return _exact(value)


def _label(value: Any) -> Any:
    if value is None:
        raise ValueError("must be a number, text, true or false")
    return _cell(value)


def _cells(row: Any) -> dict[str, Any]:
    """Features by name; a fault names the feature."""
    if not isinstance(row, dict):
        raise ValueError("must be an object of features")
    for name, value in row.items():
        try:
            _exact(name)
            _cell(value)
        except ValueError as error:
            place = str(name).encode(errors="backslashreplace").decode()
            raise PydanticCustomError("cell", "{fault}", {"field": place, "fault": str(error)}) from None
    return row


def _list(of: Any, **bounds: Any) -> Any:
    return Annotated[list[of], Field(fail_fast=True, **bounds)]


_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Whole = Annotated[StrictInt, BeforeValidator(_exact)]
_Text = Annotated[StrictStr, BeforeValidator(_exact)]
_SCALARS = [{"type": name} for name in ("number", "string", "boolean", "null")]
_Cell = Annotated[Any, PlainValidator(_cell), WithJsonSchema({"anyOf": _SCALARS})]
_Label = Annotated[Any, PlainValidator(_label), WithJsonSchema({"anyOf": _SCALARS[:3]})]
_Id = Annotated[
    Any, PlainValidator(_cell), WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "integer"}, {"type": "null"}]})
]
_Cells = Annotated[
    dict[str, Any],
    PlainValidator(_cells),
    WithJsonSchema({"type": "object", "additionalProperties": {"anyOf": _SCALARS}}),
]
_KINDS: dict[str, Any] = {
    "number": _Number | None,
    "category": _Cell,
    "id": _Cell,
    "time": _Text | None,
    "list": _list(_Cell) | None,
}
"""What a column's cells may be; what they mean, the model's own reading of cells decides."""


def predict_model(description: dict[str, Any]) -> type[BaseModel]:
    """The body of ``POST /predict``.

    Parameters
    ----------
    description : dict
        From :meth:`moeapps.serve.services.Service.describe`.
    """
    kind = description["kind"]
    if kind == "stream":
        ids: Any = Annotated[_list(_Id) | None, Field(description="an id for each row, for labels that come late")]
        body: dict[str, Any] = {"rows": (_list(_Cells, min_length=1, max_length=MAX_ROWS), ...), "ids": (ids, None)}
        return _object("Predict", body, _as_many_ids)
    if kind == "table" and description["columns"]:
        fields: dict[str, Any] = {
            f"column_{i}": (_KINDS[what], Field(alias=name))
            for i, (name, what) in enumerate(description["columns"].items())
        }
        return _rows("Predict", _object("Row", fields, base=_WithMore))
    if kind == "table":
        width = description["width"]
        return _rows("Predict", _list(_Number, min_length=width, max_length=width))
    if kind == "images":
        about = "files, as base64 or as data URLs"
        files = _list(_Text, min_length=1, max_length=MAX_IMAGES, description=about)
        return _object("Predict", {"images": (files, ...)})
    graph = _graph_of_tables(description) if description.get("columns") else _graph_of_numbers(description)
    return _object("Predict", {**graph, **_asked(description)})


def _asked(description: dict[str, Any]) -> dict[str, Any]:
    """The field with what is asked of a graph: nodes, or pairs of them."""
    tables = bool(description.get("columns"))
    one: Any = _Label if tables else _Whole
    if description["kind"] == "links":
        pair: Any = _list(one, min_length=2, max_length=2)
        about = "the two ids" if tables else "the two numbers"
        return {"pairs": (_list(pair, min_length=1, max_length=MAX_ROWS, description=f"{about} of each pair"), ...)}
    about = "ids to predict; all without it" if tables else "nodes to predict; all without it"
    return {"predict" if tables else "nodes": (Annotated[_list(one) | None, Field(description=about)], None)}


def _graph_of_numbers(description: dict[str, Any]) -> dict[str, Any]:
    """The fields of a graph whose features are numbers."""
    width = description["width"]
    node: Any = _list(_Number, min_length=width, max_length=width)
    edge: Any = _list(_Whole, min_length=2, max_length=2)
    about = "source and target of each edge, as numbers of nodes"
    if description.get("weighted"):
        edge, about = _list(_Number, min_length=3, max_length=3), f"{about}, and its weight"
    return {
        "x": (_list(node, min_length=1, description="features of each node"), ...),
        "edges": (_list(edge, description=about), ...),
    }


def _graph_of_tables(description: dict[str, Any]) -> dict[str, Any]:
    """The fields of a graph whose nodes have ids and columns; none where the server holds it."""
    if description["held"]:
        return {}
    fields: dict[str, Any] = {
        f"column_{i}": (_KINDS[what], Field(alias=name))
        for i, (name, what) in enumerate(description["columns"].items())
    }
    fields["id"] = (_Label, Field(alias=description["id"]))
    edge: Any = _list(_Label, min_length=2, max_length=3)
    return {
        "nodes": (_list(_object("Node", fields), min_length=1, description="a row per node"), ...),
        "edges": (_list(edge, description="ids at both ends of each edge, and its weight if edges have one"), ...),
    }


def learn_model() -> type[BaseModel]:
    """The body of ``POST /learn``: rows with features, or rows with the ids of events that wait; or one row alone."""
    features = Annotated[_Cells | None, Field(description="features; without them the row is a late label")]
    key = Annotated[_Id, Field(description="the event's id: once it was learned, it is not learned again")]
    row = _object("Instance", {"x": (features, None), "y": (_Label, ...), "id": (key, None)}, _features_or_id)
    several = {"rows": (_list(row, min_length=1, max_length=MAX_ROWS), ...)}
    return _object("Learn", several, _all_late_or_none, _one_row)


def recommend_model(description: dict[str, Any]) -> type[BaseModel]:
    """The body of ``POST /recommend``.

    Parameters
    ----------
    description : dict
        From :meth:`moeapps.serve.services.RecommendService.describe`.
    """
    about = description["recommends"]
    fields: dict[str, Any] = {
        f"column_{i}": (_KINDS[what], Field(alias=name)) for i, (name, what) in enumerate(about["users"].items())
    }
    if "exclude" not in about["users"]:
        fields["exclude"] = (Annotated[_list(_Cell) | None, Field(description="items to leave out")], None)
    body = {
        "rows": (_list(_object("User", fields), min_length=1, max_length=MAX_ROWS), ...),
        "k": (Annotated[StrictInt, Field(ge=1, le=min(MAX_K, about["items"]))], min(10, about["items"])),
        "exclude_seen": (Annotated[bool, Field(strict=True, description="leave out the history's items")], True),
    }
    return _object("Recommend", body)


def sample_model(description: dict[str, Any], limits: Limits) -> type[BaseModel]:
    """The body of ``POST /sample``; without classes it has neither ``y`` nor ``guidance``.

    Parameters
    ----------
    description : dict
        From :meth:`moeapps.serve.services.Service.describe`.
    limits : Limits
        How many images and steps a request may ask for.
    """
    most, longest = limits.sample_images, min(limits.sample_steps, description["timesteps"])
    count = Annotated[StrictInt, Field(ge=1, le=most)]
    about = "number of images; as many as labels, or 1, without it"
    fields: dict[str, Any] = {
        "n": (Annotated[count | None, Field(description=about)], None),
        "steps": (Annotated[StrictInt, Field(ge=1, le=longest)], min(50, longest)),
        "sampler": (Literal["ddim", "ddpm", "dpm++"], "ddim"),
        "eta": (Annotated[_Number, Field(ge=0, le=1, description="noise of DDIM's steps")], 0.0),
        "seed": (Annotated[StrictInt, Field(ge=0, lt=2**63)], 0),
        "form": (Annotated[Literal["png", "array"], Field(description="files as base64, or numbers")], "png"),
        "columns": (Annotated[count | None, Field(description="images per row of an image/png answer")], None),
    }
    if description["classes"] is not None:
        fields["y"] = (_labels(most), None)
        fields["guidance"] = (Annotated[_Number, Field(ge=0, le=20)], 1.0)
    return _object("Sample", fields)


def _labels(most: int) -> Any:
    """A label, a list of them, or null; a fault names the place in the list."""

    def check(value: Any) -> Any:
        if value is None or not isinstance(value, list):
            return None if value is None else _label(value)
        if not 1 <= len(value) <= most:
            raise ValueError(f"{len(value)} labels, must be 1 to {most}")
        for number, label in enumerate(value):
            try:
                _label(label)
            except ValueError as error:
                raise PydanticCustomError("cell", "{fault}", {"field": str(number), "fault": str(error)}) from None
        return value

    several = {"type": "array", "items": {"anyOf": _SCALARS[:3]}, "minItems": 1, "maxItems": most}
    said = "class of all images, or of each; all classes in turn without it"
    shown = {"anyOf": [*_SCALARS[:3], several, {"type": "null"}], "description": said}
    return Annotated[Any, PlainValidator(check), WithJsonSchema(shown)]


def rows_of(body: dict[str, Any]) -> int:
    """How many rows, images, nodes or pairs a body has; 0 where all nodes of the server's graph are asked for."""
    return len(next((body[name] for name in COUNTED if body.get(name) is not None), ()))


def _rows(name: str, row: Any) -> type[BaseModel]:
    return _object(name, {"rows": (_list(row, min_length=1, max_length=MAX_ROWS), ...)})


class _WithMore(BaseModel):
    """A row that may have further cells; :mod:`moeapps.serve.keeping` refuses those that are not to be kept."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, _Cell] = Field(init=False)


def _object(
    name: str,
    fields: dict[str, Any],
    after: Callable[[Any], Any] | None = None,
    before: Callable[[Any], Any] | None = None,
    base: type[BaseModel] | None = None,
) -> type[BaseModel]:
    """An object with these fields and no others, unless the base allows them.

    ``before`` changes what came, ``after`` checks the whole.
    """
    few = _at_most(len(fields) + 20)
    checks: dict[str, Any] = {
        "few": model_validator(mode="before")(lambda value: few(before(value) if before else value))
    }
    if after is not None:
        checks["whole"] = model_validator(mode="after")(after)
    how: dict[str, Any] = {"__config__": _STRICT} if base is None else {"__base__": base}
    return create_model(name, **how, __validators__=checks, **fields)


def _as_many_ids(body: Any) -> Any:
    if body.ids is not None and len(body.ids) != len(body.rows):
        raise ValueError(f"{len(body.ids)} ids for {len(body.rows)} rows")
    return body


def _features_or_id(row: Any) -> Any:
    if row.x is None and row.id is None:
        raise ValueError("neither x, the features, nor the id of an event that waits for its label")
    return row


def _all_late_or_none(body: Any) -> Any:
    late = [row.x is None for row in body.rows]
    if any(late) and not all(late):
        raise ValueError(f"rows.{late.index(True)} has no x: send late labels in a request of their own")
    return body


def _one_row(value: Any) -> Any:
    return {"rows": [value]} if isinstance(value, dict) and "y" in value and "rows" not in value else value


def _at_most(count: int) -> Callable[[Any], Any]:
    """Refuse an object with many unknown fields at once, which would be a fault each."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > count:
            raise ValueError(f"{len(value)} fields, of which at least {len(value) - count} are unknown")
        return value

    return check
