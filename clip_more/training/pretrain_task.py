"""What a CLIP is pretrained on: image-caption pairs, or images x class prompts."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_more.models.clip import Clip

OBJECTIVES = ("sigmoid", "contrastive")


def contrastive_loss(image_features: Tensor, text_features: Tensor, scale: Tensor, captions: Tensor) -> Tensor:
    """InfoNCE over the N image-caption pairs of a batch, both ways (CLIP, arXiv 2103.00020).

    An image whose caption reads the same as another's is no negative of it: the pair is left out.

    Args:
        image_features: (N, D) unit vectors.
        text_features: (N, D) unit vectors.
        scale: Factor on the cosines.
        captions: (N, L) token ids.
    """
    logits = scale * image_features @ text_features.T
    same = (captions[:, None] == captions[None]).all(dim=2)
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, -math.inf)
    pairs = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def sigmoid_loss(
    image_features: Tensor, text_features: Tensor, scale: Tensor, bias: Tensor, targets: Tensor, known: Tensor
) -> Tensor:
    """Pairwise sigmoid loss (SigLIP, arXiv 2303.15343, Eq. 1) on images x class prompts.

    A pair is positive where the class is in the image. Sum over classes, mean over images.

    Args:
        image_features: (N, D) unit vectors.
        text_features: (C, D) unit vectors.
        scale: Factor on the cosines.
        bias: Added to every logit.
        targets: (N, C), 0 or 1.
        known: (N, C) bool; other pairs count nowhere.
    """
    logits = scale * image_features @ text_features.T + bias
    terms = F.softplus(torch.where(targets > 0, -logits, logits))
    return terms.masked_fill(~known, 0.0).sum(dim=1).mean()


class PretrainTask(nn.Module):
    """A CLIP and its pretraining loss; one forward, so that DDP sees a single module.

    Args:
        clip: The CLIP to train.
        texts: Token ids: (rows of the data set, L) captions, or (C, T, L) class prompts.
        objective: "contrastive" on captions, negatives from the process's own batch; "sigmoid" on class prompts.
        bias: Where the sigmoid loss's bias starts.
    """

    def __init__(self, clip: Clip, texts: Tensor, objective: str, bias: float = 0.0) -> None:
        super().__init__()
        self.clip = clip
        self.objective = objective
        self.texts: Tensor
        self.register_buffer("texts", texts, persistent=False)
        if objective == "sigmoid":
            self.bias = nn.Parameter(torch.tensor(float(bias)))

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Loss of a batch of `Photos`."""
        if self.objective == "contrastive":
            captions = self.texts[batch["index"]]
        else:
            # One wording of each class a step; over the steps the prompts of a class come to mean the same.
            wording = torch.randint(self.texts.shape[1], (), device="cpu")
            captions = self.texts[:, wording]
        image = self.clip.encode_image(batch["pixel_values"])
        text = self.clip.encode_text(captions)
        with torch.autocast(image.device.type, enabled=False):
            image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
            scale = self.clip.model.logit_scale.exp()
            if self.objective == "contrastive":
                return contrastive_loss(image, text, scale, captions)
            return sigmoid_loss(image, text, scale, self.bias, batch["targets"], batch["known"])
