"""Any name of timm: models of every kind fit and predict, sizes that do not work are named, files fetch nothing."""

import copy
import dataclasses
import socket

import numpy as np
import pytest
import timm
import torch
from lightning import Trainer

import moeapps
from moeapps.core.errors import ConfigError, DataError, FileFormatError
from moeapps.core.routing import Routing
from moeapps.vision import ImageModule, ImageSpec, WideNetClassifier
from moeapps.vision.data import ImageArrays, ImageDataModule
from moeapps.vision.networks import make_network, without_downloads

RNG = np.random.default_rng(0)
LABELS = np.arange(4) % 2

QUICK = [
    "resnet10t",
    "test_convnext",
    "test_vit",
    "mobilenetv3_small_050",
]
"""Small models of kinds that take the size of images as an argument, and that do not."""

KINDS = [
    "test_mambaout", "test_nfnet", "starnet_s050",
    "beit_base_patch16_224", "cait_xxs24_224", "coat_tiny", "coatnet_nano_rw_224", "convit_tiny", "convmixer_768_32",
    "convnext_atto", "crossvit_tiny_240", "cs3darknet_focus_s", "davit_tiny", "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224", "densenet121", "dpn48b", "edgenext_xx_small", "efficientformerv2_s0",
    "efficientnet_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny",
    "gmlp_ti16_224", "hardcorenas_a", "hgnetv2_b0", "hrnet_w18_small", "inception_next_atto", "lcnet_050", "levit_128s",
    "maxvit_pico_rw_256", "mixer_s32_224", "mnasnet_small", "mobilenetv2_050", "mobileone_s1", "mobilevit_xxs",
    "nest_tiny", "pit_ti_224", "poolformer_s12", "pvt_v2_b0", "regnety_002", "repghostnet_050", "repvgg_a0",
    "repvit_m1", "ghostnet_050", "test_vit_relpos", "efficientvit_b0", "dla46x_c",
    "res2next50", "resmlp_12_224", "resnest14d", "resnetv2_18", "resnext26ts", "rexnet_100", "seresnext26ts",
    "skresnet18", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "tiny_vit_5m_224", "twins_svt_small",
    "vgg11", "visformer_tiny", "vit_tiny_patch16_dinov3_qkvb", "volo_d1_224", "ese_vovnet19b_slim_dw",
    "xcit_nano_12_p8_224",
]  # fmt: skip


def classifier(name: str, **options) -> WideNetClassifier:
    return WideNetClassifier(
        name,
        options=options or None,
        max_epochs=1,
        batch_size=2,
        validation_fraction=0,
        random_state=0,
        accelerator="cpu",
    )


def images(side: int, channels: int = 3) -> np.ndarray:
    return RNG.integers(0, 256, (4, channels, side, side), dtype=np.uint8)


@pytest.fixture(scope="module")
def fitted() -> WideNetClassifier:
    return classifier("test_vit").fit(images(32), LABELS)


@pytest.fixture(scope="module")
def resnet() -> WideNetClassifier:
    return classifier("resnet10t").fit(images(32), LABELS)


def fits_and_predicts(name: str, tmp_path) -> None:
    X = images(32)
    model = classifier(name).fit(X, LABELS)
    found = model.predict_proba(X)
    assert found.shape == (4, 2)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert model.transform(X).shape[0] == 4
    model.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(moeapps.load(tmp_path / "m.safetensors").predict_proba(X), found)


