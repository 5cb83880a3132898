"""PEFT LoRA layers whose low-rank part is added to the weight, not to the output."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Conv2d, Linear
from torch import Tensor


class TailLayer:
    """What both layers share: the switch and the weight `W_g + B A`.

    Computing in weight space costs one (out, r) x (r, in) product a pass whatever the batch, where LoRA's token-space
    form adds two products over every token: the base is trained here, so its weight gradient is needed anyway.

    Attributes:
        tail_enabled: Plain attribute read by `forward`; flipped by `clip_more.adapters.tail`. A context variable
            would not be seen by autograd's threads when activation checkpointing recomputes a block.
    """

    tail_enabled: bool = True
    base_layer: Any
    lora_A: Any
    lora_B: Any

    def tail_weight(self) -> Tensor:
        """`B A`, shaped like the base weight, in fp32 or better even under autocast (bf16 would be off by 0.3 %)."""
        (name,) = self.lora_A
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        with torch.autocast(a.device.type, enabled=False):
            if a.dtype in (torch.float16, torch.bfloat16):
                a, b = a.float(), b.float()
            return (b.flatten(1) @ a.flatten(1)).view(self.base_layer.weight.shape)

    def full_weight(self) -> Tensor:
        """`W_g + B A` in the dtype of W_g."""
        weight = self.base_layer.weight
        return weight + self.tail_weight().to(weight.dtype)

    def current_weight(self) -> Tensor:
        """The weight that a forward pass uses now: with the tail, or without."""
        if self.tail_enabled and not self.disable_adapters and not self.merged:  # type: ignore[attr-defined]
            return self.full_weight()
        return self.base_layer.weight


class MoreLinear(TailLayer, Linear):
    """`y = (W_g + B A) x + b`, both parts trained (MORE, arXiv 2510.08177)."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.current_weight(), self.base_layer.bias)


class MoreConv2d(TailLayer, Conv2d):
    """A convolution with kernel `W_g + B A`, the kernel seen as a matrix (out, in·kh·kw)."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(N, in, H, W) -> (N, out, H', W')."""
        return self.base_layer._conv_forward(x, self.current_weight(), self.base_layer.bias)
