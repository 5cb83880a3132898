"""Section ``scale``: a training step with the text tower frozen, for 20,000 classes beside 80.

Exact MORE on the image tower, BCE, 64 photos. Text features are random unit vectors, as they would stand in the head
once the prompts had been encoded; both are ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from bench_batch import clip, same_weights, tokenizer
from bench_contenders import stepper
from bench_peers import ALPHA, LR, Contender
from bench_rows import Options, Row, compared, interleaved
from clip_more.adapters import MoreConfig, add_tail
from clip_more.config import TrainConfig
from clip_more.losses import BCELoss, DiscrepancyLoss
from clip_more.models.classifier import Classifier
from clip_more.models.clip import Clip
from clip_more.models.heads import PromptHead
from clip_more.models.processor import clip_image_processor
from clip_more.training.build import parameter_groups
from clip_more.training.task import LongTailTask

if TYPE_CHECKING:
    from transformers import CLIPModel

MANY, FEW, PHOTOS = 20_000, 80, 64
POSITIVES = 3  # a photo


def scale(options: Options) -> Iterator[Row]:
    """Rows of the section."""
    model = clip(options.quick, options.device)
    contenders = {str(classes): frozen_text(same_weights(model), classes, PHOTOS) for classes in (MANY, FEW)}
    for dtype in options.dtypes:
        moments: defaultdict[Any, Any] = defaultdict(dict)
        steps = {name: stepper(value, options.device, dtype, moments) for name, value in contenders.items()}
        seconds = interleaved(steps, options)
        row = f"scale.classes_{MANY}_vs_{FEW}"
        yield compared(row, dtype, seconds[str(MANY)], seconds[str(FEW)], goal=1.10)


def frozen_text(model: CLIPModel, classes: int, photos: int) -> Contender:
    """Exact MORE on the image tower of `model`, which is changed in place, over random text features."""
    config: Any = model.config
    size, width = config.vision_config.image_size, config.projection_dim
    generator = torch.Generator().manual_seed(0)
    owned = Clip(model, tokenizer(), clip_image_processor(size), "random weights")
    head = PromptHead(owned, [[f"a photo of number {number}."] for number in range(classes)], scale=10.0)
    head.frozen_features = F.normalize(torch.randn(classes, width, generator=generator), dim=-1)
    model.logit_scale.requires_grad_(False)
    model.text_model.requires_grad_(False)
    model.text_projection.requires_grad_(False)
    add_tail(model, MoreConfig(towers="vision"))
    counts = torch.linspace(7, 3, classes).exp()
    discrepancy = DiscrepancyLoss(counts, gradient="both")
    task = LongTailTask(Classifier(owned, head), BCELoss(), discrepancy).to(model.device).train()
    targets = (torch.rand(photos, classes, generator=generator) < POSITIVES / classes).float()
    batch = {
        "pixel_values": torch.randn(photos, 3, size, size, generator=generator).to(model.device),
        "targets": targets.to(model.device),
        "known": torch.ones(photos, classes, dtype=torch.bool, device=model.device),
    }
    recipe = TrainConfig(tuning="more", text_tower="freeze", tail_towers="vision", lr=LR, lr_head=LR)
    return Contender(task, parameter_groups(recipe, task), lambda: task(batch, alpha=ALPHA))
