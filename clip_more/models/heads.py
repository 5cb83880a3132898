"""From image features to per-class logits by text prompts: `scale * cos(v, t_c) + bias_c`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from clip_more.models.clip import Clip

# CLIP never lets its scale above 100; below 10 a cosine could not move a sigmoid far enough.
SCALE_BOUNDS = (10.0, 100.0)

# Prompts that the text tower reads at a time where nothing is kept for a backward pass.
PROMPT_CHUNK = 1024


class PromptHead(nn.Module):
    """One logit a class from prompts through the text tower.

    Several templates make an ensemble: the mean of their normalised features, normalised again.

    Args:
        clip: The CLIP whose tokenizer reads the prompts.
        prompts: (C, T) texts: T templates for each of C classes.
        scale: Start of the logit scale.
    """

    def __init__(self, clip: Clip, prompts: Sequence[Sequence[str]], scale: float) -> None:
        super().__init__()
        self.templates = len(prompts[0])
        self.input_ids: Tensor
        self.register_buffer("input_ids", clip.tokenize([text for row in prompts for text in row]), persistent=False)
        self.frozen_features: Tensor | None
        self.register_buffer("frozen_features", None, persistent=False)
        # One element, not a scalar: FSDP2 refuses 0-d parameters.
        self.log_scale = nn.Parameter(torch.tensor([math.log(scale)]))
        self.bias = nn.Parameter(torch.zeros(len(prompts)))

    @torch.no_grad()
    def freeze_text(self, clip: Clip) -> None:
        """Encode the prompts once and for all; the text tower is not run again."""
        self.frozen_features = None
        self.frozen_features = self.text_features(clip)

    @contextmanager
    def text_once(self, clip: Clip) -> Iterator[None]:
        """Inside, the prompts are encoded once and not with every batch: for evaluation."""
        before = self.frozen_features
        with torch.no_grad():
            self.frozen_features = self.text_features(clip)
        try:
            yield
        finally:
            self.frozen_features = before

    def text_features(self, clip: Clip, classes: Tensor | None = None) -> Tensor:
        """(C, D) unit vectors, fp32 or better; those of `classes` (k,) alone where they are given."""
        if self.frozen_features is not None:
            return self.frozen_features if classes is None else self.frozen_features[classes]
        return self.class_features(encode_prompts(clip, self.prompts(classes)))

    def prompts(self, classes: Tensor | None = None) -> Tensor:
        """Token ids (C T, L), of all classes or of these (k,)."""
        return self.input_ids if classes is None else self.input_ids[self.rows(classes)]

    def rows(self, classes: Tensor) -> Tensor:
        """Where the prompts of these classes (k,) stand in `input_ids`: (k T,)."""
        return (classes[:, None] * self.templates + torch.arange(self.templates, device=classes.device)).flatten()

    def class_features(self, prompt_features: Tensor) -> Tensor:
        """Features of prompts (k T, D), of any length, to unit vectors of their classes (k, D), fp32 or better."""
        features = _unit(prompt_features)
        if self.templates == 1:
            return features
        return _unit(features.unflatten(0, (-1, self.templates)).mean(dim=1))

    def forward(self, clip: Clip, image_features: Tensor) -> Tensor:
        """Image features (N, D), of any length -> logits (N, C), fp32 or better."""
        return self.logits(image_features, self.text_features(clip))

    def logits(self, image_features: Tensor, text_features: Tensor, classes: Tensor | None = None) -> Tensor:
        """Image features (N, D), of any length, and text features of all classes or of `classes` (k,) -> logits (N, k).

        In fp32 or better whatever autocast says: at logits of 16 to 32 a step of bf16 is 0.125, and would tie classes
        and images.
        """
        bias = self.bias if classes is None else self.bias[classes]
        with torch.autocast(image_features.device.type, enabled=False):
            return self.log_scale.exp() * (_unit(image_features) @ text_features.T) + bias

    @torch.no_grad()
    def start_from(self, cosines: np.ndarray, targets: np.ndarray, known: np.ndarray, one_label: bool = False) -> float:
        """Set scale and biases to their best fit on train (see `fit_scale_and_bias`); returns the loss an image.

        Before a softmax over classes (`one_label`) the scale alone (see `fit_softmax_scale`): biases would take over
        the class prior, which losses that know of it bring in themselves.
        """
        if one_label:
            scale, loss = fit_softmax_scale(cosines, targets.argmax(axis=1))
            bias = np.zeros(targets.shape[1])
        else:
            scale, bias, loss = fit_scale_and_bias(cosines, targets, known)
        self.log_scale.fill_(math.log(scale))
        self.bias.copy_(torch.from_numpy(bias))
        return loss

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep the scale at or below CLIP's own bound of 100; called after each optimiser step."""
        self.log_scale.clamp_(max=math.log(SCALE_BOUNDS[1]))


