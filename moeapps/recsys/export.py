"""A ranker as an ONNX or torch.export program, with its encoder as JSON beside it."""

# Shapes: N rows, S sparse columns, D dense columns, L entries of a sequence, T tasks

import copy
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from moeapps.core.checks import check_one_of
from moeapps.core.errors import FileFormatError
from moeapps.core.files import atomic_write, existing_file
from moeapps.core.labels import probability_columns
from moeapps.core.programs import Form, Scaling, onnx_runtime, write_program
from moeapps.core.tabledata.frames import as_frame
from moeapps.core.tabledata.kinds import ColumnKind
from moeapps.recsys.data import EVALUATION_ROWS
from moeapps.recsys.encoder import Rows, TableEncoder
from moeapps.recsys.module import RankingModule
from moeapps.recsys.ranker import Ranker
from moeapps.recsys.targets import Targets

__all__ = ["OnnxRanker", "export_ranker"]

_FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
_TABLE = "table.json"


class _Program(nn.Module):
    """From codes and numbers to probabilities, numbers and rates; plain tensors, since ONNX has no containers."""

    def __init__(self, network: nn.Module, targets: Targets) -> None:
        super().__init__()
        self.network = network
        self.kinds = [targets.kinds[name] for name in targets.names]
        self.scaling = Scaling(torch.tensor(targets.mean), torch.tensor(targets.scale))

    def forward(self, sparse: Tensor, dense: Tensor, *sequences: Tensor) -> Tensor:
        outputs = self.network(Rows(sparse, dense, tuple(sequences)))
        columns = []
        for t, kind in enumerate(self.kinds):
            column = outputs[:, t]
            if kind == "regression":
                column = column * self.scaling.scale[t] + self.scaling.mean[t]
            elif kind == "binary":
                column = column.sigmoid()
            else:
                column = column.exp()
            columns.append(column)
        return torch.stack(columns, dim=1)


def export_ranker(ranker: Ranker | RankingModule, folder: str | Path, form: Form = "onnx") -> Path:
    """Write a fitted ranker as a program of any batch size, with its encoder beside it.

    The program takes ``sparse`` ``(N, S)`` int32 codes, ``dense`` ``(N, 2 D)`` float32 and one ``(N, L)`` int32 tensor
    per sequence, as :class:`~moeapps.recsys.TableEncoder` makes them, and gives ``(N, T)`` probabilities, numbers and
    rates. ``table.json`` holds the categories, means and scales, the names of the targets, and the program's SHA-256.

    Parameters
    ----------
    ranker : MultiTaskRanker, AWMoERanker or RankingModule
        A fitted ranker, or a module that was trained from the command line
        (``RankingModule.load_from_checkpoint(path, weights_only=True)``).
    folder : str or Path
        Folder to write to; created if it does not exist.
    form : Form, default="onnx"
        ``"onnx"`` needs ``moeapps[onnx]`` and is run by :class:`OnnxRanker`, ``"torch"`` by ``torch.export.load``.

    Returns
    -------
    Path
        The program's path.

    Raises
    ------
    ConfigError
        If ``form`` is unknown or ONNX is not installed.
    OSError
        If the file cannot be written; an older one is then unchanged.
    sklearn.exceptions.NotFittedError
        If the ranker is not fitted.
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
    path = write_program(program, inputs, Path(folder) / _FILES[form], form)
    table = {
        "encoder": encoder.state(),
        "targets": targets.state(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    with atomic_write(Path(folder) / _TABLE) as file:
        file.write(json.dumps(table, allow_nan=False).encode())
    return path


class OnnxRanker:
    """A ranker that :func:`export_ranker` wrote, run by onnxruntime.

    Parameters
    ----------
    folder : str or Path
        The folder that it was written to.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    FileFormatError
        If the files are damaged or do not belong together.
    ConfigError
        If onnxruntime is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        runtime = onnx_runtime()
        table = existing_file(Path(folder) / _TABLE, "the table of an exported ranker")
        path = existing_file(Path(folder) / _FILES["onnx"], "an exported ranker")
        content = path.read_bytes()
        try:
            state = json.loads(table.read_bytes())
            self.encoder = TableEncoder.from_state(state["encoder"])
            self.targets = Targets.from_state(state["targets"])
            digest = state["sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise FileFormatError(f"{table} is damaged: {error}") from None
        if hashlib.sha256(content).hexdigest() != digest:
            raise FileFormatError(f"{path} is damaged, or does not belong to {table}")
        self._session = runtime.InferenceSession(content, providers=runtime.get_available_providers())

    def column_kinds(self) -> dict[str, ColumnKind]:
        """Columns of the table and what they are."""
        return self.encoder.column_kinds()

    def missing_texts(self) -> frozenset[str]:
        """Texts that mean a missing value in a table's cells."""
        return self.encoder.missing

    def output_columns(self) -> dict[str, str]:
        """Names of the columns of binary targets in a file."""
        binary = [name for name in self.targets.names if self.targets.kinds[name] == "binary"]
        return dict(zip(binary, probability_columns(binary), strict=True))

    def predict_proba(self, frame: pd.DataFrame) -> pd.DataFrame:
        """One column per target, as the ranker's own ``predict_proba``: probabilities, numbers, rates.

        Parameters
        ----------
        frame : DataFrame
            Rows with the features of the schema.

        Raises
        ------
        DataError
            If a column is missing or unknown, or its values are of another kind; the message names it.
        """
        frame = as_frame(frame)
        rows = self.encoder.transform(frame)
        names = [entry.name for entry in self._session.get_inputs()]
        parts = []
        for start in range(0, len(rows), EVALUATION_ROWS):
            part = rows.at(slice(start, start + EVALUATION_ROWS))
            given = {"sparse": part.sparse, "dense": part.dense}
            given |= {f"sequences_{i}": sequence for i, sequence in enumerate(part.sequences)}
            parts.append(self._session.run(None, {name: given[name].numpy() for name in names})[0])
        outputs = np.concatenate(parts) if parts else np.zeros((0, len(self.targets.names)))
        return pd.DataFrame(outputs.astype(float), columns=self.targets.names, index=frame.index)

    predict = predict_proba
