"""A running average of the weights (EMA)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clip_more.training.sharding import gathered, scatter


def batch_statistics(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of every running mean and variance of batch normalisation."""
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
            yield f"{name}.running_mean", layer.running_mean
            yield f"{name}.running_var", layer.running_var


class RunningAverage:
    """Exponential moving average of a module's trainable parameters, and of its batch statistics with them.

    The decay of update t is at most (1 + t) / (10 + t), so that a short run is not an average of its starting point.

    Attributes:
        tensors: Averages by parameter name.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        trained = ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)
        self.tensors: dict[str, Tensor] = {
            name: tensor.detach().clone() for name, tensor in (*trained, *batch_statistics(module))
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the weights as they are after optimiser step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        tensors = _tensors(module)
        torch._foreach_lerp_(list(self.tensors.values()), [tensors[name].data for name in self.tensors], 1 - decay)

    def full(self, everywhere: bool = True) -> dict[str, Tensor]:
        """The averages as full CPU tensors: a collective call where the module is sharded (see `full_weights`)."""
        return gathered(self.tensors, everywhere)

    def load(self, averages: Mapping[str, Tensor]) -> None:
        """Go on from what `full` returned.

        Raises:
            ValueError: If names or shapes are others; nothing is changed then.
        """
        scatter(averages, self.tensors)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """The averages in the module inside, its own weights again outside."""
        self.swap(module)
        try:
            yield
        finally:
            self.swap(module)

    @torch.no_grad()
    def swap(self, module: nn.Module) -> None:
        """Exchange the module's weights and the averages."""
        tensors = _tensors(module)
        for name, average in self.tensors.items():
            held = tensors[name].detach().clone()
            tensors[name].copy_(average)
            average.copy_(held)


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(batch_statistics(module))}
