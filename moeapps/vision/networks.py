"""Networks by name: the families of this package, and every model of timm."""

from collections.abc import Iterator, Mapping
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from moeapps.core.checks import check_sizes
from moeapps.core.errors import ConfigError
from moeapps.core.layer import MoE
from moeapps.core.rebuilding import uncounted
from moeapps.registry import did_you_mean
from moeapps.vision.stem import patch_embedding
from moeapps.vision.widenet import SharedMoE, ViTMoE, WideNet

__all__ = ["FAMILIES", "make_network", "without_downloads"]

FAMILIES: dict[str, type[nn.Module]] = {"widenet": WideNet, "vit_moe": ViTMoE, "vit": VisionTransformer}
"""Models whose sizes are arguments; any other name is one of timm."""

_SQUARES = (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
"""Sides that are tried, up to the one that a model was designed for, to name one that it can take."""

_FAILURES = (
    AssertionError, ArithmeticError, AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError,
    ValueError,
)  # fmt: skip
"""What models of timm raise where arguments or sizes do not fit."""


def make_network(
    model: str, shape: tuple[int, int, int], num_classes: int, *, for_weights: bool = False, **options: Any
) -> nn.Module:
    """Build a network for images ``(C, H, W)``.

    Parameters
    ----------
    model : str
        ``"widenet"``, ``"vit_moe"``, ``"vit"``, or the name of a timm model.
    shape : tuple[int, int, int]
        Channels, height, width.
    num_classes : int
        Number of classes.
    for_weights : bool, default=False
        Whether it is for weights that are at hand: then nothing is downloaded, no file is read, and no image is
        classified to try it, since a file may name any size.
    **options
        Further arguments of the model.

    Raises
    ------
    ConfigError
        If there is no such model or argument, or the model cannot take images of this size; the error then names a
        size that it can take.
    """
    if model in FAMILIES:
        _check_sizes(options)
        if model == "vit":  # timm's own class, to which a stem is a class of embeddings
            stem = options.pop("stem", "patch")
            options = {**options, **patch_embedding(stem)}
        try:
            return FAMILIES[model](in_chans=shape[0], img_size=shape[1:], num_classes=num_classes, **options)
        except (TypeError, AssertionError) as error:
            raise ConfigError(f"options of model={model!r}: {error}") from None
    if not isinstance(model, str) or not timm.is_model(model):
        hint = did_you_mean(model, [*FAMILIES, *timm.list_models()]) if isinstance(model, str) else ""
        raise ConfigError(f"model must be one of {', '.join(FAMILIES)} or a model of timm, got {model!r}{hint}")
    # Before anything is built: a name from a file must not reach timm's hub and folders.
    if any(character in model for character in ":/\\"):
        raise ConfigError(f"model={model!r} names a place: give the name of a timm model, as timm.list_models() has it")
    if for_weights:
        return _timm_model_for_weights(model, shape, num_classes, without_downloads(options))
    return _timm_model(model, shape, num_classes, options)


def without_downloads(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options of a model without those that make timm read a file or the network: weights come from elsewhere."""
    fetching = ("pretrained", "checkpoint_path", "cache_dir", "pretrained_cfg", "pretrained_cfg_overlay")
    return {name: value for name, value in (options or {}).items() if name not in fetching}


def _check_sizes(options: dict[str, Any]) -> None:
    """Refuse sizes that timm would refuse without a name, or not at all."""
    given = {name: options[name] for name in ("embed_dim", "depth", "num_heads") if name in options}
    check_sizes(**given)
    if {"embed_dim", "num_heads"} <= set(given) and given["embed_dim"] % given["num_heads"]:
        raise ConfigError(f"embed_dim={given['embed_dim']} is not a multiple of num_heads={given['num_heads']}")


def _timm_model(model: str, shape: tuple[int, int, int], num_classes: int, options: dict[str, Any]) -> nn.Module:
    """Build a model of timm, and let it classify one image.

    Which models take ``img_size`` is not written down anywhere: ``fixed_input_size`` of their configuration is neither
    necessary nor sufficient. So they are asked, by a call.
    """
    first: Exception | None = None
    for sizes in _ways_to_say(shape, options):
        try:
            network: nn.Module = timm.create_model(
                model, in_chans=shape[0], num_classes=num_classes, **{**sizes, **options}
            )
            _classify_one(network, shape, num_classes)
            return network
        except _FAILURES as error:
            # that one takes no img_size says nothing about what is wrong
            first = first if _is_about_img_size(error) else first or error
    if first is None or isinstance(first, ConfigError):
        raise first or ConfigError(f"model={model!r} takes no image size")
    text = " ".join(str(first).split()) or type(first).__name__
    plain = without_downloads(options)
    own = _own_side(model)
    sides = [side for side in _SQUARES if max(shape[1:]) <= side < own] + [own]
    shapes = [(shape[0], side, side) for side in sides]
    works = next((each[1] for each in shapes if _way_that_works(model, each, num_classes, plain) is not None), None)
    if works is None or (works, works) == shape[1:]:
        raise ConfigError(f"options of model={model!r}: {text}") from None
    raise ConfigError(
        f"model={model!r} cannot take images of {shape[1]} x {shape[2]} pixels ({text}). It takes {works} x {works}: "
        f"set image_size={works}"
    ) from None


def _timm_model_for_weights(
    model: str, shape: tuple[int, int, int], num_classes: int, options: dict[str, Any]
) -> nn.Module:
    """The model that :func:`_timm_model` built, found without memory for an image or for weights."""
    way = _way_that_works(model, shape, num_classes, options)
    try:
        # without such a way the first one fails too, unless the model cannot be tried without memory
        network: nn.Module = timm.create_model(
            model,
            in_chans=shape[0],
            num_classes=num_classes,
            **{**(next(_ways_to_say(shape, options)) if way is None else way), **options},
        )
        return network
    except _FAILURES as error:
        raise ConfigError(f"options of model={model!r}: {' '.join(str(error).split())}") from None


def _ways_to_say(shape: tuple[int, int, int], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """How a model may want to be told the size of its images."""
    if "img_size" in options:
        yield {}
        return
    yield {"img_size": shape[1:]}
    yield {}
    if shape[1] == shape[2]:
        yield {"img_size": shape[1]}


def _is_about_img_size(error: Exception) -> bool:
    return isinstance(error, TypeError) and "unexpected keyword argument 'img_size'" in str(error)


def _classify_one(network: nn.Module, shape: tuple[int, int, int], num_classes: int) -> None:
    """Refuse a network that does not turn an image into logits."""
    device = next((parameter.device for parameter in network.parameters()), None)
    training = network.training
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        logits = network.eval()(torch.zeros(1, *shape, device=device))
    network.train(training)
    for layer in network.modules():  # nothing of this image stays
        if isinstance(layer, SharedMoE):
            layer.start()
        if isinstance(layer, MoE):
            layer.last_routing = None
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (1, num_classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise TypeError(f"the model gives {found} for an image, expected {(1, num_classes)}")


def _way_that_works(
    model: str, shape: tuple[int, int, int], num_classes: int, options: dict[str, Any]
) -> dict[str, Any] | None:
    """How a model wants to be told a size that it takes, None if it takes none; tried without memory for weights."""
    for sizes in _ways_to_say(shape, options):
        try:
            with torch.device("meta"):
                network = timm.create_model(model, in_chans=shape[0], num_classes=num_classes, **{**sizes, **options})
            with uncounted():
                _classify_one(network, shape, num_classes)
            return sizes
        except _FAILURES:
            continue
    return None


def _own_side(model: str) -> int:
    """The side of the images that a model of timm was designed for."""
    size = getattr(timm.get_pretrained_cfg(model, allow_unregistered=True), "input_size", None)
    return 224 if size is None else int(size[-1])
