"""Features of a run's photos on disk: taken once, and again when the weights or the photos are others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from clip_more.evaluation.predict import Predictions
from clip_more.files import written_aside
from clip_more.stage2.cached import Cached

if TYPE_CHECKING:
    import datasets

FORMAT = "clip_more features 1"


def cached_features(
    path: Path,
    parts: Mapping[str, datasets.Dataset],
    of: Mapping[str, str],
    take: Callable[[datasets.Dataset, str], Predictions],
) -> tuple[dict[str, Cached], str | None]:
    """Features of every part, from the file where it is of the same weights and photos.

    They stay mapped from the file: features that are not read take no memory.

    Args:
        path: A .safetensors file; written complete or not at all.
        parts: Name (train, val, test) to photos.
        of: What the features depend on, in words: digests of weights and photos, and how photos become pixels.
        take: Features (N, D) of photos, with a label for a progress bar.

    Returns:
        The features by name; and why they were taken, None where the file had them.
    """
    why = _stale(path, of)
    if why is not None:
        tensors: dict[str, np.ndarray] = {}
        for name, photos in parts.items():
            taken = take(photos, f"features of {name}")
            tensors[f"{name}.features"] = np.ascontiguousarray(taken.scores, dtype=np.float32)
            tensors[f"{name}.targets"] = np.packbits(taken.targets, axis=1)
            tensors[f"{name}.known"] = np.packbits(taken.known.astype(bool), axis=1)
            tensors[f"{name}.classes"] = np.array([taken.targets.shape[1]])
        from safetensors.numpy import save_file

        with written_aside(path) as aside:
            save_file(tensors, aside, {"format": FORMAT, "of": json.dumps(dict(of))})
    return _read(path, parts), why


def _stale(path: Path, of: Mapping[str, str]) -> str | None:
    """Why the file cannot be used; None where it can."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return "there were none yet"
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        before = json.loads(metadata.get("of", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        return f"{path.name} is damaged ({error})"
    if metadata.get("format") != FORMAT:
        return f"{path.name} is of another format"
    changed = [name for name in {**before, **of} if before.get(name) != of.get(name)]
    return f"other {' and '.join(changed)} than those in {path.name}" if changed else None


def _read(path: Path, parts: Mapping[str, object]) -> dict[str, Cached]:
    from safetensors.torch import load_file

    tensors = load_file(path)

    def bits(name: str, classes: int) -> torch.Tensor:
        return torch.from_numpy(np.unpackbits(tensors[name].numpy(), axis=1, count=classes).view(bool))

    found = {}
    for name in parts:
        classes = int(tensors[f"{name}.classes"])
        labels = (bits(f"{name}.{column}", classes) for column in ("targets", "known"))
        found[name] = Cached(tensors[f"{name}.features"], *labels)
    return found
