"""How much of each layer's weight is the tail's, read from a run's `tail/` and `general/`."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class LayerShare:
    """The tail of one layer.

    Attributes:
        name: Module path.
        rank: Of B A as it was made.
        share: `||B A||_F / ||W_g + B A||_F`.
        stable_rank: `||B A||_F^2 / ||B A||_2^2`, from 1 to `rank`: how many directions carry it; 0 where B A is 0.
    """

    name: str
    rank: int
    share: float
    stable_rank: float


def layer_share(name: str, general: np.ndarray, b: np.ndarray, a: np.ndarray) -> LayerShare:
    """Share and stable rank of one layer, in float64 and without making B A.

    `||B A||^2 = <B^T B, A A^T>` and `||W_g + B A||^2 = ||W_g||^2 + 2 <B^T W_g, A> + ||B A||^2`; the singular values of
    B A are those of `R_B R_A^T`, from QR of B and of A^T.

    Args:
        name: Module path.
        general: W_g (out, ...), a kernel is seen as a matrix (out, in kh kw).
        b: (out, r), or (out, r, 1, 1).
        a: (r, ...).

    Raises:
        ValueError: Shapes do not fit each other.
    """
    w, b, a = (np.asarray(part, dtype=np.float64).reshape(len(part), -1) for part in (general, b, a))
    if b.shape != (len(w), len(a)) or a.shape[1] != w.shape[1]:
        raise ValueError(f"layer {name}: W_g {w.shape}, B {b.shape} and A {a.shape} do not fit each other")
    triangles = [np.asarray(np.linalg.qr(part, mode="r")) for part in (b, a.T)]
    singular = np.asarray(np.linalg.svd(triangles[0] @ triangles[1].T, compute_uv=False))
    tail = float((singular**2).sum())
    full = float((w**2).sum()) + 2 * float(((b.T @ w) * a).sum()) + tail
    share = float(np.sqrt(tail / full)) if full > 0 else 0.0
    return LayerShare(name, len(a), share, tail / float(singular[0] ** 2) if tail > 0 else 0.0)


def tail_layers(tail: str | os.PathLike[str], general: str | os.PathLike[str]) -> list[LayerShare]:
    """The shares of all layers with a tail, in the order of the network; one layer's weights are in memory at a time.

    Args:
        tail: A run's `tail/`: a stock PEFT LoRA of scaling 1, as runs write it.
        general: A run's `general/`.

    Raises:
        FileNotFoundError: A file is absent.
        ValueError: A file cannot be read, the LoRA has another scaling, or a layer has no weight in `general`.
    """
    from safetensors import SafetensorError, safe_open

    paths = Path(tail) / "adapter_model.safetensors", Path(general) / "model.safetensors"
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: the tail of a run is its tail/ beside its general/")
    _check_scaling(Path(tail) / "adapter_config.json")
    shares = []
    try:
        with safe_open(paths[0], framework="numpy") as low, safe_open(paths[1], framework="numpy") as base:
            weights = {_stem(key): key for key in base.keys()}  # noqa: SIM118 (no dict)
            for key in low.keys():  # noqa: SIM118
                if not key.endswith(_A):
                    continue
                stem = key.removesuffix(_A)
                name = stem.removeprefix(_PREFIX)
                if name not in weights:
                    raise ValueError(f"{paths[1]} has no weight of {name}, which {paths[0]} has a tail for")
                parts = base.get_tensor(weights[name]), low.get_tensor(stem + _B), low.get_tensor(key)
                shares.append(layer_share(name, *parts))
    except SafetensorError as error:
        raise ValueError(f"{paths[0]} or {paths[1].name} beside it cannot be read: {error}") from error
    return sorted(shares, key=lambda share: layer_place(share.name))


@dataclass(frozen=True, order=True)
class LayerPlace:
    """Where a layer stands in the network; sorts from input to output, the vision tower first.

    Attributes:
        stage: 0 for embeddings, 1 for blocks, 2 for projections, after the tower's own number.
        block: Path of the block, numbers as numbers.
        within: Place within the block.
        kind: `attention`, `mlp`, `embedding`, `projection`, `convolution` or `other`.
        tower: `vision`, `text`, or nothing for networks without towers.
        block_label: The block's number, or path.
    """

    stage: tuple[int, int]
    block: tuple[tuple[int, str], ...]
    within: tuple[int, str]
    kind: str
    tower: str
    block_label: str


def layer_place(name: str) -> LayerPlace:
    """The place of a layer by its module path (transformers' CLIP, torchvision's and timm's networks)."""
    parts = name.split(".")
    tower = "vision" if name.startswith("vis") else "text" if name.startswith("text") else ""
    kind = next((kind for part, kind in _KINDS.items() if part in parts), "other")
    if kind == "other" and parts[-1].endswith("projection"):
        kind = "projection"
    if kind == "other" and parts[-1].startswith(("conv", "downsample")):
        kind = "convolution"
    path = [part for part in parts[:-1] if part not in _DROPPED]
    if tower and path and not path[0].isdigit():
        path = path[1:]
    block = tuple((int(part), "") if part.isdigit() else (-1, part) for part in path)
    stage = {"embedding": 0, "projection": 2}.get(kind, 1)
    label = ".".join(path) or ("" if tower else parts[-1])  # a tower's ends have a colour of their own
    order = (_ORDER.index(parts[-1]) if parts[-1] in _ORDER else len(_ORDER), parts[-1])
    return LayerPlace((("vision", "", "text").index(tower), stage), block, order, kind, tower, label)


_DROPPED = {"encoder", "layers", "blocks", "self_attn", "self_attention", "attn", "mlp", "embeddings", "model"}
_KINDS = {
    "embeddings": "embedding", "patch_embed": "embedding", "conv_proj": "embedding", "self_attn": "attention",
    "attn": "attention", "self_attention": "attention", "mlp": "mlp",
}  # fmt: skip
_ORDER = ("q_proj", "k_proj", "v_proj", "qkv", "out_proj", "proj", "fc1", "fc2")


def _stem(key: str) -> str:
    """Module path of a weight in a checkpoint."""
    return key.removesuffix(".weight")


def _check_scaling(path: Path) -> None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        plain = config["r"] == config["lora_alpha"] and config["rank_pattern"] == config["alpha_pattern"]
        plain = plain and not config.get("use_rslora")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no adapter_config.json that can be read: {error}") from error
    if not plain:
        raise ValueError(f"{path} scales B A by alpha / r other than 1; tails of runs are saved with a scaling of 1")
