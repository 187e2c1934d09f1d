"""Exported programs: ONNX and torch.export, as bytes that are written whole or not at all."""

import copy
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from moeapps.core.checks import check_one_of
from moeapps.core.files import atomic_write
from moeapps.core.packages import needs

__all__ = ["Form", "Scaling", "export_network", "onnx_runtime", "program_bytes", "write_program"]

Form = Literal["onnx", "torch"]


class Scaling(nn.Module):
    """Mean and scale of a program's inputs or outputs.

    A module of its own, so that the program's tensors are called ``scaling.mean`` and ``scaling.scale``: in ONNX all
    names share one space, and a tensor ``mean`` of the program itself would collide with the result of an operation
    ``mean``.

    Parameters
    ----------
    mean : Tensor
        What is subtracted.
    scale : Tensor
        What is divided by.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)


def program_bytes(
    program: torch.export.ExportedProgram, form: Form, metadata: Mapping[str, str] | None = None
) -> bytes:
    """A program as the content of a file.

    Parameters
    ----------
    program : torch.export.ExportedProgram
        What ``torch.export.export`` gave.
    form : Form
        ``"onnx"`` (needs ``moeapps[onnx]``) or ``"torch"`` (``torch.export.load`` reads it).
    metadata : mapping of str to str, optional
        Texts that the file shall carry: ONNX's ``metadata_props``, or torch's ``extra_files``.

    Raises
    ------
    ConfigError
        If ONNX is not installed.
    """
    return _onnx(program, metadata or {}) if form == "onnx" else _pt2(program, metadata or {})


def export_network(
    network: nn.Module, inputs: Tensor | tuple[Tensor, ...], path: str | Path, form: Form = "onnx"
) -> Path:
    """Export any network with MoE layers for any batch size, in evaluation mode.

    Parameters
    ----------
    network : Module
        The network, which stays as it is.
    inputs : Tensor or tuple of Tensor
        An example of its inputs, with at least two samples; the first axis may have any length later.
    path : str or Path
        File to write, ``.onnx`` or ``.pt2``.
    form : Form, default="onnx"
        ``"onnx"`` (needs ``moeapps[onnx]``) or ``"torch"`` (``torch.export.load`` reads it).

    Returns
    -------
    Path
        The path.

    Raises
    ------
    ConfigError
        If the form is unknown or ONNX is not installed.
    OSError
        If the file cannot be written; an existing one is then unchanged.
    """
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    return write_program(copy.deepcopy(network).eval(), given, path, form)


def write_program(
    program: nn.Module,
    inputs: tuple[Tensor, ...],
    path: str | Path,
    form: Form,
    *,
    axis: str = "rows",
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """Trace a module for any length of its inputs' first axis, and write it.

    Parameters
    ----------
    program : Module
        A module in evaluation mode.
    inputs : tuple of Tensor
        An example of its inputs, as its forward takes them, with at least two samples: one, or none, would be taken for
        a constant.
    path : str or Path
        File to write.
    form : Form
        ``"onnx"`` or ``"torch"``.
    axis : str, default="rows"
        Name of the first axis.
    metadata : mapping of str to str, optional
        As of :func:`program_bytes`.

    Returns
    -------
    Path
        The path.

    Raises
    ------
    ConfigError
        If the form is unknown or ONNX is not installed.
    OSError
        If the file cannot be written; an existing one is then unchanged.
    """
    check_one_of("form", form, ("onnx", "torch"))
    first = torch.export.Dim(axis)
    shapes = torch.export.ShapesCollection()  # by tensor: a forward may take any number of them
    for tensor in inputs:
        shapes[tensor] = {0: first}
    with torch.no_grad():
        traced = torch.export.export(program, inputs, dynamic_shapes=shapes)
    content = program_bytes(traced, form, metadata)
    with atomic_write(path) as file:
        file.write(content)
    return Path(path)


def _onnx(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    with needs("exporting to ONNX", "moeapps[onnx]"):
        import onnxscript  # noqa: F401 - torch's exporter needs it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter about its own future
        model = torch.onnx.export(program, dynamo=True, verbose=False, custom_translation_table=_translations())
    assert model is not None
    written = model.model_proto
    for key, value in metadata.items():
        entry = written.metadata_props.add()
        entry.key, entry.value = key, value
    content: bytes = written.SerializeToString()
    return content


def _translations() -> dict[Any, Any]:
    """ONNX for two functions, as routing calls them, that torch's exporter lacks."""
    from onnxscript import INT32, INT64, opset18

    op: Any = opset18

    def sort(values: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        size = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
        return op.TopK(values, size, axis=dim, largest=int(descending), sorted=1)  # of equals the earlier one first

    def searchsorted(ordered: Any, values: Any, out_int32: bool = False) -> Any:
        below = op.Less(op.Unsqueeze(ordered, [0]), op.Unsqueeze(values, [1]))
        return op.ReduceSum(op.Cast(below, to=(INT32 if out_int32 else INT64).dtype), [1], keepdims=0)

    return {torch.ops.aten.sort.stable: sort, torch.ops.aten.searchsorted.Tensor: searchsorted}


def _pt2(program: torch.export.ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own storage
        path = Path(folder) / "model.pt2"
        torch.export.save(program, path, extra_files=dict(metadata))
        return path.read_bytes()


def onnx_runtime() -> Any:
    """The package onnxruntime.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    with needs("a program in ONNX", "moeapps[onnx]"):
        import onnxruntime
    return onnxruntime
