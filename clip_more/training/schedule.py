"""What changes with the optimiser step: the weight of L_MORE and the learning rate."""

import math

ALPHA_SCHEDULES = ("sinusoidal", "cosine", "constant")


def alpha(step: int, total: int, amplitude: float, schedule: str = "sinusoidal") -> float:
    """Weight of L_MORE at optimiser step `step` of `total` (MORE, arXiv 2510.08177).

    `sinusoidal`: A sin(pi tau / T), zero at both ends. The ablations: `cosine`, A (1 + cos(pi tau / T)) / 2, and
    `constant`, A.

    Raises:
        ValueError: On an unknown schedule.
    """
    if schedule == "constant":
        return amplitude
    if schedule == "cosine":
        return amplitude * (1 + math.cos(math.pi * step / total)) / 2
    if schedule == "sinusoidal":
        return amplitude * math.sin(math.pi * step / total)
    raise ValueError(f"alpha schedule is {schedule!r}; choose one of {', '.join(ALPHA_SCHEDULES)}")


def warmup_cosine(step: int, total: int, warmup: float) -> float:
    """Factor on the learning rate: linear rise over `warmup * total` steps, then half a cosine down to zero."""
    rise = max(1, round(warmup * total)) if warmup > 0 else 0
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))
