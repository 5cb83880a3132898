"""The training task: one forward from a batch to its losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clip_more.adapters import tail, tail_parameters
from clip_more.losses import DiscrepancyLoss
from clip_more.training.randomness import RandomState, frozen_batch_statistics


class LongTailTask(nn.Module):
    """`L = L_base(full) + alpha * L_MORE(full, general)` (MORE, arXiv 2510.08177).

    Both passes happen inside this one forward, so that DDP, FSDP and torch.compile see a single module.

    Args:
        classifier: pixel_values (N, 3, H, W) -> logits (N, C); with a tail when `discrepancy` is given.
        base_loss: (logits, targets, known) -> scalar.
        discrepancy: (full, general, targets, known) -> scalar; without it there is one pass and no L_MORE.
    """

    def __init__(self, classifier: nn.Module, base_loss: nn.Module, discrepancy: DiscrepancyLoss | None = None) -> None:
        super().__init__()
        self.classifier = classifier
        self.base_loss = base_loss
        self.discrepancy = discrepancy

    def forward(self, batch: dict[str, Tensor], alpha: float = 0.0) -> dict[str, Any]:
        """Losses of a batch.

        Args:
            batch: pixel_values (N, 3, H, W), targets (N, C), known (N, C).
            alpha: Weight of L_MORE now; at 0 the general pass is left out.

        Returns:
            loss, base and discrepancy (scalars; discrepancy None where it was left out) and logits (N, C).
        """
        pixel_values, targets, known = batch["pixel_values"], batch["targets"], batch["known"]
        state = RandomState(pixel_values.device)
        full = self.classifier(pixel_values)
        base = self.base_loss(full, targets, known)
        if self.discrepancy is None or alpha == 0:
            return {"loss": base, "base": base, "discrepancy": None, "logits": full}
        if self.discrepancy.gradient == "tail":
            pair = self._tail_only(pixel_values, state, True), self._tail_only(pixel_values, state, False)
        else:
            pair = full, self._general(pixel_values, state)
        discrepancy = self.discrepancy(*pair, targets, known)
        return {"loss": base + alpha * discrepancy, "base": base, "discrepancy": discrepancy, "logits": full}

    def _general(self, pixel_values: Tensor, state: RandomState) -> Tensor:
        """Logits of theta_g alone, under the dropout masks of the full pass."""
        stopped = self.discrepancy is not None and self.discrepancy.gradient == "stop_general"
        with (
            state.replayed(),
            frozen_batch_statistics(self),
            tail(self, enabled=False),
            torch.set_grad_enabled(torch.is_grad_enabled() and not stopped),
        ):
            return self.classifier(pixel_values)

    def _tail_only(self, pixel_values: Tensor, state: RandomState, enabled: bool) -> Tensor:
        """Logits through which no gradient reaches theta_g: everything but A and B is detached."""
        kept = tail_parameters(self.classifier)
        detached = {n: p if n in kept else p.detach() for n, p in self.classifier.named_parameters()}
        with state.replayed(), frozen_batch_statistics(self), tail(self, enabled=enabled):
            return torch.func.functional_call(self.classifier, detached, (pixel_values,))
