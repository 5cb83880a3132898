"""Train the few token rows that the prompts use, and keep the other 49,000 out of the optimiser's step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import CLIPModel


class CompactEmbedding(nn.Module):
    """Some rows of a token table, looked up by the ids of the whole one.

    Args:
        table: (V, D) the whole table.
        used_ids: Ids that will be asked for; any other is an IndexError on the CPU.
    """

    def __init__(self, table: Tensor, used_ids: Tensor) -> None:
        super().__init__()
        self.used_ids: Tensor
        self.row_of: Tensor
        self.register_buffer("used_ids", used_ids.unique().to(table.device), persistent=False)
        rows = torch.full((len(table),), len(self.used_ids), device=table.device)
        rows[self.used_ids] = torch.arange(len(self.used_ids), device=table.device)
        self.register_buffer("row_of", rows, persistent=False)
        self.weight = nn.Parameter(table[self.used_ids].clone())

    def forward(self, input_ids: Tensor) -> Tensor:
        """(..., L) ids of the whole table -> (..., L, D)."""
        return F.embedding(self.row_of[input_ids], self.weight)


@contextmanager
def compact_vocabulary(model: CLIPModel, used_ids: Tensor) -> Iterator[None]:
    """Inside, the text tower holds only the rows of `used_ids`; after it, they are back in the whole table, trained.

    Ids, outputs and the end token stay as they are. Rows not used keep their values to the bit, just as they would
    without this (no gradient, no weight decay), but cost neither time nor optimiser state. The rows go back also
    when the body raises.
    """
    embeddings = model.text_model.embeddings
    whole = embeddings.token_embedding
    compact = CompactEmbedding(whole.weight.detach(), used_ids)
    embeddings.token_embedding = compact
    try:
        yield
    finally:
        embeddings.token_embedding = whole.to(compact.weight.device)
        with torch.no_grad():
            whole.weight[compact.used_ids] = compact.weight
