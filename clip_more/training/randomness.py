"""Two passes of one model under the same random masks."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clip_more.adapters import tail


class RandomState:
    """The generators of CPU and device as they stand now, to draw the same dropout masks again.

    With masks of their own the two passes of MORE differ by noise far larger than the tail's effect.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cpu = torch.get_rng_state()
        self.accelerator: Tensor | None = None
        if device.type != "cpu":
            self.accelerator = torch.get_device_module(device).get_rng_state(*self._which)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw from the remembered state inside; outside, go on as if nothing had been drawn."""
        now = RandomState(self.device)
        self._restore()
        try:
            yield
        finally:
            now._restore()

    def _restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.accelerator is not None:
            torch.get_device_module(self.device).set_rng_state(self.accelerator, *self._which)

    @property
    def _which(self) -> tuple[torch.device, ...]:
        """The device argument of its own generator; Apple's module has one device and takes none."""
        return () if self.device.type == "mps" else (self.device,)


@contextmanager
def frozen_batch_statistics(model: nn.Module) -> Iterator[None]:
    """Batch statistics still normalise, but the running ones do not move."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


@contextmanager
def general_pass(model: nn.Module, masks: RandomState) -> Iterator[None]:
    """Inside, `model` is its general part, under the masks of the full pass, and batch statistics stand still.

    Args:
        model: With a tail.
        masks: Taken before the full pass.
    """
    with masks.replayed(), frozen_batch_statistics(model), tail(model, enabled=False):
        yield
