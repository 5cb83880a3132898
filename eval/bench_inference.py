"""Section ``inference``: a merged CLIP beside a plain one, and photos to scores beside stock transformers.

A CLIP of ViT-B/32's shapes with random weights, COCO's 80 classes in one template. From JPEG files to scores, in one
process without data workers, three contenders read the same photos: our image-only classifier; transformers'
``zero-shot-image-classification`` pipeline as it comes, which reads one photo at a time and all prompts with each; and
the same pipeline with our batch size, which reads the prompts once a batch. The fourth figure is what our classifier
cannot do without: each photo decoded and made square, and the bare tower on pixels that lie ready.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench_loader import drawn_photos, found_photos
from bench_rows import Options, Row, compared, interleaved
from clip_more.adapters import add_tail, merge_tail, tail_parameters
from clip_more.data.form import make_dataset
from clip_more.data.loading import batches, photo_loader
from clip_more.data.photos import Photos
from clip_more.evaluation.published import COCO_CLASSES
from clip_more.models.classifier import Classifier
from clip_more.models.clip import Clip
from clip_more.models.heads import PromptHead
from clip_more.models.image_classifier import ImageClassifier, describe, fold
from clip_more.models.processor import clip_image_processor
from clip_more.models.tokenizer import clip_tokenizer
from clip_more.models.towers import VisionTower

BATCH, SIZE, CONTEXT = 16, 224, 77
LEAST_ROUNDS = 7
TEMPLATE = "a photo of a {}."
GOALS = {"classifier_vs_pipeline": 6.0, "classifier_vs_batched": None, "classifier_vs_tower": 0.90}


@dataclass(frozen=True)
class EqualRow(Row):
    """A row whose goal is equality: 1 lies in its spread."""

    @property
    def goal_text(self) -> str:
        """The goal as the table prints it."""
        return "has 1.00"

    @property
    def met(self) -> bool | None:
        """Whether the lowest and the highest ratio of the rounds stand on both sides of 1."""
        return self.spread[0] <= 1 <= self.spread[1]


def inference(options: Options, photos: Path | None = None) -> Iterator[Row]:
    """Rows of the section."""
    plain = plain_clip(options.quick)
    for dtype in options.dtypes:
        yield merged_row(plain, dtype, options)
    with tempfile.TemporaryDirectory() as folder:
        count = 2 * BATCH
        paths = found_photos(photos, count) or drawn_photos(Path(folder) / "drawn", count)
        paths = paths[: len(paths) // BATCH * BATCH] or paths
        for dtype in options.dtypes:
            if dtype == "bf16" and options.device == "cpu":
                print("  from photos to scores: fp32 alone; in bf16 many CPUs take minutes a round")
                continue
            yield from photo_rows(plain, paths, dtype, options)


def plain_clip(quick: bool) -> Any:
    """A CLIP of ViT-B/32's widths with random weights, of three layers a tower where `quick`."""
    from transformers import CLIPConfig, CLIPModel

    layers = {"num_hidden_layers": 3} if quick else {}
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config=dict(layers), vision_config=dict(layers), projection_dim=512)).eval()


def merged_row(plain: Any, dtype: str, options: Options) -> Row:
    """The forward pass of a CLIP whose tail was merged, beside that of one that never had any."""
    merged = merged_twin(plain)
    check_same_tree(merged, plain)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "pixel_values": torch.randn(BATCH, 3, SIZE, SIZE, generator=generator).to(options.device),
        "input_ids": prompts()["input_ids"].to(options.device),
    }
    models = {"merged": merged.to(options.device), "plain": copy.deepcopy(plain).to(options.device)}

    def forward(model: nn.Module) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode(), autocast(options.device, dtype):
                model(**inputs)

        return run

    # A spread of few rounds may miss 1 by chance.
    rounds = replace(options, repetitions=max(options.repetitions, LEAST_ROUNDS))
    seconds = interleaved({name: forward(model) for name, model in models.items()}, rounds)
    row = compared("inference.merged_vs_plain", dtype, seconds["merged"], seconds["plain"], goal=1.0)
    row = EqualRow(**vars(row))
    print(f"  {len(merged.state_dict())} keys, shapes and modules are the same; the goal is a spread that contains 1")
    return row


def merged_twin(plain: Any) -> nn.Module:
    """A copy of `plain` that was given a tail of random weights, which was merged away again."""
    model = add_tail(copy.deepcopy(plain))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in tail_parameters(model).values():
            weight.copy_(0.02 * torch.randn(weight.shape, generator=generator))
    return merge_tail(model)


