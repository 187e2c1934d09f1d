"""The convolutional stem: as many tokens as patches, overlapping, in every family and as a saved network."""

from itertools import chain

import pytest
import timm
import torch
from torch import nn

import moeapps.vision  # noqa: F401 - registers the models
from moeapps.core.errors import ConfigError
from moeapps.vision import ConvPatchEmbed, WideNet
from moeapps.vision.networks import FAMILIES, make_network


@pytest.mark.parametrize(("side", "patch", "strides"), [(8, 2, [2]), (28, 4, [2, 2]), (24, 6, [2, 3]), (35, 5, [5])])
def test_there_are_as_many_tokens_as_patches(side, patch, strides):
    stem = ConvPatchEmbed(side, patch, in_chans=3, embed_dim=48)
    convolutions = [layer for layer in stem.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.stride[0] for layer in convolutions] == [*chain(*((1, stride) for stride in strides)), 1]
    assert stem(torch.rand(2, 3, side, side)).shape == (2, (side // patch) ** 2, 48)
    assert stem.num_patches == (side // patch) ** 2


def test_a_token_sees_its_neighbours_patches_and_not_the_far_ones():
    stem = ConvPatchEmbed(32, 4, in_chans=1, embed_dim=16).eval()
    image = torch.rand(1, 1, 32, 32, requires_grad=True)
    stem(image)[0, 0].sum().backward()  # the token of the upper left patch
    seen = image.grad[0, 0].abs().amax(dim=0) > 0
    assert seen[:7].all()
    assert not seen[8:].any()


def test_widths_double_up_to_that_of_the_tokens_and_large_patches_begin_with_single_convolutions():
    def convolutions(side, patch, embed_dim):
        stem = ConvPatchEmbed(side, patch, in_chans=3, embed_dim=embed_dim)
        return [(layer.out_channels, layer.stride[0]) for layer in stem.modules() if isinstance(layer, nn.Conv2d)]

    assert convolutions(32, 8, 64) == [(32, 1), (32, 2), (64, 1), (64, 2), (64, 1), (64, 2), (64, 1)]
    large = [(32, 2), (64, 2), (128, 1), (128, 2), (192, 1), (192, 2), (192, 1)]
    assert convolutions(64, 16, 192) == large
    assert [wide for wide, _ in convolutions(64, 8, 512)] == [128, 128, 256, 256, 512, 512, 512]
    assert {wide for wide, _ in convolutions(16, 4, 16)} == {16}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_has_it_by_name(family):
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "patch_size": 2}
    network = make_network(family, (1, 8, 8), 3, stem="conv", **sizes)
    assert isinstance(network.patch_embed, ConvPatchEmbed)
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 3)
    assert not isinstance(make_network(family, (1, 8, 8), 3, **sizes).patch_embed, ConvPatchEmbed)
    with pytest.raises(ConfigError, match="stem must be one of patch, conv, got 'cnn'"):
        make_network(family, (1, 8, 8), 3, stem="cnn", **sizes)


def test_a_model_of_timm_takes_it_and_another_size_of_images():
    model = timm.create_model("widenet_tiny_patch16_224", img_size=32, patch_size=4, stem="conv", num_classes=5).eval()
    model.set_input_size(img_size=48)
    assert model(torch.rand(1, 3, 48, 48)).shape == (1, 5)
    with pytest.raises(ConfigError, match=r"patch_size of a convolutional stem is fixed \(4\), got 8"):
        model.patch_embed.set_input_size(patch_size=8)


def test_a_saved_network_has_it_again(tmp_path):
    network = WideNet(
        img_size=8, patch_size=2, in_chans=1, embed_dim=16, depth=2, num_heads=2, num_classes=3, stem="conv"
    ).eval()
    network.save_pretrained(tmp_path)
    loaded = WideNet.from_pretrained(tmp_path).eval()
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(loaded(images), network(images), rtol=0, atol=0)


def test_it_is_built_without_memory_and_in_another_precision():
    with torch.device("meta"):
        assert ConvPatchEmbed(32, 4, embed_dim=16).proj[0].conv.weight.is_meta
    stem = ConvPatchEmbed(32, 4, embed_dim=16, dtype=torch.float64)
    assert {parameter.dtype for parameter in stem.parameters()} == {torch.float64}


@pytest.mark.parametrize("patch", [1, (2, 4)])
def test_patches_that_it_cannot_make_are_refused(patch):
    with pytest.raises(ConfigError, match="stem='conv' needs square patches of at least 2 pixels"):
        ConvPatchEmbed(8, patch, embed_dim=16)
