"""A and B learn from the base loss of rare classes alone, W_g from that of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class RoutedGradient:
    """Gives some parameters the gradient of another loss in the backward pass that the others have anyway.

    Hooks on the parameters swap what arrives there, so accumulating, clipping and averaging over processes go as ever.

    Args:
        parameters: A and B.
        steps: Micro-batches of an optimiser step, by which Accelerate divides every loss.
    """

    def __init__(self, parameters: Sequence[Tensor], steps: int = 1) -> None:
        self.parameters = list(parameters)
        self.steps = steps
        self._own: list[Tensor] | None = None
        for place, parameter in enumerate(self.parameters):
            parameter.register_hook(lambda gradient, place=place: self._swapped(place, gradient))

    def take(self, loss: Tensor) -> None:
        """The loss whose gradient the parameters get in the next backward pass; its graph stays."""
        self._own = None
        found = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
        own = [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found, strict=True)]
        self._own = [gradient / self.steps for gradient in own]

    def _swapped(self, place: int, gradient: Tensor) -> Tensor:
        return gradient if self._own is None else self._own[place]
