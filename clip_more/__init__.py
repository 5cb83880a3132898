"""Fine-tune CLIP for multi-label long-tail recognition with MORE tail adapters."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["ClassProfile", "MoreConfig", "TrainConfig", "add_tail", "load_clip", "merge_tail", "save_tail", "tail"]

_HOMES = {
    "ClassProfile": "clip_more.data.profile",
    "MoreConfig": "clip_more.adapters",
    "TrainConfig": "clip_more.config",
    "add_tail": "clip_more.adapters",
    "load_clip": "clip_more.models.clip",
    "merge_tail": "clip_more.adapters",
    "save_tail": "clip_more.adapters",
    "tail": "clip_more.adapters",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: torch and PEFT cost seconds that `clip-more --help` should not pay."""
    if name not in _HOMES:
        raise AttributeError(f"module 'clip_more' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
