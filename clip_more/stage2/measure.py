"""How good logits are, on the photos that a method is chosen on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from clip_more.evaluation.average_precision import average_precision
from clip_more.evaluation.multi_label import micro_average_precision
from clip_more.stage2.cached import Cached

BALANCED_TOP1, MACRO_MAP, MICRO_AP = "balanced top-1", "macro mAP", "micro-AP"
PHOTOS = 4096  # whose logits are computed at a time


def measure_for(single_label: bool, monotone: bool) -> str:
    """What chooses among candidates: a figure that they can change.

    Single-label: top-1 averaged over classes, which is what published work takes on balanced validation photos.
    Multi-label: macro mAP; micro-AP where every candidate keeps the order of the photos of a class, and so every AP.
    """
    if single_label:
        return BALANCED_TOP1
    return MICRO_AP if monotone else MACRO_MAP


def measure(
    name: str, logits: np.ndarray, data: Cached, groups: Mapping[str, Sequence[int]]
) -> dict[str, float | None] | None:
    """A figure over all classes (`total`) and over each group of them.

    Args:
        name: BALANCED_TOP1 (mean over classes of the share of their photos whose highest logit is theirs), MACRO_MAP,
            or MICRO_AP (of a group: of its classes' pairs alone).
        logits: (N, C).
        data: Labels of the N photos.
        groups: Group name to class indices.

    Returns:
        Figures in 0..1, None where a group has no class with a photo; None for logits that are not finite.
    """
    if not np.isfinite(logits).all():
        return None
    columns = {"total": list(range(logits.shape[1])), **{group: list(indices) for group, indices in groups.items()}}
    targets, known = data.targets.numpy(), data.known.numpy()
    if name == MICRO_AP:
        return {
            column: _number(micro_average_precision(targets[:, own], logits[:, own], known[:, own])) if own else None
            for column, own in columns.items()
        }
    by_class = _accuracies(logits, targets) if name == BALANCED_TOP1 else average_precision(targets, logits, known)
    shown = {column: by_class[own][~np.isnan(by_class[own])] for column, own in columns.items()}
    return {column: float(values.mean()) if len(values) else None for column, values in shown.items()}


@torch.no_grad()
def logits_of(head: nn.Module, features: Tensor, device: torch.device | str = "cpu") -> np.ndarray:
    """(N, D) -> (N, C), some photos at a time; the head is left on `device`."""
    head.to(device)
    return np.concatenate([head(part.to(device)).cpu().numpy() for part in features.split(PHOTOS)])


def _accuracies(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(C,), NaN for a class without a photo."""
    classes = targets.shape[1]
    labels = targets.argmax(axis=1)
    photos = np.bincount(labels, minlength=classes)
    hits = np.bincount(labels[logits.argmax(axis=1) == labels], minlength=classes)
    return np.divide(hits, photos, out=np.full(classes, np.nan), where=photos > 0)


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value
