"""`head.safetensors` and `head.json`: a head on image features, beside the weights of its encoder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clip_more.files import written_aside
from clip_more.models.feature_heads import (
    CosineHead,
    FeatureHead,
    FixedHead,
    LinearHead,
    NearestMeanHead,
    NormedLinearHead,
)
from clip_more.models.multilabel import FILE as PROMPT_FILE
from clip_more.models.multilabel import read_multilabel

FILE, WEIGHTS = "head.json", "head.safetensors"
FORMAT = 1

_KINDS: dict[str, type[FeatureHead]] = {
    "linear": LinearHead,
    "normed_linear": NormedLinearHead,
    "cosine": CosineHead,
    "etf": FixedHead,
    "frame": FixedHead,
    "nearest_mean": NearestMeanHead,
}


def save_head(folder: str | os.PathLike[str], head: FeatureHead, content: dict[str, Any]) -> None:
    """Write a head into a folder that holds its encoder.

    Args:
        folder: There already.
        head: Any head on features.
        content: `class_names` (C), and what else shall stand in `head.json`: `thresholds`, `profile`, `trained_from`,
            `geometry`, `selection`, as `multilabel.json` has them.

    Raises:
        ValueError: Names or thresholds do not fit the head.
    """
    description = {"format": FORMAT, "kind": head.kind, "options": head.options(), **content}
    _check(description, len(head.weight), FILE)
    tensors = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    with written_aside(Path(folder) / WEIGHTS) as aside:
        save_file(tensors, aside)
    with written_aside(Path(folder) / FILE) as aside:
        aside.write_text(json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def load_head(folder: str | os.PathLike[str]) -> tuple[FeatureHead, dict[str, Any]]:
    """What `save_head` wrote: the head, and the content of `head.json`.

    Raises:
        FileNotFoundError: A file is absent.
        ValueError: A file is damaged; the text names it.
    """
    path = Path(folder) / WEIGHTS
    content = _read(Path(folder) / FILE)
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {WEIGHTS}, the weights of the head that {FILE} describes")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    kind, options = content.get("kind"), content.get("options", {})
    try:
        head = _KINDS[str(kind)](**tensors, **options)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} and {FILE} do not make a head of kind {kind!r} ({error})") from None
    _check(content, len(head.weight), str(Path(folder) / FILE))
    broken = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
    if broken or head.weight.dim() != 2 or (head.bias is not None and head.bias.shape != head.weight.shape[:1]):
        raise ValueError(f"{path}: {broken[0] if broken else 'weight or bias'} holds no usable numbers")
    return head.eval(), content


def read_description(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """`multilabel.json` or `head.json` of an exported classifier: class names, thresholds, profile, and the like.

    Raises:
        FileNotFoundError: If the folder has neither.
        ValueError: If the file is damaged.
    """
    if (Path(folder) / FILE).is_file() and not (Path(folder) / PROMPT_FILE).is_file():
        return _read(Path(folder) / FILE)
    return read_multilabel(folder)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}: it is no classifier with a head of ours")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    _check(content, None, str(path))
    return dict(content)


def _check(content: Any, classes: int | None, where: str) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{where} is not of format {FORMAT}, the one this version reads")
    names = content.get("class_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{where} lacks class_names")
    if classes is not None and len(names) != classes:
        raise ValueError(f"{where}: {len(names)} class_names but {classes} rows of weights")
    if content.get("thresholds") is not None and len(content["thresholds"]) != len(names):
        raise ValueError(f"{where}: {len(names)} class_names but {len(content['thresholds'])} thresholds")
    if not isinstance(content.get("softmax", False), bool):
        raise ValueError(f"{where}: softmax is neither true nor false")
    if content.get("geometry", "crop") not in ("crop", "squash", "pad"):
        raise ValueError(f"{where}: geometry is {content['geometry']!r}; it must be crop, squash or pad")
