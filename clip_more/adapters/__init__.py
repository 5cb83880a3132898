"""The tail of MORE: `W = W_g + B A` on every chosen layer, with a switch, a merge and a stock PEFT LoRA on disk."""

from clip_more.adapters.config import MoreConfig
from clip_more.adapters.layer import MoreConv2d, MoreLinear, TailLayer
from clip_more.adapters.model import (
    TailCheckpointContext,
    add_lora,
    add_tail,
    general_part,
    merge_tail,
    save_tail,
    tail,
    tail_parameters,
)

__all__ = [
    "MoreConfig",
    "MoreConv2d",
    "MoreLinear",
    "TailCheckpointContext",
    "TailLayer",
    "add_lora",
    "add_tail",
    "general_part",
    "merge_tail",
    "save_tail",
    "tail",
    "tail_parameters",
]
