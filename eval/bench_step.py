"""Section ``step``: one training step, optimiser included, of exact MORE, plain fine-tuning and stock PEFT.

All three train every weight of the same CLIP on the same photos, labels and prompts (trimmed to the longest one, the
text tower run once a pass) with the same AdamW. Only the two passes and the low-rank parts differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench_rows import Options, Row, compared, interleaved
from clip_more.adapters import MoreConfig, add_tail, tail

if TYPE_CHECKING:
    from peft import PeftModel

# COCO's 80 classes, one template. The number of tokens matters: below about in * out / (in + out) tokens a pass (256 to
# 410 in the text tower) LoRA's token-space form is the cheaper one, so 20 classes would favour PEFT there.
PHOTOS, CLASSES, PROMPT_TOKENS, ALPHA = 16, 80, 9, 0.1
GOALS = {
    "step.exact_vs_plain": {"fp32": 2.10, "bf16": 2.25},
    "step.exact_vs_peft": {"fp32": 0.80, "bf16": 0.80},
}


@dataclass
class Batch:
    """Photos ``(N, 3, H, W)``, prompts ``(C, L)``, targets ``(N, C)`` and the prior ``(C,)`` of L_MORE."""

    pixel_values: Tensor
    input_ids: Tensor
    targets: Tensor
    prior: Tensor

    def logits(self, model: nn.Module) -> Tensor:
        """``(N, C)`` in fp32."""
        return model(input_ids=self.input_ids, pixel_values=self.pixel_values).logits_per_image.float()

    def base(self, logits: Tensor) -> Tensor:
        """BCE, summed over classes."""
        return F.binary_cross_entropy_with_logits(logits, self.targets, reduction="sum") / len(logits)

    def more(self, full: Tensor, general: Tensor) -> Tensor:
        """BCE of the full pass and the discrepancy of both, weighted by label."""
        return self.base(full) + ALPHA * ((full - general).square() @ self.prior).mean()


def peft_passes(model: PeftModel, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits of stock PEFT with and without its adapter."""
    full = batch.logits(model)
    with model.disable_adapter():
        return full, batch.logits(model)


def exact_passes(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits of ours with and without the tail."""
    full = batch.logits(model)
    with tail(model, enabled=False):
        return full, batch.logits(model)


def clip(quick: bool) -> nn.Module:
    """A CLIP of ViT-B/32's widths with random weights, of three layers a tower where `quick`."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    layers = {"num_hidden_layers": 3} if quick else {}
    return CLIPModel(CLIPConfig(text_config=dict(layers), vision_config=dict(layers), projection_dim=512)).train()


def stock_peft(model: nn.Module) -> PeftModel:
    """Stock LoRA over a trained base, of the places and ranks that ours has."""
    from peft import get_peft_model

    return get_peft_model(model, MoreConfig().to_lora(model)).requires_grad_(True)


# Name to (what makes the model from a stock CLIPModel, its loss on a batch).
CONTENDERS: dict[str, tuple[Callable[[nn.Module], Any], Callable[[Any, Batch], Tensor]]] = {
    "plain": (lambda model: model, lambda model, batch: batch.base(batch.logits(model))),
    "peft": (stock_peft, lambda model, batch: batch.more(*peft_passes(model, batch))),
    "exact": (add_tail, lambda model, batch: batch.more(*exact_passes(model, batch))),
}


def synthetic_batch(device: str) -> Batch:
    """Random photos and labels; the prompts end in CLIP's end token."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(1000, 40_000, (CLASSES, PROMPT_TOKENS), generator=generator)
    input_ids[:, 0], input_ids[:, -1] = 49_406, 49_407
    targets = (torch.rand(PHOTOS, CLASSES, generator=generator) < 0.1).float()
    photos = torch.randn(PHOTOS, 3, 224, 224, generator=generator)
    prior = torch.linspace(2, 0.1, CLASSES).softmax(0)
    return Batch(*(tensor.to(device) for tensor in (photos, input_ids, targets, prior)))


def check_same_work(ours: nn.Module, peft: PeftModel, batch: Batch) -> None:
    """Give both the same random tail and compare both passes: what is timed must be the same function.

    Raises:
        RuntimeError: The logits differ, or the tail changes nothing.
    """
    theirs = {name.removeprefix("base_model.model."): value for name, value in peft.named_parameters()}
    with torch.no_grad():
        for name, value in ours.named_parameters():
            if ".lora_B." in name:
                value.normal_(std=0.05)
            theirs[name].copy_(value)
        full, general = exact_passes(ours, batch)
        far = max((a - b).abs().max() for a, b in zip((full, general), peft_passes(peft, batch), strict=True))
    change = (full - general).abs().max()
    if not far < 0.01 * change:
        raise RuntimeError(f"The contenders differ by {far:.1e} in their logits, where the tail changes {change:.1e}.")


def stepper(model: nn.Module, loss: Callable[[Any, Batch], Tensor], batch: Batch, dtype: str) -> Callable[[], None]:
    """One optimiser step as a call without arguments."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    device = batch.targets.device.type

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bf16"):
            value = loss(model, batch)
        value.backward()
        optimizer.step()

    return step


def step(options: Options) -> Iterator[Row]:
    """Rows of the section."""
    batch = synthetic_batch(options.device)
    for dtype in options.dtypes:
        models = {name: make(clip(options.quick)).to(options.device) for name, (make, _) in CONTENDERS.items()}
        check_same_work(models["exact"], models["peft"], batch)
        steps = {name: stepper(models[name], loss, batch, dtype) for name, (_, loss) in CONTENDERS.items()}
        seconds = interleaved(steps, options)
        for peer in ("plain", "peft"):
            row = f"step.exact_vs_{peer}"
            yield compared(row, dtype, seconds["exact"], seconds[peer], goal=GOALS[row][dtype])
        del models, steps
