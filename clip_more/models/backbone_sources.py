"""What a backbone's name stands for: the model without its classifier, and how its library prepares photos for it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from clip_more.models.cifar_resnet import cifar_resnet32, cifar_resnet34

PREFIXES = ("cifar_resnet", "torchvision:", "timm:")

_CIFAR = {"cifar_resnet32": cifar_resnet32, "cifar_resnet34": cifar_resnet34}
# torchvision's families with one classifier layer behind pooled features, and that layer's name.
_CLASSIFIERS = {r"(wide_)?resnet\d|resnext\d": "fc", r"vit_[a-z]_\d": "heads"}


@dataclass(frozen=True)
class ImageSettings:
    """How a model wants its photos; attributes as in `Backbone`. The defaults are ImageNet's in torchvision."""

    image_size: int = 224
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"


def build(name: str, weights: str = "", image_size: int | None = None) -> tuple[nn.Module, ImageSettings]:
    """The model of a name, its classifier left out, with random weights drawn from torch's CPU generator, or `weights`.

    Args:
        name: `cifar_resnet32`, `cifar_resnet34`, `torchvision:<model>` or `timm:<model>`.
        weights: Pretrained weights, which are fetched: one of torchvision's names for them, or timm's `pretrained`.
        image_size: As in `load_backbone`.

    Raises:
        FileNotFoundError: Pretrained weights cannot be fetched.
        ValueError: There is no such model or set of weights, or it does not fit.
    """
    library, _, model = name.rpartition(":")
    if library:
        return (_torchvision if library == "torchvision" else _timm)(model, weights, image_size)
    if name not in _CIFAR:
        raise ValueError(_unknown(name, _CIFAR))
    if weights:
        raise ValueError(f"{name} comes without pretrained weights; leave out /{weights}")
    # Mean and deviation of CIFAR-10, the latter taken photo by photo, that long-tail code has for both CIFARs (LDAM's,
    # weight balancing's).
    return _CIFAR[name](), ImageSettings(image_size or 32, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def _torchvision(name: str, weights: str, image_size: int | None) -> tuple[nn.Module, ImageSettings]:
    import torchvision.models as library

    names = library.list_models(module=library)
    if name not in names:
        raise ValueError(_unknown(f"torchvision:{name}", [f"torchvision:{known}" for known in names]))
    layer = next((layer for family, layer in _CLASSIFIERS.items() if re.match(family, name)), None)
    if layer is None:
        raise ValueError(
            f"torchvision:{name}: of torchvision's models ResNets, ResNeXts, wide ResNets and ViTs can be used "
            "(resnet50, resnext50_32x4d, wide_resnet50_2, vit_b_16); timm has most others"
        )
    settings = ImageSettings(image_size or 224)
    options: dict[str, Any] = {}
    if weights:
        choices = library.get_model_weights(name).__members__
        if weights not in choices:
            raise ValueError(f"torchvision:{name} has no weights {weights!r}; choose one of {', '.join(choices)}")
        options["weights"] = choices[weights]
        preset = choices[weights].transforms()
        own = preset.crop_size[0]
        if layer == "heads" and image_size not in (None, own):
            raise ValueError(
                f"torchvision:{name}/{weights} reads images of {own} pixels, not {image_size}; timm's ViTs take others"
            )
        settings = ImageSettings(
            image_size or own, tuple(preset.mean), tuple(preset.std), str(preset.interpolation.value)
        )
    elif layer == "heads":
        options["image_size"] = settings.image_size
    model = _made(f"torchvision:{name}", weights, lambda: library.get_model(name, **options))
    setattr(model, layer, nn.Identity())
    return model, settings


def _timm(name: str, weights: str, image_size: int | None) -> tuple[nn.Module, ImageSettings]:
    import timm

    if weights not in ("", "pretrained"):
        raise ValueError(f"timm:{name}/{weights}: write timm:{name}/pretrained, or timm:{name} for random weights")
    if not timm.is_model(name):
        raise ValueError(_unknown(f"timm:{name}", [f"timm:{known}" for known in timm.list_models()]))
    try:
        preset: Any = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:  # a tag behind the point that is none
        tags = ", ".join(timm.list_pretrained(name.partition(".")[0])) or "none"
        raise ValueError(f"timm:{name}: {error} Pretrained are: {tags}") from None
    if weights and not preset.has_weights:
        raise ValueError(f"timm has no pretrained weights for {name}; leave out /pretrained for random ones")
    settings = ImageSettings(
        image_size or preset.input_size[-1], tuple(preset.mean), tuple(preset.std), preset.interpolation
    )
    options: dict[str, Any] = {"img_size": settings.image_size} if preset.fixed_input_size else {}
    model = _made(
        f"timm:{name}", weights, lambda: timm.create_model(name, pretrained=bool(weights), num_classes=0, **options)
    )
    return model, settings


def _made(name: str, weights: str, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except OSError as error:  # urllib's errors and the Hub's are such
        raise FileNotFoundError(
            f"cannot fetch the pretrained weights {name}/{weights}: {' '.join(str(error).split())}. They must be in "
            f"the library's cache, or the network be there; {name} alone has random weights"
        ) from error
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ValueError(f"{name} cannot be made: {' '.join(str(error).split())}") from error


def _unknown(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=3)
    hint = (
        f"did you mean {' or '.join(close)}?" if close else f"write {', '.join(_CIFAR)}, torchvision:NAME or timm:NAME"
    )
    return f"there is no model {name}; {hint}"
