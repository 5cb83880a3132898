"""A head of any kind as arrays: rows of a linear classifier, and the features as it reads them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clip_more.analysis.moments import unit_rows
from clip_more.models.classifier import AnyClassifier, Classifier
from clip_more.models.feature_heads import CosineHead, NearestMeanHead, NormedLinearHead


@dataclass(frozen=True)
class HeadArrays:
    """A head as `logits = inputs(h) W^T + b` (plus what is the same for all classes of a photo).

    Attributes:
        weight: (C, D) float64.
        bias: (C,) float64, or None.
        inputs: Features (N, D) of the encoder to what is multiplied with the rows.
        name: Of `inputs`: `raw`, `unit` or `centred`.
        row_norms_matter: False where rows have one length by construction.
    """

    weight: np.ndarray
    bias: np.ndarray | None
    inputs: Callable[[np.ndarray], np.ndarray]
    name: str
    row_norms_matter: bool


@torch.no_grad()
def head_arrays(classifier: AnyClassifier) -> HeadArrays:
    """The head of a classifier as arrays; class prompts are encoded by its text tower."""
    if isinstance(classifier, Classifier):
        prompts = classifier.head
        text = prompts.text_features(classifier.clip) * prompts.log_scale.exp()
        return HeadArrays(_array(text), _array(prompts.bias), unit_rows, "unit", False)
    head: Any = classifier.head  # kinds differ in what they have
    weight, bias = _array(head.weight), None if head.bias is None else _array(head.bias)
    if isinstance(head, NormedLinearHead | CosineHead) or getattr(head, "metric", "") == "cosine":
        weight = unit_rows(weight)
    if isinstance(head, CosineHead):
        weight = weight * float(head.log_scale.exp())
    if isinstance(head, NearestMeanHead) and head.metric == "euclidean":
        # -||x - m||^2 = 2 <x, m> - ||m||^2, less ||x||^2, which moves no decision between classes
        weight, bias = 2 * weight, -(weight**2).sum(axis=1)
    matter = not head.ignores_norms and head.kind not in ("etf", "frame")
    centre = None if getattr(head, "centre", None) is None else _array(head.centre)
    if centre is not None:
        return HeadArrays(
            weight, bias, lambda features: unit_rows((features - centre).astype(features.dtype)), "centred", matter
        )
    if head.ignores_lengths:
        return HeadArrays(weight, bias, unit_rows, "unit", matter)
    return HeadArrays(weight, bias, lambda features: features, "raw", matter)


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()
