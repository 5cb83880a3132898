"""Methods that learn on cached features with class-balanced sampling: a fresh classifier, or one factor a class."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from clip_more.data.samplers import EpochOrder, make_order, photo_weights
from clip_more.losses.bce import BCELoss
from clip_more.losses.cross_entropy import CrossEntropy
from clip_more.models.feature_heads import FeatureHead, LinearHead
from clip_more.stage2.cached import Cached
from clip_more.stage2.choose import Fitted, Selection, Stage, choose
from clip_more.stage2.fitting import Course, Loss, fit, mean_square
from clip_more.stage2.linear_form import changed, inputs_of, linear_form
from clip_more.stage2.measure import PHOTOS
from clip_more.stage2.options import Stage2Options

# See `Stage2Options.lr`.
RATES = (0.1, 1.0, 10.0)
WEIGHT_DECAY = 5e-4  # of a fresh classifier


def crt(stage: Stage, options: Stage2Options) -> tuple[FeatureHead, Selection]:
    """A fresh linear classifier on class-balanced sampling (cRT: arXiv 1910.09217, section 4.1); lr is chosen.

    Its inputs are those of the head of stage 1, so features of unit length for text prompts and cosine heads.
    """
    form = linear_form(stage.head)
    decay = WEIGHT_DECAY if options.weight_decay is None else options.weight_decay

    def made(train: Cached, values: dict[str, Any], label: str) -> Fitted:
        head = StandardHead(_fresh(form, train, stage), train)
        course = Course(options.epochs, options.batch_size, values["lr"], decay)
        fit(head, train, _loss(stage), _balanced(train, stage), course, label=label, device=stage.device)
        return Fitted(head.folded())

    return choose("crt", stage, _rates(options), made)


class StandardHead(nn.Module):
    """A linear head that learns on standard inputs, `W (x - m) / s + b`, m the mean of train, s^2 their mean square.

    The same functions as without m and s, which `folded` puts into weight and bias. Only, what all photos have in
    common (the most of a CLIP's features) no longer stands in the way of the steps, and a learning rate means the same
    whatever the features' scale.
    """

    def __init__(self, head: LinearHead, train: Cached) -> None:
        super().__init__()
        self.head = head
        self.mean: Tensor
        self.register_buffer("mean", torch.zeros_like(head.weight[0]), persistent=False)
        self.size = 1.0
        total = torch.zeros_like(head.weight[0], dtype=torch.float64)
        for part in train.features.split(PHOTOS):
            total += inputs_of(head, part).double().sum(dim=0)
        self.mean = (total / len(train)).to(head.weight.dtype)
        self.size = max(math.sqrt(mean_square(self.inputs, train.features)), 1e-12)

    def inputs(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return (inputs_of(self.head, features) - self.mean) / self.size

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)."""
        return nn.functional.linear(self.inputs(features), self.head.weight, self.head.bias)

    def folded(self) -> LinearHead:
        """A `LinearHead` with these logits."""
        assert self.head.bias is not None
        weight = self.head.weight.detach().double() / self.size
        return changed(self.head, weight, self.head.bias.detach().double() - weight @ self.mean.double())


class ScaledHead(nn.Module):
    """`f_c z_c`: the logits of a classifier that stays as it is, times one trained factor a class, at first 1."""

    def __init__(self, head: LinearHead) -> None:
        super().__init__()
        self.head = head.requires_grad_(False)
        self.factors = nn.Parameter(torch.ones(len(head.weight), dtype=head.weight.dtype))

    def forward(self, features: Tensor) -> Tensor:
        """(N, D) -> (N, C)."""
        return self.factors * self.head(features)

    def folded(self) -> LinearHead:
        """A `LinearHead` with these logits."""
        assert self.head.bias is not None
        factors = self.factors.detach()
        return changed(self.head, factors[:, None] * self.head.weight, factors * self.head.bias)


def lws(stage: Stage, options: Stage2Options) -> tuple[FeatureHead, Selection]:
    """Learnable weight scaling (LWS: arXiv 1910.09217, section 4.4): `f_c (w_c x + b_c)`, f alone is trained."""
    decay = 0.0 if options.weight_decay is None else options.weight_decay

    def made(train: Cached, values: dict[str, Any], label: str) -> Fitted:
        head = ScaledHead(linear_form(stage.head))
        length = mean_square(head.head, train.features) / len(head.factors)
        course = Course(options.epochs, options.batch_size, values["lr"] / max(length, 1e-12), decay)
        fit(head, train, _loss(stage), _balanced(train, stage), course, label=label, device=stage.device)
        factors = head.factors.detach()
        log = {
            "smallest_factor": _finite(factors.min()),
            "largest_factor": _finite(factors.max()),
            "negative_factors": int((factors <= 0).sum()),
        }
        return Fitted(head.folded(), log)

    return choose("lws", stage, _rates(options), made, monotone=True)


def _fresh(form: LinearHead, train: Cached, stage: Stage) -> LinearHead:
    """Weights as `nn.Linear` draws them; with several labels a photo, biases at the log-odds of the photos drawn."""
    generator = torch.Generator().manual_seed(stage.seed)
    classes, width = form.weight.shape
    weight = (2 * torch.rand(classes, width, generator=generator) - 1) / math.sqrt(width)
    if stage.single_label:
        return changed(form, weight)
    weights = torch.from_numpy(photo_weights(train.pairs(), len(train), 0.0))
    share = (weights @ train.positives.double() / (weights @ train.known.double()).clamp_min(1e-12)).clamp(0.001, 0.999)
    return changed(form, weight, torch.logit(share))


def _balanced(train: Cached, stage: Stage) -> EpochOrder:
    return make_order("class_balanced", train.pairs(), len(train), seed=stage.seed, single_label=stage.single_label)


def _loss(stage: Stage) -> Loss:
    return CrossEntropy() if stage.single_label else BCELoss()


def _rates(options: Stage2Options) -> list[dict[str, Any]]:
    return [{"lr": lr} for lr in (RATES if options.lr is None else (options.lr,))]


def _finite(value: Tensor) -> float | None:
    return float(value) if bool(torch.isfinite(value)) else None
