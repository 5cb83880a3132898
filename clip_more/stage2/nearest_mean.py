"""Nearest class mean: no classifier is learnt at all (Decoupling, arXiv 1910.09217, section 4.2)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip_more.models.feature_heads import FeatureHead, NearestMeanHead
from clip_more.stage2.cached import Cached
from clip_more.stage2.choose import Fitted, Selection, Stage, choose
from clip_more.stage2.measure import PHOTOS
from clip_more.stage2.options import Stage2Options

# The papers' names, and what they are of a feature h: h, h / ||h||, and (h - m) / ||h - m|| with m the mean of train.
INPUTS = {"un": "raw", "l2n": "unit", "cl2n": "centred"}
METRICS = ("euclidean", "cosine")


def class_means(train: Cached, inputs: str) -> tuple[Tensor, Tensor | None]:
    """Mean input of the positives of each class, (C, D), and the centre (D,) of `centred`.

    A class without a positive gets the mean of all photos. Sums are taken in float64, some photos at a time.

    Args:
        train: Photos.
        inputs: raw, unit or centred.
    """
    centre = None
    if inputs == "centred":
        centre = sum(part.double().sum(dim=0) for part in train.features.split(PHOTOS)) / len(train)
    width = train.features.shape[1]
    sums, total = torch.zeros(train.targets.shape[1], width, dtype=torch.float64), torch.zeros(width).double()
    for features, positives in zip(train.features.split(PHOTOS), train.positives.split(PHOTOS), strict=True):
        x = features.double()
        if inputs != "raw":
            x = F.normalize(x if centre is None else x - centre, dim=-1)
        sums += positives.double().T @ x
        total += x.sum(dim=0)
    counts = train.counts()[:, None]
    means = torch.where(counts > 0, sums / counts.clamp_min(1), total / len(train))
    return means.float(), None if centre is None else centre.float()


def ncm(stage: Stage, options: Stage2Options) -> tuple[FeatureHead, Selection]:
    """Nearest class mean; which inputs and which metric is chosen on validation.

    Raises:
        ValueError: An option names no inputs or metric.
    """
    for name, given, choices in (("inputs", options.inputs, INPUTS), ("metric", options.metric, METRICS)):
        if given is not None and given not in choices:
            raise ValueError(f"--{name} is {given!r}; choose one of {', '.join(choices)}")
    candidates: list[dict[str, Any]] = [
        {"inputs": inputs, "metric": metric}
        for inputs in (INPUTS if options.inputs is None else (options.inputs,))
        for metric in (METRICS if options.metric is None else (options.metric,))
    ]

    def fit(train: Cached, values: dict[str, Any], label: str) -> Fitted:
        means, centre = class_means(train, INPUTS[values["inputs"]])
        return Fitted(NearestMeanHead(means, INPUTS[values["inputs"]], values["metric"], centre))

    return choose("ncm", stage, candidates, fit)
