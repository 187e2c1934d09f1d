"""Commands to type next with a model, as they work when they are copied: with the tables of its training."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moeapps.core.yaml_files import read_yaml

__all__ = ["arguments_of_data", "recommending", "using"]


def arguments_of_data(run: Path) -> dict[str, Any]:
    """Arguments of the data that the run in this folder was trained on; none where it has kept no configuration."""
    if not (run / "config.yaml").is_file():
        return {}
    data = read_yaml(run / "config.yaml").get("data")
    arguments = data.get("init_args") if isinstance(data, Mapping) else None
    return dict(arguments) if isinstance(arguments, Mapping) else {}


def using(model: Any, file: str, data: Mapping[str, Any]) -> list[str]:
    """Commands that use a model file: predict with it where that takes more than rows, and serve it.

    Parameters
    ----------
    model : estimator
        What the file holds.
    file : str
        The file.
    data : mapping
        Arguments of the data of its training; files that they do not name are capital letters, to be replaced.
    """
    tables = [*_option("nodes", data, "NODES"), *_option("edges", data, "EDGES")]
    if getattr(model, "node_table_", None) is not None:
        score = [file, "--input", "PAIRS", *tables] if hasattr(model, "read_graph") else [file, "--input", *tables[1:]]
        return [_command("score", *score, "--output", "predictions.csv"), _command("serve", file, *tables)]
    if getattr(model, "catalogue_", None) is not None:
        return [recommending(file, data), f"{_command('serve', file)}  # POST /recommend"]
    return [_command("serve", file)]


def recommending(file: str, data: Mapping[str, Any]) -> str:
    """The command that writes the ten best items for each user of the events of a training."""
    options = [file, "--input", _file(data.get("train")) or "EVENTS", "--recommend", "10"]
    if data.get("time", "timestamp") != "timestamp":
        options += ["--time", data["time"] or ""]
    if _file(data.get("users")):
        options += ["--users", str(data["users"])]
    return _command("score", *options, "--output", "recommendations.csv")


def _option(name: str, data: Mapping[str, Any], otherwise: str) -> list[str]:
    return [f"--{name}", _file(data.get(name)) or otherwise]


def _file(value: Any) -> str:
    """The path of a table; empty where it was no file."""
    return value if isinstance(value, str) else ""


def _command(name: str, *arguments: str) -> str:
    return shlex.join(["moeapps", name, *arguments])
