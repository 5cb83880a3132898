"""Small CLIPs with random weights, for trying things out; none of them knows anything."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from clip_more.models.convert import hf_config

if TYPE_CHECKING:
    from transformers import CLIPModel

_TEXT = {"context_length": 77, "vocab_size": 49408}
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "embed_dim": 64,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 96, "layers": 3, "head_width": 24, "mlp_ratio": 2.0},
        "text_cfg": {**_TEXT, "width": 32, "heads": 2, "layers": 2, "mlp_ratio": 2.0},
    },
    "small": {
        "embed_dim": 128,
        "vision_cfg": {"image_size": 96, "patch_size": 16, "width": 192, "layers": 6, "head_width": 64},
        "text_cfg": {**_TEXT, "width": 128, "heads": 4, "layers": 3},
    },
}


def random_clip(name: str, seed: int) -> CLIPModel:
    """The preset `name` with random weights drawn from `seed`; the global random state is left as it was."""
    from transformers import CLIPModel

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
        return CLIPModel(hf_config(PRESETS[name])).eval()
