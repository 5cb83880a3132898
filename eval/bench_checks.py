"""What is timed must be the same function: every contender beside passes written down with a stock CLIPModel.

There `W + B A` is formed for all layers at once, and the model is run with it and with `W`: no layer of ours or of PEFT
takes part. Losses are compared, and the gradient of each parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call

from bench_batch import Batch, clip, synthetic_batch
from bench_contenders import contender
from bench_peers import Contender, losses

if TYPE_CHECKING:
    from transformers import CLIPModel

RELATIVE = 1e-5
ONE_PASS = ("one_pass", "plain", "plain_padded", "lora", "open_clip")
STOPPED = ("stopped", "peft_stopped")  # the general pass has no gradient
OTHER_NAMES = ("lora", "open_clip")  # a frozen base; towers whose parameters are called something else


def check_contenders(names: Iterable[str], device: str) -> None:
    """Check contenders in fp32, with three layers a tower, four photos and eight classes.

    Raises:
        RuntimeError: One computes something else.
    """
    model, batch = clip(quick=True, device=device), synthetic_batch(device, photos=4, classes=8)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # a GPU's convolutions are in TF32 otherwise
        for name in names:
            check_contender(name, contender(name, model, batch), model, batch)


def check_contender(name: str, contender: Contender, model: CLIPModel, batch: Batch) -> None:
    """Draw the low-rank part of a contender of `model` at random, and compare it with the naive passes.

    Of `economical` the base loss is compared: its discrepancy is an estimate.

    Raises:
        RuntimeError: Losses or gradients differ.
    """
    tail, two_passes = random_tail(contender), name not in ONE_PASS
    if two_passes and not tail:
        raise RuntimeError(f"{name}: no layer has a low-rank part")
    expected, gradients = naive(model, tail, batch, two_passes, stopped=name in STOPPED)
    found = contender.losses()
    part = "base" if name == "economical" else "loss"
    if not torch.isclose(found[part].detach(), expected[part], rtol=RELATIVE, atol=0):
        raise RuntimeError(f"{name}: its {part} is {found[part]:.6f}; the naive passes give {expected[part]:.6f}")
    if name == "economical":
        return
    found["loss"].backward()
    # A shift of all keys changes no attention, so the gradient of their bias is nothing but rounding.
    least = 1e-3 * torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    trained = {plain_name(key): p for key, p in contender.model.named_parameters() if p.requires_grad}
    for key, wanted in gradients.items():
        if key not in trained:
            if name in OTHER_NAMES or key == "logit_scale":  # our head has a scale of its own
                continue
            raise RuntimeError(f"{name}: {key} is not trained")
        gradient = trained[key].grad
        if gradient is None:
            raise RuntimeError(f"{name}: {key} has no gradient")
        far = (gradient - wanted).norm() / torch.maximum(wanted.norm(), least)
        if not far <= RELATIVE:
            raise RuntimeError(f"{name}: the gradient of {key} is {far:.1e} off that of the naive passes")
    contender.model.zero_grad()


def naive(
    model: CLIPModel, tail: Mapping[str, Tensor], batch: Batch, two_passes: bool, stopped: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses and gradients of a stock CLIPModel whose weights are `W + B A`, then `W`, detached if stopped."""
    weights = {name: parameter.detach().requires_grad_() for name, parameter in model.named_parameters()}
    low_rank = {name: value.detach().requires_grad_() for name, value in tail.items()}
    full = dict(weights)
    for a, b in ((name, name.replace(".lora_A.", ".lora_B.")) for name in low_rank if ".lora_A." in name):
        key = a.replace(".lora_A.", ".")
        full[key] = weights[key] + (low_rank[b].flatten(1) @ low_rank[a].flatten(1)).view_as(weights[key])
    inputs = {**batch.trimmed, "pixel_values": batch.pixel_values}
    general = {name: weight.detach() for name, weight in weights.items()} if stopped else weights
    passes = (full, general) if two_passes else (full,)
    results = losses(batch, *(functional_call(model, chosen, (), inputs).logits_per_image for chosen in passes))
    parameters = {**weights, **low_rank}
    gradients = torch.autograd.grad(results["loss"], list(parameters.values()))
    return {name: loss.detach() for name, loss in results.items()}, dict(zip(parameters, gradients, strict=True))


def random_tail(contender: Contender) -> dict[str, Tensor]:
    """A and B by plain name, after B has been drawn: at zero it would hide A."""
    tail: dict[str, Tensor] = {}
    for name, parameter in contender.model.named_parameters():
        if ".lora_" in name:
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.05)
            tail[plain_name(name)] = parameter
    return tail


def plain_name(name: str) -> str:
    """A parameter's name in a stock CLIPModel; A and B of `x.weight` are `x.lora_A.weight` and `x.lora_B.weight`."""
    for prefix in ("classifier.clip.model.", "base_model.model."):
        name = name.removeprefix(prefix)
    return name.replace(".base_layer.", ".").replace(".default.", ".")
