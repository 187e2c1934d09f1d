"""Settings of images are declared once, and reach estimators, modules and networks with the same defaults."""

import inspect

import pytest
from torch import nn

from moeapps.core.config import field_names
from moeapps.vision import (
    Diffusion,
    DiffusionModule,
    DiT,
    ImageDataModule,
    ImageFolderData,
    ImageModule,
    ImageSpec,
    PublicImageData,
    SwitchDiT,
    SwitchDiTGenerator,
    ViTMoE,
    WideNet,
    WideNetClassifier,
)
from moeapps.vision.data import FolderLoadingConfig, LoadingConfig
from moeapps.vision.diffusion import DiffusionConfig
from moeapps.vision.diffusion_module import DiffusionModuleConfig
from moeapps.vision.dit import DiTConfig
from moeapps.vision.module import ImageModuleConfig
from moeapps.vision.switch_dit import SwitchDiTConfig
from moeapps.vision.widenet import VisionMoEConfig

IN_OPTIONS = "one of the further arguments of the network, options"
OF_IMAGES = "the images decide it"

LEFT_OUT = {
    (WideNetClassifier, ImageModuleConfig): {
        "warmup": "a tenth of the training suits every size", "compile": "small images do not pay for it",
        "grad_checkpointing": "small images need no saving of memory",
    },
    (WideNetClassifier, VisionMoEConfig): dict.fromkeys(
        ["capacity_factor", "eval_capacity_factor", "balance_weight", "z_weight", "penalty_weight"], IN_OPTIONS
    ),
    (SwitchDiTGenerator, DiTConfig): {"img_size": OF_IMAGES, "in_chans": OF_IMAGES, "num_classes": OF_IMAGES},
    (SwitchDiTGenerator, SwitchDiTConfig): {},
    (SwitchDiTGenerator, DiffusionModuleConfig): {
        "size": "dim, depth and num_heads are given instead", "options": "the network's are the estimator's own",
        "conditional": "whether fit was given labels", "weight_decay": "none in the paper",
        "compile": "small images do not pay for it",
    },
}  # fmt: skip
"""Fields that are not arguments of an estimator, and why."""

SMALL_IMAGES = "for images of a few pixels and some thousand of them"

OTHER_DEFAULT = {
    (WideNetClassifier, ImageModuleConfig): dict.fromkeys(["lr", "augment"], SMALL_IMAGES),
    (WideNetClassifier, VisionMoEConfig): {},
    (SwitchDiTGenerator, DiTConfig): dict.fromkeys(["dim", "depth", "num_heads", "learn_sigma"], SMALL_IMAGES),
    (SwitchDiTGenerator, SwitchDiTConfig): {},
    (SwitchDiTGenerator, DiffusionModuleConfig): dict.fromkeys(
        ["schedule", "prediction", "learn_sigma", "lr", "warmup", "ema_decay"], SMALL_IMAGES
    ),
}
"""Fields whose default in an estimator is another than in the network or module, and why."""


@pytest.mark.parametrize(("estimator", "config"), LEFT_OUT)
def test_every_field_of_a_config_is_an_argument_of_its_estimator(estimator, config):
    arguments = inspect.signature(estimator).parameters
    missing = {name for name in field_names(config) if name not in arguments}
    assert missing == set(LEFT_OUT[estimator, config])
    defaults = vars(config())
    other = {name for name in field_names(config) if name in arguments and arguments[name].default != defaults[name]}
    assert other == set(OTHER_DEFAULT[estimator, config])


@pytest.mark.parametrize(
    ("built", "configs"),
    [
        (WideNet, [VisionMoEConfig]),
        (ViTMoE, [VisionMoEConfig]),
        (DiT, [DiTConfig]),
        (SwitchDiT, [SwitchDiTConfig, DiTConfig]),
        (Diffusion, [DiffusionConfig]),
        (ImageModule, [ImageModuleConfig]),
        (DiffusionModule, [DiffusionModuleConfig]),
        (ImageDataModule, [LoadingConfig]),
        (PublicImageData, [LoadingConfig]),
        (ImageFolderData, [FolderLoadingConfig]),
    ],
)
def test_networks_and_modules_take_the_fields_with_their_defaults(built, configs):
    parameters = inspect.signature(built).parameters
    for config in configs:
        assert {name: parameters[name].default for name in field_names(config)} == vars(config())


def test_arguments_of_the_first_release_keep_their_order():
    assert list(inspect.signature(SwitchDiT).parameters)[:2] == ["num_experts", "top_k"]
    assert list(inspect.signature(DiffusionModule).parameters) == [
        "model", "size", "options", "conditional", "timesteps", "schedule", "prediction", "learn_sigma", "snr_gamma",
        "class_dropout", "prior_weight", "prior_alpha", "match_every", "lr", "weight_decay", "warmup", "ema_decay",
        "compile", "prior_gates", "ema_rising",
    ]  # fmt: skip
    assert list(inspect.signature(PublicImageData).parameters)[-3:] == ["batch_size", "num_workers", "seed"]


def test_what_an_estimator_is_told_reaches_its_network():
    spec = ImageSpec((1, 8, 8), ("a", "b"), (0.5,), (0.5,))
    generator = SwitchDiTGenerator(dim=16, depth=2, num_heads=2, num_experts=4, top_k=1, patch_size=4, timesteps=60)
    generator.set_params(snr_gamma=5.0, class_dropout=0.2, learn_sigma=True, prior_alpha=2.0, prior_gates="chosen")
    generator.spec_, generator.classes_ = spec, ["a", "b"]
    module = generator._build_model()
    network = module.network
    assert (module.config.prior_gates, network.switches[0].router.bias is None) == ("chosen", False)
    router = network.switches[0].router
    assert (len(network.blocks), network.patch_size, router.num_experts, router.top_k) == (2, 4, 4, 1)
    assert (network.timesteps, module.diffusion.timesteps, network.class_dropout) == (60, 60, 0.2)
    assert (module.diffusion.snr_gamma, network.out_chans, module.prior.windows.shape) == (5.0, 2, (60, 8))
    classifier = WideNetClassifier(embed_dim=16, depth=3, num_heads=2, mlp_ratio=3.0, num_experts=5, top_k=1)
    classifier.set_params(options={"capacity_factor": 1.5, "drop_path_rate": 0.1}, patch_size=4)
    classifier.set_params(iterations=2, balance_loss="mutual_information")
    classifier.spec_ = spec
    wide = classifier._build_model().network
    assert (wide.embed_dim, len(wide.blocks), wide.moe.num_experts, wide.moe.router.top_k) == (16, 3, 5, 1)
    assert (wide.moe.experts.hidden_dim, wide.moe.capacity_factor, wide.patch_embed.patch_size) == (48, 1.5, (4, 4))
    assert isinstance(wide.blocks[-1].drop_path, nn.Module)
    assert (len(wide.moe.routers), wide.moe.balance_loss) == (2, "mutual_information")
    classifier.set_params(expert_sizes="arithmetic")
    assert classifier._build_model().network.moe.experts.sizes == (29, 38, 48, 58, 67)


def test_hyperparameters_of_a_module_are_its_arguments():
    module = DiffusionModule("dit", "S", lr=0.5)
    assert module.hparams == {**vars(DiffusionModuleConfig()), "model": "dit", "size": "S", "lr": 0.5}
    assert ImageModule(augment="shift").hparams == {**vars(ImageModuleConfig()), "augment": "shift"}
