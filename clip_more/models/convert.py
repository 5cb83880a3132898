"""open_clip ViT <-> transformers `CLIPModel`, exact both ways: the same numbers under other names.

open_clip packs the query, key and value projections into one matrix and stores the two output projections transposed;
everything else is a renaming. Towers that are no plain ViT (ModifiedResNet, timm, SigLIP, CoCa) have no counterpart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import CLIPConfig, CLIPModel

_EPS = 1e-5
_TRANSPOSED = ("visual.proj", "text_projection")
_OPENAI_EXTRAS = ("input_resolution", "context_length", "vocab_size")
_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OUTSIDE_BLOCKS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_SIZES = {
    "vision_cfg": {"image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio"},
    "text_cfg": {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"},
}
# Settings that change nothing at inference, and the values of the others that a plain ViT has.
_FREE = {"patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads", "pad_id", "eos_id"}
_PLAIN: dict[str, tuple[Any, ...]] = {
    "pos_embed_type": ("learnable",),
    "pool_type": ("tok", "argmax"),
    "proj_type": ("linear",),
    "block_type": ("default",),
    "norm_kwargs": ({"eps": _EPS},),
}
_FOREIGN = {
    "timm_model_name": "a timm vision tower",
    "hf_model_name": "a Hugging Face text tower",
    "multimodal_cfg": "CoCa's caption decoder",
    "init_logit_bias": "SigLIP's logit bias",
}


def hf_to_open_clip(model: CLIPModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict and `model_cfg` with which open_clip builds the same model.

    Tensors that need no rearranging share memory with `model`.

    Raises:
        ValueError: If the model has settings that open_clip's ViT cannot express, or weights of a tail.
    """
    cfg = open_clip_config(model.config)
    state = model.state_dict()
    converted: dict[str, Tensor] = {}
    for key, parts in _names(cfg["vision_cfg"]["layers"], cfg["text_cfg"]["layers"]).items():
        missing = [part for part in parts if part not in state]
        if missing:
            raise ValueError(f"the CLIP has no weight {missing[0]}; if it carries a tail, merge_tail(model) first")
        tensors = [state.pop(part).detach() for part in parts]
        tensor = torch.cat(tensors) if len(tensors) > 1 else tensors[0]
        converted[key] = tensor.t().contiguous() if key in _TRANSPOSED else tensor
    if state:
        raise ValueError(f"open_clip's ViT has no place for the weight {min(state)}")
    converted["logit_scale"] = converted["logit_scale"].reshape(())
    return converted, cfg


def open_clip_to_hf(state: dict[str, Tensor], model_cfg: dict[str, Any]) -> CLIPModel:
    """The transformers model of an open_clip ViT, in eval mode, in the dtypes of `state`, sharing no memory with it.

    Args:
        state: open_clip's state dict (of `CLIP`, or of `CustomTextCLIP` with a plain text tower).
        model_cfg: What `open_clip.get_model_config(arch)` gives, or `model_cfg` of an `open_clip_config.json`.

    Raises:
        ValueError: If the model is no plain ViT, or the weights do not fit `model_cfg`.
    """
    from transformers import CLIPModel

    config: Any = hf_config(model_cfg)
    state = {key.removeprefix("text."): tensor for key, tensor in state.items() if key not in _OPENAI_EXTRAS}
    with torch.device("meta"):
        model = CLIPModel(config)
    expected = model.state_dict()
    converted: dict[str, Tensor] = {}
    for key, parts in _names(config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers).items():
        if key not in state:
            raise ValueError(f"the open_clip weights have no {key}; is the architecture the right one?")
        tensor = state.pop(key).detach()
        tensor = tensor.reshape(()) if key == "logit_scale" else tensor.t() if key in _TRANSPOSED else tensor
        pieces = tensor.chunk(len(parts)) if len(parts) > 1 else (tensor,)
        if [piece.shape for piece in pieces] != [expected[part].shape for part in parts]:
            raise ValueError(
                f"the open_clip weight {key} has shape {tuple(tensor.shape)}, which does not fit the architecture "
                f"(image {config.vision_config.image_size}, patch {config.vision_config.patch_size}, widths "
                f"{config.vision_config.hidden_size} and {config.text_config.hidden_size})"
            )
        for part, piece in zip(parts, pieces, strict=True):
            converted[part] = piece.clone(memory_format=torch.contiguous_format)
    if state:
        raise ValueError(f"the open_clip weight {min(state)} has no place in a CLIPModel")
    model.load_state_dict(converted, assign=True)
    towers: Any = (model.vision_model, model.text_model)
    for embeddings in (tower.embeddings for tower in towers):  # buffers that no checkpoint holds: still on "meta"
        embeddings.position_ids = torch.arange(embeddings.position_embedding.num_embeddings).expand((1, -1))
    return model.eval()