def check_same_tree(merged: nn.Module, plain: nn.Module) -> None:
    """A merged model must be a plain one in all but its values.

    Raises:
        RuntimeError: A module, key, shape or type differs, or all values are equal.
    """
    for what, parts in (
        ("modules", lambda model: [(name, type(module)) for name, module in model.named_modules()]),
        ("weights", lambda model: [(key, value.shape, value.dtype) for key, value in model.state_dict().items()]),
    ):
        ours, theirs = parts(merged), parts(plain)
        if ours != theirs:
            first = next((a or b for a, b in zip([*ours, None], [*theirs, None], strict=False) if a != b), None)
            raise RuntimeError(f"The merged model has other {what} than the plain one: {first}.")
    own = plain.state_dict()
    if all(torch.equal(value, own[key]) for key, value in merged.state_dict().items()):
        raise RuntimeError("The merged model has the plain one's values: nothing was merged.")


def photo_rows(plain: Any, paths: Sequence[str], dtype: str, options: Options) -> Iterator[Row]:
    """Photos a second from JPEG files to scores."""
    contenders, ours, theirs = photo_contenders(plain, paths, dtype, options)
    check_same_scores(ours(), theirs(paths))
    seconds = interleaved(contenders, options)
    seconds["tower"] = [a + b for a, b in zip(seconds.pop("decode"), seconds.pop("forward"), strict=True)]
    rates = {name: [len(paths) / value for value in rounds] for name, rounds in seconds.items()}
    for name, goal in GOALS.items():
        peer = rates[name.removeprefix("classifier_vs_")]
        yield compared(f"inference.{name}", dtype, rates["ours"], peer, goal=goal, unit="photos/s")


def photo_contenders(
    plain: Any, paths: Sequence[str], dtype: str, options: Options
) -> tuple[dict[str, Callable[[], Any]], Callable[[], np.ndarray], Callable[[Sequence[str]], np.ndarray]]:
    """The contenders, and two calls that give (N, C) scores of ours and of the pipeline's."""
    from transformers import pipeline

    device = options.device
    clip = Clip(copy.deepcopy(plain), clip_tokenizer(CONTEXT), clip_image_processor(SIZE), "random weights")
    head = PromptHead(clip, [[TEMPLATE.format(name)] for name in COCO_CLASSES], float(plain.logit_scale.detach().exp()))
    module = fold(Classifier(clip, head)).to(device)
    tower = VisionTower(module.visual)  # as the classifier runs it: stock code computes all tokens in the last block
    photos = Photos(make_dataset(paths, [()] * len(paths), ["photo"]), describe(clip, COCO_CLASSES).transform())
    ready = torch.stack([photos[row]["pixel_values"] for row in range(len(photos))]).to(device).split(BATCH)
    pipe = pipeline(
        "zero-shot-image-classification",
        model=copy.deepcopy(plain),
        tokenizer=clip_tokenizer(CONTEXT),
        image_processor=clip_image_processor(SIZE),
        device=device,
    )

    def ours() -> np.ndarray:
        return scores(module, photos, device, dtype)

    def stock(paths: Sequence[str], **batching: int) -> np.ndarray:
        with autocast(device, dtype):
            found = pipe(list(paths), candidate_labels=list(COCO_CLASSES), hypothesis_template=TEMPLATE, **batching)
        return np.array([[by_name[name] for name in COCO_CLASSES] for by_name in map(_by_name, found)])

    def forward() -> None:
        with torch.inference_mode(), autocast(device, dtype):
            for pixel_values in ready:
                tower(pixel_values)

    contenders: dict[str, Callable[[], Any]] = {
        "ours": ours,
        "pipeline": lambda: stock(paths),
        "batched": lambda: stock(paths, batch_size=BATCH),
        "decode": lambda: [photos[row]["pixel_values"] for row in range(len(photos))],
        "forward": forward,
    }
    return contenders, ours, stock


def scores(module: ImageClassifier, photos: Photos, device: str, dtype: str) -> np.ndarray:
    """(N, C) logits, as `clip-more predict` makes them."""
    loader = photo_loader(photos, workers=0, batch_size=BATCH)
    parts = []
    with torch.inference_mode():
        for batch in batches(loader, photos):
            with autocast(device, dtype):
                parts.append(module(batch["pixel_values"].to(device)).float().cpu().numpy())
    return np.concatenate(parts)


def check_same_scores(logits: np.ndarray, probabilities: np.ndarray) -> None:
    """The softmax of our logits must be what the pipeline gives.

    Raises:
        RuntimeError: They differ by more than a tenth of how far the scores of a photo lie apart.
    """
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected = powers / powers.sum(axis=1, keepdims=True)
    far, apart = np.abs(expected - probabilities).max(), np.ptp(expected, axis=1).min()
    if not far < 0.1 * apart:
        raise RuntimeError(f"The scores differ by {far:.1e}, where those of a photo lie {apart:.1e} apart.")


def prompts() -> Any:
    """COCO's prompts, trimmed to the longest."""
    texts = [TEMPLATE.format(name) for name in COCO_CLASSES]
    return clip_tokenizer(CONTEXT)(texts, padding=True, return_tensors="pt")


def autocast(device: str, dtype: str) -> torch.autocast:
    """bf16 where it is asked for."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bf16")


def _by_name(found: Sequence[dict[str, Any]]) -> dict[str, float]:
    return {label["label"]: label["score"] for label in found}
