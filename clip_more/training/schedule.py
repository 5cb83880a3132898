"""What changes with the optimiser step: the weight of L_MORE, the learning rate, and what is due after it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from clip_more.config import TrainConfig

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


@dataclass(frozen=True)
class Plan:
    """The steps of a run.

    Attributes:
        config: The recipe.
        photos_a_step: Over all processes and micro-batches.
        epoch: Steps that show every photo once, rounded up.
        total: Steps of the run.
        amplitude: Peak weight of L_MORE, A; 1 where `amplitude_ratio` sets it.
        validates: Whether there is a held-out part to judge on.
    """

    config: TrainConfig
    photos_a_step: int
    epoch: int
    total: int
    amplitude: float
    validates: bool

    @classmethod
    def of(cls, config: TrainConfig, *, photos: int, classes: int, processes: int, validates: bool) -> Plan:
        """The plan of a recipe for this many train photos, classes and processes."""
        photos_a_step = processes * config.batch_size * config.accumulation
        amplitude = config.amplitude * (classes if config.amplitude_normalised else 1)
        return cls(
            config,
            photos_a_step,
            epoch=math.ceil(photos / photos_a_step),
            total=config.max_steps or max(1, round(config.epochs * photos / photos_a_step)),
            amplitude=amplitude if config.amplitude_ratio is None else 1.0,
            validates=validates,
        )

    @property
    def peak_steps(self) -> float:
        """Steps at the peak learning rate whose rates add up to those of the run."""
        return sum(warmup_cosine(step, self.total, self.config.warmup) for step in range(self.total))

    def alpha(self, step: int) -> float:
        """Weight of L_MORE when `step` steps are done; its shape alone where `amplitude_ratio` sets the rest."""
        return alpha(step, self.total, self.amplitude, self.config.alpha_schedule)

    def ends_epoch(self, step: int) -> bool:
        """Whether step `step` is the last of an epoch; the last of all is if half an epoch or more precedes it."""
        since = step % self.epoch
        return since == 0 or (step == self.total and 2 * since >= self.epoch)

    def logs(self, step: int) -> bool:
        """Whether step `step` gets a line in metrics.jsonl."""
        return step % min(self.config.log_every, max(1, self.total // 50)) == 0 or step in (1, self.total)

    def judges(self, step: int) -> bool:
        """Whether the held-out part is judged after step `step`."""
        every = self.config.eval_every
        return self.validates and (step == self.total or (every > 0 and step % every == 0))

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is written after step `step`."""
        return step % (self.config.checkpoint_every or self.epoch) == 0 or step == self.total
