"""An image classifier as a folder: a stock vision tower, one matrix beside it, and what they were made from.

config.json, model.safetensors   transformers' `CLIPVisionModelWithProjection`
preprocessor_config.json         its image processor
classifier.safetensors           `weight` (C, D) and `bias` (C,)
classifier.json                  class names, thresholds, geometry, digests of the files that are read; written last
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from clip_more.data.transforms import GEOMETRIES, INTERPOLATIONS
from clip_more.evaluation.results import identify, versions
from clip_more.files import filled_aside
from clip_more.models.classifier import FeatureClassifier, load_classifier
from clip_more.models.head_files import FILE as HEAD_FILE
from clip_more.models.head_files import WEIGHTS as HEAD_WEIGHTS
from clip_more.models.head_files import read_description
from clip_more.models.image_classifier import Description, ImageClassifier, describe, fold
from clip_more.models.multilabel import FILE as MULTILABEL_FILE
from clip_more.models.processor import clip_image_processor

if TYPE_CHECKING:
    from transformers import CLIPVisionModelWithProjection

FILE = "classifier.json"
MATRIX = "classifier.safetensors"
TOWER = "model.safetensors"
CONFIG = "config.json"
FORMAT = 1
_READ = (CONFIG, TOWER, MATRIX)
_WRITTEN = {FILE, *_READ, "preprocessor_config.json"}


def save_image_classifier(folder: str | os.PathLike[str], module: ImageClassifier, description: Description) -> Path:
    """Write an image classifier, complete or not at all.

    Args:
        folder: Absent, empty, or an image classifier that is replaced.
        module: What `fold` gives.
        description: Of it; the versions at hand are written with it.

    Returns:
        `folder`.

    Raises:
        ValueError: `folder` holds something else, or the description does not fit the module.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    if (foreign := _foreign(folder)) is not None:
        raise ValueError(f"{folder} holds something that is no image classifier: {foreign}; choose another folder")
    _check(module, description, str(folder))
    processor = clip_image_processor(
        description.image_size,
        {
            "mean": description.image_mean,
            "std": description.image_std,
            "interpolation": description.interpolation,
            # No CLIP image processor can pad; classifier.json says it.
            "resize_mode": "squash" if description.geometry == "squash" else "shortest",
        },
    )
    with filled_aside(folder) as aside:
        module.visual.save_pretrained(aside)
        processor.save_pretrained(aside)
        matrix = {"weight": module.weight.detach().cpu().contiguous(), "bias": module.bias.detach().cpu().contiguous()}
        save_file(matrix, aside / MATRIX, {"format": "pt"})
        content = {
            "format": FORMAT,
            **asdict(replace(description, versions=versions())),
            "sha256": {name: identify(aside / name)["sha256"] for name in _READ},
        }
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
        (aside / FILE).write_text(text + "\n", encoding="utf-8")
    return folder


def load_image_classifier(folder: str | os.PathLike[str]) -> tuple[ImageClassifier, Description]:
    """Read what `save_image_classifier` wrote, on the CPU, in eval mode.

    Raises:
        FileNotFoundError: The folder or one of its files is absent.
        ValueError: A file is damaged, or is not the one that was written with the others.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    content = _content(folder)
    for name in _READ:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is incomplete: it has no {name}; export it again")
    for name in _READ:
        if content["sha256"].get(name) != identify(folder / name)["sha256"]:
            raise ValueError(f"{folder / name} is damaged, or of another export (its SHA-256 differs); export it again")
    try:
        matrix = load_file(folder / MATRIX)
        visual = _tower(folder)
        module = ImageClassifier(visual, matrix["weight"], matrix["bias"]).eval()
    except KeyError as error:
        raise ValueError(f"{folder / MATRIX} lacks {error}; export it again") from error
    except SafetensorError as error:
        raise ValueError(f"{folder} has weights that cannot be read ({error}); export it again") from error
    description = _description(content, folder / FILE)
    _check(module, description, str(folder / FILE))
    return module, description


def open_checkpoint(
    checkpoint: str | os.PathLike[str],
) -> tuple[ImageClassifier | FeatureClassifier, Description, dict[str, str | None]]:
    """The classifier without a text tower of a finished run, of a folder with `multilabel.json` or `head.json`, or of
    an exported one.

    Returns:
        The module, its description, and the SHA-256 of each file that decides what it says.

    Raises:
        FileNotFoundError: There is none of these.
        ValueError: A file is damaged.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if (folder / FILE).is_file():
        module, description = load_image_classifier(folder)
        return module, description, _digests(folder, (FILE, *_READ))
    if (folder / "config.yaml").is_file():
        folder = folder / "merged"
        if not folder.is_dir():
            raise FileNotFoundError(f"{checkpoint} is not finished: it has no merged checkpoint yet")
    if not any((folder / name).is_file() for name in (MULTILABEL_FILE, HEAD_FILE)):
        raise FileNotFoundError(
            f"{folder} is neither a run nor a classifier: it has no config.yaml, {MULTILABEL_FILE}, {HEAD_FILE} or "
            f"{FILE}"
        )
    classifier, names = load_classifier(folder)
    content = read_description(folder)
    thresholds, softmax = content.get("thresholds"), bool(content.get("softmax", False))
    weights = identify(folder)["sha256"]
    made_from = f"{folder.name} of {folder.resolve().parent.name}, model.safetensors {weights or 'in another form'}"
    description = replace(describe(classifier.encoder, names, thresholds, made_from, softmax), versions=versions())
    of_open_clip = ("open_clip_config.json", "open_clip_model.safetensors")
    if isinstance(classifier, FeatureClassifier):
        return classifier, description, _digests(folder, (HEAD_FILE, HEAD_WEIGHTS, CONFIG, TOWER))
    return fold(classifier), description, _digests(folder, (MULTILABEL_FILE, CONFIG, TOWER, *of_open_clip))


