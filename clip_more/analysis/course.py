"""What a run's `metrics.jsonl` says about its course: the strength of L_MORE, its peak, spikes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# A value that rises to so many times the median of its neighbours, WINDOW on either side, is a spike where it also
# reaches the run's first value: late losses are small, and the noise of batches doubles and halves them.
SPIKE = {"loss": 2.5, "gradient_norm": 4.0}
WINDOW = 5
# Alpha at or above this share of its peak is "around the peak".
AROUND = 0.8


@dataclass(frozen=True)
class Spike:
    """One logged value far above its neighbours.

    Attributes:
        step: Where.
        what: `loss` or `gradient_norm`.
        times: Over the median of the neighbours.
        at_peak: Whether alpha stood at 80 % of its peak or above.
    """

    step: int
    what: str
    times: float
    at_peak: bool


@dataclass(frozen=True)
class Course:
    """The course of a run.

    Attributes:
        steps: Last logged step.
        peak: Share of the steps done where alpha was highest: 0.5 under the sinusoid; None without L_MORE.
        strength: `alpha x discrepancy / base` at its highest: how much of the loss L_MORE was; None without L_MORE.
        strength_at: Share of the steps done where that was.
        tail_gradient: Median of the tail's gradient norm over the general part's; None where not both are logged.
        tail_share: Of every group of layers at the end.
        spikes: In the order of the steps.
        skipped: Steps that were left out because loss or gradient were not finite.
    """

    steps: int
    peak: float | None
    strength: float | None
    strength_at: float | None
    tail_gradient: float | None
    tail_share: dict[str, float]
    spikes: list[Spike]
    skipped: int


def read_course(events: Sequence[dict[str, Any]]) -> Course | None:
    """The course from the events of a run (`read_events`); None where no step was logged."""
    rows = sorted((event for event in events if event.get("event") == "train"), key=lambda event: event["step"])
    if not rows:
        return None
    steps = int(rows[-1]["step"])
    total = max([steps, *(int(e["total"]) for e in events if e.get("event") == "start" and "total" in e)])
    weighted = [row for row in rows if row.get("discrepancy") is not None and row.get("alpha") is not None]
    peak = strength = strength_at = None
    top = max((row["alpha"] for row in weighted), default=0.0)
    if top > 0:
        peak = next(row["step"] for row in weighted if row["alpha"] == top) / total
        parts = [(row["alpha"] * row["discrepancy"] / row["base"], row["step"]) for row in weighted if row.get("base")]
        strength, at = max(parts) if parts else (0.0, steps)
        strength_at = at / total
    norms = [row.get("gradient_norms") or {} for row in rows]
    ratios = [n["tail"] / n["general"] for n in norms if n.get("tail") is not None and n.get("general")]
    return Course(
        steps=steps,
        peak=peak,
        strength=strength,
        strength_at=strength_at,
        tail_gradient=float(np.median(ratios)) if ratios else None,
        tail_share=dict(rows[-1].get("tail_share") or {}),
        spikes=sorted((s for what in SPIKE for s in _spikes(rows, what, top)), key=lambda spike: spike.step),
        skipped=int(rows[-1].get("skipped") or 0),
    )


def _spikes(rows: Sequence[dict[str, Any]], what: str, top: float) -> list[Spike]:
    """Rises to `SPIKE` times the median of their neighbours; a run of them counts once, at its highest."""
    there = [row for row in rows if row.get(what) is not None]
    values = np.array([row[what] for row in there], dtype=float)
    found: list[Spike] = []
    last = -2
    for n, row in enumerate(there):
        around = np.concatenate([values[max(0, n - WINDOW) : n], values[n + 1 : n + 1 + WINDOW]])
        rises = n > 0 and (values[n] > values[n - 1] or last == n - 1)  # every run begins high, and falls
        if not rises or len(around) < WINDOW:
            continue
        middle = float(np.median(around))
        if middle <= 0 or values[n] < max(SPIKE[what] * middle, values[0]):
            continue
        at_peak = top > 0 and (row.get("alpha") or 0.0) >= AROUND * top
        spike = Spike(int(row["step"]), what, float(values[n] / middle), at_peak)
        if n == last + 1 and found:
            found[-1] = max(found[-1], spike, key=lambda spike: spike.times)
        else:
            found.append(spike)
        last = n
    return found
