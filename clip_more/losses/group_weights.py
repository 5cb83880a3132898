"""A base loss in which groups of classes weigh more or less."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class GroupWeighted(nn.Module):
    """Any loss that is a sum over classes, each class's terms times its weight.

    Args:
        base_loss: (logits, targets, known) -> scalar, one sigmoid a class, summed over classes.
        weights: Of each class; 0 leaves it out.
    """

    def __init__(self, base_loss: nn.Module, weights: Sequence[float]) -> None:
        super().__init__()
        self.base_loss = base_loss
        self.weights: Tensor
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32), persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """Logits (N, C), targets (N, C) in {0, 1}, known (N, C) bool or weights -> scalar."""
        weights = self.weights.expand(logits.shape)
        return self.base_loss(logits, targets, weights if known is None else known * weights)
