"""A CLIPModel's towers in stages, so that two passes can share the lower ones and the last block does no vain work."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPVisionModelWithProjection


@dataclass(frozen=True)
class Tokens:
    """What goes from stage to stage.

    Attributes:
        hidden: (N, L, D).
        read: (N,) the position whose state becomes the feature: the class token, or each prompt's end token.
    """

    hidden: Tensor
    read: Tensor

    def select(self, rows: Tensor | None) -> Tokens:
        """The images or prompts of these rows; all without them."""
        return self if rows is None else Tokens(self.hidden[rows], self.read[rows])


class Tower(ABC):
    """Embeddings, blocks and projection: what `get_image_features` and `get_text_features` of transformers do.

    A feature is read out at one position. So the last block makes keys and values everywhere, and all else at that
    position alone: the same feature, up to rounding, without 10 of the last block's 12 products over every token.

    Attributes:
        blocks: The encoder layers, the last of them a `ReadoutLayer`.
    """

    blocks: Sequence[nn.Module]
    _stem: tuple[nn.Module, ...]
    _top: tuple[nn.Module, nn.Module]
    _causal: bool

    def __call__(self, inputs: Tensor) -> Tensor:
        """(N, 3, H, W) or (P, L) -> (N, D) or (P, D), not normalised."""
        return self.above(self.below(inputs, 0), 0)

    def below(self, inputs: Tensor, split: int) -> Tokens:
        """Through the embeddings and the first `split` blocks; behind the last of them one position is left."""
        tokens = self._embed(inputs)
        if split < len(self.blocks):
            return Tokens(self._through(tokens.hidden, self.blocks[:split]), tokens.read)
        return Tokens(self._read_out(tokens, 0)[:, None], torch.zeros_like(tokens.read))

    def above(self, tokens: Tokens, split: int) -> Tensor:
        """From block `split` to the features (N, D)."""
        norm, projection = self._top
        state = self._read_out(tokens, split) if split < len(self.blocks) else tokens.hidden[:, 0]
        return projection(norm(state))

    def _read_out(self, tokens: Tokens, split: int) -> Tensor:
        """From block `split` to what the last block makes of the position that is read, (N, D)."""
        hidden = self._through(tokens.hidden, self.blocks[split:-1])
        return self.blocks[-1](hidden, None, is_causal=self._causal, read=tokens.read)

    def first(self, kind: type) -> int | None:
        """The first block with a module of this kind: -1 is the embeddings, one past the last block what follows it."""
        parts = [(-1, self._stem), *((i, (block,)) for i, block in enumerate(self.blocks))]
        parts.append((len(self.blocks), self._top))
        found = (i for i, modules in parts if any(isinstance(m, kind) for part in modules for m in part.modules()))
        return next(found, None)

    @property
    def draws(self) -> bool:
        """Whether a forward pass draws random numbers now (dropout)."""
        attention: list[Any] = [getattr(block, "self_attn", None) for block in self.blocks]
        return any(part is not None and part.training and part.dropout > 0 for part in attention)

    @abstractmethod
    def _through(self, hidden: Tensor, blocks: Sequence[nn.Module]) -> Tensor:
        """States (N, L, D) through some of the blocks."""

    @abstractmethod
    def _embed(self, inputs: Tensor) -> Tokens:
        """Images or token ids as the first block reads them."""


class VisionTower(Tower):
    """Of images."""

    _causal = False

    def __init__(self, model: CLIPModel | CLIPVisionModelWithProjection) -> None:
        vision: Any = model.vision_model
        self.blocks = vision.encoder.layers
        self._stem = vision.embeddings, vision.pre_layrnorm
        self._top = vision.post_layernorm, model.visual_projection

    def _embed(self, inputs: Tensor) -> Tokens:
        embeddings, norm = self._stem
        return Tokens(norm(embeddings(inputs)), torch.zeros(inputs.shape[0], dtype=torch.long, device=inputs.device))

    def _through(self, hidden: Tensor, blocks: Sequence[nn.Module]) -> Tensor:
        for block in blocks:
            hidden = block(hidden, None)
        return hidden


class TextTower(Tower):
    """Of prompts; causal, read out at the end token, so that what stands after it changes nothing."""

    _causal = True

    def __init__(self, model: CLIPModel) -> None:
        text: Any = model.text_model
        self.blocks = text.encoder.layers
        self._stem = (text.embeddings,)
        self._top = text.final_layer_norm, model.text_projection
        self._config = text.config
        self._end = text.eos_token_id

    def _embed(self, inputs: Tensor) -> Tokens:
        (embeddings,) = self._stem
        # As transformers finds it: configurations of CLIP's first release name a wrong end token, 2; the true one is
        # the largest of all.
        end = inputs.int() if self._end == 2 else (inputs == self._end).int()
        return Tokens(embeddings(input_ids=inputs), end.argmax(dim=-1))

    def _through(self, hidden: Tensor, blocks: Sequence[nn.Module]) -> Tensor:
        mask = create_causal_mask(config=self._config, inputs_embeds=hidden, attention_mask=None, past_key_values=None)
        for block in blocks:
            hidden = block(hidden, mask, is_causal=True)
        return hidden


class ReadoutLayer(CLIPEncoderLayer):
    """The last block of a tower: asked for one position of a sequence, it makes only keys and values of the others."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any = None,
        *,
        read: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(N, L, D) -> (N, D) at the positions `read` (N,); without it as any other layer, (N, L, D)."""
        if read is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        attention: Any = self.self_attn
        rows = torch.arange(hidden_states.shape[0], device=read.device)
        normed = self.layer_norm1(hidden_states)
        query = attention.q_proj(normed[rows, read])[:, None]
        key, value = attention.k_proj(normed), attention.v_proj(normed)
        visible = None
        if kwargs.get("is_causal"):
            visible = (torch.arange(hidden_states.shape[1], device=read.device) <= read[:, None])[:, None, None]
        query, key, value = (
            part.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for part in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=visible,
            dropout_p=attention.dropout if self.training else 0.0,
            scale=attention.scale,
        )
        state = hidden_states[rows, read] + attention.out_proj(attended.transpose(1, 2).flatten(1))
        return state + self.mlp(self.layer_norm2(state))


def read_out_last(tower: Any) -> None:
    """Let the last block of a vision or text model compute one position alone, in place; keys and weights stay."""
    layers: Any = tower.encoder.layers
    if type(layers[-1]) is CLIPEncoderLayer:
        layers[-1].__class__ = ReadoutLayer
