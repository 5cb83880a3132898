"""What sections ``step`` and ``memory`` compare: ours as a recipe makes it, beside the peers of bench_peers.py.

All train the same weights on the same batch. A step is the losses, their gradients and AdamW, torch's fused one for
all alike, so that only the method differs. Ours goes through the trainer's own code, from the recipe to the parameter
groups; it keeps the whole token table as the peers do, though a training run holds only the rows that its prompts use.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from bench_batch import Batch, same_weights, tokenizer
from bench_peers import ALPHA, LR, PEERS, Contender
from clip_more.config import TrainConfig
from clip_more.data.profile import ClassProfile
from clip_more.models.classifier import Classifier
from clip_more.models.clip import Clip
from clip_more.models.processor import clip_image_processor
from clip_more.training.build import build_classifier, build_task, parameter_groups

if TYPE_CHECKING:
    from transformers import CLIPModel

# Like the peers that make two passes, ours goes back through both; `stopped`, the default, through the full one alone.
_BOTH = {"discrepancy_gradient": "both"}
# What a recipe says. Of three layers `last4` takes one.
OURS: dict[str, dict[str, Any]] = {
    "one_pass": {"tuning": "full"},
    "stopped": {"discrepancy_gradient": "stop_general"},
    "exact": _BOTH,
    "upper_half": _BOTH | {"tail_depth": 1 / 2},
    "last4": _BOTH | {"tail_depth": 1 / 3},
    "text_only": _BOTH | {"tail_towers": "text"},
    "economical": _BOTH | {"discrepancy_fraction": 1 / 8},
}


def contender(name: str, model: CLIPModel, batch: Batch) -> Contender:
    """The contender `name`, of the weights of `model`, which stays as it is.

    Raises:
        ImportError: It needs a library that is not installed.
    """
    # A frozen base needs parameters of its own: the others train theirs.
    own = copy.deepcopy(model) if name == "lora" else same_weights(model)
    return ours(own, batch, **OURS[name]) if name in OURS else PEERS[name](own, batch)


def ours(model: CLIPModel, batch: Batch, **recipe: Any) -> Contender:
    """What the trainer makes of a recipe; `model` gets its tail in place."""
    config = TrainConfig(**{"tuning": "more", "lr": LR, "lr_head": LR} | recipe)
    task = build_task(config, classifier(config, model, batch), profile(batch)).to(batch.targets.device).train()
    return Contender(task, parameter_groups(config, task), lambda: task(batch.inputs(), alpha=ALPHA))


def classifier(config: TrainConfig, model: CLIPModel, batch: Batch) -> Classifier:
    """Ours before any tail, with the prompts of the batch's classes."""
    processor = clip_image_processor(batch.pixel_values.shape[-1])
    whole = build_classifier(config, Clip(model, tokenizer(), processor, "random weights"), profile(batch))
    return whole.to(batch.targets.device).train()


def profile(batch: Batch) -> ClassProfile:
    """Of the batch's classes."""
    return ClassProfile(batch.names, tuple(batch.counts.tolist()))


def stepper(
    contender: Contender, device: str, dtype: str, moments: defaultdict[Any, Any] | None = None
) -> Callable[[], None]:
    """One optimiser step as a call without arguments.

    Args:
        contender: What is trained.
        device: Where.
        dtype: `fp32` or `bf16`.
        moments: AdamW's state by parameter, to be shared by contenders that share their parameters.
    """
    optimizer = torch.optim.AdamW(contender.groups, fused=True)
    if moments is not None:
        optimizer.state = moments

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bf16"):
            loss = contender.losses()["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
