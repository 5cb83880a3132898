"""`multilabel.json`: what a multi-label classifier needs and a plain CLIP has no field for."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FILE = "multilabel.json"
FORMAT = 1


def make_multilabel(
    names: Sequence[str],
    prompts: Sequence[Sequence[str]],
    logit_scale: float,
    bias: Sequence[float],
    *,
    profile: dict[str, Any] | None = None,
    thresholds: Sequence[float] | None = None,
    trained_from: str | None = None,
    geometry: str = "crop",
    selection: str = "unknown",
    softmax: bool = False,
) -> dict[str, Any]:
    """The content of `multilabel.json`: `logit_c = logit_scale * cos(image, t_c) + bias_c`.

    Args:
        names: C class names.
        prompts: (C, T) texts; t_c is the mean of the T normalised text features, normalised again.
        logit_scale: The factor itself, not its logarithm.
        bias: (C,) added to the logits.
        profile: `ClassProfile.to_dict()` of the train set.
        thresholds: (C,) probabilities from which a class counts as present.
        trained_from: The checkpoint that training started from.
        geometry: How photos are brought into a square: `crop`, `squash` or `pad`.
        selection: What the weights were chosen on, as a result's protocol says it.
        softmax: Whether probabilities are a softmax over the classes: the model was trained for one class a photo.

    Raises:
        ValueError: See `check_multilabel`.
    """
    content = {
        "format": FORMAT,
        "class_names": list(names),
        "prompts": [list(row) for row in prompts],
        "logit_scale": float(logit_scale),
        "bias": [float(value) for value in bias],
        "thresholds": None if thresholds is None else [float(value) for value in thresholds],
        "profile": profile,
        "trained_from": trained_from,
        "geometry": geometry,
        "selection": selection,
        **({"softmax": True} if softmax else {}),
    }
    check_multilabel(content)
    return content


def check_multilabel(content: dict[str, Any], where: str = FILE) -> None:
    """Check that names, prompts, bias and thresholds fit each other.

    Raises:
        ValueError: Naming the field at fault.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{where} is not of format {FORMAT}, the one this version reads")
    absent = [key for key in ("class_names", "prompts", "logit_scale", "bias") if key not in content]
    if absent:
        raise ValueError(f"{where} lacks {absent[0]}")
    names, scale = content["class_names"], content["logit_scale"]
    for key in ("prompts", "bias", "thresholds"):
        if content.get(key) is not None and len(content[key]) != len(names):
            raise ValueError(f"{where}: {len(names)} class_names but {len(content[key])} {key}")
    if len({len(row) for row in content["prompts"]}) > 1 or not all(content["prompts"]):
        raise ValueError(f"{where}: every class needs the same number of prompts, at least one")
    if content.get("geometry", "crop") not in ("crop", "squash", "pad"):
        raise ValueError(f"{where}: geometry is {content['geometry']!r}; it must be crop, squash or pad")
    if not isinstance(content.get("softmax", False), bool):
        raise ValueError(f"{where}: softmax is neither true nor false")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"{where}: logit_scale is {scale}; it must be above 0 and finite")
    wrong = [name for name, value in zip(names, content["bias"], strict=True) if not math.isfinite(value)]
    if wrong:
        raise ValueError(f"{where}: the bias of class {wrong[0]!r} is not finite")


def read_multilabel(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read and check the `multilabel.json` of an exported folder.

    Raises:
        FileNotFoundError: If the folder has none.
        ValueError: If it is not one, naming the file.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {FILE}: it is no classifier that was exported here")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    check_multilabel(content, str(path))
    return content
