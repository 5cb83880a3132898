"""Section ``stage2``: a fresh classifier trained on cached features beside the same epochs through the frozen encoder.

The vision tower of a CLIP of ViT-B/32's shapes with random weights (12 layers, with --quick 3), synthetic photos that
lie ready as pixels, COCO's 80 classes with several labels a photo, cRT for 10 epochs at one learning rate. Both take
the same photos in the same order and come to the same classifier. ``cached_vs_backbone`` leaves out what the features
cost, which is once for all methods and candidates; ``with_features_vs_backbone`` counts it, as if one fit were all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench_batch import CLASSES, clip, synthetic_batch
from bench_rows import Options, Row, compared, interleaved
from clip_more.data.samplers import make_order
from clip_more.losses import BCELoss
from clip_more.models.feature_heads import LinearHead
from clip_more.models.towers import VisionTower, read_out_last
from clip_more.stage2.cached import Cached
from clip_more.stage2.fitting import Course, fit

EPOCHS, BATCH, LR = 10, 32, 0.1


@dataclass(frozen=True)
class Frozen:
    """In the place of cached features: pixels, brought through the encoder whenever their rows are read."""

    encode: Callable[[Tensor], Tensor]
    pixel_values: Tensor

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(n,) -> (n, D)."""
        return self.encode(self.pixel_values[rows])


@dataclass(frozen=True)
class Photos:
    """As `Cached`, with features that need not be a tensor."""

    features: Any
    targets: Tensor
    known: Tensor


def stage2(options: Options) -> Iterator[Row]:
    """Rows of the section."""
    model = clip(options.quick, options.device).eval()
    batch = synthetic_batch(options.device, photos=2 * BATCH if options.quick else 8 * BATCH)
    labels = batch.targets.cpu().bool(), batch.known.cpu()
    read_out_last(model.vision_model)  # as a `Clip` does: the last block computes one token
    tower = VisionTower(model)
    for dtype in options.dtypes:
        contenders = stage2_contenders(tower, batch.pixel_values, labels, options.device, dtype)
        seconds = interleaved(contenders, options)
        both = [a + b for a, b in zip(seconds["extraction"], seconds["cached"], strict=True)]
        yield compared("stage2.cached_vs_backbone", dtype, seconds["cached"], seconds["backbone"], goal=0.05)
        yield compared("stage2.with_features_vs_backbone", dtype, both, seconds["backbone"], goal=None)


def stage2_contenders(
    tower: Any, pixel_values: Tensor, labels: tuple[Tensor, Tensor], device: str, dtype: str
) -> dict[str, Callable[[], Any]]:
    """The fit on cached features, the same through the encoder, and the features themselves.

    Raises:
        RuntimeError: The two fits come to different classifiers.
    """

    def encode(pixels: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bf16"):
            return tower(pixels).float()

    def extraction() -> Tensor:
        return torch.cat([encode(part) for part in pixel_values.split(BATCH)])

    features = extraction()
    cached = Cached(features.cpu(), *labels)
    order = make_order("class_balanced", cached.pairs(), len(cached), seed=0)

    def fitted(photos: Any) -> LinearHead:
        generator = torch.Generator().manual_seed(0)
        head = LinearHead(0.01 * torch.randn(CLASSES, features.shape[1], generator=generator))
        fit(head, photos, BCELoss(), order, Course(EPOCHS, BATCH, LR), device=device)
        return head

    through = Photos(Frozen(encode, pixel_values), *labels)
    check_same_classifier(fitted(cached), fitted(through), dtype)
    return {"cached": lambda: fitted(cached), "backbone": lambda: fitted(through), "extraction": extraction}


def check_same_classifier(ours: nn.Module, peer: nn.Module, dtype: str) -> None:
    """What is timed must be the same training.

    Raises:
        RuntimeError: Weights or biases differ by more than rounding.
    """
    close = 1e-4 if dtype == "fp32" else 1e-2
    for name, value in ours.state_dict().items():
        far = float((value - peer.state_dict()[name]).norm() / value.norm().clamp_min(1e-12))
        if not far < close:
            raise RuntimeError(
                f"Cached features and the encoder come to classifiers that differ by {far:.1e} in {name}."
            )
