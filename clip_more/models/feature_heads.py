"""Heads that read image features: linear, normed, cosine, fixed frames, nearest class mean."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUTS = ("raw", "unit", "centred")


class FeatureHead(nn.Module, ABC):
    """Image features (N, D), as the encoder gives them, to logits (N, C), fp32 or better whatever autocast says.

    Attributes:
        kind: As recipes and `head.json` name it.
        ignores_norms: Whether the lengths of the rows of `weight` change nothing: then tau-normalisation and MaxNorm
            change nothing either.
        ignores_lengths: Whether the lengths of the features change nothing: then feature regularisation does not.
        weight: (C, D) one row a class.
        bias: (C,), or None.
    """

    kind: str
    ignores_norms = False
    ignores_lengths = False
    weight: Tensor
    bias: Tensor | None

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)."""
        with torch.autocast(features.device.type, enabled=False):
            return self.logits(features.to(torch.promote_types(features.dtype, torch.float32)))

    @abstractmethod
    def logits(self, features: Tensor) -> Tensor:
        """As `forward`, of features in fp32 or better and without autocast."""

    def options(self) -> dict[str, Any]:
        """What the tensors do not say, as keyword arguments of the class."""
        return {}

    def clamp_scale(self) -> None:
        """Called after each optimiser step; see `CosineHead`."""


class LinearHead(FeatureHead):
    """`W x + b`, x being the features, or the features at unit length.

    Args:
        weight: (C, D).
        bias: (C,); zeros without it.
        inputs: x is h (`raw`), h / ||h|| (`unit`), or (h - centre) / ||h - centre|| (`centred`).
        centre: (D,) for `centred`: the mean feature of train.
    """

    kind = "linear"

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, inputs: str = "raw", centre: Tensor | None = None
    ) -> None:
        super().__init__()
        self.inputs = _check_inputs(inputs, centre)
        self.ignores_lengths = inputs != "raw"
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias)
        self.centre: Tensor | None
        self.register_buffer("centre", centre)

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)."""
        return F.linear(_as_inputs(features, self.inputs, self.centre), self.weight, self.bias)

    def options(self) -> dict[str, Any]:
        """`inputs`."""
        return {"inputs": self.inputs}


class NormedLinearHead(FeatureHead):
    """`(W / ||W||) h + b`: rows of unit length, features as they are, so that no class is favoured by its norm."""

    kind = "normed_linear"
    ignores_norms = True

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias)

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)."""
        return F.linear(features, F.normalize(self.weight, dim=-1), self.bias)


class CosineHead(FeatureHead):
    """`scale cos(h, w) + b`, the scale learnt and never above 100, as CLIP's own."""

    kind = "cosine"
    ignores_norms = ignores_lengths = True
    MOST = 100.0

    def __init__(self, weight: Tensor, bias: Tensor | None = None, log_scale: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias)
        # One element, not a scalar: FSDP2 refuses 0-d parameters.
        self.log_scale = nn.Parameter(torch.tensor([math.log(16.0)]) if log_scale is None else log_scale)

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)."""
        cosines = F.normalize(features, dim=-1) @ F.normalize(self.weight, dim=-1).T
        assert self.bias is not None
        return self.log_scale.exp() * cosines + self.bias

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keep a scale that is learnt at or below 100."""
        if self.log_scale.requires_grad:
            self.log_scale.clamp_(max=math.log(self.MOST))


class FixedHead(FeatureHead):
    """`W h + b` with a W that is never trained: a simplex ETF (`etf`) or an orthonormal frame (`frame`).

    Args:
        weight: (C, D) from `simplex_etf` or `orthonormal_frame`.
        bias: (C,), trained; zeros without it.
        frame: `etf` or `frame`: which of the two it is.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, frame: str = "etf") -> None:
        super().__init__()
        if frame not in ("etf", "frame"):
            raise ValueError(f"frame is {frame!r}; choose etf or frame")
        self.kind = frame
        self.register_buffer("weight", weight)
        self.bias = nn.Parameter(torch.zeros(len(weight), dtype=weight.dtype) if bias is None else bias)

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)."""
        return F.linear(features, self.weight, self.bias)

    def options(self) -> dict[str, Any]:
        """`frame`."""
        return {"frame": self.kind}


