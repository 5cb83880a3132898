"""Verbs on a whole model: add a tail, switch it, merge it, save it."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import save_file
from torch import nn, no_grad

from clip_more.adapters.config import MoreConfig, lora_config
from clip_more.adapters.layer import MoreConv2d, MoreLinear, TailLayer

_ADAPTER = "default"


def add_tail(model: nn.Module, config: MoreConfig | None = None) -> nn.Module:
    """Give the chosen layers of `model` a tail, in place; everything that was trainable stays so.

    A starts Kaiming-uniform and B at zero, so the model's outputs do not change.

    Args:
        model: Any module; its layers are replaced in place.
        config: Where and how large; CLIP's defaults without it.

    Returns:
        The same `model`.

    Raises:
        ValueError: If the model has a tail already, or no layer matches (see `MoreConfig.find_layers`).
    """
    lora = (config or MoreConfig()).to_lora(_without_adapter(model))
    lora._register_custom_module({nn.Linear: MoreLinear, nn.Conv2d: MoreConv2d})
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    _inject(model, lora)
    for parameter in model.parameters():
        if id(parameter) in trainable:
            parameter.requires_grad_(True)
    return model


def add_lora(model: nn.Module, config: MoreConfig | None = None) -> nn.Module:
    """Stock PEFT LoRA of the same places and ranks, the base frozen, in place: the comparison most people know."""
    return _inject(model, (config or MoreConfig()).to_lora(_without_adapter(model)))


@contextmanager
def tail(model: nn.Module, enabled: bool = True) -> Iterator[None]:
    """Run `model` with its tail on or off: `with tail(model, enabled=False): general_logits = model(x)`.

    Raises:
        ValueError: If no layer of `model` has a tail.
    """
    layers = [module for module in model.modules() if isinstance(module, TailLayer)]
    if not layers:
        raise ValueError("this model has no tail to switch; call add_tail(model) first")
    before = [layer.tail_enabled for layer in layers]
    for layer in layers:
        layer.tail_enabled = enabled
    try:
        yield
    finally:
        for layer, state in zip(layers, before, strict=True):
            layer.tail_enabled = state


class TailCheckpointContext:
    """`context_fn` for `torch.utils.checkpoint`: recomputes a block with the switch as it stood in the forward pass.

    Without it the general pass would be recomputed with the tail on, and its gradients would be silently wrong:
    `model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": TailCheckpointContext(model)})`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Contexts for the forward pass and for its recomputation."""
        layer = next(module for module in self.model.modules() if isinstance(module, TailLayer))
        return nullcontext(), _EachTime(partial(tail, self.model, enabled=layer.tail_enabled))


class _EachTime(AbstractContextManager[None]):
    """A context made anew whenever it is entered: a graph may be gone through more than once."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make = make
        self._entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        self._entered.append(self._make())
        self._entered[-1].__enter__()

    def __exit__(self, *error: Any) -> None:
        self._entered.pop().__exit__(*error)


def tail_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters A and B by name (also those of a stock LoRA)."""
    return {name: p for name, p in model.named_parameters() if ".lora_A." in name or ".lora_B." in name}


def merge_tail(model: nn.Module) -> nn.Module:
    """A new plain model with weights `W_g + B A`: the keys, shapes and cost of the model before `add_tail`.

    Works for a stock LoRA too. The argument is left as it is.
    """
    return _plain_copy(model, merged=True)


def general_part(model: nn.Module) -> nn.Module:
    """A new plain model holding `W_g` alone. The argument is left as it is."""
    return _plain_copy(model, merged=False)


def save_tail(model: nn.Module, folder: str | os.PathLike[str], base: str = "../general") -> None:
    """Write the tail as a stock PEFT LoRA: `PeftModel.from_pretrained(general_model, folder)` loads it without us.

    Args:
        model: A model with a tail (or a stock LoRA).
        folder: Made if absent; gets `adapter_config.json` and `adapter_model.safetensors`.
        base: Recorded as the adapter's base: the general part, not the checkpoint that training started from.

    Raises:
        ValueError: If `model` has no tail.
    """
    layers = dict(_adapted(model))
    if not layers:
        raise ValueError("this model has no tail to save; call add_tail(model) first")
    config = lora_config({name: layer.r[_ADAPTER] for name, layer in layers.items()})
    config.base_model_name_or_path = base
    config.inference_mode = True
    tensors = {}
    for name, layer in layers.items():
        for part in ("lora_A", "lora_B"):
            weight = getattr(layer, part)[_ADAPTER].weight
            tensors[f"base_model.model.{name}.{part}.weight"] = weight.detach().cpu().contiguous()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / "adapter_model.safetensors.tmp"
    save_file(tensors, aside, metadata={"format": "pt"})
    aside.replace(folder / "adapter_model.safetensors")
    config.save_pretrained(str(folder))


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _without_adapter(model: nn.Module) -> nn.Module:
    for name, _ in _adapted(model):
        raise ValueError(f"{name} has a low-rank part already; merge_tail(model) gives a plain model to start from")
    return model


def _inject(model: nn.Module, lora: LoraConfig) -> nn.Module:
    return inject_adapter_in_model(lora, model, adapter_name=_ADAPTER)


def _plain_copy(model: nn.Module, merged: bool) -> nn.Module:
    plain = copy.deepcopy(model)
    for name, layer in list(_adapted(plain)):
        base = layer.get_base_layer()
        if merged:
            delta = layer.tail_weight() if isinstance(layer, TailLayer) else layer.get_delta_weight(_ADAPTER)
            with no_grad():  # a new parameter: another layer may share the old one
                merged_weight = base.weight + delta.to(base.weight.dtype)
            base.weight = nn.Parameter(merged_weight, requires_grad=base.weight.requires_grad)
        plain.set_submodule(name, base)
    for module in plain.modules():
        if "peft_config" in vars(module):
            del module.peft_config
        if "gradient_checkpointing" in vars(module):  # transformers' flag; its context would look for a tail
            vars(module)["gradient_checkpointing"] = False
    plain.zero_grad(set_to_none=True)
    return plain
