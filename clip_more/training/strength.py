"""The strength of L_MORE set by its gradient, which neither the logits' scale nor a weighting's changes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clip_more.adapters import tail_parameters

# A measurement goes back through the graph once more for each loss, about as much work as the step itself: each of the
# first steps has one, when B leaves zero and the norms change by orders, and then one step in five, a fifth more work.
MEASURED_FIRST = 10
MEASURED_EVERY = 5
# Measurements that an average reaches back over. Longer would be smoother, and lag behind: g_MORE grows with the tail.
MEMORY = 4
# Of ||g_base||. A smaller ||g_MORE|| is rounding (B = 0, and two passes of other shapes), and is not measured: alpha is
# at most `ratio / SMALLEST`.
SMALLEST = 1e-5


class GradientRatio:
    """`alpha = ratio * shape * ||g_base|| / ||g_MORE||`: L_MORE pulls `ratio * shape` times as hard as the base loss.

    g are the gradients of the two losses alone, before clipping, their 2-norms taken over A and B and averaged over the
    last measurements. alpha is 0 until there is a norm of L_MORE's (with B = 0 there is none). For one process: the
    gradients of a shared step are nowhere whole before it ends.

    Args:
        parameters: Over which the norms are taken.
        ratio: At the peak of the schedule.
    """

    def __init__(self, parameters: Sequence[Tensor], ratio: float) -> None:
        self.parameters = list(parameters)
        self.ratio = ratio
        self._count = 0
        self._mean = {"base": 0.0, "discrepancy": 0.0}
        self._last = {"base": 0.0, "discrepancy": 0.0}

    @classmethod
    def of(cls, task: nn.Module, ratio: float) -> GradientRatio:
        """Over the A and B of a task; over all its trained parameters where it has none."""
        tail = list(tail_parameters(task).values())
        return cls(tail or [parameter for parameter in task.parameters() if parameter.requires_grad], ratio)

    def apply(self, losses: dict[str, Any], shape: float, *, step: int, first: bool) -> float:
        """Give L_MORE its strength in what the task returned for a micro-batch.

        Args:
            losses: loss, with L_MORE at the weight `shape`; base; discrepancy. loss is replaced.
            shape: The schedule now, 1 at its peak.
            step: Optimiser steps done.
            first: Whether this is the first micro-batch of its step, the one that is measured.

        Returns:
            alpha, the weight of L_MORE in this step.
        """
        if first and (self._count < MEASURED_FIRST or step % MEASURED_EVERY == 0):
            self._measure(losses)
        alpha = shape * self._unit()
        losses["loss"] = losses["loss"] + (alpha - shape) * losses["discrepancy"]
        return alpha

    def measured(self, alpha: float) -> float | None:
        """Norm of L_MORE's gradient at this alpha over that of the base loss, as last measured; None before."""
        return alpha * self._last["discrepancy"] / self._last["base"] if self._count else None

    def state_dict(self) -> dict[str, Any]:
        """What JSON can hold, to the bit."""
        return {"count": self._count, "mean": dict(self._mean), "last": dict(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._count, self._mean, self._last = state["count"], dict(state["mean"]), dict(state["last"])

    def _unit(self) -> float:
        """alpha where shape is 1."""
        if self._count == 0:
            return 0.0
        return self.ratio * self._mean["base"] / self._mean["discrepancy"]

    def _measure(self, losses: dict[str, Any]) -> None:
        """Take the norms of this micro-batch into the averages, unless one of them is nothing or not finite."""
        norms = {name: self._norm(losses[name]) for name in self._mean}
        if not (math.isfinite(norms["base"]) and SMALLEST * norms["base"] < norms["discrepancy"] < math.inf):
            return
        self._count += 1
        share = 1 / min(self._count, MEMORY)
        self._mean = {name: mean + share * (norms[name] - mean) for name, mean in self._mean.items()}
        self._last = norms

    def _norm(self, loss: Tensor) -> float:
        """2-norm of a loss's gradient; parameters that it does not reach count as 0. The graph stays."""
        if not loss.requires_grad:
            return 0.0
        found = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
        gradients = [gradient for gradient in found if gradient is not None]
        return torch.stack(torch._foreach_norm(gradients)).norm().item() if gradients else 0.0