def _foreign(folder: Path) -> str | None:
    """What in a folder is no part of an image classifier, and would be lost with it; None where nothing is."""
    if not folder.is_dir():
        return f"{folder.name}, a file" if folder.exists() else None
    for entry in sorted(folder.iterdir()):
        if entry.name not in _WRITTEN or not entry.is_file():
            return entry.name
    try:
        if any(folder.iterdir()):
            _description(_content(folder), folder / FILE)
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return None


def _digests(folder: Path, names: tuple[str, ...]) -> dict[str, str | None]:
    return {name: identify(folder / name)["sha256"] for name in names if (folder / name).is_file()}


def _content(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {FILE}: it is no image classifier that was exported here")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}, the one this version reads")
    if not isinstance(content.get("sha256"), dict):
        raise ValueError(f"{path} lacks sha256; export it again")
    return content


# Files of before have no `softmax`.
_DESCRIBED = [field.name for field in fields(Description) if field.name != "softmax"]


def _description(content: Mapping[str, Any], path: Path) -> Description:
    absent = [name for name in _DESCRIBED if name not in content]
    if absent:
        raise ValueError(f"{path} lacks {absent[0]}; export it again")
    for key, kind, what in (("versions", dict, "object"), ("made_from", str, "text"), ("image_size", int, "number")):
        if type(content[key]) is not kind:
            raise ValueError(f"{path}: {key} is no {what}; export it again")
    for key in ("class_names", "thresholds", "image_mean", "image_std"):
        value, names = content[key], key == "class_names"
        if key == "thresholds" and value is None:
            continue
        if not isinstance(value, list) or not all(isinstance(part, str) if names else _finite(part) for part in value):
            what = "texts" if names else "finite numbers"
            raise ValueError(f"{path}: {key} is no list of {what}; export it again")
    if not isinstance(content.get("softmax", False), bool):
        raise ValueError(f"{path}: softmax is neither true nor false; export it again")
    return Description(**{name: content[name] for name in _DESCRIBED}, softmax=content.get("softmax", False))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _tower(folder: Path) -> CLIPVisionModelWithProjection:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    path = folder / CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("model_type") != "clip_vision_model":
            raise ValueError("its model_type is not clip_vision_model")
        if "quantization_config" in content:
            raise ValueError("it has a quantization_config, and the weights here are plain numbers")
        config = CLIPVisionConfig.from_pretrained(folder)
    except Exception as error:  # transformers and its checks of types raise many kinds
        raise ValueError(f"{path} describes no CLIP vision tower: {error}; export it again") from error
    try:
        loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
            folder, config=config, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        raise ValueError(f"{path} and {TOWER} make no CLIP vision tower: {error}; export it again") from error
    model, report = loaded
    for kind, words in (("missing", "lacks"), ("unexpected", "has more than"), ("mismatched", "has another shape of")):
        if keys := report[f"{kind}_keys"]:
            raise ValueError(f"{folder / TOWER} {words} what {CONFIG} describes: {min(keys)}; export it again")
    return model


def _check(module: ImageClassifier, description: Description, where: str) -> None:
    """Raise ValueError where a description does not fit its module."""
    names, size = description.class_names, int(module.visual.config.image_size)
    if len(names) != len(module.bias):
        raise ValueError(f"{where}: {len(names)} class_names but {len(module.bias)} rows of weights")
    if len(set(names)) < len(names):
        twice = next(name for row, name in enumerate(names) if name in names[:row])
        raise ValueError(f"{where}: class_names has {twice!r} more than once")
    if description.thresholds is not None and len(description.thresholds) != len(names):
        raise ValueError(f"{where}: {len(names)} class_names but {len(description.thresholds)} thresholds")
    if description.image_size != size:
        raise ValueError(f"{where}: image_size is {description.image_size}, but the vision tower reads {size}")
    for key, choices in (("geometry", GEOMETRIES), ("interpolation", tuple(INTERPOLATIONS))):
        if getattr(description, key) not in choices:
            raise ValueError(f"{where}: {key} is {getattr(description, key)!r}; it must be one of {', '.join(choices)}")
    for key in ("image_mean", "image_std"):
        if len(getattr(description, key)) != 3:
            raise ValueError(f"{where}: {key} has {len(getattr(description, key))} values, one of each channel is 3")
    if min(description.image_std) <= 0:
        raise ValueError(f"{where}: image_std is {description.image_std}; each must be above 0")
