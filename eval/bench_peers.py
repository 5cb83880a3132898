"""The peers of sections ``step`` and ``memory``, written against stock libraries.

plain          transformers' CLIPModel, every weight trained in one pass; prompts cut to the longest one
plain_padded   the same with prompts of 77 tokens
peft           PEFT's LoRA over a trained base, a second pass under `disable_adapter`: MORE as PEFT alone would have it
peft_padded    the same with prompts of 77 tokens
peft_stopped   as `peft`, the second pass without a gradient: what `discrepancy_gradient: stop_general` is
lora           PEFT's LoRA over a frozen base, one pass, prompts of 77 tokens: what most people run
open_clip      open_clip's own towers, every weight trained in one pass, prompts of 77 tokens

All have the losses of ours and PEFT the places and ranks of ours, so that only the method differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench_batch import Batch
from clip_more.adapters import MoreConfig
from clip_more.models.convert import hf_to_open_clip

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import CLIPModel


ALPHA = 0.1  # weight of L_MORE
LR = 1e-6


@dataclass(frozen=True)
class Contender:
    """A way to train a CLIP, on one batch.

    Attributes:
        model: Holds the parameters.
        groups: Of AdamW.
        losses: Gives scalars, among them `loss`, and `base` which is in it.
    """

    model: nn.Module
    groups: list[dict[str, Any]]
    losses: Callable[[], Mapping[str, Tensor]]


def plain(model: CLIPModel, batch: Batch, padded: bool) -> Contender:
    """Plain fine-tuning of every weight."""
    return Contender(model, groups(model), lambda: losses(batch, logits(model, batch, padded)))


def peft(model: CLIPModel, batch: Batch, padded: bool, stopped: bool = False) -> Contender:
    """Stock LoRA over a trained base, in two passes; `stopped`: the second has no gradient."""
    lora = stock_lora(model).requires_grad_(True)

    def two_passes() -> dict[str, Tensor]:
        full = logits(lora, batch, padded)
        with lora.disable_adapter(), torch.set_grad_enabled(not stopped):
            general = logits(lora, batch, padded)
        return losses(batch, full, general)

    return Contender(lora, groups(lora), two_passes)


def frozen_lora(model: CLIPModel, batch: Batch) -> Contender:
    """Stock LoRA as it comes: the base frozen, one pass."""
    lora = stock_lora(model)
    return Contender(lora, groups(lora), lambda: losses(batch, logits(lora, batch, padded=True)))


def open_clip(model: CLIPModel, batch: Batch) -> Contender:
    """open_clip's modules with the weights of `model`.

    Raises:
        ImportError: open_clip is not installed.
    """
    from open_clip import CLIP

    state, config = hf_to_open_clip(model)
    towers = CLIP(**config).to(batch.targets.device).train()
    towers.load_state_dict(state)

    def one_pass() -> dict[str, Tensor]:
        seen, read, scale = towers(batch.pixel_values, batch.padded["input_ids"])
        return losses(batch, (scale * seen @ read.T).float())

    return Contender(towers, groups(towers), one_pass)


# From a stock CLIPModel, which may be changed in place, and the batch.
PEERS: dict[str, Callable[[CLIPModel, Batch], Contender]] = {
    "plain": partial(plain, padded=False),
    "plain_padded": partial(plain, padded=True),
    "peft": partial(peft, padded=False),
    "peft_padded": partial(peft, padded=True),
    "peft_stopped": partial(peft, padded=False, stopped=True),
    "lora": frozen_lora,
    "open_clip": open_clip,
}


def stock_lora(model: CLIPModel) -> PeftModel:
    """PEFT's LoRA of the places and ranks that our tail has."""
    from peft import get_peft_model

    return get_peft_model(model, MoreConfig().to_lora(model))


def logits(model: nn.Module, batch: Batch, padded: bool) -> Tensor:
    """(N, C) in fp32."""
    prompts = batch.padded if padded else batch.trimmed
    return model(**prompts, pixel_values=batch.pixel_values).logits_per_image.float()


def losses(batch: Batch, full: Tensor, general: Tensor | None = None) -> dict[str, Tensor]:
    """BCE, summed over classes; with a general pass the discrepancy, weighted by label, as well."""
    base = F.binary_cross_entropy_with_logits(full, batch.targets, reduction="sum") / len(full)
    if general is None:
        return {"loss": base, "base": base}
    prior = (batch.counts / batch.counts.sum()).to(full.device)
    return {"loss": base + ALPHA * ((full - general).square() @ prior).mean(), "base": base}


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """Of AdamW: all that is trained, alike."""
    return [{"params": [p for p in model.parameters() if p.requires_grad], "lr": LR}]
