"""Export of image classifiers as ONNX or torch.export programs for any batch size, without this package's code."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from moeapps.core.checks import check_one_of
from moeapps.core.files import atomic_write
from moeapps.core.programs import Form, Scaling, program_bytes
from moeapps.vision.classifier import WideNetClassifier
from moeapps.vision.images import pad_to
from moeapps.vision.module import ImageModule

__all__ = ["export_classifier"]


class _Program(nn.Module):
    """Standardisation, padding, network and softmax."""

    def __init__(self, module: ImageModule) -> None:
        super().__init__()
        self.network, self.size = module.network, module.size
        self.scaling = Scaling(module.mean, module.scale)

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` to class probabilities ``(N, K)``."""
        standard = (images - self.scaling.mean) / self.scaling.scale
        probabilities: Tensor = self.network(pad_to(standard, *self.size)).softmax(1)
        return probabilities


def export_classifier(model: WideNetClassifier | ImageModule, path: str | Path, form: Form = "onnx") -> Path:
    """Export a fitted classifier.

    The program maps ``images`` ``(N, C, H, W)``, float32 with the size and range of the training images (uint8 pixels
    divided by 255), to class probabilities ``(N, K)``. The standardisation is part of it. The file's metadata has
    ``spec``, a JSON object with ``shape``, ``classes``, ``mean`` and ``scale``.

    Parameters
    ----------
    model : WideNetClassifier or ImageModule
        A fitted classifier, or a module that was trained from the command line
        (``ImageModule.load_from_checkpoint(path, weights_only=True)``).
    path : str or Path
        File to write, ``.onnx`` or ``.pt2``.
    form : Form, default "onnx"
        ``"onnx"`` (needs ``moeapps[onnx]``; onnxruntime runs it) or ``"torch"`` (``torch.export.load`` reads it).

    Returns
    -------
    Path
        The path.

    Raises
    ------
    ConfigError
        If ONNX is not installed.
    OSError
        If the file cannot be written; an existing one is then unchanged.
    """
    check_one_of("form", form, ("onnx", "torch"))
    if isinstance(model, WideNetClassifier):
        check_is_fitted(model, "model_")
        module = model.model_
    else:
        module = model
    program = _Program(copy.deepcopy(module).cpu()).eval()
    rows: Any = torch.export.Dim("images")
    with torch.no_grad():
        traced = torch.export.export(program, (torch.zeros(3, *module.spec.shape),), dynamic_shapes=({0: rows},))
    content = program_bytes(traced, form, {"spec": json.dumps(module.spec.state())})
    with atomic_write(path) as file:
        file.write(content)
    return Path(path)
