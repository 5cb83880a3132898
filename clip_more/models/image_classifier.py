"""Photos to logits without a text tower: the vision tower, and the text features folded into one matrix."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_more.data.transforms import Preprocess, test_transform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import CLIPVisionModelWithProjection

    from clip_more.models.classifier import Classifier, Encoder


@dataclass(frozen=True)
class Description:
    """What an image classifier's weights do not say.

    Attributes:
        class_names: C names, in the order of the logits.
        thresholds: C probabilities from which on a class counts as present; None where none were fitted.
        geometry: How a photo becomes a square: `crop`, `squash` or `pad`.
        interpolation: How it is resized: `bicubic` or `bilinear`.
        image_size: Side of the square, in pixels.
        image_mean: Mean of each channel, subtracted from pixels in 0..1.
        image_std: Standard deviation of each channel, divided by after that.
        made_from: Where the weights came from.
        versions: Of Python and the libraries that made it.
        softmax: Whether it was trained for exactly one class a photo: probabilities are then those of a softmax over
            the classes, and not of a sigmoid each.
    """

    class_names: list[str]
    thresholds: list[float] | None
    geometry: str
    interpolation: str
    image_size: int
    image_mean: list[float]
    image_std: list[float]
    made_from: str = "unknown"
    versions: dict[str, str] = field(default_factory=dict)
    softmax: bool = False

    def transform(self, views: str = "one") -> Preprocess:
        """From a photo to what the classifier reads; `views` as in `test_transform`."""
        return test_transform(
            self.image_size,
            self.image_mean,
            self.image_std,
            geometry=self.geometry,
            interpolation=self.interpolation,
            views=views,
        )


def describe(
    clip: Encoder,
    class_names: Sequence[str],
    thresholds: Sequence[float] | None = None,
    made_from: str = "unknown",
    softmax: bool = False,
) -> Description:
    """The description of what `fold` makes of a classifier over `clip`, or of one with a head on features."""
    return Description(
        list(class_names),
        None if thresholds is None else [float(value) for value in thresholds],
        clip.geometry,
        clip.interpolation,
        clip.image_size,
        list(clip.image_mean),
        list(clip.image_std),
        made_from,
        softmax=softmax,
    )


class ImageClassifier(nn.Module):
    """`logits = unit(visual(pixel_values)) @ weight.T + bias`.

    Args:
        visual: transformers' vision tower with its projection to D features.
        weight: (C, D), the logit scale times the unit text feature of each class.
        bias: (C,).

    Raises:
        ValueError: The shapes do not fit each other.
    """

    def __init__(self, visual: CLIPVisionModelWithProjection, weight: Tensor, bias: Tensor) -> None:
        from clip_more.models.towers import read_out_last

        super().__init__()
        read_out_last(visual.vision_model)
        features = int(visual.config.projection_dim)
        if weight.dim() != 2 or weight.shape[1] != features or bias.shape != weight.shape[:1]:
            raise ValueError(
                f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} fit no tower of {features} features: they "
                f"must be (C, {features}) and (C,)"
            )
        self.visual: Any = visual
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias, requires_grad=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, C) logits, the last product in fp32 whatever autocast says."""
        from clip_more.models.towers import VisionTower

        features = VisionTower(self.visual)(pixel_values)
        with torch.autocast(pixel_values.device.type, enabled=False):
            return F.linear(F.normalize(features.float(), dim=-1), self.weight, self.bias)


@torch.no_grad()
def fold(classifier: Classifier) -> ImageClassifier:
    """The image-only form of a classifier; equal logits up to fp32 rounding.

    Args:
        classifier: Without a tail (`merge_tail` takes it away). It is left as it is; weights are copied.

    Raises:
        ValueError: It carries a tail.
    """
    from transformers import CLIPVisionModelWithProjection

    model, head = classifier.clip.model, classifier.head
    config = copy.deepcopy(model.config.vision_config)
    config.projection_dim = model.config.projection_dim
    with torch.random.fork_rng(devices=[]):
        visual = CLIPVisionModelWithProjection(config)
    own = visual.state_dict().keys()
    state = {name: value for name, value in model.state_dict().items() if name.startswith(_VISUAL)}
    if state.keys() != own:
        raise ValueError(f"{min(state.keys() ^ own)} is no weight of a plain CLIP; take its tail away with merge_tail")
    visual.load_state_dict(state)
    was_training = classifier.training
    classifier.eval()
    try:
        weight = head.log_scale.exp() * head.text_features(classifier.clip)
    finally:
        classifier.train(was_training)
    return ImageClassifier(visual, weight.float().cpu(), head.bias.detach().float().cpu().clone()).eval()


_VISUAL = ("vision_model.", "visual_projection.")
