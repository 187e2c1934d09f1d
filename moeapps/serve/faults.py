"""What is wrong in a body, in words: Pydantic's faults as the refusal of a request."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from fastapi import Request
from pydantic import BaseModel

from moeapps.core.json_text import json_text
from moeapps.registry import did_you_mean, nearest
from moeapps.serve.refusal import Refusal

__all__ = ["check_query", "form_of", "refuse_invalid", "shortened"]

MAX_FAULTS = 20
"""Faults that a response lists."""


def check_query(request: Request) -> None:
    """Refuse a query parameter that the path does not read: a misspelled one would have no effect.

    Pages (GET) may have any, such as those of a scraper.

    Raises
    ------
    Refusal
        Naming it.
    """
    dependant = getattr(request.scope.get("route"), "dependant", None)
    if request.method != "POST" or dependant is None:
        return
    known = [parameter.alias for parameter in dependant.query_params]
    for name in map(shortened, request.query_params):
        if name not in known:
            hint = did_you_mean(name, known, f"there is {', '.join(known)}" if known else "there is none")
            fault = f"{shortened(request.url.path)} has no such query parameter{hint}"
            raise Refusal(422, "invalid_request", f"?{name}=: {fault}", faults=[{"field": name, "fault": fault}])


def form_of(path: str, description: Mapping[str, Any]) -> str:
    """The form of a request's body, as JSON with ``...``.

    Parameters
    ----------
    path : str
        Path of the request, such as ``"/predict"``.
    description : mapping
        From :meth:`moeapps.serve.service.Service.describe`.
    """
    kind = description["kind"]
    if path == "/learn":
        return '{"rows": [{"x": {"feature": value, ...}, "y": label}, ...]}'
    if path == "/sample":
        return '{"n": 8}'
    if kind == "stream":
        return '{"rows": [{"feature": value, ...}, ...]}'
    if kind == "images":
        return '{"images": ["<file as base64>", ...]}'
    if path == "/recommend" or (kind == "table" and description["columns"]):
        return '{"rows": [{"column": value, ...}, ...]}'
    if kind == "table":
        return '{"rows": [[number, ...], ...]}'
    tables, links = bool(description.get("columns")), kind == "links"
    if tables and description.get("held"):
        return '{"pairs": [[id, id], ...]}' if links else '{"predict": [id, ...]}'
    graph = (
        '"nodes": [{"id": id, "column": value, ...}, ...], "edges": [[id, id], ...]'
        if tables
        else '"x": [[number, ...], ...], "edges": [[0, 1], ...]'
    )
    pairs = f', "pairs": [[{"id, id" if tables else "0, 2"}], ...]' if links else ""
    return f"{{{graph}{pairs}}}"


def refuse_invalid(
    errors: Sequence[Mapping[str, Any]], content_type: str, form: str, body: type[BaseModel] | None = None
) -> Refusal:
    """The refusal of a body that does not fit.

    Parameters
    ----------
    errors : sequence of mapping
        Pydantic's faults, at least one.
    content_type : str
        Header of the request.
    form : str
        From :func:`form_of`.
    body : type, optional
        Schema of the body, whose fields misspelled ones are compared with.
    """
    errors = errors[:MAX_FAULTS]
    broken = next((error for error in errors if error["type"] == "json_invalid"), None)
    if broken is not None:
        reason, place = broken.get("ctx", {}).get("error", "it ends too early"), broken["loc"][-1]
        fault = f"not JSON: {shortened(reason)}, at character {place}"
        return Refusal(400, "invalid_json", f"body: {fault}", faults=[{"field": "body", "fault": fault}])
    faults = [{"field": _field(error), "fault": _fault(error, errors, content_type, form, body)} for error in errors]
    return Refusal(422, "invalid_request", f"{faults[0]['field']}: {faults[0]['fault']}", faults=faults)


def shortened(text: object, length: int = 200) -> str:
    """Text of a client in a response, where it should not be as long as the request."""
    return str(text) if len(str(text)) <= length else f"{str(text)[:length]}..."


def _field(error: Mapping[str, Any]) -> str:
    """Where in the body a fault is, ``rows.0.age`` for example."""
    parts = [*error["loc"], *([error["ctx"]["field"]] if "field" in error.get("ctx", {}) else [])]
    return shortened(".".join(str(part) for part in parts if part != "body")) or "body"


def _fault(
    error: Mapping[str, Any],
    errors: Sequence[Mapping[str, Any]],
    content_type: str,
    form: str,
    body: type[BaseModel] | None,
) -> str:
    place, kind, given = tuple(error["loc"]), error["type"], error.get("input")
    if place == ("body",) and kind == "missing":
        return f"it is empty; expected JSON of the form {form}"
    if place == ("body",) and kind == "model_attributes_type":
        if not _is_json(content_type):
            named = f"is {shortened(content_type, 100)!r}" if content_type else "is missing"
            return f"the header Content-Type {named}; send JSON with 'Content-Type: application/json'"
        return f"must be an object of the form {form}"
    if kind == "missing":
        return _missing(place, given, errors, form)
    if kind == "extra_forbidden":
        absent = {other["loc"][-1] for other in errors if other["type"] == "missing"}  # their own faults name those
        known = [name for name in _fields_at(body, place) if name not in absent]
        return f"there is no such field{did_you_mean(place[-1], known, f'expected {form}' if len(place) > 2 else '')}"
    if kind in ("too_short", "too_long") and isinstance(given, list):
        least = kind == "too_short"
        number, bound = ("min_length", "at least") if least else ("max_length", "at most")
        items = error["ctx"][number]
        return f"must have {bound} {items} item{'s' if items != 1 else ''}, got {len(given)}"
    message = shortened(error["msg"].removeprefix("Value error, ").replace("Input should be", "must be", 1), 1000)
    scalar = isinstance(given, bool | int | float | str) and message.startswith("must be ")
    if not scalar or ", got " in message:
        return message
    return f"{message}, got {shortened(json_text(given[:60] if isinstance(given, str) else given), 50)}"


def _fields_at(body: type[BaseModel] | None, place: tuple[Any, ...]) -> list[str]:
    """Names that the object which has a wrong field could have."""
    for part in place[1:-1]:
        if body is None or isinstance(part, int):
            continue
        named = (field for name, field in body.model_fields.items() if part == (field.alias or name))
        body = next((_object_in(field.annotation) for field in named), None)
    return [] if body is None else [field.alias or name for name, field in body.model_fields.items()]


def _object_in(annotation: Any) -> type[BaseModel] | None:
    """The object in a type such as a list of objects."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _object_in(part)) is not None), None)


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


def _missing(place: tuple[Any, ...], given: Any, errors: Sequence[Mapping[str, Any]], form: str) -> str:
    """A field that is not there; one that is there instead may be its misspelled name."""
    name = str(place[-1])
    lacking = {error["loc"][-1] for error in errors if error["type"] == "missing" and error["loc"][:-1] == place[:-1]}
    unknown = [other["loc"][-1] for other in errors if other["type"] == "extra_forbidden"]
    others = [str(other) for other in given or () if other not in lacking] if isinstance(given, dict) else unknown
    near = nearest(name, [str(other)[:200] for other in others[:1000]], 0.6)
    misspelled = f"; is {near!r} a misspelled {name!r}?" if near is not None else ""
    if len(place) <= 2:
        return f"missing{misspelled or f'; expected {form}'}"
    return f"missing{misspelled or ' (null where there is no value)'}"
