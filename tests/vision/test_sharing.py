"""Exported programs, files for the Hugging Face hub, plots, and measures of quality."""

import json

import numpy as np
import pytest
import timm
import torch

from moeapps.core.errors import ConfigError, DataError
from moeapps.vision import SwitchDiT, ViTMoE, WideNet, WideNetClassifier, export_classifier
from moeapps.vision.plots import plot_images, plot_patches, plot_timesteps, plot_trajectory
from moeapps.vision.quality import frechet_distance, precision_recall
from tests.core.dense import ROUTERS
from tests.core.test_export import assert_programs_agree
from tests.vision.conftest import CLASSIFIER


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("widenet", {"router": "avg_k"}),  # whose mean once collided with the mean of the images
        pytest.param("vit", {}, marks=pytest.mark.slow),
        pytest.param("widenet", {"eval_capacity_factor": 0.5}, marks=pytest.mark.slow),
        *(
            pytest.param(model, {"router": router}, marks=pytest.mark.slow)
            for router in ROUTERS
            for model in ("widenet", "vit_moe")
            if (router, model) != ("avg_k", "widenet")
        ),
    ],
)
def test_onnx_gives_the_same_probabilities_for_any_number_of_images(model, options, digits, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    X, y = digits
    classifier = WideNetClassifier(model, options=options, **{**CLASSIFIER, "depth": 1}).fit(X, y)
    path = export_classifier(classifier, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path)
    for count in (1, 2, 160):
        probabilities = session.run(None, {"images": X[:count, None].astype(np.float32)})[0]
        np.testing.assert_allclose(probabilities, classifier.predict_proba(X[:count]), atol=1e-5)
    spec = json.loads(session.get_modelmeta().custom_metadata_map["spec"])
    assert spec["shape"] == [1, 8, 8]
    assert spec["classes"] == [str(i) for i in range(10)]


@pytest.mark.slow
@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("sizes", [{"patch_size": 2, "dim": 16}, {"patch_size": 4, "dim": 64}])
def test_programs_of_switch_dit_agree_with_it(num_classes, sizes):
    network = SwitchDiT(img_size=8, in_chans=1, depth=2, num_heads=2, num_classes=num_classes, **sizes)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    labels = [torch.randint(0, 3, (9,))] if num_classes else []
    assert_programs_agree(network, [torch.randn(9, 1, 8, 8), torch.randint(0, 1000, (9,)), *labels])


def test_switch_dit_is_traced_for_any_number_of_images():
    network = SwitchDiT(img_size=8, patch_size=4, in_chans=1, dim=16, depth=1, num_heads=2).eval()
    torch.nn.init.normal_(network.head.weight)
    images, t, count = torch.randn(7, 1, 8, 8), torch.randint(0, 1000, (7,)), torch.export.Dim("images")
    with torch.no_grad():
        traced = torch.export.export(network, (images[:3], t[:3]), dynamic_shapes=({0: count}, {0: count})).module()
        for rows in (0, 1, 7):
            torch.testing.assert_close(traced(images[:rows], t[:rows]), network(images[:rows], t[:rows]))


def test_a_torch_program_gives_the_same_probabilities(digits, wide, tmp_path):
    X = digits[0]
    path = export_classifier(wide.model_, tmp_path / "model.pt2", "torch")
    extra = {"spec": ""}
    program = torch.export.load(path, extra_files=extra).module()
    for count in (1, 50):
        with torch.no_grad():
            probabilities = program(torch.from_numpy(X[:count, None]).float())
        np.testing.assert_allclose(probabilities, wide.predict_proba(X[:count]), atol=1e-5)
    assert json.loads(extra["spec"])["shape"] == [1, 8, 8]
    with pytest.raises(ConfigError, match="form must be one of onnx, torch"):
        export_classifier(wide, tmp_path / "x", "tf")


@pytest.mark.parametrize(
    "model",
    [
        lambda: WideNet(img_size=8, patch_size=2, in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=3),
        lambda: ViTMoE(img_size=8, patch_size=2, in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=3),
        lambda: timm.create_model("widenet_tiny_patch16_224", depth=2, embed_dim=24, img_size=32, num_classes=3),
        lambda: SwitchDiT(img_size=8, patch_size=2, in_chans=1, dim=16, depth=2, num_heads=2),
    ],
)
def test_a_model_is_shared_as_the_hub_wants_it(model, tmp_path):
    built = model().eval()
    built.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    loaded = type(built).from_pretrained(tmp_path)
    x = torch.randn(2, *built.patch_embed.proj.weight.shape[1:2], *built.patch_embed.img_size)
    inputs = (x, torch.tensor([3, 99])) if isinstance(built, SwitchDiT) else (x,)
    torch.testing.assert_close(loaded(*inputs), built(*inputs))
    assert "moeapps" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("network", [WideNet, ViTMoE])
@pytest.mark.parametrize(("router", "then"), [("autonomy", {"form": "narrow"}), ("shared", {"renormalize": True})])
def test_what_0_1_shared_keeps_the_routers_defaults_of_then(network, router, then, tmp_path):
    size = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 16, "depth": 2, "num_heads": 2}
    built = network(**size, num_classes=3, router=router, top_k=1, router_args=then).eval()
    built.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    arguments = json.loads(config.read_text())
    for later in ("router_args", "balance_loss", "iterations", "expert_sizes"):  # 0.1 did not know these
        del arguments[later]
    config.write_text(json.dumps(arguments))
    loaded = network.from_pretrained(tmp_path).eval()
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), built(x))


