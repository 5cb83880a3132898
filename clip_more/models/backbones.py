"""Plain vision backbones: CIFAR's ResNets, torchvision's ResNets and ViTs, and timm's models, as feature extractors."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from clip_more.data.transforms import GEOMETRIES, INTERPOLATIONS
from clip_more.models.backbone_sources import PREFIXES, ImageSettings, build

_CONFIG, _WEIGHTS, _KEY = "config.json", "model.safetensors", "clip_more_backbone"


class Backbone(nn.Module):
    """A vision model without a classifier, with how it wants its photos: what a `Clip` says of its images.

    Attributes:
        model: Pixels (N, 3, H, W) in, pooled features (N, D) out; possibly with a tail in its layers.
        name: What builds the architecture again: `cifar_resnet32`, `torchvision:resnet50`, `timm:resnext50_32x4d`.
        source: Where it came from, as printed; says so where the weights are random.
        geometry: How a photo is brought into a square: `crop`, `squash` or `pad`.
        image_size: Side of the square image, in pixels.
        image_mean: Mean of each channel that is subtracted from images in [0, 1].
        image_std: Standard deviation of each channel that images in [0, 1] are divided by.
        interpolation: How photos are resized: `bicubic` or `bilinear`.
        feature_size: D, as an image of `image_size` pixels gives it.
    """

    def __init__(self, model: nn.Module, name: str, source: str, images: ImageSettings, geometry: str = "crop") -> None:
        """Runs the model once, on black.

        Raises:
            ValueError: The geometry or interpolation is unknown, or the model makes no (1, D) of an image.
        """
        super().__init__()
        if geometry not in GEOMETRIES:
            raise ValueError(f"geometry is {geometry!r}; choose one of {', '.join(GEOMETRIES)}")
        if images.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"{name} wants interpolation {images.interpolation!r}; we have {', '.join(INTERPOLATIONS)}"
            )
        self.model, self.name, self.source, self.geometry = model, name, source, geometry
        self.image_size, self.interpolation = images.image_size, images.interpolation
        self.image_mean, self.image_std = images.image_mean, images.image_std
        self.feature_size = _probe(model, name, images.image_size)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, D), not normalised."""
        return self.model(pixel_values)