@pytest.mark.parametrize("name", QUICK)
def test_a_model_of_timm_fits_predicts_and_loads(name, tmp_path):
    fits_and_predicts(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_timm_fits_predicts_and_loads(name, tmp_path):
    if not timm.is_model(name):
        pytest.skip("not in this version of timm")
    fits_and_predicts(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("module", timm.list_modules())
def test_every_module_of_timm_has_a_model_that_classifies(module):
    """The smallest of its models, without training: 97 modules in timm 1.0."""
    sizes = {}
    for name in timm.list_models(module=module)[:12]:
        with torch.device("meta"):
            sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
    name = min(sizes, key=lambda name: sizes[name])
    if sizes[name] > 1e8:
        pytest.skip(f"{name}, the smallest of {module}, has more than 10**8 parameters")
    try:
        network = make_network(name, (3, 32, 32), 2)
    except ConfigError as error:
        side = int(str(error).rpartition("image_size=")[2])
        network = make_network(name, (3, side, side), 2)
    assert network.training


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_are_passed_on(channels):
    assert classifier("test_vit").fit(images(32, channels), LABELS).predict(images(32, channels)).shape == (4,)
    assert classifier("resnet10t").fit(images(32, channels), LABELS).predict(images(32, channels)).shape == (4,)


@pytest.mark.parametrize(
    ("name", "side", "works"),
    [
        ("test_vit", 8, 32),
        pytest.param("efficientformer_l1", 32, 224, marks=pytest.mark.slow),
        pytest.param("inception_v3", 32, 96, marks=pytest.mark.slow),
    ],
)
def test_a_size_that_a_model_cannot_take_is_an_error_that_names_one_that_it_can(name, side, works):
    with pytest.raises(
        ConfigError, match=f"model='{name}' cannot take images of {side} x {side} .* set image_size={works}$"
    ):
        make_network(name, (3, side, side), 2)
    assert make_network(name, (3, works, works), 2).training


def test_the_size_that_the_error_names_can_be_set_for_arrays_too():
    X = images(8)
    with pytest.raises(ConfigError, match="set image_size=32"):
        classifier("test_vit").fit(X, LABELS)
    model = classifier("test_vit").set_params(image_size=32).fit(X, LABELS)
    assert model.spec_.shape == (3, 32, 32)
    assert model.predict(X).shape == (4,)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet10t", {"wings": 2}, "options of model='resnet10t': .*'wings'"),
        ("test_vit", {"wings": 2}, "options of model='test_vit': .*'wings'"),
        ("resnet10t", {"features_only": True}, "options of model='resnet10t': the model gives list for an image"),
        ("test_vit", {"num_heads": 7}, "options of model='test_vit'"),
        ("resnet10t", {"num_classes": 3}, "options has num_classes, which follow from the images"),
        ("hf-hub:timm/resnet18.a1_in1k", {}, "model must be one of"),
        ("local-dir:/tmp", {}, "model must be one of"),
        ("widenet_tiny_patch16_224", {"top_k": 9}, "top_k"),
        ("widenet_tiny_patch16_224", {"pretrained": True}, "No pretrained weights exist"),
    ],
)
def test_options_that_do_not_fit_are_named(name, options, message):
    with pytest.raises(ConfigError, match=message):
        classifier(name, **options).fit(images(32), LABELS)


def test_building_a_network_leaves_no_routing_and_no_random_numbers_behind():
    torch.manual_seed(0)
    expected = timm.create_model("test_vit", img_size=32, num_classes=2)
    after = torch.rand(1)
    torch.manual_seed(0)
    network = make_network("test_vit", (3, 32, 32), 2)
    assert torch.equal(torch.rand(1), after)
    for mine, its in zip(network.parameters(), expected.parameters(), strict=True):
        assert torch.equal(mine, its)
    wide = make_network("widenet_tiny_patch16_224", (3, 32, 32), 2, depth=2)
    assert wide.training
    assert wide.moe.last_routing is None
    assert not wide.moe.routings
    assert not any(isinstance(value, Routing) for module in wide.modules() for value in vars(module).values())


def test_gradient_checkpointing_is_refused_where_a_model_has_none():
    module = ImageModule("test_nfnet", grad_checkpointing=True)
    module.attach(ImageSpec((3, 32, 32), ("a", "b"), (0.5,) * 3, (0.5,) * 3))
    module = ImageModule("mobilevit_xxs", grad_checkpointing=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("timm.models.byobnet.ByobNet.set_grad_checkpointing", lambda *_: pytest.fail, raising=True)
        patch.delattr("timm.models.byobnet.ByobNet.set_grad_checkpointing")
        with pytest.raises(ConfigError, match="grad_checkpointing: model='mobilevit_xxs' has none"):
            module.attach(ImageSpec((3, 32, 32), ("a", "b"), (0.5,) * 3, (0.5,) * 3))


# ------------------------------------------------------------------------------------------ loading fetches nothing

FETCHING = {
    "pretrained": True,
    "checkpoint_path": "/etc/hostname",
    "pretrained_cfg": {
        "url": "http://127.0.0.1:9/weights.pth",
        "hf_hub_id": "someone/something",
        "file": "/etc/hostname",
    },
    "pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/weights.pth"},
    "cache_dir": "somewhere",
}


