"""MORE's two passes through a tower: what lies below the first layer with a tail is run once."""

from __future__ import annotations

import torch
from torch import Tensor

from clip_more.adapters import TailLayer, tail
from clip_more.models.clip import Clip
from clip_more.models.towers import Tower
from clip_more.training.randomness import RandomState


def tower_passes(
    clip: Clip, tower: Tower, inputs: Tensor, rows: Tensor | None = None, gradient: bool = True
) -> tuple[Tensor, Tensor]:
    """Features of a tower with its tail, and those of `rows` without it, under the same masks.

    Exact: what two whole passes give. A tower without a tail is run once. Where its first block with a tail is k, the
    embeddings and the k blocks below it are run once, and the gradients of both passes go back through them together.

    Args:
        clip: With a tail.
        tower: One of its towers.
        inputs: (N, ...) images or token ids.
        rows: (n,) images or prompts of the general pass; all without it.
        gradient: Whether gradients go through the general pass.

    Returns:
        (N, D) and (n, D), not normalised.
    """
    split = tower.first(TailLayer)
    if split is None:
        features = tower(inputs)
        return features, _rows(features if gradient else features.detach(), rows)
    stem = None if split < 0 else tower.below(inputs, split)

    def above(rows: Tensor | None) -> Tensor:
        return tower(_rows(inputs, rows)) if stem is None else tower.above(stem.select(rows), split)

    masks = RandomState(inputs.device)
    if rows is None or not tower.draws:
        full = above(None)
    else:  # masks come in the order of the images: those of the general pass go first, by themselves
        order = (
            torch.zeros(len(inputs), device=inputs.device).index_fill(0, rows, 1).argsort(descending=True, stable=True)
        )
        full = torch.cat([above(rows), above(order[len(rows) :])])[order.argsort()]
    with torch.set_grad_enabled(torch.is_grad_enabled() and gradient), masks.replayed(), tail(clip, enabled=False):
        return full, above(rows)


def _rows(table: Tensor, rows: Tensor | None) -> Tensor:
    return table if rows is None else table[rows]