def test_pictures_have_a_panel_for_every_image(digits):
    digits = digits[0]
    rng = np.random.default_rng(0)
    grid = plot_images(digits[:7], columns=3, titles=range(7))
    assert sum(bool(axes.images) for axes in grid.axes) == 7
    assert [axes.get_title() for axes in grid.axes][:7] == [str(i) for i in range(7)]
    shown = grid.axes[0].images[0].get_array()
    np.testing.assert_allclose(shown, digits[0] / 16, atol=1e-6)
    colour = plot_images(rng.integers(0, 256, (2, 3, 5, 5), dtype=np.uint8))
    assert colour.axes[0].images[0].get_array().shape == (5, 5, 3)
    strip = plot_trajectory(rng.random((2, 4, 8, 8)), titles=["a", "b"])
    assert len(strip.axes) == 8
    with pytest.raises(DataError, match="7 images and 2 titles"):
        plot_images(digits[:7], titles=[1, 2])
    with pytest.raises(DataError, match=r"expected \(n, frames, ...\)"):
        plot_trajectory(digits[:3])


def test_maps_show_which_expert_a_timestep_and_a_patch_uses(digits, wide, vit):
    digits = digits[0]
    model = SwitchDiT(img_size=8, patch_size=2, in_chans=1, dim=16, depth=2, num_heads=2, timesteps=20)
    with torch.no_grad():
        table = model.gate_table().numpy()
    panels = plot_timesteps(table).axes[:2]
    shown = panels[1].images[0].get_array()
    assert shown.shape == (3, 20)
    np.testing.assert_array_equal(shown.mask, table[1].T == 0)
    classifier = wide
    experts = classifier.patch_experts(digits[:4])
    assert experts.shape == (4, 3, 3)
    load = classifier.expert_load(digits[:4], np.arange(4))
    assert load.to_numpy().sum(1) == pytest.approx(np.ones(4))
    figure = plot_patches(digits[:4], experts, names="abcd")
    assert len([axes for axes in figure.axes if axes.images]) == 8
    with pytest.raises(ConfigError, match="layer must be below the 2 blocks"):
        classifier.patch_experts(digits[:4], layer=2)
    with pytest.raises(ConfigError, match="model='vit' has no experts"):
        vit.patch_experts(digits[:4])


# ---------------------------------------------------------------------------------------------------------- quality


def test_the_frechet_distance_is_torchmetrics():
    from torchmetrics.image.fid import _compute_fid

    rng = np.random.default_rng(0)
    a = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 6))
    b = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)) + 1
    tensors = [torch.from_numpy(x) for x in (a, b)]
    expected = float(_compute_fid(tensors[0].mean(0), tensors[0].T.cov(), tensors[1].mean(0), tensors[1].T.cov()))
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_precision_and_recall_tell_narrow_from_wrong():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(400, 4))
    assert precision_recall(real, real) == (1.0, 1.0)
    assert precision_recall(real, real + 100) == (0.0, 0.0)
    precision, recall = precision_recall(real, real * 0.2)
    assert precision > 0.9
    assert recall < 0.3


@pytest.mark.parametrize(
    ("real", "drawn", "message"),
    [
        (np.zeros((5, 2)), np.zeros((5, 3)), "expected features"),
        (np.zeros((5, 2)), np.zeros((1, 2)), "at least two of each"),
        (np.zeros((5, 2)), np.full((5, 2), np.nan), "drawn has a feature that is NaN"),
    ],
)
def test_features_that_do_not_fit_are_refused(real, drawn, message):
    with pytest.raises(DataError, match=message):
        frechet_distance(real, drawn)
    with pytest.raises(DataError, match=message):
        precision_recall(real, drawn)
    with pytest.raises(DataError, match="k=3 neighbours need more than 3 points"):
        precision_recall(np.zeros((3, 2)), np.zeros((5, 2)))
