"""Model cards: what a saved model is, in Markdown with the YAML header of the Hugging Face hub.

A card is made of the document that a file holds, so that one of a file needs no more than to read it.
"""

import datetime
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCardData

from moeapps.core.errors import ConfigError
from moeapps.core.json_text import json_text
from moeapps.core.saved_arguments import fits
from moeapps.core.saved_tensors import AnyTensor
from moeapps.core.text_tables import markdown_table

if TYPE_CHECKING:
    import lightning as L

__all__ = ["is_training_record", "model_card", "record_of", "training_record"]

MAX_CELL = 80
"""Number of characters of a setting that are shown."""

MAX_ROWS = 200
"""Number of columns, or of settings, that are listed."""

_FIELDS = {
    "tables": ("tabular", "a table"),
    "graph": ("graph-ml", "a graph"),
    "recsys": ("recommendation", "tables of users and items"),
    "stream": ("data-stream", "a data stream"),
    "vision": ("image", "images"),
}

_LOADING = """```python
import moeapps

model = moeapps.load("MODEL.safetensors")
```"""

_TO_FILL_IN = "To be filled in: what it is for and what not, where the data come from, whom they describe, the licence."


def record_of(rows: int | None) -> dict[str, Any]:
    """What is noted of a training: its day (not the moment, so that equal trainings make equal files), and its rows."""
    return {"day": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), "rows": rows}


def training_record(history: pd.DataFrame, trainer: "L.Trainer", kept_epoch: int | None) -> dict[str, Any]:
    """Day, rows and scores of a training by Lightning.

    Parameters
    ----------
    history : DataFrame
        Logged metrics, one row per epoch.
    trainer : Trainer
        What trained.
    kept_epoch : int or None
        Epoch whose weights the model has; the last one when None.
    """
    dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
    record = record_of(len(dataset) if hasattr(dataset, "__len__") else None)
    if len(history):
        chosen = history[history["epoch"] == kept_epoch] if kept_epoch is not None else history
        row = (chosen if len(chosen) else history).iloc[-1]
        scores = {str(k): float(v) for k, v in row.items() if str(k).startswith("val/") and "/moe/" not in str(k)}
        record["validation"] = {name: value for name, value in scores.items() if math.isfinite(value)}
    return record


def is_training_record(value: Any) -> bool:
    """Whether a value of a file is what :func:`training_record` returns, or None."""
    if value is None:
        return True
    if not isinstance(value, dict) or not fits(value.get("day"), str):
        return False
    return fits(value.get("rows"), int | None) and fits(value.get("validation", {}), dict[str, float])


def model_card(
    document: Mapping[str, Any],
    tensors: Mapping[str, AnyTensor],
    scores: Mapping[str, float] | None = None,
    name: str = "",
) -> str:
    """Card of a saved model.

    Parameters
    ----------
    document : mapping
        What its file holds: ``class``, ``arguments``, ``state``, ``versions``, and ``trained_on`` if it is known.
    tensors : mapping of str to Tensor or array
        Its tensors.
    scores : mapping of str to float, optional
        Scores that the user gives, by metric.
    name : str, default=""
        Headline; the name of the class when empty.

    Returns
    -------
    str
        The card, in Markdown.

    Raises
    ------
    ConfigError
        If a score is not a finite number.
    """
    given = _checked(scores or {})
    record = document.get("trained_on") or {}
    kind = document["class"].rpartition(".")[2]
    parts = [
        _header(document, given, record, name or kind),
        f"# {_plain(name or kind)}",
        f"A `{document['class']}` of moeapps.",
        _LOADING,
        "## Scores",
        _score_table(given, record) or "None are known; `card(scores=...)` adds some.",
        "## Training data",
        _data(document, record),
        "## Settings",
        _table(("setting", "value"), _settings(document["arguments"])),
        "## Size and versions",
        _versions(document, tensors),
        "## Use and limits",
        _TO_FILL_IN,
    ]
    return "\n\n".join(parts) + "\n"


def _checked(scores: Mapping[str, float]) -> dict[str, float]:
    for name, value in scores.items():
        if isinstance(value, bool) or not hasattr(value, "__float__") or not math.isfinite(float(value)):
            raise ConfigError(f"scores: {name!r} must be a finite number, got {value!r}")
    return {str(name): float(value) for name, value in scores.items()}


