"""The mAP that chance reaches: what a table must beat before it says anything."""

from __future__ import annotations

from typing import Any

import numpy as np

from clip_more.data.profile import ClassProfile
from clip_more.evaluation.average_precision import check_targets
from clip_more.evaluation.groups import members

BLOCK = 2_000_000  # ranks held at once


def chance_map(
    targets: np.ndarray,
    profile: ClassProfile,
    *,
    known: np.ndarray | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean and 95 % quantile of mAP, by group, over random rankings (one a class and draw, without ties).

    The mean lies a little above the share of positives, the more so the fewer they are: with `m` positives among `n`
    images it is ``(H_n + (m - 1)(n - H_n) / (n - 1)) / n``, ``H_n`` the harmonic number (Bestgen 2015). The quantile
    is of the group's mean, not of one class.

    Args:
        targets: ``(N, C)``, 0 or 1.
        profile: Groups.
        known: ``(N, C)`` bool, as in :func:`~clip_more.evaluation.average_precision.average_precision`.
        draws: Rankings a class.
        seed: The same seed gives the same figures.

    Returns:
        ``{"mean": {total, head, medium, tail}, "q95": {...}, "draws": draws, "seed": seed}``, 0..1, ``None`` for a
        group without a class that has positives.

    Raises:
        ValueError: Shapes disagree or `draws` is below 1.
    """
    targets, known = check_targets(targets, known, names=profile.names)
    if draws < 1:
        raise ValueError(f"draws is {draws}: chance needs at least one random ranking.")
    if known is None:
        images = np.full(targets.shape[1], len(targets))
        positives = np.count_nonzero(targets, axis=0)
    else:
        images = np.count_nonzero(known, axis=0)
        positives = np.count_nonzero(np.logical_and(targets, known), axis=0)
    rng = np.random.default_rng(seed)
    ap = np.full((draws, len(positives)), np.nan)
    for c in np.flatnonzero(positives):
        ap[:, c] = random_ap(int(positives[c]), int(images[c]), draws, rng)
    chance: dict[str, Any] = {"mean": {}, "q95": {}, "draws": draws, "seed": seed}
    for column, indices in members(profile).items():
        counted = indices[positives[indices] > 0]
        by_draw = ap[:, counted].mean(axis=1) if len(counted) else None
        chance["mean"][column] = None if by_draw is None else float(by_draw.mean())
        chance["q95"][column] = None if by_draw is None else float(np.quantile(by_draw, 0.95))
    return chance


def random_ap(positives: int, images: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """AP of `draws` random rankings of `images` images, `positives` of them positive: ``(draws,)``."""
    ap = np.empty(draws)
    found = np.arange(1, positives + 1)
    held = positives if positives <= images // 2 else images
    step = max(1, BLOCK // held)
    for start in range(0, draws, step):
        ranks = random_ranks(positives, images, min(step, draws - start), rng)
        ap[start : start + step] = (found / (ranks + 1)).mean(axis=1)
    return ap


def random_ranks(positives: int, images: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Ascending ranks ``(draws, positives)`` of the positives, 0-based: uniform among all subsets.

    Drawn with repetition, repeats drawn again until none is left. Every rank is treated alike, so every subset is
    equally likely; where positives are the majority, the negatives' ranks are drawn instead.
    """
    if positives > images // 2:
        positive = np.ones((draws, images), dtype=bool)
        np.put_along_axis(positive, random_ranks(images - positives, images, draws, rng), False, axis=1)
        return np.nonzero(positive)[1].reshape(draws, positives)
    ranks = rng.integers(images, size=(draws, positives), dtype=np.int32)
    ranks.sort(axis=1)
    todo = np.arange(draws)
    while len(todo):
        rows = ranks[todo]
        repeats = np.zeros(rows.shape, dtype=bool)
        repeats[:, 1:] = rows[:, 1:] == rows[:, :-1]
        again = repeats.any(axis=1)
        todo, rows, repeats = todo[again], rows[again], repeats[again]
        rows[repeats] = rng.integers(images, size=int(repeats.sum()), dtype=np.int32)
        rows.sort(axis=1)
        ranks[todo] = rows
    return ranks
