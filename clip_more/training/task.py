"""The training task: one forward from a batch to its losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clip_more.adapters import tail, tail_parameters
from clip_more.losses import DiscrepancyLoss
from clip_more.training.randomness import RandomState, frozen_batch_statistics, general_pass


class LongTailTask(nn.Module):
    """`L = L_base(full) + alpha * L_MORE(full, general)` (MORE, arXiv 2510.08177).

    Both passes happen inside this one forward, so that DDP, FSDP and torch.compile see a single module.

    Args:
        classifier: pixel_values (N, 3, H, W) -> logits (N, C); with a tail when `discrepancy` is given.
        base_loss: (logits, targets, known) -> scalar.
        discrepancy: (full, general, targets, known) -> scalar; without it there is one pass and no L_MORE.
        tail_only: L_MORE sends its gradient to A and B alone, at the price of a third pass: theta_g is detached inside.
    """

    def __init__(
        self,
        classifier: nn.Module,
        base_loss: nn.Module,
        discrepancy: DiscrepancyLoss | None = None,
        tail_only: bool = False,
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.base_loss = base_loss
        self.discrepancy = discrepancy
        self.tail_only = tail_only

    def forward(self, batch: dict[str, Tensor], alpha: float = 0.0) -> dict[str, Any]:
        """Losses of a batch.

        Args:
            batch: pixel_values (N, 3, H, W), targets (N, C), known (N, C).
            alpha: Weight of L_MORE now; at 0 the general pass is left out.

        Returns:
            loss, base and discrepancy (scalars; discrepancy None where it was left out) and logits (N, C).
        """
        pixel_values, targets, known = batch["pixel_values"], batch["targets"], batch["known"]
        two_passes = self.discrepancy is not None and alpha != 0
        masks = RandomState(pixel_values.device) if two_passes else None
        full = self.classifier(pixel_values)
        base = self.base_loss(full, targets, known)
        if self.discrepancy is None or masks is None:
            return {"loss": base, "base": base, "discrepancy": None, "logits": full}
        if self.tail_only:
            pair = self._without_theta_g(pixel_values, masks, True), self._without_theta_g(pixel_values, masks, False)
        else:
            with general_pass(self, masks), torch.set_grad_enabled(self._general_needs_gradient()):
                pair = full, self.classifier(pixel_values)
        discrepancy = self.discrepancy(*pair, targets, known)
        return {"loss": base + alpha * discrepancy, "base": base, "discrepancy": discrepancy, "logits": full}

    def _general_needs_gradient(self) -> bool:
        stopped = self.discrepancy is not None and self.discrepancy.gradient == "stop_general"
        return torch.is_grad_enabled() and not stopped

    def _without_theta_g(self, pixel_values: Tensor, masks: RandomState, enabled: bool) -> Tensor:
        """Logits through which no gradient reaches theta_g: everything but A and B is detached."""
        kept = tail_parameters(self.classifier)
        detached = {n: p if n in kept else p.detach() for n, p in self.classifier.named_parameters()}
        with masks.replayed(), frozen_batch_statistics(self), tail(self, enabled=enabled):
            return torch.func.functional_call(self.classifier, detached, (pixel_values,))
