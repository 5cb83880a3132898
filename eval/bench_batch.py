"""The CLIP and the batch that sections ``step``, ``text``, ``scale`` and ``memory`` work on.

A CLIP of ViT-B/32's shapes with random weights (12 layers a tower, with --quick 3), synthetic photos and labels, and
COCO's 80 classes in one template. The number of photos is part of every figure: the text tower reads its prompts once a
pass whatever the batch, so its share falls as the batch grows.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clip_more.evaluation.published import COCO_CLASSES
from clip_more.models.tokenizer import clip_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPModel, PreTrainedTokenizerBase

CLASSES, CONTEXT, SIZE = len(COCO_CLASSES), 77, 224


@dataclass(frozen=True)
class Batch:
    """Photos with labels, and the prompts of all classes.

    Attributes:
        pixel_values: (N, 3, H, W).
        targets: (N, C) float, 0 or 1.
        known: (N, C) bool.
        counts: (C,) positives of each class in train, falling from class to class.
        names: C class names.
        trimmed: Prompts as a model takes them: `input_ids` (C, L), L being the longest prompt.
        padded: The same filled up to 77 tokens, and their `attention_mask`: what open_clip's tokenizer and
            transformers' training example for CLIP make.
    """

    pixel_values: Tensor
    targets: Tensor
    known: Tensor
    counts: Tensor
    names: tuple[str, ...]
    trimmed: dict[str, Tensor]
    padded: dict[str, Tensor]

    def inputs(self) -> dict[str, Tensor]:
        """What a `LongTailTask` takes."""
        return {"pixel_values": self.pixel_values, "targets": self.targets, "known": self.known}


def synthetic_batch(device: str, photos: int, classes: int = CLASSES, size: int = SIZE) -> Batch:
    """Random photos and labels of COCO's first `classes` classes."""
    generator = torch.Generator().manual_seed(0)
    names = COCO_CLASSES[:classes]
    texts = [f"a photo of a {name}." for name in names]
    trimmed = tokenizer()(texts, padding=True, return_tensors="pt")
    padded = tokenizer()(texts, padding="max_length", max_length=CONTEXT, return_tensors="pt")
    return Batch(
        pixel_values=torch.randn(photos, 3, size, size, generator=generator).to(device),
        targets=(torch.rand(photos, classes, generator=generator) < 0.1).float().to(device),
        known=torch.ones(photos, classes, dtype=torch.bool, device=device),
        counts=torch.linspace(7, 3, classes).exp().round().int(),
        names=names,
        trimmed={"input_ids": trimmed["input_ids"].to(device)},
        padded={key: padded[key].to(device) for key in ("input_ids", "attention_mask")},
    )


def clip(quick: bool, device: str | None = None) -> CLIPModel:
    """A CLIP of ViT-B/32's widths with random weights, of three layers a tower where `quick`."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    layers = {"num_hidden_layers": 3} if quick else {}
    model: Any = CLIPModel(CLIPConfig(text_config=dict(layers), vision_config=dict(layers), projection_dim=512))
    return model.to(device).train()


def same_weights(model: CLIPModel) -> CLIPModel:
    """A copy that shares the parameters of `model`, the logit scale apart: eleven CLIPs would fill the memory."""
    shared = {id(p): p for name, p in model.named_parameters() if name != "logit_scale"}
    return copy.deepcopy(model, memo=shared)


@cache
def tokenizer() -> PreTrainedTokenizerBase:
    """CLIP's."""
    return clip_tokenizer(CONTEXT)
