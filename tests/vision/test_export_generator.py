"""One denoising step of DiT and Switch-DiT as a program, and sampling with nothing but the program and its metadata."""

import functools
import json

import numpy as np
import pytest
import torch

from moeapps.core.errors import ConfigError
from moeapps.vision import SwitchDiTGenerator, export_generator
from moeapps.vision.sampling import Noise, draw, spaced_timesteps
from tests.vision.conftest import GENERATOR

FITTED = {
    "switch_dit": {},
    "dit": {"model": "dit", "learn_sigma": True, "prediction": "eps", "schedule": "linear"},
    "matrices": {"patch_size": 4, "dim": 64},  # fewer tokens than they are wide: experts side by side
}


@pytest.fixture(scope="module")
def models(digits) -> dict[str, SwitchDiTGenerator]:
    found = {name: SwitchDiTGenerator(**{**GENERATOR, **options}).fit(*digits) for name, options in FITTED.items()}
    found["no classes"] = SwitchDiTGenerator(**GENERATOR).fit(digits[0])
    return {name: shaken(model) for name, model in found.items()}


def shaken(model: SwitchDiTGenerator) -> SwitchDiTGenerator:
    """Experts and gates far from where a second of training leaves them, so that each of them matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.model_.network.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.5 if "switch" in name else 0.05))
    return model


def run_torch(path):
    extra = {"spec": ""}
    program = torch.export.load(path, extra_files=extra).module()

    def run(*inputs):
        with torch.no_grad():
            return program(*inputs)

    return run, json.loads(extra["spec"])


def run_onnx(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(path)
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs):
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run, json.loads(session.get_modelmeta().custom_metadata_map["spec"])


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory):
    """Gives the file of a model's program; each is exported once."""

    @functools.cache
    def export(name, form):
        return export_generator(models[name], tmp_path_factory.mktemp("program") / "step.onnx", form)

    return export


def opened(path, form):
    return (run_onnx if form == "onnx" else run_torch)(path)


def some(model, count):
    x, t = torch.randn(count, 1, 8, 8), torch.randint(0, 50, (count,))
    return [x, t, torch.randint(0, 11, (count,))] if model.classes_ is not None else [x, t]


@pytest.mark.parametrize("name", [*FITTED, "no classes"])
@pytest.mark.parametrize("form", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_program_predicts_what_the_network_does_for_any_number_of_images(name, form, models, exported):
    model = models[name]
    run, _ = opened(exported(name, form), form)
    network = model.model_.network.eval()
    for count in (0, 1, 2, 9):
        inputs = some(model, count)
        with torch.no_grad():
            expected = network(*inputs)
        torch.testing.assert_close(run(*inputs), expected, atol=1e-5, rtol=1e-4)


def test_a_program_has_the_gates_of_all_timesteps_and_no_router(exported):
    program = torch.export.load(exported("switch_dit", "torch"))
    held = {**program.state_dict, **program.constants}
    shapes = [tuple(value.shape) for value in held.values() if isinstance(value, torch.Tensor)]
    assert (2, 50, 3) in shapes  # blocks, timesteps, experts
    used = {str(node.target) for node in program.graph.nodes}
    assert not [name for name in used if "softmax" in name or "topk" in name or "sort" in name]


@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_sampling_over_a_program_gives_the_images_of_sample(form, models, exported):
    """DDIM with guidance, written from its formulas, with nothing of the package but the noise."""
    model = models["switch_dit"]
    run, spec = opened(exported("switch_dit", form), form)
    labels = torch.tensor([3, 0, 7])
    alphas = np.array(spec["diffusion"]["alphas"])
    assert spec["diffusion"]["prediction"] == "v"
    steps = [round(t) for t in np.linspace(len(alphas) - 1, 0, 10)]
    x = Noise(5, 0, 3)((1, 8, 8))
    for t, before in zip(steps, [*steps[1:], None], strict=True):
        times = torch.full((3,), t)
        given, free = run(x, times, labels), run(x, times, torch.full((3,), len(spec["classes"])))
        v = free + 2.0 * (given - free)
        signal, noise = alphas[t] ** 0.5, (1 - alphas[t]) ** 0.5
        x0 = (signal * x - noise * v).clamp(-1, 1)
        if before is None:
            break
        eps = (x - signal * x0) / noise
        x = alphas[before] ** 0.5 * x0 + (1 - alphas[before]) ** 0.5 * eps
    images = spec["low"] + (x0[:, 0] + 1) / 2 * (spec["high"] - spec["low"])
    expected = model.sample(3, y=[3, 0, 7], steps=10, guidance=2.0, seed=5)
    np.testing.assert_allclose(images.numpy(), expected, atol=2e-3)  # of 0 to 16
    assert np.abs(expected - model.sample(3, y=[3, 0, 7], steps=10, guidance=1.0, seed=5)).max() > 0.1


class Program(torch.nn.Module):
    """What :func:`draw` needs of a network."""

    def __init__(self, run, classes):
        super().__init__()
        self.run, self.num_classes = run, classes

    def forward(self, x, t, y):
        return self.run(x, t, y)


def test_every_step_of_ddpm_with_a_learned_variance_can_use_a_program(models, exported):
    model = models["dit"]
    run, spec = opened(exported("dit", "torch"), "torch")
    assert spec["diffusion"]["learn_sigma"] is True
    module, labels = model.model_, torch.tensor([1, 4])
    found = draw(
        Program(run, 10), module.diffusion, (1, 8, 8), Noise(3, 0, 2), labels, steps=20, sampler="ddpm", guidance=1.5
    )
    expected = module.sample(labels, seed=3, steps=20, sampler="ddpm", guidance=1.5)
    torch.testing.assert_close((found + 1) / 2, expected, atol=1e-4, rtol=0)
    assert spaced_timesteps(50, 20)[0] == spec["diffusion"]["timesteps"] - 1


def test_a_module_is_exported_like_its_estimator_and_training_goes_on(models, exported, tmp_path):
    model = models["switch_dit"]
    export_generator(model.model_, tmp_path / "b", "torch")
    (a, of_estimator), (b, of_module) = (run_torch(path) for path in (exported("switch_dit", "torch"), tmp_path / "b"))
    inputs = some(model, 4)
    assert torch.equal(a(*inputs), b(*inputs))
    assert (of_estimator["low"], of_estimator["high"]) == (0, 16)
    assert (of_module["low"], of_module["high"]) == (0, 1)
    assert of_module["classes"] == [str(digit) for digit in range(10)]
    network = model.model_.network.train()
    assert network(*inputs).requires_grad
    network.eval()


def test_a_generator_that_cannot_be_exported_is_refused(models, tmp_path):
    with pytest.raises(ConfigError, match="form must be one of onnx, torch"):
        export_generator(models["dit"], tmp_path / "x", "tf")
    with pytest.raises(Exception, match="not fitted"):
        export_generator(SwitchDiTGenerator(), tmp_path / "x", "torch")
    assert not (tmp_path / "x").exists()
