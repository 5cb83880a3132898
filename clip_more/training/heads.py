"""Heads without prompts: made for a recipe, and started from class texts or class means."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_more.config import LOSSES_OF_ONE_LABEL, ConfigError, TrainConfig
from clip_more.models.classifier import Encoder
from clip_more.models.clip import Clip
from clip_more.models.feature_heads import (
    CosineHead,
    FeatureHead,
    FixedHead,
    LinearHead,
    NormedLinearHead,
    orthonormal_frame,
    rotated_towards,
    simplex_etf,
)
from clip_more.models.heads import SCALE_BOUNDS, PromptHead, fit_scale_and_bias, fit_softmax_scale

if TYPE_CHECKING:
    from clip_more.data.profile import ClassProfile
    from clip_more.evaluation.predict import Predictions


def feature_size(encoder: Encoder) -> int:
    """D of `encoder.encode_image`."""
    return int(encoder.model.config.projection_dim) if isinstance(encoder, Clip) else encoder.feature_size


def make_head(config: TrainConfig, encoder: Encoder, profile: ClassProfile) -> FeatureHead:
    """The head that a recipe names, its rows random, its biases at the class log-odds where classes are independent.

    Args:
        config: The recipe.
        encoder: Gives the features.
        profile: Of the classes.

    Raises:
        ConfigError: The encoder cannot carry it.
    """
    if config.head_init == "text" and not isinstance(encoder, Clip):
        raise ConfigError(f"head_init: text needs a text tower, and {encoder.source} has none; choose class_mean")
    classes, features = len(profile.names), feature_size(encoder)
    if config.head in ("etf", "frame") and config.head_init != "random" and features < classes:
        raise ConfigError(
            f"head_init: {config.head_init} rotates a head of {classes} rows, which takes as many features, and this "
            f"encoder gives {features}; leave head_init out"
        )
    generator = torch.Generator().manual_seed(config.seed)
    bias = _log_odds(profile.frequency) if config.loss not in LOSSES_OF_ONE_LABEL else torch.zeros(classes)
    try:
        if config.head in ("etf", "frame"):
            make = simplex_etf if config.head == "etf" else orthonormal_frame
            return FixedHead(make(classes, features, generator).float(), bias, config.head)
    except ValueError as error:
        raise ConfigError(f"head: {config.head}: {error}") from None
    weight = torch.empty(classes, features).uniform_(-1, 1, generator=generator) / math.sqrt(features)
    if config.head == "cosine":
        head = CosineHead(weight, bias)
        if config.loss == "ldam":  # whose scale is fixed
            head.log_scale.requires_grad_(False).fill_(math.log(config.ldam_scale))
        return head
    return (LinearHead if config.head == "linear" else NormedLinearHead)(weight, bias)


@torch.no_grad()
def start_head(head: FeatureHead, directions: Tensor, features: Predictions, one_label: bool) -> float:
    """Set the rows of a head to class directions, with the scale and biases that fit train best.

    ETF and frame are rotated towards the directions, as they may not be set; their features have yet to grow, so
    their biases stay.

    Args:
        head: From `make_head`.
        directions: (C, D) unit vectors: class texts, or class means.
        features: Raw features (N, D) of train photos, with their labels.
        one_label: Whether the loss is a softmax over classes: then biases stay 0.

    Returns:
        The scale.
    """
    if isinstance(head, FixedHead):
        head.weight.copy_(rotated_towards(directions, head.kind))
        return 1.0
    raw = torch.from_numpy(features.scores)
    length = float(raw.norm(dim=-1).mean())
    if isinstance(head, NormedLinearHead):
        products, bounds = raw @ directions.T, (1.0, 1.0)
    else:
        products, bounds = F.normalize(raw, dim=-1) @ directions.T, SCALE_BOUNDS
    if one_label:
        scale, _ = fit_softmax_scale(products.numpy(), features.targets.argmax(axis=1), bounds)
        bias = torch.zeros(len(directions))
    else:
        scale, fitted, _ = fit_scale_and_bias(products.numpy(), features.targets, features.known, bounds)
        bias = torch.from_numpy(fitted)
    head.weight.copy_(directions * (scale / length if isinstance(head, LinearHead) else 1.0))
    if isinstance(head, CosineHead):
        if head.log_scale.requires_grad:
            head.log_scale.fill_(math.log(scale))
        scale = float(head.log_scale.exp())
    assert head.bias is not None
    head.bias.copy_(bias)
    return scale


def text_directions(clip: Clip, prompts: list[list[str]]) -> Tensor:
    """(C, D) unit text features of classes, from T prompts each."""
    with torch.no_grad():
        return PromptHead(clip, prompts, scale=1.0).to(clip.model.device).text_features(clip).cpu()


def mean_directions(features: Predictions) -> Tensor:
    """(C, D) unit vectors from the mean feature of all photos to that of each class (features at unit length)."""
    unit = F.normalize(torch.from_numpy(features.scores), dim=-1)
    positive = torch.from_numpy(features.targets & features.known).float()
    means = (positive.T @ unit) / positive.sum(dim=0).clamp_min(1)[:, None]
    return F.normalize(means - unit.mean(dim=0), dim=-1)


def _log_odds(share: np.ndarray) -> Tensor:
    return torch.from_numpy(np.log(share / (1 - share))).float()
