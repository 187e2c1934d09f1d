"""What does not fit in a request, in words: pydantic's faults, a body that is not JSON, an unknown query parameter."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from fastapi import Request

from moeapps.registry import did_you_mean, nearest
from moeapps.serve.refusal import Refusal

__all__ = ["check_query", "refuse_body", "short"]

MOST = 20
"""Faults that one answer lists."""


def short(text: object, length: int = 200) -> str:
    """Text of a client in a response, where it should not be as long as the request."""
    return str(text) if len(str(text)) <= length else f"{str(text)[:length]}..."


def check_query(request: Request) -> None:
    """Refuse a query parameter that the path does not read: a misspelled one would have no effect otherwise.

    Raises
    ------
    Refusal
        Naming it. Pages (GET) may have any, such as those of a scraper.
    """
    dependant = getattr(request.scope.get("route"), "dependant", None)
    if request.method != "POST" or dependant is None:
        return
    known = [parameter.alias for parameter in dependant.query_params]
    for name in request.query_params:
        if name not in known:
            hint = did_you_mean(name, known, f"there is {', '.join(known)}" if known else "there is none")
            fault = f"{short(request.url.path)} has no such query parameter{hint}"
            raise Refusal(
                422, "invalid_request", f"?{short(name)}=: {fault}", faults=[{"field": short(name), "fault": fault}]
            )


def refuse_body(
    errors: Sequence[Mapping[str, Any]], content_type: str, known: Collection[str], passed: Collection[str]
) -> Refusal:
    """Put pydantic's faults into words.

    Parameters
    ----------
    errors : sequence of mapping
        Of ``RequestValidationError.errors()``.
    content_type : str
        Header of the request; empty where it has none.
    known : collection of str
        Names that a row may have: what is not among them may be one of them misspelled.
    passed : collection of str
        Further names that a row may have, which the model does not use.
    """
    for error in errors:
        if error["type"] == "json_invalid":
            place = error["loc"][-1] if error["loc"] else 0
            why = error.get("ctx", {}).get("error", error["msg"])
            fault = f"not valid JSON at character {place}: {short(why)}"
            return Refusal(400, "invalid_json", f"body: {fault}", faults=[{"field": "body", "fault": fault}])
    if "json" not in content_type.lower() and any(tuple(error["loc"]) == ("body",) for error in errors):
        message = (
            f"the body was sent as {short(content_type) or 'no type at all'}: send JSON with the header "
            "Content-Type: application/json"
        )
        return Refusal(415, "not_json", message)
    unknown: dict[tuple[Any, ...], list[str]] = {}  # fields of an object that it may not have
    for error in errors:
        *place, name = error["loc"] or ("body",)
        if error["type"] == "extra_forbidden":
            unknown.setdefault(tuple(place), []).append(str(name))
        elif error["type"] == "missing" and place[-2:-1] == ["rows"] and isinstance(error.get("input"), dict):
            others = [str(key) for key in error["input"] if key not in known and key not in passed]
            unknown.setdefault(tuple(place), []).extend(others)
    faults = [{"field": _field(error), "fault": short(_said(error, unknown), 1000)} for error in errors[:MOST]]
    return Refusal(422, "invalid_request", f"{faults[0]['field']}: {faults[0]['fault']}", faults=faults)


def _field(error: Mapping[str, Any]) -> str:
    """Where in the body a fault is, ``rows.0.age`` for example."""
    parts = [*error["loc"], *([error["ctx"]["field"]] if "field" in error.get("ctx", {}) else [])]
    return short(".".join(str(part) for part in parts if part != "body")) or "body"


def _said(error: Mapping[str, Any], unknown: Mapping[tuple[Any, ...], Collection[str]]) -> str:
    if error["type"] == "missing":
        *place, name = error["loc"]
        near = nearest(str(name), unknown.get(tuple(place), ()))
        return "missing" if near is None else f"missing; is it what was sent as {short(near)!r}?"
    if error["type"] == "extra_forbidden":
        return "there is no such field"
    if error["type"] in ("model_attributes_type", "model_type", "dict_type"):
        return "must be a JSON object, {...}"
    if error["type"] == "list_type":
        return "must be a list, [...]"
    if error["type"] == "too_short":
        return f"must have at least {error['ctx']['min_length']}, got {error['ctx']['actual_length']}"
    return str(error["msg"])