class NearestMeanHead(FeatureHead):
    """Nearest class mean (Decoupling, arXiv 1910.09217, section 4.2): `-||x - mean_c||^2`, or `cos(x, mean_c)`.

    Args:
        weight: (C, D) class means of x.
        inputs: x as in `LinearHead`; the papers' un, l2n and cl2n are `raw`, `unit` and `centred`.
        metric: `euclidean`, or `cosine`, for which the means are brought to unit length too.
        centre: (D,) for `centred`.
    """

    kind = "nearest_mean"
    bias = None

    def __init__(
        self, weight: Tensor, inputs: str = "raw", metric: str = "euclidean", centre: Tensor | None = None
    ) -> None:
        super().__init__()
        if metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric is {metric!r}; choose euclidean or cosine")
        self.inputs = _check_inputs(inputs, centre)
        self.metric = metric
        self.ignores_norms = metric == "cosine"
        self.ignores_lengths = inputs != "raw" or metric == "cosine"
        self.register_buffer("weight", weight)
        self.centre: Tensor | None
        self.register_buffer("centre", centre)

    def logits(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)."""
        x = _as_inputs(features, self.inputs, self.centre)
        if self.metric == "cosine":
            return F.normalize(x, dim=-1) @ F.normalize(self.weight, dim=-1).T
        return 2 * x @ self.weight.T - self.weight.square().sum(-1) - x.square().sum(-1, keepdim=True)

    def options(self) -> dict[str, Any]:
        """`inputs` and `metric`."""
        return {"inputs": self.inputs, "metric": self.metric}


def simplex_etf(classes: int, features: int, generator: torch.Generator | None = None) -> Tensor:
    """A simplex equiangular tight frame (arXiv 2203.09081): rows of unit length, every two at cosine -1 / (C - 1).

    `W = sqrt(C / (C - 1)) (I - 11^T / C) P^T` with P^T P = I drawn at random; the rows sum to 0. With exactly C - 1
    features P is an orthonormal basis of what is orthogonal to the vector of ones.

    Args:
        classes: C.
        features: D, C - 1 at least.
        generator: Of the rotation.

    Returns:
        (C, D) float64.

    Raises:
        ValueError: There are fewer features than C - 1, or fewer than two classes.
    """
    if classes < 2:
        raise ValueError("an ETF needs two classes or more")
    if features < classes - 1:
        raise ValueError(
            f"an ETF of {classes} classes needs {classes - 1} features or more, and this encoder gives {features}; "
            "take a wider encoder, or head: cosine"
        )
    if features == classes - 1:
        drawn = torch.randn(classes, classes - 1, generator=generator, dtype=torch.float64)
        basis, _ = torch.linalg.qr(drawn - drawn.mean(dim=0))
        rotation, _ = torch.linalg.qr(torch.randn(features, features, generator=generator, dtype=torch.float64))
        return math.sqrt(classes / (classes - 1)) * basis @ rotation
    return _etf_of(orthonormal_frame(classes, features, generator))


def orthonormal_frame(classes: int, features: int, generator: torch.Generator | None = None) -> Tensor:
    """C orthonormal rows: an ETF without its centring, for several labels a photo, whose logits need not sum to 0.

    Args:
        classes: C.
        features: D, C at least.
        generator: Of the rotation.

    Returns:
        (C, D) float64.

    Raises:
        ValueError: There are fewer features than classes.
    """
    if features < classes:
        raise ValueError(
            f"a frame of {classes} orthonormal rows needs {classes} features, and this encoder gives {features}; take "
            "a wider encoder, or head: cosine"
        )
    drawn = torch.randn(features, classes, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].T


def rotated_towards(text: Tensor, kind: str) -> Tensor:
    """The ETF or frame whose rows lie closest to class directions (orthogonal Procrustes).

    Of all rotations the one with the largest sum of cosines between row c and `text[c]`.

    Args:
        text: (C, D) unit vectors, D at least C.
        kind: `etf` or `frame`.

    Returns:
        (C, D) float64.
    """
    classes = len(text)
    text = text.double()
    if text.shape[1] < classes:
        raise ValueError(f"rotating towards {classes} class texts needs {classes} features, not {text.shape[1]}")
    wanted = text - text.mean(dim=0) if kind == "etf" else text
    left, _, right = torch.linalg.svd(wanted.T, full_matrices=False)
    frame = (left @ right).T
    return _etf_of(frame) if kind == "etf" else frame


def _etf_of(frame: Tensor) -> Tensor:
    classes = len(frame)
    return math.sqrt(classes / (classes - 1)) * (frame - frame.mean(dim=0))


def _check_inputs(inputs: str, centre: Tensor | None) -> str:
    if inputs not in INPUTS:
        raise ValueError(f"inputs is {inputs!r}; choose one of {', '.join(INPUTS)}")
    if (inputs == "centred") != (centre is not None):
        raise ValueError("a centre goes with inputs: centred, and only with it")
    return inputs


def _as_inputs(features: Tensor, inputs: str, centre: Tensor | None) -> Tensor:
    if inputs == "raw":
        return features
    return F.normalize(features if centre is None else features - centre, dim=-1)
