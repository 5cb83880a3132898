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

    @property
    def tail_is_on(self) -> bool:
        """Whether a forward pass uses the tail now."""
        return self.tail_enabled and not self.disable_adapters and not self.merged  # type: ignore[attr-defined]


class MoreLinear(TailLayer, Linear):
    """`y = (W_g + B A) x + b`, both parts trained (MORE, arXiv 2510.08177)."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(..., in) -> (..., out)."""
        base = self.base_layer
        if not self.tail_is_on:
            return F.linear(x, base.weight, base.bias)
        (name,) = self.lora_A
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        device = x.device.type
        if not torch.is_autocast_enabled(device):
            return FullLinear.apply(x, base.weight, b, a, base.bias)
        half = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return FullLinear.apply(x.to(half), base.weight, b, a, base.bias)


class MoreConv2d(TailLayer, Conv2d):
    """A convolution with kernel `W_g + B A`, the kernel seen as a matrix (out, in·kh·kw)."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(N, in, H, W) -> (N, out, H', W')."""
        weight = self.full_weight() if self.tail_is_on else self.base_layer.weight
        return self.base_layer._conv_forward(x, weight, self.base_layer.bias)


class FullLinear(torch.autograd.Function):
    """`y = x (W + B A)^T + bias` that keeps x, W, B and A for the backward pass, and makes `W + B A` again there.

    Kept, `W + B A` would double the memory of the weights; made again, it costs one (out, r) x (r, in) product. The
    product is taken in the dtype of the parameters (fp32 under autocast), and the sum rounded to that of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, b: Tensor, a: Tensor, bias: Tensor | None) -> Tensor:
        """(..., in), (out, in), (out, r), (r, in), (out,) -> (..., out)."""
        ctx.save_for_backward(x, weight, b, a)
        return F.linear(x, _full(weight, b, a).to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, b, a and bias; those of b and a by way of the weight's."""
        x, weight, b, a = ctx.saved_tensors
        of_x, of_weight, of_b, of_a, of_bias = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        x_gradient = gradient @ _full(weight, b, a).to(gradient.dtype) if of_x else None
        bias_gradient = rows.sum(0, dtype=weight.dtype) if of_bias else None
        weight_gradient = b_gradient = a_gradient = None
        if of_weight or of_b or of_a:
            weight_gradient = (rows.T @ x.reshape(-1, x.shape[-1])).to(weight.dtype)
            b_gradient = weight_gradient.to(b.dtype) @ a.T if of_b else None
            a_gradient = b.T @ weight_gradient.to(a.dtype) if of_a else None
        return x_gradient, weight_gradient if of_weight else None, b_gradient, a_gradient, bias_gradient


def _full(weight: Tensor, b: Tensor, a: Tensor) -> Tensor:
    """`W + B A`, in the widest dtype of the three."""
    widest = torch.promote_types(torch.promote_types(weight.dtype, b.dtype), a.dtype)
    return torch.addmm(weight.to(widest), b.to(widest), a.to(widest))
