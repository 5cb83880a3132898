"""The endless stream of training photos, cut into the micro-batches of one process."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from clip_more.data.samplers import EpochOrder


class PhotoStream(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """Lists of (position, photo index), a `batch_sampler` for `Photos`.

    The stream is epoch 0's order, then epoch 1's, and so on: position p is photo `order(p // N)[p % N]`. Optimiser step
    s takes positions `[s G, (s + 1) G)` with `G = processes * batch_size * accumulation`, and micro-batch m of a
    process begins at `s G + (m * processes + rank) * batch_size`. So every step is full, an epoch may end inside one,
    and a step has the same photos for any way to split G.

    Args:
        order: Of each epoch; the same on every process.
        batch_size: Photos of a micro-batch on a process.
        accumulation: Micro-batches an optimiser step.
        processes: How many there are.
        rank: Which of them this one is.
        start: Optimiser step that comes first.
        steps: Optimiser step before which the stream ends.

    Raises:
        ValueError: A number is out of its range.
    """

    def __init__(
        self,
        order: EpochOrder,
        batch_size: int,
        *,
        accumulation: int = 1,
        processes: int = 1,
        rank: int = 0,
        start: int = 0,
        steps: int,
    ) -> None:
        if min(order.length, batch_size, accumulation, processes) < 1:
            raise ValueError("photos, batch_size, accumulation and processes must be 1 or more")
        if not (0 <= rank < processes and 0 <= start <= steps):
            raise ValueError(f"process {rank} of {processes}, steps {start} to {steps}: there is no such part")
        self.order = order
        self.batch_size = batch_size
        self.processes = processes
        self.rank = rank
        self.micro_batches = range(start * accumulation, steps * accumulation)

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        length = self.order.length
        # Positions rise, so an epoch that is left behind is not asked for again.
        epoch, photos = -1, None
        for micro_batch in self.micro_batches:
            position = (micro_batch * self.processes + self.rank) * self.batch_size
            end = position + self.batch_size
            batch: list[tuple[int, int]] = []
            while position < end:
                if photos is None or position // length != epoch:
                    epoch = position // length
                    photos = self.order.order(epoch)
                until = min(end, (epoch + 1) * length)
                taken = photos[position - epoch * length : until - epoch * length]
                batch += zip(range(position, until), taken.tolist(), strict=True)
                position = until
            yield batch
