"""The loop over cached features: SGD with momentum and a cosine to zero, in an order that a seed decides."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from clip_more.data.samplers import EpochOrder
from clip_more.stage2.cached import Cached
from clip_more.stage2.measure import PHOTOS

MOMENTUM = 0.9
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Course:
    """How long and how fast a fit goes.

    Attributes:
        epochs: Passes; 0 leaves everything as it starts.
        batch_size: Photos a step.
        lr: Of the first step.
        weight_decay: As in SGD: added to the gradient.
    """

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float = 0.0


def fit(
    head: nn.Module,
    data: Cached,
    loss: Loss,
    order: EpochOrder,
    course: Course,
    *,
    label: str = "",
    device: str = "cpu",
    after_step: Callable[[], None] | None = None,
) -> None:
    """Train the parameters of `head` that want a gradient, in place.

    Args:
        head: (n, D) features -> (n, C) logits; moved to `device`.
        data: N photos; a step reads its own rows alone.
        loss: Of logits, targets (0 or 1, float) and known.
        order: Which photos an epoch takes.
        course: How long and how fast.
        label: Of the progress bar.
        device: Of the fit.
        after_step: Called after each step.
    """
    head.to(device).train()
    parameters = [parameter for parameter in head.parameters() if parameter.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=course.lr, momentum=MOMENTUM, weight_decay=course.weight_decay)
    a_pass = -(-order.length // course.batch_size)
    total, step = a_pass * course.epochs, 0
    with tqdm(total=total, desc=label, unit="step", leave=False, disable=None) as bar:
        for epoch in range(course.epochs):
            for rows in torch.from_numpy(order.order(epoch)).split(course.batch_size):
                optimiser.param_groups[0]["lr"] = course.lr * (1 + math.cos(math.pi * step / total)) / 2
                batch = (tensor[rows].to(device) for tensor in (data.features, data.targets, data.known))
                features, targets, known = batch
                optimiser.zero_grad()
                loss(head(features), targets.float(), known).backward()
                optimiser.step()
                if after_step is not None:
                    after_step()
                step += 1
                bar.update()
    head.eval()


@torch.no_grad()
def mean_square(module: Callable[[Tensor], Tensor], features: Tensor) -> float:
    """Mean over photos of the squared length of `module(features)`: (N, D) -> a number."""
    squares = sum(float(module(part).double().square().sum()) for part in features.split(PHOTOS))
    return squares / len(features)
