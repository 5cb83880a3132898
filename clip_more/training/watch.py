"""What a run shows of itself beside its losses: gradients, the tail's share, speed, memory.

All of it is for logged steps only. On a ViT-B/32, both towers with a tail of rho 0.1, one shared CPU core:
`gradient_norms` 0.1 to 0.2 s, `tail_share` 0.4 to 0.9 s and a few MiB, `memory` 0.1 ms, where forward and backward of
32 photos through the image tower alone take 20 to 30 s.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial

from clip_more.adapters import tail_parameters

_TOWERS = {"vision_model": "vision", "text_model": "text"}
_KINDS = {"self_attn": "attention", "mlp": "mlp", "embeddings": "embedding"}


@torch.no_grad()
def gradient_norms(task: nn.Module) -> dict[str, float]:
    """2-norms of `.grad`, in fp32, of the general part (theta_g), the tail (A and B) and the head (scale and biases).

    Under DDP and FSDP2 of the gradient averaged over processes. With FSDP2 a collective call: all processes make it.

    Args:
        task: With the parameters `classifier.head.*` of a head.

    Returns:
        ``general``, ``tail``, ``head``; parts without a gradient are left out, and such whose norm is not finite (JSON
        could not hold it).
    """
    tail = tail_parameters(task)
    parts: dict[str, list[Tensor]] = {"general": [], "tail": [], "head": []}
    for name, parameter in task.named_parameters():
        if parameter.grad is not None:
            part = "tail" if name in tail else "head" if "classifier.head." in name else "general"
            parts[part].append(parameter.grad)
    present = [part for part, gradients in parts.items() if gradients]
    if not present:
        return {}
    # One transfer for all parts: each would wait for the device.
    norms = torch.stack([_norm(parts[part]) for part in present]).tolist()
    return {part: norm for part, norm in zip(present, norms, strict=True) if math.isfinite(norm)}


@torch.no_grad()
def tail_share(task: nn.Module) -> dict[str, float]:
    """`||B A||_F / ||W_g + B A||_F` by group of layers: how much of the weights in use is the tail's.

    `||B A||^2 = <B^T B, A A^T>` and `||W_g + B A||^2 = ||W_g||^2 + 2 <B^T W_g, A> + ||B A||^2`: nothing of the size of
    a weight is made. With FSDP2 a collective call: all processes make it.

    Returns:
        ``vision.attention``, ``vision.mlp``, ``vision.embedding``, the same of ``text``, and ``projection``: those that
        have a tail (or a stock LoRA). Within a group squares are added up. Empty without a tail.
    """
    layers: dict[str, Any] = {name: m for name, m in task.named_modules() if isinstance(m, LoraLayer)}
    if not layers:
        return {}
    squares = torch.stack([_squares(layer) for layer in layers.values()])
    squares = _over_shards(squares, next(iter(layers.values())).get_base_layer().weight)
    sums: dict[str, list[float]] = {}
    for group, (tail, cross, general) in zip(map(_group, layers), squares.tolist(), strict=True):
        sums.setdefault(group, [0.0, 0.0])
        sums[group][0] += tail
        sums[group][1] += general + 2 * cross + tail
    return {group: math.sqrt(max(tail, 0.0) / full) if full > 0 else 0.0 for group, (tail, full) in sums.items()}


def memory(device: torch.device) -> dict[str, float]:
    """Memory of this process, in MiB: ``cpu_mib`` resident now, ``cpu_peak_mib``, both on Linux only.

    On an accelerator also ``gpu_mib`` and ``gpu_peak_mib``: what tensors take there, without the allocator's reserve.
    Peaks are since the process started. Photo workers are processes of their own.
    """
    values: dict[str, float] = {}
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        names = {"cpu_mib": "VmRSS", "cpu_peak_mib": "VmHWM"}
        values |= {key: int(fields[name].split()[0]) / 1024 for key, name in names.items()}
    module = torch.get_device_module(device)
    if hasattr(module, "max_memory_allocated"):
        values["gpu_mib"] = module.memory_allocated(device) / 2**20
        values["gpu_peak_mib"] = module.max_memory_allocated(device) / 2**20
    return values


class Throughput:
    """Photos a second between two readings, without the time that was not training.

    Args:
        clock: Seconds from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._photos = 0
        self._since = clock()

    def add(self, photos: int) -> None:
        """So many more photos went through a step, on all processes together."""
        self._photos += photos

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Inside, time does not count: validation, a checkpoint."""
        start = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - start

    def reading(self) -> float | None:
        """Photos a second since the last reading (or the start); None where there were none."""
        now = self._clock()
        photos, seconds = self._photos, now - self._since
        self._photos, self._since = 0, now
        return photos / seconds if photos and seconds > 0 else None


def flat(values: Mapping[str, Any]) -> dict[str, float]:
    """Nested names joined by ``/`` and None left out: what every tracker takes."""
    numbers: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            numbers |= {f"{key}/{name}": number for name, number in flat(value).items()}
        elif value is not None:
            numbers[key] = float(value)
    return numbers


def _norm(gradients: list[Tensor]) -> Tensor:
    square = torch.zeros((), device=gradients[0].device)
    for kind in (True, False):
        of_kind = [gradient for gradient in gradients if isinstance(gradient, DTensor) == kind]
        if of_kind:
            norms = torch._foreach_norm([_local(gradient).float() for gradient in of_kind], 2)
            square += _over_shards(torch.stack(norms).square().sum(), of_kind[0])
    return square.sqrt()


def _squares(layer: Any) -> Tensor:
    """(3,): ||B A||^2, <W_g, B A> and ||W_g||^2 of a layer, in fp32, of the rows that this process holds."""
    (name,) = layer.lora_A
    weight, b = (_local(t).flatten(1).float() for t in (layer.get_base_layer().weight, layer.lora_B[name].weight))
    a = layer.lora_A[name].weight
    a = (a.full_tensor() if isinstance(a, DTensor) else a).flatten(1).float()
    with torch.autocast(a.device.type, enabled=False):
        tail, cross = ((b.T @ b) * (a @ a.T)).sum(), ((b.T @ weight) * a).sum()
    # Row by row: one fp32 sum over millions of squares would be off by 1e-4.
    return torch.stack([tail, cross, torch.linalg.vector_norm(weight, dim=1).square().sum()])


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _over_shards(values: Tensor, parameter: Tensor) -> Tensor:
    """`values` added up over the processes that `parameter` is shared out to."""
    if not isinstance(parameter, DTensor):
        return values
    placements = [Partial() if placement.is_shard() else placement for placement in parameter.placements]
    return DTensor.from_local(values, parameter.device_mesh, placements).full_tensor()


def _group(name: str) -> str:
    parts = name.split(".")
    tower = next((short for part, short in _TOWERS.items() if part in parts), None)
    kind = next((short for part, short in _KINDS.items() if part in parts), None)
    return f"{tower}.{kind}" if tower and kind else "projection"
