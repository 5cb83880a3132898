"""What a second stage may be told; what is left out is chosen on validation photos, or has its default."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage2Options:
    """Options of all methods; each takes some of them.

    Attributes:
        tau: Of `tau` and `la_additive`.
        gamma: Of `la_multiplicative`.
        lr: Of fits, over the mean squared length of what the weights are multiplied with, so that one number means
            the same on any features. (`crt` subtracts their mean first.)
        epochs: Of fits.
        batch_size: Of fits.
        weight_decay: Of fits; each method has its own default.
        beta: Of `maxnorm_cb`: of its class-balanced loss.
        thresh: Of `maxnorm_cb`: where between the smallest and the largest norm of stage 1 rows are cut.
        inputs: Of `ncm`: un, l2n or cl2n.
        metric: Of `ncm`: euclidean or cosine.
    """

    tau: float | None = None
    gamma: float | None = None
    lr: float | None = None
    epochs: int = 10
    batch_size: int = 64
    weight_decay: float | None = None
    beta: float | None = None
    thresh: float | None = None
    inputs: str | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError naming the first option that is out of its range."""
        for name in ("tau", "gamma", "lr", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"--{name} is {value}; it must be 0 or more")
        for name, most, text in (("beta", 1, "in [0, 1)"), ("thresh", math.inf, "in [0, 1]")):
            value = getattr(self, name)
            if value is not None and not (0 <= value <= 1 and value < most):
                raise ValueError(f"--{name} is {value}; it must be {text}")
        if self.epochs < 0 or self.batch_size < 1:
            raise ValueError(f"--epochs is {self.epochs} and --batch_size {self.batch_size}; 0 and 1 are the least")