def _header(document: Mapping[str, Any], given: dict[str, float], record: Mapping[str, Any], name: str) -> str:
    field = _field(document)
    task = _task(document, field)
    measured = [("given by the author", given), ("validation part of the training data", record.get("validation", {}))]
    results = [
        EvalResult(task_type=task, dataset_type="private", dataset_name=data, metric_type=metric, metric_value=value)
        for data, values in measured
        for metric, value in values.items()
    ]
    tags = ["mixture-of-experts", *dict.fromkeys(filter(None, [task, _FIELDS.get(field, ("",))[0]]))]
    data = ModelCardData(library_name="moeapps", tags=tags, model_name=name, eval_results=results or None)
    return f"---\n{data.to_yaml()}\n---"


def _field(document: Mapping[str, Any]) -> str:
    """Package of the task; empty for a class of others."""
    parts = document["class"].split(".")
    return parts[1] if parts[0] == "moeapps" else ""


def _task(document: Mapping[str, Any], field: str) -> str:
    """Task in the hub's words where it has one."""
    name, state = document["class"], document["state"]
    if field == "tables":
        return "tabular-classification" if "classes_" in state else "tabular-regression"
    if field == "vision":
        return "unconditional-image-generation" if "Generator" in name or "DiT" in name else "image-classification"
    return _FIELDS.get(field, ("other",))[0]


def _score_table(given: dict[str, float], record: Mapping[str, Any]) -> str:
    validation = record.get("validation", {})
    rows = [(metric, f"{value:.4f}", "given by the author") for metric, value in given.items()]
    rows += [(metric, f"{value:.4f}", "validation part of the training data") for metric, value in validation.items()]
    return _table(("metric", "value", "data"), rows) if rows else ""


def _data(document: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    state = document["state"]
    field = _field(document)
    facts = [("kind", _FIELDS.get(field, ("", "not known"))[1])]
    if record.get("rows") is not None:
        facts.append(("examples in training", f"{record['rows']:,}"))
    if record.get("day"):
        facts.append(("trained on", record["day"]))
    if (classes := _classes(state)) is not None:
        shown = ", ".join(_plain(str(value)) for value in classes[:20])
        facts.append(("classes", f"{len(classes)}: {shown}{', ...' if len(classes) > 20 else ''}"))
    text = "\n".join(f"- {name}: {value}" for name, value in facts)
    if columns := list(_columns(state)):
        more = f"\n\nand {len(columns) - MAX_ROWS:,} more" if len(columns) > MAX_ROWS else ""
        text += "\n\n" + _table(("column", "kind", "missing in training"), columns[:MAX_ROWS]) + more
    return text


def _classes(state: Mapping[str, Any]) -> list[Any] | None:
    classes = state.get("classes_")
    values = classes.get("values") if isinstance(classes, dict) else classes
    return values if isinstance(values, list) else None


def _columns(state: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Name, kind and missing cells of the columns, as far as the file has them."""
    encoders = [value for value in state.values() if isinstance(value, dict) and isinstance(value.get("columns"), list)]
    for column in encoders[0]["columns"] if encoders else []:
        if isinstance(column, dict) and "name" in column:
            yield str(column["name"]), str(column.get("kind", "")), str(column.get("missing", ""))
    if not encoders:
        names = state.get("feature_names_in_")
        for name in names if isinstance(names, list) else []:
            yield str(name), "", ""


def _settings(arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, value in sorted(arguments.items()):
        text = value if isinstance(value, str) else json_text(value)
        rows.append((name, text if len(text) <= MAX_CELL else f"{text[:MAX_CELL]}..."))
    return rows[:MAX_ROWS]


def _versions(document: Mapping[str, Any], tensors: Mapping[str, AnyTensor]) -> str:
    number = sum(math.prod(tensor.shape) for tensor in tensors.values())
    lines = [f"- numbers in the file: {number:,}"]
    return "\n".join([*lines, *(f"- {name} {version}" for name, version in document["versions"].items())])


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return markdown_table(header, [[_plain(cell) for cell in row] for row in rows])


def _plain(text: str) -> str:
    """Text of others that is not read as Markdown or HTML, on one line."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{c}" if c in "`*_[]#\\" else c for c in text)