def open_clip_config(config: CLIPConfig) -> dict[str, Any]:
    """open_clip's `model_cfg` of a transformers CLIP.

    Raises:
        ValueError: If open_clip's ViT cannot express the configuration.
    """
    vision: Any = config.vision_config
    text: Any = config.text_config
    if vision.hidden_act != text.hidden_act or vision.hidden_act not in ("gelu", "quick_gelu"):
        raise ValueError(
            "open_clip has one activation for both towers, gelu or quick_gelu; "
            f"this CLIP has {vision.hidden_act} and {text.hidden_act}"
        )
    for name, tower in (("vision", vision), ("text", text)):
        if tower.layer_norm_eps != _EPS:
            raise ValueError(
                f"open_clip's layer norms have eps {_EPS}; this CLIP's {name} tower {tower.layer_norm_eps}"
            )
    if vision.num_channels != 3:
        raise ValueError(f"open_clip's ViT reads 3 channels; this CLIP {vision.num_channels}")
    if text.eos_token_id not in (2, text.vocab_size - 1):  # 2 is how old CLIP configs say "the greatest id"
        raise ValueError(
            f"open_clip pools the text at the greatest token id ({text.vocab_size - 1}); "
            f"this CLIP ends its prompts with {text.eos_token_id}"
        )
    return {
        "embed_dim": config.projection_dim,
        "quick_gelu": vision.hidden_act == "quick_gelu",
        "vision_cfg": {
            "image_size": _square(vision.image_size, "image_size"),
            "patch_size": _square(vision.patch_size, "patch_size"),
            "width": vision.hidden_size,
            "layers": vision.num_hidden_layers,
            "head_width": vision.hidden_size // vision.num_attention_heads,
            "mlp_ratio": _mlp_ratio(vision),
        },
        "text_cfg": {
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "width": text.hidden_size,
            "heads": text.num_attention_heads,
            "layers": text.num_hidden_layers,
            "mlp_ratio": _mlp_ratio(text),
        },
    }


def hf_config(model_cfg: dict[str, Any]) -> CLIPConfig:
    """The transformers configuration of an open_clip `model_cfg`.

    Raises:
        ValueError: If it is no plain ViT, naming the setting and what does work.
    """
    from transformers import CLIPConfig

    vision, text = dict(model_cfg["vision_cfg"]), dict(model_cfg["text_cfg"])
    _check_plain(model_cfg, vision, text)
    act = "quick_gelu" if model_cfg.get("quick_gelu") else "gelu"
    width, text_width = vision.get("width", 768), text.get("width", 512)
    vocabulary = text.get("vocab_size", 49408)
    return CLIPConfig(
        projection_dim=model_cfg["embed_dim"],
        vision_config={
            "hidden_size": width,
            "intermediate_size": int(width * vision.get("mlp_ratio", 4.0)),
            "num_hidden_layers": vision.get("layers", 12),
            "num_attention_heads": width // vision.get("head_width", 64),
            "image_size": _square(vision.get("image_size", 224), "image_size"),
            "patch_size": _square(vision.get("patch_size", 16), "patch_size"),
            "hidden_act": act,
            "projection_dim": model_cfg["embed_dim"],
        },
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": text_width,
            "intermediate_size": int(text_width * text.get("mlp_ratio", 4.0)),
            "num_hidden_layers": text.get("layers", 12),
            "num_attention_heads": text.get("heads", 8),
            "max_position_embeddings": text.get("context_length", 77),
            "hidden_act": act,
            "projection_dim": model_cfg["embed_dim"],
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
            "pad_token_id": vocabulary - 1,
        },
    )


def _names(vision_layers: int, text_layers: int) -> dict[str, tuple[str, ...]]:
    """open_clip's name of every weight -> the one or three (query, key, value) of transformers."""
    names: dict[str, tuple[str, ...]] = {theirs: (ours,) for theirs, ours in _OUTSIDE_BLOCKS.items()}
    for theirs, ours, layers in (("visual.", "vision_model", vision_layers), ("", "text_model", text_layers)):
        for i in range(layers):
            block, layer = f"{theirs}transformer.resblocks.{i}", f"{ours}.encoder.layers.{i}"
            for kind in ("weight", "bias"):
                names[f"{block}.attn.in_proj_{kind}"] = tuple(f"{layer}.self_attn.{p}_proj.{kind}" for p in "qkv")
                names |= {f"{block}.{a}.{kind}": (f"{layer}.{b}.{kind}",) for a, b in _BLOCK.items()}
    return names


def _check_plain(model_cfg: dict[str, Any], vision: dict[str, Any], text: dict[str, Any]) -> None:
    found = next((what for key, what in _FOREIGN.items() if {**text, **vision, **model_cfg}.get(key) is not None), None)
    if isinstance(vision.get("layers"), (list, tuple)):
        found = "a ModifiedResNet"
    for part, settings in (("vision_cfg", vision), ("text_cfg", text)):
        for key, value in settings.items():
            plain = key in _SIZES[part] or key in _FREE or not value or value in _PLAIN.get(key, ())
            found = found or (None if plain else f"{part}.{key} = {value!r}")
    if found:
        raise ValueError(
            f"this open_clip model has {found}, which transformers' CLIPModel has no counterpart for; what works are "
            "open_clip's plain ViTs: ViT-B-32, ViT-B-16, ViT-L-14, ViT-H-14, ViT-g-14, ViT-bigG-14 and their kin"
        )


def _square(size: Any, name: str) -> int:
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    if height != width:
        raise ValueError(f"{name} is {height} x {width}; only square images and patches are supported")
    return int(height)


def _mlp_ratio(tower: Any) -> float:
    """The ratio that open_clip's `int(width * ratio)` turns back into this tower's MLP width."""
    ratio = tower.intermediate_size / tower.hidden_size
    exact = int(tower.hidden_size * ratio) == tower.intermediate_size
    return ratio if exact else (tower.intermediate_size + 0.5) / tower.hidden_size
