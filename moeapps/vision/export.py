"""Export of image classifiers and generators as ONNX or torch.export programs for any batch size.

The programs run without this package's code.
"""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from moeapps.core.programs import Form, Scaling, write_program
from moeapps.vision.classifier import WideNetClassifier
from moeapps.vision.diffusion_module import DiffusionModule
from moeapps.vision.generator import SwitchDiTGenerator
from moeapps.vision.images import pad_to
from moeapps.vision.module import ImageModule
from moeapps.vision.switch_dit import SwitchDiT

__all__ = ["export_classifier", "export_generator"]

_IMAGES = 3  # in the example: torch.export would take one image, or none, for a constant


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
    ``spec``, a JSON object with ``shape``, ``classes``, ``mean`` and ``scale``, and of a training on a folder with
    ``crop``: the size is that part of the side to which the shorter side is resized before the centre is cropped.

    Parameters
    ----------
    model : WideNetClassifier or ImageModule
        A fitted classifier, or a module that was trained from the command line
        (``ImageModule.load_from_checkpoint(path, weights_only=True)``).
    path : str or Path
        File to write, ``.onnx`` or ``.pt2``.
    form : Form, default="onnx"
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
    module = model if isinstance(model, ImageModule) else _fitted(model)
    program = _Program(copy.deepcopy(module).cpu()).eval()
    return _written(program, (torch.zeros(_IMAGES, *module.spec.shape),), path, form, module.spec.state())


def export_generator(model: SwitchDiTGenerator | DiffusionModule, path: str | Path, form: Form = "onnx") -> Path:
    """Export one denoising step of a fitted generator.

    The program maps noisy images ``x`` ``(N, C, S, S)``, float32 about [-1, 1], timesteps ``t`` ``(N,)`` and, of a
    generator with classes, their codes ``y`` ``(N,)``, both int64, to the network's prediction ``(N, C, S, S)``, with
    learned sigma ``(N, 2 C, S, S)``. The code after the last class is "no class", for guidance. Of Switch-DiT the gates
    of all timesteps are a constant of the program: no router runs. N may be any number.

    Sampling is a loop over that step. The file's metadata has what it needs, ``spec``, a JSON object with ``shape`` and
    ``classes`` of the images, ``low`` and ``high``, the values that -1 and 1 stand for, and ``diffusion``:
    ``timesteps``, ``schedule``, ``prediction`` ("eps": the noise, "v": the velocity), ``learn_sigma``, and ``alphas``,
    the cumulative products of 1 - beta at every timestep.

    Parameters
    ----------
    model : SwitchDiTGenerator or DiffusionModule
        A fitted generator (Switch-DiT or DiT), or a module that was trained from the command line
        (``DiffusionModule.load_from_checkpoint(path, weights_only=True)``).
    path : str or Path
        File to write, ``.onnx`` or ``.pt2``.
    form : Form, default="onnx"
        ``"onnx"`` (needs ``moeapps[onnx]``; onnxruntime runs it) or ``"torch"`` (``torch.export.load`` reads it).

    Returns
    -------
    Path
        The path.

    Raises
    ------
    ConfigError
        If ``form`` is unknown or ONNX is not installed.
    OSError
        If the file cannot be written; an existing one is then unchanged.
    sklearn.exceptions.NotFittedError
        If the generator is not fitted.
    """
    module = model if isinstance(model, DiffusionModule) else _fitted(model)
    low, high = (0.0, 1.0) if isinstance(model, DiffusionModule) else (model.low_, model.high_)
    network = copy.deepcopy(module.network).cpu().float().eval()
    if isinstance(network, SwitchDiT):
        network.keep_gates()
    inputs = [torch.zeros(_IMAGES, *module.spec.shape), torch.zeros(_IMAGES, dtype=torch.int64)]
    if module.conditional:
        inputs.append(torch.zeros(_IMAGES, dtype=torch.int64))
    diffusion = module.diffusion
    spec = {
        **module.spec.state(),
        "low": low,
        "high": high,
        "diffusion": {
            "timesteps": diffusion.timesteps,
            "schedule": diffusion.schedule,
            "prediction": diffusion.prediction,
            "learn_sigma": module.config.learn_sigma,
            "alphas": diffusion.alphas.tolist(),
        },
    }
    return _written(network, tuple(inputs), path, form, spec)


def _fitted(model: Any) -> Any:
    """The module of a fitted estimator."""
    check_is_fitted(model, "model_")
    return model.model_


def _written(
    program: nn.Module, inputs: tuple[Tensor, ...], path: str | Path, form: Form, spec: dict[str, Any]
) -> Path:
    """A program with the description of its images as metadata."""
    return write_program(program, inputs, path, form, axis="images", metadata={"spec": json.dumps(spec)})
