"""Samples of photos and classes that leave sums over all of them unbiased."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """The part of a batch that a loss is taken on.

    Attributes:
        images: (n,) rows of the batch, all equally likely; all of them where None.
        classes: (k,) classes; all of them where None.
        weights: (k,) one over the probability with which a class was drawn: a sum over the classes drawn, weighted so,
            has the sum over all classes as its expectation (Horvitz and Thompson, 1952).
    """

    images: Tensor | None = None
    classes: Tensor | None = None
    weights: Tensor | None = None

    def columns(self, table: Tensor) -> Tensor:
        """The columns of a (..., C) table that were drawn: (..., k)."""
        return table if self.classes is None else table[..., self.classes]

    def weighted(self, known: Tensor) -> Tensor:
        """`known` (N, C) at the classes drawn, with their weights where they have any: (N, k)."""
        return known if self.weights is None else self.columns(known) * self.weights

    def spread(self, columns: Tensor, classes: int) -> Tensor:
        """(N, k) back to (N, C), 0 where no class was drawn."""
        if self.classes is None:
            return columns
        return columns.new_zeros(len(columns), classes).index_copy(1, self.classes, columns)


def draw_images(count: int, fraction: float, device: torch.device) -> Tensor | None:
    """`fraction` of `count` rows, at least one, without replacement, in order; None where that is all of them."""
    drawn = max(1, round(fraction * count))
    return None if drawn >= count else torch.randperm(count)[:drawn].sort().values.to(device)


def inclusion_probabilities(weights: Tensor, size: int) -> Tensor:
    """(C,) probabilities, proportional to `weights` but at most 1, whose sum is `size`; float64.

    Args:
        weights: (C,) above 0.
        size: Of the sample; from 1 to C.
    """
    weights = weights.double()
    probabilities = torch.ones_like(weights)
    sure = torch.zeros_like(weights, dtype=torch.bool)
    while not sure.all():
        rest = weights[~sure]
        probabilities[~sure] = rest * (size - sure.sum()) / rest.sum()
        beyond = (probabilities > 1) & ~sure
        if not beyond.any():
            break
        probabilities[beyond], sure = 1.0, sure | beyond
    return probabilities


def draw_systematically(probabilities: Tensor) -> Tensor:
    """(k,) different indices, in order; index i is among them with `probabilities[i]` (Madow, 1949).

    Args:
        probabilities: (C,) on the CPU, at most 1 each, their sum a whole number k.
    """
    order = torch.randperm(len(probabilities))
    ends = probabilities.double()[order].cumsum(0)
    points = torch.rand((), dtype=torch.float64) + torch.arange(round(ends[-1].item()))
    return order[torch.searchsorted(ends, points, right=True).clamp_max(len(order) - 1)].sort().values


def draw_classes(probabilities: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Classes drawn with these probabilities (C,), and one over the probability of each: (k,) and (k,)."""
    classes = draw_systematically(probabilities)
    return classes.to(device), (1 / probabilities[classes]).float().to(device)


def positives_and_others(targets: Tensor, size: int | None) -> Share:
    """The classes that are positive in a batch with targets (N, C), and a sample of the others; about `size` in all.

    At least one of the others is drawn, so that their sum stays unbiased.
    """
    classes = targets.shape[1]
    if size is None or size >= classes:
        return Share()
    positive = (targets > 0).any(dim=0).cpu()
    others = classes - int(positive.sum())
    if others == 0:
        return Share()
    probabilities = torch.ones(classes, dtype=torch.float64)
    probabilities[~positive] = min(max(size - int(positive.sum()), 1), others) / others
    return Share(None, *draw_classes(probabilities, targets.device))
