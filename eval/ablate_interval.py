"""Paired differences over seeds and test photos: their interval, and how many seeds show a gain."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DRAWS = 2000


@dataclass(frozen=True)
class Difference:
    """An arm less its base, in 0..1, on the seeds that both have.

    Attributes:
        by_seed: Seed to difference.
        low: 2.5th percentile of the hierarchical bootstrap; None where there is nothing to draw from.
        high: 97.5th.
        spread_by: What the interval is over: ``seeds and test photos``, ``seeds`` or ``test photos``.
    """

    by_seed: Mapping[int, float]
    low: float | None
    high: float | None
    spread_by: str

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.by_seed.values())

    @property
    def sd(self) -> float | None:
        """Over seeds, of a sample; None of one seed."""
        return sample_sd(list(self.by_seed.values()))

    @property
    def above(self) -> float:
        """Share of the seeds with a gain."""
        return statistics.fmean(value > 0 for value in self.by_seed.values())

    @property
    def t_interval(self) -> tuple[float, float] | None:
        """95 % interval of a paired t test over seeds; None of one seed."""
        from scipy.stats import t

        if self.sd is None:
            return None
        half = float(t.ppf(0.975, len(self.by_seed) - 1)) * self.sd / math.sqrt(len(self.by_seed))
        return self.mean - half, self.mean + half

    @property
    def clear(self) -> bool:
        """Whether zero lies outside the bootstrap's interval and the t test's; never of one seed.

        Each of the two is too narrow where the other is not: percentiles of few seeds (coverage of 75 % instead of
        95 % with three), and the t test where all seeds are judged on the same photos.
        """
        if self.low is None or self.high is None or self.t_interval is None:
            return False
        low, high = min(self.low, self.t_interval[0]), max(self.high, self.t_interval[1])
        return low > 0 or high < 0

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return {
            "mean": self.mean, "sd": self.sd, "low": self.low, "high": self.high, "over": self.spread_by,
            "t_interval": self.t_interval and list(self.t_interval), "clear": self.clear, "above": self.above,
            "by_seed": {str(seed): value for seed, value in self.by_seed.items()},
        }  # fmt: skip


def interval(
    measured: np.ndarray, resampled: Sequence[np.ndarray], *, shared: bool = False, draws: int = DRAWS
) -> tuple[float | None, float | None]:
    """95 % interval of the mean over seeds, by hierarchical bootstrap.

    A draw takes S of the S seeds with replacement and, for each, one of its resamples of the test photos; the
    percentiles are moved back by the bias of the resamples, as those of
    :func:`~clip_more.evaluation.bootstrap.bootstrap_maps` are.

    Args:
        measured: ``(S,)``, on the photos as they are.
        resampled: S arrays ``(K,)``, NaN where a resample has no figure; empty: over seeds alone.
        shared: All seeds are judged on the same photos: one resample for all seeds of a draw.
        draws: How many.

    Returns:
        2.5th and 97.5th percentile; None and None of one seed without resamples.
    """
    seeds = len(measured)
    if not resampled:
        if seeds < 2:
            return None, None
        resampled = [measured[i : i + 1] for i in range(seeds)]
    if not shared:  # rows that are told apart by nothing but chance; else row k is the same photos in all seeds
        resampled = [rows[~np.isnan(rows)] for rows in resampled]
    bias = float(np.mean([np.nanmean(rows) for rows in resampled]) - measured.mean())
    if seeds == 1:
        figures = resampled[0]
    else:
        rng = np.random.default_rng(0)
        chosen = rng.integers(seeds, size=(draws, seeds))
        places = rng.random((draws, 1 if shared else seeds))
        lengths = np.array([len(rows) for rows in resampled])
        table = np.full((seeds, lengths.max()), np.nan)
        for row, rows in zip(table, resampled, strict=True):
            row[: len(rows)] = rows
        picked = table[chosen, (places * lengths[chosen]).astype(int)]
        there = ~np.isnan(picked)
        counts = there.sum(axis=1)
        sums = np.where(there, picked, 0.0).sum(axis=1)
        figures = np.divide(sums, counts, out=np.full(draws, np.nan), where=counts > 0)
    low, high = np.nanquantile(figures, (0.025, 0.975)) - bias
    return float(low), float(high)


def seeds_needed(sd: float, gain: float, *, power: float = 0.8, level: float = 0.05) -> int:
    """Paired seeds with which a two-sided paired t test sees a true gain with this power.

    Args:
        sd: Of the paired differences over seeds.
        gain: What there is to see, in the same unit.
        power: Probability to see it.
        level: Of the test.

    Raises:
        ValueError: `sd` is below 0, or `gain` is 0.
    """
    from scipy.stats import nct, t

    if sd < 0 or not gain:
        raise ValueError(f"sd must be 0 or more and gain not 0, not {sd} and {gain}: no number of seeds shows no gain")
    effect = abs(gain) / sd if sd else math.inf
    if math.isinf(effect):
        return 2

    def seen(seeds: int) -> float:
        bound, shift = t.ppf(1 - level / 2, seeds - 1), effect * math.sqrt(seeds)
        return float(nct.sf(bound, seeds - 1, shift) + nct.cdf(-bound, seeds - 1, shift))

    high = 2
    while seen(high) < power:
        high *= 2
    low = high // 2  # too few, or 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if seen(middle) >= power else (middle, high)
    return high


def sample_sd(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; None of one value."""
    return statistics.stdev(values) if len(values) > 1 else None
