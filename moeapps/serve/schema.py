"""Pydantic models of the requests, made from a service's description; the OpenAPI page shows them."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt, StrictStr, create_model

__all__ = ["MAX_ROWS", "learn_model", "predict_model", "rows_of"]

MAX_ROWS = 10_000
"""Largest number of rows in a request."""


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


_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Whole = Annotated[StrictInt, BeforeValidator(_exact)]
_Text = Annotated[StrictStr, BeforeValidator(_exact)]
_Value = Annotated[StrictBool | StrictInt | _Number | StrictStr | None, BeforeValidator(_exact)]
_KINDS: dict[str, Any] = {
    "number": _Number | None,
    "category": _Value,
    "id": _Value,
    "time": _Text | None,
    "list": list[Annotated[StrictInt | StrictStr | _Number | None, BeforeValidator(_exact)]] | None,
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
    if kind == "table" and description["columns"]:
        fields: dict[str, Any] = {
            f"column_{i}": (_KINDS[what], Field(alias=name))
            for i, (name, what) in enumerate(description["columns"].items())
        }
        return _rows("Predict", create_model("Row", __config__=_STRICT, **fields))
    if kind == "table":
        width = description["width"]
        return _rows("Predict", Annotated[list[_Number], Field(min_length=width, max_length=width)])
    if kind == "stream":
        return _rows("Predict", dict[_Text, _Value])
    if kind == "images":
        files = Annotated[list[_Text], Field(min_length=1, max_length=1000, description="files, as base64")]
        return create_model("Predict", __config__=_STRICT, images=(files, ...))
    width = description["width"]
    node: Any = Annotated[list[_Number], Field(min_length=width, max_length=width)]
    pair: Any = Annotated[list[_Whole], Field(min_length=2, max_length=2)]
    graph: dict[str, Any] = {
        "x": (Annotated[list[node], Field(min_length=1, description="features of each node")], ...),
        "edges": (Annotated[list[pair], Field(description="source and target of each edge, as numbers of nodes")], ...),
        "nodes": (Annotated[list[_Whole] | None, Field(description="nodes to predict; all without it")], None),
    }
    return create_model("Predict", __config__=_STRICT, **graph)


def learn_model() -> type[BaseModel]:
    """The body of ``POST /learn``."""
    label = Annotated[StrictBool | StrictInt | _Number | StrictStr, BeforeValidator(_exact)]
    return _rows("Learn", create_model("Instance", __config__=_STRICT, x=(dict[_Text, _Value], ...), y=(label, ...)))


def rows_of(body: dict[str, Any]) -> int:
    """How many rows, images or nodes a body has."""
    return len(next(body[name] for name in ("rows", "images", "x") if name in body))


def _rows(name: str, row: Any) -> type[BaseModel]:
    rows = Annotated[list[row], Field(min_length=1, max_length=MAX_ROWS)]
    return create_model(name, __config__=_STRICT, rows=(rows, ...))
