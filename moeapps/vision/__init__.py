"""Images: WideNet, ViT-MoE and Switch-DiT.

Importing this package registers the first two in timm (``timm.list_models("widenet*")``).
"""

from moeapps.vision import timm_models  # noqa: F401 - registers the models
from moeapps.vision.classifier import WideNetClassifier
from moeapps.vision.data import ImageDataModule, ImageFolderData, PublicImageData
from moeapps.vision.datasets import LabelledImages, load_images
from moeapps.vision.diffusion import Diffusion
from moeapps.vision.diffusion_module import DiffusionModule, SampleImages
from moeapps.vision.dit import DiT
from moeapps.vision.export import export_classifier, export_generator
from moeapps.vision.generator import SwitchDiTGenerator
from moeapps.vision.images import ImageSpec
from moeapps.vision.module import ImageModule
from moeapps.vision.prior import TimestepPrior
from moeapps.vision.stem import ConvPatchEmbed
from moeapps.vision.switch_dit import SwitchDiT, TimestepSwitch
from moeapps.vision.widenet import SharedMoE, ViTMoE, WideBlock, WideNet

__all__ = [
    "ConvPatchEmbed",
    "DiT",
    "Diffusion",
    "DiffusionModule",
    "ImageDataModule",
    "ImageFolderData",
    "ImageModule",
    "ImageSpec",
    "LabelledImages",
    "PublicImageData",
    "SampleImages",
    "SharedMoE",
    "SwitchDiT",
    "SwitchDiTGenerator",
    "TimestepPrior",
    "TimestepSwitch",
    "ViTMoE",
    "WideBlock",
    "WideNet",
    "WideNetClassifier",
    "export_classifier",
    "export_generator",
    "load_images",
]