def is_backbone(source: str) -> bool:
    """Whether `source` is for `load_backbone`: one of its names, or a folder that `save_backbone` wrote."""
    if source.startswith(PREFIXES):
        return True
    try:
        return _KEY in json.loads((Path(source).expanduser() / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def load_backbone(
    source: str, *, image_size: int | None = None, geometry: str | None = None, seed: int = 0
) -> Backbone:
    """Load or make a backbone in fp32, in eval mode, on the CPU.

    Args:
        source: `cifar_resnet32` or `cifar_resnet34`; `torchvision:resnet50` with random weights, or with those that
            torchvision names, `torchvision:resnet50/DEFAULT`; `timm:resnext50_32x4d`, or
            `timm:resnext50_32x4d/pretrained`; or a folder that `save_backbone` wrote. Of torchvision's models ResNets,
            ResNeXts, wide ResNets and ViTs. Pretrained weights are fetched by their library into its own cache.
        image_size: Side of the square image. Without it 32 for CIFAR's nets, the size of the pretrained weights for
            others, 224 without such. Position embeddings of timm's ViTs are interpolated to it; pretrained ViTs of
            torchvision keep theirs.
        geometry: How photos are brought into a square: `crop` (without it; no wider than the square, where torchvision
            and timm resize to a little more before they cut), `squash` or `pad`.
        seed: Draws random weights; without effect elsewhere.

    Raises:
        FileNotFoundError: A folder or file is not there, or pretrained weights cannot be fetched.
        ValueError: There is no such model or set of weights, or it does not fit.
    """
    if not source.startswith(PREFIXES):
        return read_backbone(source, image_size=image_size, geometry=geometry)
    name, _, weights = source.partition("/")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
        model, images = build(name, weights, image_size)
    printed = source if weights else f"{name} (random weights, seed {seed})"
    return Backbone(model.eval(), name, printed, images, geometry or "crop").eval()


def save_backbone(backbone: Backbone, folder: str | Path) -> None:
    """Write `config.json` and `model.safetensors` into a folder that is there, such as `filled_aside` gives.

    Raises:
        ValueError: Its layers have a tail, which `merge_tail` makes part of them.
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in backbone.model.state_dict().items()}
    tailed = next((key for key in tensors if ".lora_A." in key), None)
    if tailed:
        raise ValueError(f"{backbone.name} has a tail ({tailed}); save merge_tail(backbone), which is a plain model")
    images = ImageSettings(backbone.image_size, backbone.image_mean, backbone.image_std, backbone.interpolation)
    content = {key: getattr(backbone, key) for key in ("name", "source", "geometry", "feature_size")} | asdict(images)
    save_file(tensors, Path(folder) / _WEIGHTS, metadata={"format": "pt"})
    (Path(folder) / _CONFIG).write_text(json.dumps({_KEY: content}, indent=2) + "\n", encoding="utf-8")


def read_backbone(folder: str | Path, *, image_size: int | None = None, geometry: str | None = None) -> Backbone:
    """A backbone that `save_backbone` wrote, in eval mode, on the CPU; nothing is fetched.

    Args:
        folder: Holds `config.json` and `model.safetensors`.
        image_size: Another image size than it was saved with; refused for torchvision's ViTs.
        geometry: Another geometry than it was saved with.

    Raises:
        FileNotFoundError: The folder or one of its files is absent.
        ValueError: A file is damaged, or the tensors are not exactly those of the architecture.
    """
    folder = Path(folder).expanduser()
    for file in (folder / _CONFIG, folder / _WEIGHTS):
        if not file.is_file():
            raise FileNotFoundError(f"there is no {file}; a saved backbone has {_CONFIG} and {_WEIGHTS}")
    content = _read_config(folder / _CONFIG)
    name, size = content["name"], content["image_size"]
    images = ImageSettings(size, tuple(content["image_mean"]), tuple(content["image_std"]), content["interpolation"])
    try:
        with torch.random.fork_rng(devices=[]):
            model, _ = build(name, image_size=size)
    except ValueError as error:
        raise ValueError(f"{folder / _CONFIG}: {error}") from error
    _load_exactly(model, folder / _WEIGHTS, name)
    if image_size not in (None, size):
        _resize(model, name, image_size)
        images = replace(images, image_size=image_size)
    return Backbone(model.eval(), name, content["source"], images, geometry or content["geometry"]).eval()


def _probe(model: nn.Module, name: str, image_size: int) -> int:
    """Number of features that the model makes of a black image."""
    was_training = model.training
    try:
        with torch.no_grad():
            features = model.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, AssertionError, ValueError, TypeError) as error:
        raise ValueError(f"{name} cannot read an image of {image_size} x {image_size} pixels: {error}") from error
    finally:
        model.train(was_training)
    if features.dim() != 2:
        raise ValueError(f"{name} gives {tuple(features.shape)} for an image, no pooled features (1, D)")
    return int(features.shape[1])


def _resize(model: Any, name: str, image_size: int) -> None:
    """Make `model` read another image size, where it does not read any."""
    if name.startswith("torchvision:vit"):
        raise ValueError(f"{name} keeps the image size that it was saved with; leave image_size out")
    if hasattr(model, "set_input_size"):  # timm's models with a fixed one
        model.set_input_size(img_size=image_size)


def _read_config(file: Path) -> dict[str, Any]:
    kinds = {"name": str, "source": str, "geometry": str, "interpolation": str, "image_size": int, "image_mean": list,
             "image_std": list, "feature_size": int}  # fmt: skip
    try:
        content = json.loads(file.read_text(encoding="utf-8"))[_KEY]
        wrong = next((key for key, kind in kinds.items() if not isinstance(content[key], kind)), None)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{file} does not describe a backbone as save_backbone does: {error!r}") from error
    if wrong:
        raise ValueError(f"{file}: {wrong} is {content[wrong]!r}, which is no {kinds[wrong].__name__}")
    return content


def _load_exactly(model: nn.Module, file: Path, name: str) -> None:
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    expected = model.state_dict()
    for key in sorted(expected.keys() | tensors.keys()):
        if key not in tensors:
            raise ValueError(f"{file} lacks {key}, which {name} has")
        if key not in expected:
            raise ValueError(f"{file} has {key}, for which {name} has no place")
        if tensors[key].shape != expected[key].shape:
            raise ValueError(
                f"{file}: {key} has shape {tuple(tensors[key].shape)}, {name} wants {tuple(expected[key].shape)}"
            )
    model.load_state_dict(tensors)
