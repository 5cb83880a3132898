"""A and B learn from the base loss of rare classes alone, W_g from that of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clip_more.adapters import tail_parameters
from clip_more.config import LOSSES_OF_ONE_LABEL, ConfigError, TrainConfig
from clip_more.data.profile import ClassProfile
from clip_more.models.classifier import AnyClassifier, Classifier
from clip_more.training.task import LongTailTask


def check_routing(config: TrainConfig, classifier: AnyClassifier, profile: ClassProfile) -> None:
    """Refuse `tail_learns` where it cannot do what it says.

    Raises:
        ConfigError: Naming the other key, and what to do.
    """
    if config.tail_learns == "all":
        return
    if config.tuning != "more":
        raise ConfigError(f"tail_learns is about a tail, and tuning: {config.tuning} has none; leave it out")
    learnt, weights = learnt_by_tail(config, profile), config.group_weights
    if not learnt.any():
        key = "head_min" if config.tail_learns == "rare" else "tail_max"
        raise ConfigError(
            f"tail_learns: {config.tail_learns}, and no class has fewer than {key}: {getattr(profile, key)} train "
            f"positives; raise {key}, or leave tail_learns out"
        )
    if not (learnt & torch.tensor([weights.get(group, 1.0) > 0 for group in profile.groups])).any():
        raise ConfigError("tail_learns, and group_weights is 0 for all that it learns from; leave one of them out")
    others = {
        f"loss: {config.loss}": config.loss in LOSSES_OF_ONE_LABEL,
        "head: anything but prompts": not isinstance(classifier, Classifier),
        "text_classes": config.text_classes is not None,
        "text_refresh": config.text_refresh > 1,
        "amplitude_ratio": config.amplitude_ratio is not None,
        "mixed_precision: fp16": config.mixed_precision == "fp16",
        "gradient_checkpointing": config.gradient_checkpointing,
        f"distribution: {config.distribution}": config.distribution not in (None, "one"),
        "loss_reduction: mean": config.loss_reduction == "mean",
        "accumulation": config.accumulation > 1 and config.text_tower == "train" and config.tail_towers != "vision",
    }
    if clash := [key for key, is_set in others.items() if is_set]:
        raise ConfigError(f"tail_learns does not go with {clash[0]}; leave one of them out")


def learnt_by_tail(config: TrainConfig, profile: ClassProfile) -> Tensor:
    """(C,) bool: classes whose base loss A and B learn from, where these are not all."""
    spared = ("head",) if config.tail_learns == "rare" else ("head", "medium")
    return torch.tensor([group not in spared for group in profile.groups])


class RoutedTask(LongTailTask):
    """A `LongTailTask` whose A and B learn from the base loss of some classes, and from all of L_MORE.

    Args:
        arguments: Of a `LongTailTask`.
        learnt: (C,) bool, classes whose base loss A and B learn from.
        accumulation: Micro-batches of an optimiser step.
        options: Of a `LongTailTask`.
    """

    def __init__(self, *arguments: Any, learnt: Tensor, accumulation: int, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.learnt: Tensor
        self.register_buffer("learnt", learnt, persistent=False)
        self.routed = RoutedGradient(list(tail_parameters(self).values()), accumulation)

    def forward(
        self, batch: dict[str, Tensor], alpha: float = 0.0, *, last: bool = True, fresh: bool = True
    ) -> dict[str, Any]:
        """As of a `LongTailTask`; the next backward pass of `loss` gives A and B their own gradient."""
        losses = super().forward(batch, alpha, last=last, fresh=fresh)
        if torch.is_grad_enabled():
            base = self.base_loss(losses["logits"], batch["targets"], batch["known"] & self.learnt)
            self.routed.take(base + losses["loss"] - losses["base"])
        return losses


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
