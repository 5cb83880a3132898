"""Which photos an epoch draws, and in which order.

Decoupling (arXiv 1910.09217); class-aware: arXiv 1512.05830; distribution-balanced: arXiv 2007.09654.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

# Row and class of each positive label, as `data.form.label_pairs` gives them: two int64 arrays of one length.
LabelPairs = tuple[np.ndarray, np.ndarray]


class EpochOrder(Protocol):
    """As many photos for each epoch as there are; which ones depends on seed and epoch alone.

    Attributes:
        length: N, the number of photos, and of draws an epoch.
    """

    length: int

    def order(self, epoch: int) -> np.ndarray:
        """The photos of an epoch: (N,) int64 indices."""


def make_order(
    name: str,
    labels: LabelPairs,
    length: int,
    *,
    seed: int,
    exponent: float = 0.0,
    per_class: int | None = None,
    unlabelled: float = 1.0,
    epochs: float = 1,
    single_label: bool = False,
) -> EpochOrder:
    """The order that a recipe's `sampler` names.

    Args:
        name: instance, square_root, class_balanced, weighted, progressive, class_aware or distribution_balanced.
        labels: Of all photos; classes without a photo are not drawn.
        length: N, the number of photos, those without a label included.
        seed: Of the run.
        exponent: weighted: q.
        per_class: class_aware: photos of a class in turn; None for the papers' 4 (single-label) or 3.
        unlabelled: Weight of a photo without a label over the mean weight of the others.
        epochs: progressive: of the run.
        single_label: Every photo has one label.

    Raises:
        ValueError: If no photo has a label (instance draws them all the same), the name is unknown, or there is no
            photo.
    """
    if length < 1:
        raise ValueError("there is no photo to draw")
    if name == "instance":
        return InstanceOrder(length, seed)
    if not len(labels[0]):
        raise ValueError(f"sampler: {name} goes by labels, but none of {length} photos has one; choose instance")
    if name == "class_aware":
        return ClassAwareOrder(labels, length, seed, per_class or (4 if single_label else 3))
    if name == "progressive":
        return ProgressiveOrder(labels, length, seed, epochs, unlabelled)
    if name == "distribution_balanced":
        return WeightedOrder(labels, length, seed, 0.0, unlabelled, summed=True)
    exponents = {"square_root": 0.5, "class_balanced": 0.0, "weighted": exponent}
    if name not in exponents:
        raise ValueError(
            f"sampler is {name!r}; choose instance, {', '.join(exponents)}, progressive, class_aware or "
            "distribution_balanced"
        )
    return WeightedOrder(labels, length, seed, exponents[name], unlabelled)


class InstanceOrder:
    """Every photo once."""

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed

    def order(self, epoch: int) -> np.ndarray:
        """A permutation."""
        return _generator(self.seed, epoch).permutation(self.length)


class WeightedOrder:
    """Photos drawn with replacement, by the counts of their classes to a power.

    Attributes:
        weights: From `photo_weights`.
    """

    def __init__(
        self,
        labels: LabelPairs,
        length: int,
        seed: int,
        exponent: float,
        unlabelled: float = 1.0,
        *,
        summed: bool = False,
    ) -> None:
        self.length = length
        self.seed = seed
        self.weights = photo_weights(labels, length, exponent, unlabelled, summed=summed)

    def order(self, epoch: int) -> np.ndarray:
        """N independent draws."""
        return _drawn(self.weights, _generator(self.seed, epoch))


class ProgressiveOrder:
    """Photos drawn with replacement, `(1 - l) p_instance + l p_class_balanced`, l = epoch / (T - 1).

    The first of T = ceil(epochs) epochs is instance-balanced, the last one class-balanced, as is whatever comes later;
    a single epoch is instance-balanced.
    """

    def __init__(self, labels: LabelPairs, length: int, seed: int, epochs: float = 1, unlabelled: float = 1.0) -> None:
        self.length = length
        self.seed = seed
        self._last = math.ceil(epochs) - 1
        self._instance, self._balanced = (photo_weights(labels, length, q, unlabelled) for q in (1.0, 0.0))
        for weights in (self._instance, self._balanced):
            weights /= weights.sum()

    def probabilities(self, epoch: int) -> np.ndarray:
        """Of drawing each photo: (N,) float64."""
        share = min(1.0, epoch / self._last) if self._last > 0 else 0.0
        return (1 - share) * self._instance + share * self._balanced

    def order(self, epoch: int) -> np.ndarray:
        """N independent draws."""
        return _drawn(self.probabilities(epoch), _generator(self.seed, epoch))


class ClassAwareOrder:
    """The classes in turn, some photos of each: every class as often, up to one turn.

    Classes come in a new order each round. A class's photos come in shuffled order too, all of them before one comes
    again. Classes and photos without a label are left out.
    """

    def __init__(self, labels: LabelPairs, length: int, seed: int, per_class: int) -> None:
        self.length = length
        self.seed = seed
        self.per_class = per_class
        rows, classes = labels
        _, first = np.unique(np.sort(classes), return_index=True)
        self._members = np.split(rows[np.argsort(classes, kind="stable")], first[1:])

    def order(self, epoch: int) -> np.ndarray:
        """Turns of `per_class` photos; the last one is cut at N."""
        generator = _generator(self.seed, epoch)
        turns = _rounds(np.arange(len(self._members)), -(-self.length // self.per_class), generator)
        drawn = np.repeat(turns, self.per_class)[: self.length]
        photos = np.empty(self.length, dtype=np.int64)
        places = np.split(np.argsort(drawn, kind="stable"), np.bincount(drawn, minlength=len(self._members)).cumsum())
        for members, where in zip(self._members, places[:-1], strict=True):
            photos[where] = _rounds(members, len(where), generator)
        return photos


def photo_weights(
    labels: LabelPairs, length: int, exponent: float, unlabelled: float = 1.0, *, summed: bool = False
) -> np.ndarray:
    """What photos are drawn in proportion to: the mean of `n_k^(q-1)` over a photo's classes k, up to a factor.

    With one label a photo, class k is drawn with probability `n_k^q / sum_j n_j^q`; at q = 1 all weights are equal.

    The sum at q = 0 is the resampling of the distribution-balanced loss, `(1 / C) sum_k 1 / n_k`: each draw takes one
    of C classes, all alike, and then one of its photos, all alike.

    Args:
        labels: Of all photos.
        length: N.
        exponent: q.
        unlabelled: Weight of a photo without a label over the mean weight of those with one.
        summed: The sum over a photo's classes in place of the mean.

    Returns:
        (N,) float64.
    """
    rows, classes = labels
    counts = np.bincount(classes).astype(np.float64)
    present = counts[counts > 0]
    # Over the class that weighs most, so that no power overflows.
    counts /= present.min() if exponent < 1 else present.max()
    of_class = np.power(counts, exponent - 1, out=np.zeros_like(counts), where=counts > 0)
    labels_each = np.bincount(rows, minlength=length)
    weights = np.bincount(rows, weights=of_class[classes], minlength=length)
    labelled = labels_each > 0
    if not summed:
        np.divide(weights, labels_each, out=weights, where=labelled)
    weights[~labelled] = unlabelled * weights[labelled].mean()
    return weights


def _drawn(weights: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many draws with replacement as there are weights."""
    ends = np.cumsum(weights)
    draws = generator.random(len(weights)) * ends[-1]
    draws.sort()  # millions of searches all over the memory take ten times as long as these
    return generator.permutation(np.searchsorted(ends, draws, side="right"))


def _rounds(items: np.ndarray, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Items in shuffled rounds, each one once a round."""
    rounds = np.tile(items, (-(-draws // len(items)), 1))
    return generator.permuted(rounds, axis=1).ravel()[:draws]


def _generator(seed: int, epoch: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch])
