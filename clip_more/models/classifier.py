"""An image encoder and its head in one module: pixels in, logits out."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clip_more.models.backbones import Backbone, is_backbone, load_backbone, read_backbone
from clip_more.models.clip import Clip, load_clip
from clip_more.models.feature_heads import FeatureHead
from clip_more.models.head_files import FILE as HEAD_FILE
from clip_more.models.head_files import load_head
from clip_more.models.heads import PromptHead
from clip_more.models.multilabel import FILE as PROMPT_FILE
from clip_more.models.multilabel import read_multilabel

# What turns photos into features. Both have `encode_image`, and the same attributes that say how photos come in.
Encoder = Clip | Backbone


class Classifier(nn.Module):
    """A CLIP and prompts for its text tower: pixels in, logits out."""

    def __init__(self, clip: Clip, head: PromptHead) -> None:
        super().__init__()
        self.clip = clip
        self.head = head

    @property
    def encoder(self) -> Clip:
        """What turns photos into features."""
        return self.clip

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C) logits."""
        return self.head_logits(self.clip.encode_image(pixel_values))

    def head_logits(self, features: Tensor) -> Tensor:
        """(N, D) of `encoder.encode_image` -> (N, C)."""
        return self.head(self.clip, features)

    def judging(self) -> AbstractContextManager[None]:
        """Inside, the prompts are encoded once and not with every batch."""
        return self.head.text_once(self.clip)


class FeatureClassifier(nn.Module):
    """A CLIP's vision tower or a plain backbone, and a head on its features: pixels in, logits out.

    What is frozen of the encoder keeps its batch statistics: an encoder of which nothing is trained stays in evaluation
    mode, and so does batch normalisation whose own weights are not trained.
    """

    def __init__(self, encoder: Encoder, head: FeatureHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C) logits."""
        return self.head(self.encoder.encode_image(pixel_values))

    def head_logits(self, features: Tensor) -> Tensor:
        """(N, D) of `encoder.encode_image` -> (N, C)."""
        return self.head(features)

    def judging(self) -> AbstractContextManager[None]:
        """As of a `Classifier`; nothing is to be done here."""
        return nullcontext()

    def train(self, mode: bool = True) -> FeatureClassifier:
        """As in torch, but for an encoder that is frozen."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.encoder.parameters()):
            self.encoder.eval()
        for layer in self.encoder.modules():
            if isinstance(layer, _BatchNorm) and not any(p.requires_grad for p in layer.parameters()):
                layer.eval()
        return self


AnyClassifier = Classifier | FeatureClassifier


def load_encoder(source: str, *, image_size: int | None = None, geometry: str | None = None, seed: int = 0) -> Encoder:
    """A CLIP (see `load_clip`) or a backbone without text (see `load_backbone`), whichever `source` names.

    Raises:
        FileNotFoundError: If it is not there, or cannot be fetched.
        ValueError: If it cannot be loaded.
    """
    load = load_backbone if is_backbone(source) else load_clip
    return load(source, image_size=image_size, geometry=geometry, seed=seed)


def load_classifier(folder: str | os.PathLike[str], geometry: str | None = None) -> tuple[AnyClassifier, list[str]]:
    """A classifier that was exported, and its class names.

    Args:
        folder: A folder with `multilabel.json` or `head.json`, such as a run's `merged/`.
        geometry: How photos are brought into a square, where not as when it was trained.

    Raises:
        FileNotFoundError: If the folder or one of its files is absent.
        ValueError: If a file is damaged.
    """
    if has_feature_head(folder):
        head, content = load_head(folder)
        encoder = load_encoder_of(folder, geometry or content.get("geometry"))
        return FeatureClassifier(encoder, head).eval(), list(content["class_names"])
    content = read_multilabel(folder)
    clip = load_clip(os.fspath(folder), geometry=geometry or content.get("geometry"))
    prompts = PromptHead(clip, content["prompts"], scale=content["logit_scale"])
    with torch.no_grad():
        prompts.bias.copy_(torch.tensor(content["bias"]))
    return Classifier(clip, prompts).eval(), list(content["class_names"])


def load_encoder_of(folder: str | os.PathLike[str], geometry: str | None = None) -> Encoder:
    """The CLIP or backbone whose files lie in an exported folder; errors as `load_classifier`."""
    if is_backbone(os.fspath(folder)):
        return read_backbone(os.fspath(folder), geometry=geometry)
    return load_clip(os.fspath(folder), geometry=geometry)


def has_feature_head(folder: str | os.PathLike[str]) -> bool:
    """Whether an exported folder holds a head on features, and no prompts."""
    present = os.listdir(folder) if os.path.isdir(folder) else []
    return HEAD_FILE in present and PROMPT_FILE not in present