@pytest.fixture
def offline(monkeypatch):
    """Whatever asks for a connection, for weights of timm or for a checkpoint, fails."""

    def refuse(*args, **kwargs):
        raise AssertionError("loading a file reached for something else")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for place in ("timm.models._builder.load_pretrained", "timm.models._factory.load_checkpoint"):
        monkeypatch.setattr(place, refuse)
    for place in ("load_model_config_from_hf", "load_model_config_from_path"):
        monkeypatch.setattr(f"timm.models._factory.{place}", refuse)


@pytest.mark.parametrize("option", [*FETCHING, "all"])
def test_a_loaded_estimator_fetches_nothing(option, resnet, tmp_path, offline):
    model = copy.copy(resnet)
    X = images(32)
    model.options = FETCHING if option == "all" else {option: FETCHING[option]}
    model._fit_params = None  # as if it had been fitted so
    model.save(tmp_path / "m.safetensors")
    loaded = moeapps.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.predict_proba(X), model.predict_proba(X))
    assert loaded.get_params()["options"] == model.options  # a new fit may fetch: that is the user's word


@pytest.mark.parametrize(
    "name", ["hf-hub:someone/something", "hf_hub:someone/something", "local-dir:/etc", "/etc/x", "a:b"]
)
def test_a_file_that_names_a_place_as_its_model_is_refused(name, resnet, tmp_path, offline):
    model = copy.copy(resnet)
    model.model, model._fit_params = name, None  # as if it had been fitted so
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(FileFormatError, match="model must be one of|names a place"):
        moeapps.load(tmp_path / "m.safetensors")


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_a_checkpoint_fetches_nothing(tmp_path, offline):
    spec = ImageSpec((3, 32, 32), ("a", "b"), (0.5,) * 3, (0.5,) * 3)
    data = ImageDataModule(ImageArrays(torch.from_numpy(images(32)), torch.from_numpy(LABELS)), spec=spec, batch_size=2)
    module = ImageModule("resnet10t", FETCHING)
    module.attach_for_weights(spec)
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=tmp_path, limit_val_batches=0, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint(tmp_path / "m.ckpt")
    loaded = ImageModule.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)
    assert loaded.hparams["options"]["pretrained"]
    with pytest.raises(ConfigError, match="reached for something else"):
        ImageModule("resnet10t", {"pretrained": True}).attach(spec)  # training may


def test_what_fetches_is_taken_out_of_the_options():
    assert without_downloads({**FETCHING, "drop_rate": 0.1}) == {"drop_rate": 0.1}
    assert without_downloads(None) == {}


def test_a_file_that_names_huge_images_costs_no_memory_when_loaded(resnet, tmp_path):
    model = copy.copy(resnet)
    model.spec_ = dataclasses.replace(model.spec_, shape=(3, 60_000, 60_000))  # 40 GiB for one image
    model.save(tmp_path / "m.safetensors")
    loaded = moeapps.load(tmp_path / "m.safetensors")
    with pytest.raises(DataError, match="the model was fitted on"):
        loaded.predict(images(32))


@pytest.mark.parametrize(
    "damage",
    [
        {"shape": [3, -32, 32]}, {"shape": [2, 32, 32]}, {"shape": [3, 32]}, {"shape": [3, 32, 1.5]}, {"mean": [0.5]},
        {"mean": [0.5, 0.5, "x"]}, {"scale": [0.0, 1.0, 1.0]}, {"scale": [1.0]}, {"classes": ["0"]},
        {"classes": [0, 1]},
    ],
)  # fmt: skip
def test_a_damaged_description_of_the_images_is_refused(damage, fitted, tmp_path):
    model = copy.copy(fitted)
    state = {**model.spec_.state(), **damage}
    model.spec_ = type("Spec", (), {"state": lambda self: state})()
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(FileFormatError):
        moeapps.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("damage", [{"low": "x"}, {"low": 2.0}, {"whole": 1}, {"other": 1}])
def test_a_damaged_range_of_pixels_is_refused(damage, fitted, tmp_path):
    model = copy.copy(fitted)
    model.pixels_ = type("Range", (), {})()
    vars(model.pixels_).update({"low": 0.0, "high": 1.0, "whole": True, **damage})
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(FileFormatError):
        moeapps.load(tmp_path / "m.safetensors")
