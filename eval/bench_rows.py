"""What every section of the benchmark shares: interleaved timing and the form of a row."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Options:
    """What a section is asked to do.

    Attributes:
        quick: Small shapes.
        dtypes: ``fp32`` and/or ``bf16`` (autocast, weights in fp32).
        repetitions: Timed rounds.
        device: ``cpu`` or ``cuda``.
    """

    quick: bool
    dtypes: tuple[str, ...]
    repetitions: int
    device: str


@dataclass(frozen=True)
class Row:
    """One figure: ours beside a peer's.

    Attributes:
        row: ``section.name``.
        dtype: As in `Options`.
        unit: ``s``, ``photos/s`` or ``MiB``.
        better: ``lower`` or ``higher``.
        ours: Median.
        peer: Median.
        ratio: ours / peer.
        spread: Lowest and highest ratio of the rounds, ours and peer taken from the same round.
        goal: The ratio aimed at.
    """

    row: str
    dtype: str
    unit: str
    better: str
    ours: float
    peer: float
    ratio: float
    spread: list[float]
    goal: float | None

    @property
    def goal_text(self) -> str:
        """The goal as the table prints it."""
        return "" if self.goal is None else f"{'<=' if self.better == 'lower' else '>='} {self.goal:.2f}"

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; ``None`` without one."""
        if self.goal is None:
            return None
        return self.ratio <= self.goal if self.better == "lower" else self.ratio >= self.goal


def interleaved(contenders: Mapping[str, Callable[[], object]], options: Options) -> dict[str, list[float]]:
    """Seconds of each contender in each round, after one round that is not timed.

    All run once a round, in an order that moves on by one each round, so that a slow spell of the machine and what the
    one before left in the caches fall on all of them alike.
    """
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(options.repetitions + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            start = now(options.device)
            contenders[name]()
            if turn:
                seconds[name].append(now(options.device) - start)
    return seconds


def now(device: str) -> float:
    """Seconds, once the device has done what it was asked to."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def compared(row: str, dtype: str, ours: list[float], peer: list[float], *, goal: float | None, unit: str = "s") -> Row:
    """Make a row of two contenders' rounds; seconds and MiB are better lower."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    middle = statistics.median(ours), statistics.median(peer)
    better = "higher" if unit == "photos/s" else "lower"
    return Row(row, dtype, unit, better, *middle, middle[0] / middle[1], [min(ratios), max(ratios)], goal)
