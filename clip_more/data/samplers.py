"""Orders in which training photos are drawn."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class ShuffleSampler(Sampler[int]):
    """Every photo once an epoch, in an order that depends on seed and epoch alone.

    Args:
        length: Number of photos.
        seed: Of the run; the same on every process, which each take their share of the batches.

    Attributes:
        epoch: Which epoch's order is drawn; set it before the epoch's iterator is made. (An attribute, not a
            `set_epoch`: Accelerate would call that with a count of its own, which a resume sets to 0.)
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.length, generator=generator).tolist()
