"""Features of photos with their labels: what every method of the second stage works on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clip_more.data.samplers import LabelPairs


@dataclass(frozen=True)
class Cached:
    """N photos as a frozen encoder sees them.

    Attributes:
        features: (N, D) float32, as `encode_image` gives them; may be mapped from a file.
        targets: (N, C) bool.
        known: (N, C) bool; a label that is not known counts nowhere.
    """

    features: Tensor
    targets: Tensor
    known: Tensor

    def __post_init__(self) -> None:
        """Raises ValueError where shapes do not fit each other."""
        photos = {len(tensor) for tensor in (self.features, self.targets, self.known)}
        if len(photos) != 1 or self.targets.shape != self.known.shape or self.features.dim() != 2:
            raise ValueError(
                f"features {tuple(self.features.shape)}, targets {tuple(self.targets.shape)} and known "
                f"{tuple(self.known.shape)} do not fit: (N, D), (N, C) and (N, C) are needed"
            )

    def __len__(self) -> int:
        """N."""
        return len(self.targets)

    @property
    def positives(self) -> Tensor:
        """(N, C) bool: positive, and known to be."""
        return self.targets & self.known

    def counts(self) -> Tensor:
        """(C,) float64: positives of each class."""
        return self.positives.sum(dim=0).double()

    def prior(self) -> Tensor:
        """(C,) float64: `n_c / sum n`; a class without a positive here counts as if it had one: its log exists."""
        counts = self.counts().clamp_min(1)
        return counts / counts.sum()

    def pairs(self) -> LabelPairs:
        """Rows and classes of the positives, as samplers take them."""
        rows, classes = np.nonzero(self.positives.numpy())
        return rows.astype(np.int64), classes.astype(np.int64)

    def take(self, rows: np.ndarray) -> Cached:
        """These photos alone."""
        index = torch.from_numpy(np.asarray(rows, dtype=np.int64))
        return Cached(self.features[index], self.targets[index], self.known[index])

    def joined(self, other: Cached) -> Cached:
        """The photos of both."""
        columns = ("features", "targets", "known")
        return Cached(*(torch.cat([getattr(self, column), getattr(other, column)]) for column in columns))
