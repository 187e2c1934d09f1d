"""A ranker without this package's network code: an ONNX or torch.export program, and its encoders as JSON beside it."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from moeapps.core.checks import check_one_of
from moeapps.core.errors import FileFormatError
from moeapps.core.files import atomic_write, existing_file
from moeapps.core.programs import onnx_runtime, program_bytes
from moeapps.core.tabledata.files import ColumnKind
from moeapps.recsys.data import EVALUATION_ROWS
from moeapps.recsys.encoder import Rows, TableEncoder
from moeapps.recsys.module import RankingModule
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.targets import Targets

__all__ = ["OnnxRanker", "export_ranker"]

_FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
_TABLE = "table.json"


class _Program(nn.Module):
    """Codes and numbers to probabilities, numbers and rates, without a container around the inputs."""

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, targets: Targets) -> None:
        super().__init__()
        self.network = network
        self.kinds = [targets.kinds[name] for name in targets.names]
        self.register_buffer("mean", torch.tensor(targets.mean))
        self.register_buffer("scale", torch.tensor(targets.scale))

    def forward(self, sparse: Tensor, dense: Tensor, *sequences: Tensor) -> Tensor:
        outputs = self.network(Rows(sparse, dense, tuple(sequences)))
        columns = []
        for t, kind in enumerate(self.kinds):
            column = outputs[:, t]
            if kind == "regression":
                column = column * self.scale[t] + self.mean[t]
            elif kind == "binary":
                column = column.sigmoid()
            else:
                column = column.exp()
            columns.append(column)
        return torch.stack(columns, dim=1)


def export_ranker(ranker: Ranker | RankingModule, folder: str | Path, form: Literal["onnx", "torch"] = "onnx") -> Path:
    """Write a fitted ranker as a program of any batch size, with what encodes its rows beside it.

    The program takes ``sparse`` ``(N, S)`` int32 codes, ``dense`` ``(N, 2 D)`` float32 and one ``(N, L)`` int32 tensor
    per sequence, as :class:`~moeapps.recsys.TableEncoder` makes them, and gives ``(N, T)`` probabilities, numbers and
    rates. ``table.json`` holds the categories, means and scales, the names of the targets, and the program's SHA-256.

    Args:
        ranker: A fitted ranker, or a module that was trained from the command line
            (``RankingModule.load_from_checkpoint(path, weights_only=True)``).
        folder: Where to write; made if it is not there.
        form: ``"onnx"`` (needs ``moeapps[onnx]``; :class:`OnnxRanker` runs it) or ``"torch"`` (``torch.export.load``
            runs it).

    Returns:
        The program's path.

    Raises:
        ConfigError: If ONNX is not installed.
        OSError: If the disk refuses; what stood there is then unchanged.
    """
    check_one_of("form", form, _FILES)
    if isinstance(ranker, RankingModule):
        network, encoder, targets = ranker.network, ranker.encoder, ranker.targets
    else:
        check_is_fitted(ranker, "model_")
        network, encoder, targets = ranker.model_, ranker.encoder_, ranker.targets_
    program = _Program(copy.deepcopy(network).cpu(), targets).eval()
    schema = encoder.schema
    inputs = (
        torch.zeros(3, len(schema.sparse), dtype=torch.int32),
        torch.zeros(3, 2 * len(schema.dense)),
        *(torch.zeros(3, sequence.max_len, dtype=torch.int32) for sequence in schema.sequences),
    )
    rows = torch.export.Dim("rows")
    shapes: dict[str, Any] = {"sparse": {0: rows}, "dense": {0: rows}}
    if schema.sequences:
        shapes["sequences"] = tuple({0: rows} for _ in schema.sequences)
    traced = torch.export.export(program, inputs, dynamic_shapes=shapes)
    path = Path(folder) / _FILES[form]
    content = program_bytes(traced, form)
    with atomic_write(path) as file:
        file.write(content)
    table = {
        "encoder": encoder.state(),
        "targets": targets.state(),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    with atomic_write(Path(folder) / _TABLE) as file:
        file.write(json.dumps(table, allow_nan=False).encode())
    return path


class OnnxRanker:
    """A ranker that :func:`export_ranker` wrote, run by onnxruntime.

    Args:
        folder: The folder.

    Raises:
        FileNotFoundError: If a file is not there.
        FileFormatError: If the files are damaged or do not belong together.
        ConfigError: If onnxruntime is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        runtime = onnx_runtime()
        table = existing_file(Path(folder) / _TABLE, "the table of an exported ranker")
        path = existing_file(Path(folder) / _FILES["onnx"], "an exported ranker")
        content = path.read_bytes()
        try:
            found = json.loads(table.read_bytes())
            self.encoder = TableEncoder.from_state(found["encoder"])
            self.targets = Targets.from_state(found["targets"])
            digest = found["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise FileFormatError(f"{table} is damaged: {error}") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise FileFormatError(f"{path} is damaged, or does not belong to {table}")
        self._session = runtime.InferenceSession(content, providers=runtime.get_available_providers())

    def column_kinds(self) -> dict[str, ColumnKind]:
        """Columns of the table, and what a CSV file's cells are read as."""
        return self.encoder.column_kinds()

    def predict_proba(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A column per target, as the ranker's own ``predict_proba``: probabilities, numbers, rates.

        Raises:
            DataError: Naming a column that is missing, unknown, or cannot hold what it holds.
        """
        rows = self.encoder.transform(frame)
        names = [entry.name for entry in self._session.get_inputs()]
        parts = []
        for start in range(0, len(rows), EVALUATION_ROWS):
            part = rows.at(slice(start, start + EVALUATION_ROWS))
            given = {"sparse": part.sparse, "dense": part.dense}
            given |= {f"sequences_{i}": sequence for i, sequence in enumerate(part.sequences)}
            parts.append(self._session.run(None, {name: given[name].numpy() for name in names})[0])
        found = np.concatenate(parts) if parts else np.zeros((0, len(self.targets.names)))
        return pd.DataFrame(found.astype(float), columns=self.targets.names, index=frame.index)

    predict = predict_proba
