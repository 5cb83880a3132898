"""The mechanism test of MORE: is it the tail classes that the tail, B A, works for?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import numpy as np

from clip_more.analysis.moments import blocks
from clip_more.data.profile import GROUPS, ClassProfile
from clip_more.evaluation.average_precision import average_precision
from clip_more.evaluation.bootstrap import interval, resampled_ap, resamples

EXACT = 20_000  # re-groupings up to which all of them are counted


@dataclass(frozen=True)
class Discrepancy:
    """Squared logit differences `(z_full - z_general)^2` by class.

    Attributes:
        on_positives: (C,) mean over the photos of the class, NaN without one.
        on_all: (C,) mean over all photos in which the class is known.
        relative: Root of the mean over everything known, over the standard deviation of the full logits there: 0.1
            means that B A moves logits by a tenth of what they vary by.
    """

    on_positives: np.ndarray
    on_all: np.ndarray
    relative: float


@dataclass(frozen=True)
class Contrast:
    """A figure by class, its means by group, and how sure "larger for tail than for head" is.

    Attributes:
        by_class: (C,), NaN where a class has none.
        by_group: Means over the classes of `head`, `medium`, `tail`; None without one.
        difference: Tail less head; None where either is missing.
        interval: 95 % of the difference over resamples of the test photos; None without resamples.
        p: Share of the ways to call as many of these classes head and tail whose difference is at least as large:
            one-sided, over classes. With 4 head and 3 tail classes it cannot fall below 1/35.
        larger: Whether the difference is above 0 and the interval (where there is one) lies above 0.
    """

    by_class: np.ndarray
    by_group: dict[str, float | None]
    difference: float | None
    interval: list[float] | None
    p: float | None
    larger: bool | None


def discrepancy_by_class(
    full: np.ndarray, general: np.ndarray, targets: np.ndarray, known: np.ndarray | None = None
) -> Discrepancy:
    """Mean squared difference of the logits with and without B A (arXiv 2510.08177's M, class by class).

    Args:
        full: (N, C) logits of `W_g + B A`.
        general: (N, C) logits of `W_g` alone.
        targets: (N, C) bool.
        known: (N, C) bool; all known without it.

    Raises:
        ValueError: Shapes disagree.
    """
    if not full.shape == general.shape == targets.shape:
        raise ValueError(
            f"full, general and targets have shapes {full.shape}, {general.shape}, {targets.shape}: all (N, C)"
        )
    classes = full.shape[1]
    sums, numbers = np.zeros((2, classes)), np.zeros((2, classes))
    total, square = np.zeros(classes), np.zeros(classes)
    for rows in blocks(len(full)):
        z = full[rows].astype(np.float64)
        delta = (z - general[rows]) ** 2
        everything = np.ones(delta.shape, dtype=bool) if known is None else known[rows]
        for k, mask in enumerate((targets[rows].astype(bool) & everything, everything)):
            sums[k] += (delta * mask).sum(axis=0)
            numbers[k] += mask.sum(axis=0)
        total += (z * everything).sum(axis=0)
        square += (z**2 * everything).sum(axis=0)
    means = np.divide(sums, numbers, out=np.full_like(sums, np.nan), where=numbers > 0)
    count = max(numbers[1].sum(), 1.0)
    variance = square.sum() / count - (total.sum() / count) ** 2
    relative = float(np.sqrt(sums[1].sum() / count / variance)) if variance > 0 else 0.0
    return Discrepancy(means[0], means[1], relative)


def contrast(
    by_class: np.ndarray, profile: ClassProfile, resampled: np.ndarray | None = None, seed: int = 0
) -> Contrast:
    """Means by group and the test "larger for tail than for head".

    Args:
        by_class: (C,), NaN where a class has no value.
        profile: Groups.
        resampled: (draws, C): the same figure over resamples of the test photos.
        seed: Of the re-groupings, where there are too many to count all.
    """
    by_class = np.asarray(by_class, dtype=np.float64)
    own = {group: _there(by_class[profile.indices(group)]) for group in GROUPS}
    means = {group: float(values.mean()) if len(values) else None for group, values in own.items()}
    if means["tail"] is None or means["head"] is None:
        return Contrast(by_class, means, None, None, None, None)
    difference = means["tail"] - means["head"]
    bounds = None
    if resampled is not None:
        drawn = [_row_means(resampled[:, profile.indices(group)]) for group in ("head", "tail")]
        bounds = interval(drawn[1] - drawn[0])
    p = _permutation(own["tail"], own["head"], seed)
    return Contrast(by_class, means, difference, bounds, p, difference > 0 and (bounds is None or bounds[0] > 0))


def ap_lost(merged: np.ndarray, general: np.ndarray) -> np.ndarray:
    """(C,) what a class's AP (or accuracy) loses when B A is removed: merged less general."""
    return np.asarray(merged, dtype=np.float64) - np.asarray(general, dtype=np.float64)


def class_accuracy(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(C,) share of a class's photos whose highest score (N, C) is the class; one label a photo, NaN without one."""
    labels = targets.argmax(axis=1)
    right = np.bincount(labels[scores.argmax(axis=1) == labels], minlength=targets.shape[1])
    photos = np.bincount(labels, minlength=targets.shape[1])
    return np.divide(right, photos, out=np.full(len(photos), np.nan), where=photos > 0)


def mechanism(
    full: np.ndarray,
    general: np.ndarray,
    targets: np.ndarray,
    profile: ClassProfile,
    *,
    known: np.ndarray | None = None,
    single_label: bool = False,
    ap_form: str = "step",
    draws: int = 500,
    seed: int = 0,
) -> tuple[Discrepancy, dict[str, Contrast]]:
    """Discrepancy and loss by class, with both contrasts between tail and head.

    Args:
        full: (N, C) test logits of the merged model.
        general: (N, C) of its general part.
        targets: (N, C) bool.
        profile: Groups.
        known: (N, C) bool.
        single_label: Accuracy of a class in place of its AP.
        ap_form: As in `average_precision`.
        draws: Resamples of the test photos behind the intervals; 0: none.
        seed: Of the resamples.

    Returns:
        The discrepancy, and contrasts `discrepancy_on_positives`, `discrepancy_on_all` and `lost`.
    """
    found = discrepancy_by_class(full, general, targets, known)
    both = (full, general)
    if single_label:
        lost = ap_lost(*(class_accuracy(scores, targets) for scores in both))
    else:
        lost = ap_lost(*(average_precision(targets, scores, known, form=ap_form) for scores in both))
    drawn: dict[str, Any] = {}
    if draws:
        everything = np.ones(targets.shape, dtype=bool) if known is None else known
        delta = (full.astype(np.float32) - general) ** 2
        for name, mask in (("discrepancy_on_positives", targets & everything), ("discrepancy_on_all", everything)):
            drawn[name] = _resampled_means(delta, mask, draws, seed)
        if single_label:
            rows = [(scores.argmax(axis=1)[:, None] == np.arange(targets.shape[1])) for scores in both]
            drawn["lost"] = ap_lost(
                *(_resampled_means(right.astype(np.float32), targets, draws, seed) for right in rows)
            )
        else:
            drawn["lost"] = ap_lost(
                *(resampled_ap(targets, scores, known, draws=draws, seed=seed, form=ap_form) for scores in both)
            )
    values = {"discrepancy_on_positives": found.on_positives, "discrepancy_on_all": found.on_all, "lost": lost}
    return found, {name: contrast(by_class, profile, drawn.get(name), seed) for name, by_class in values.items()}


def _resampled_means(values: np.ndarray, mask: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Mean of (N, C) values over the masked photos in every resample: (draws, C), NaN without one."""
    masked, weight = values * mask, mask.astype(np.float32)
    means = []
    for counts in resamples(len(values), draws, seed):
        sums, numbers = counts.T @ masked, counts.T @ weight
        means.append(np.divide(sums, numbers, out=np.full(sums.shape, np.nan), where=numbers > 0))
    return np.concatenate(means)


def _permutation(tail: np.ndarray, head: np.ndarray, seed: int) -> float:
    """One-sided p of `mean(tail) - mean(head)` under re-grouping: exact for few classes, else of `EXACT` draws."""
    values, size = np.concatenate([tail, head]), len(tail)
    if comb(len(values), size) <= EXACT:
        groups = np.array(list(combinations(range(len(values)), size)))
        sums = values[groups].sum(axis=1)
    else:
        random = np.random.default_rng(seed)
        sums = np.array([random.permutation(values)[:size].sum() for _ in range(EXACT - 1)] + [tail.sum()])
    # Sums of the same values in another order differ in their last bits.
    return float((sums >= tail.sum() - 1e-12 * np.abs(values).sum()).mean())


def _there(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]


def _row_means(values: np.ndarray) -> np.ndarray:
    """Mean of each row (draws, k), NaN left out; NaN where nothing is left."""
    there = ~np.isnan(values)
    numbers = there.sum(axis=1)
    sums = np.where(there, values, 0.0).sum(axis=1)
    return np.divide(sums, numbers, out=np.full(len(values), np.nan), where=numbers > 0)


def verdict(contrasts: dict[str, Contrast], what: Sequence[str] = ("discrepancy_on_positives", "lost")) -> str | None:
    """`seen` where all of `what` are larger for tail than for head, `half seen`, `not seen`; None where untestable."""
    found = [contrasts[name].larger for name in what]
    if any(larger is None for larger in found):
        return None
    return "seen" if all(found) else "half seen" if any(found) else "not seen"
