"""CLIP models: loading, converting, prompts."""

from clip_more.models.clip import Clip, load_clip, resize_positions
from clip_more.models.convert import hf_to_open_clip, open_clip_to_hf
from clip_more.models.prompts import TEMPLATES, class_prompts, english_name, load_templates

__all__ = [
    "TEMPLATES",
    "Clip",
    "class_prompts",
    "english_name",
    "hf_to_open_clip",
    "load_clip",
    "load_templates",
    "open_clip_to_hf",
    "resize_positions",
]