def fit_scale_and_bias(
    cosines: np.ndarray,
    targets: np.ndarray,
    known: np.ndarray | None = None,
    bounds: tuple[float, float] = SCALE_BOUNDS,
) -> tuple[float, np.ndarray, float]:
    """The scale and class biases with the least BCE on cached cosines: a convex fit in float64.

    A pretrained CLIP's cosines sit around 0.2, so at scale 100 every sigmoid starts near 1 unless the bias takes the
    class's mean cosine away.

    Args:
        cosines: (N, C) between images and class texts.
        targets: (N, C) bool.
        known: (N, C) bool, all known without it.
        bounds: Of the scale.

    Returns:
        scale, bias (C,) float64, and the BCE an image (sum over classes) that they reach.
    """
    from scipy.optimize import minimize

    known = np.ones_like(targets, dtype=bool) if known is None else known
    cosines = cosines.astype(np.float64)
    count = known.sum(axis=0).clip(1)
    images = len(cosines)
    mean = (cosines * known).sum(axis=0) / count
    centred = np.where(known, cosines - mean, 0.0)
    spread = max(math.sqrt((centred**2).sum() / known.sum()), 1e-12)
    x = centred / spread
    y = (targets & known).astype(np.float64)
    prior = (y.sum(axis=0) / count).clip(0.5 / count, 1 - 0.5 / count)

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, bias = parameters[0], parameters[1:]
        z = slope * x + bias
        loss = (np.logaddexp(0, z) - y * z)[known].sum() / images
        residual = np.where(known, 1 / (1 + np.exp(-z.clip(-500, 500))) - y, 0.0) / images
        return loss, np.concatenate([[(residual * x).sum()], residual.sum(axis=0)])

    limit = 2 * math.log(2 * images + 1)
    start = np.concatenate([[bounds[0] * spread], np.log(prior / (1 - prior))])
    box = [(bounds[0] * spread, bounds[1] * spread), *[(-limit, limit)] * len(mean)]
    best = minimize(loss_and_gradient, start, jac=True, bounds=box, method="L-BFGS-B", options={"maxiter": 200})
    scale = best.x[0] / spread
    return float(scale), best.x[1:] - scale * mean, float(best.fun)


def fit_softmax_scale(
    cosines: np.ndarray, labels: np.ndarray, bounds: tuple[float, float] = SCALE_BOUNDS
) -> tuple[float, float]:
    """The scale with the least cross-entropy on cached cosines: a convex fit in float64.

    Args:
        cosines: (N, C).
        labels: (N,) class indices.
        bounds: Of the scale; equal ones leave nothing to fit.

    Returns:
        The scale, and the cross-entropy an image that it reaches.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    cosines = cosines.astype(np.float64)
    right = cosines[np.arange(len(labels)), labels]

    def loss(scale: float) -> float:
        return float((logsumexp(scale * cosines, axis=1) - scale * right).mean())

    scale = bounds[0] if bounds[0] == bounds[1] else float(minimize_scalar(loss, bounds=bounds, method="bounded").x)
    return scale, loss(scale)


def encode_prompts(clip: Clip, input_ids: Tensor) -> Tensor:
    """Token ids (P, L) -> features (P, D); without gradients in chunks, so that memory does not grow with P."""
    if torch.is_grad_enabled() or len(input_ids) <= PROMPT_CHUNK:
        return clip.encode_text(input_ids)
    return torch.cat([clip.encode_text(chunk) for chunk in input_ids.split(PROMPT_CHUNK)])


def _unit(features: Tensor) -> Tensor:
    if features.dtype.itemsize < 4:
        features = features.float()
    return F.normalize(features, dim=-1)
