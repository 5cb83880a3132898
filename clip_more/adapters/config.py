"""Which layers get a tail, and of what rank."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from peft import LoraConfig

# transformers' CLIPModel: attention, MLP, patch embedding and both projections into the shared space.
CLIP_TARGETS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "fc1",
    "fc2",
    "patch_embedding",
    "visual_projection",
    "text_projection",
)

_BLOCK_PATH = re.compile(r"(?:^|\.)(vision_model|text_model)\.encoder\.layers\.(\d+)\.")

_TOWER_PATHS = {
    "vision": re.compile(r"(^|\.)(vision_model|visual_projection)(\.|$)"),
    "text": re.compile(r"(^|\.)(text_model|text_projection)(\.|$)"),
}


@dataclass(frozen=True)
class MoreConfig:
    """Where the tail sits and how large it is (MORE, arXiv 2510.08177).

    Attributes:
        rho: Rank ratio. A layer seen as a matrix (out, in·kh·kw) gets rank `max(1, round(rho * min(out, in·kh·kw)))`.
        towers: `both`, `vision` or `text`: which tower of a CLIPModel, found by module path. Leave `both` for
            models that are no CLIP.
        target_modules: Last parts of module names, or the word `all` for every linear and convolution layer.
        depth: Share of a tower's blocks, counted from its output, that get a tail: 0.5 is the upper half, 1/3 the last
            4 of 12. Below 1 the embeddings have none. What lies below the tail is run once for both passes.
    """

    rho: float = 0.1
    towers: str = "both"
    target_modules: tuple[str, ...] | str = CLIP_TARGETS
    depth: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho is {self.rho}, but a rank ratio lies in (0, 1]")
        if not 0 < self.depth <= 1:
            raise ValueError(f"depth is {self.depth}, but a share of the blocks lies in (0, 1]")
        if self.towers not in ("both", "vision", "text"):
            raise ValueError(f"towers is {self.towers!r}; choose both, vision or text")
        if isinstance(self.target_modules, str) and self.target_modules != "all":
            raise ValueError(f"target_modules is {self.target_modules!r}; give a tuple of names, or the word all")

    def find_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers of `model` that get a tail, by module path.

        Raises:
            ValueError: If nothing matches, or a match is neither `nn.Linear` nor an ungrouped `nn.Conv2d`, or it
                belongs to `nn.MultiheadAttention` (which reads the weight past the layer, so a tail would do nothing).
        """
        fused = [name for name, module in model.named_modules() if isinstance(module, nn.MultiheadAttention)]
        places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
        blocks = _count_blocks(model)
        if self.depth < 1 and not blocks:
            raise ValueError(f"depth is {self.depth}, but this model has no blocks of a CLIP to count; leave it at 1")
        layers: dict[str, nn.Module] = {}
        for name, module in model.named_modules():
            if self.target_modules == "all":
                wanted = type(module) in (nn.Linear, nn.Conv2d) and getattr(module, "groups", 1) == 1
            else:
                wanted = name.rpartition(".")[2] in self.target_modules
            if self.depth < 1 and wanted and not self._is_deep(name, blocks):
                continue
            if not name or not wanted or (self.towers != "both" and not _TOWER_PATHS[self.towers].search(name)):
                continue
            if any(name == parent or name.startswith(f"{parent}.") for parent in fused):
                raise ValueError(
                    f"{name} belongs to an nn.MultiheadAttention, which never calls it as a layer: a tail there would "
                    "have no effect. Use separate q, k, v and out projections (an open_clip ViT: load it with "
                    "clip_more.load_clip), or leave it out of target_modules"
                )
            if places[id(module)] > 1:
                raise ValueError(
                    f"{name} is used at several places of the model; a tail would reach only one. Leave it out"
                )
            _check_layer(name, module)
            layers[name] = module
        if not layers:
            present = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if hasattr(m, "weight")})
            raise ValueError(
                f"no layer matches target_modules={self.target_modules!r} in towers={self.towers!r}; the names of this "
                f"model's layers end in {', '.join(present)}"
            )
        return layers

    def _is_deep(self, name: str, blocks: dict[str, int]) -> bool:
        """Whether the layer at this path lies in the last `depth` of its tower's blocks, or behind them."""
        if found := _BLOCK_PATH.search(name):
            count = blocks[found[1]]
            return int(found[2]) >= count - max(1, round(self.depth * count))
        return ".embeddings." not in name

    def rank(self, layer: nn.Module) -> int:
        """Rank of the tail of one layer: `max(1, round(rho * min(out, in·kh·kw)))`."""
        weight = layer.get_parameter("weight")
        return max(1, round(self.rho * min(weight.shape[0], weight[0].numel())))

    def to_lora(self, model: nn.Module) -> LoraConfig:
        """The same tail as a PEFT LoRA config: full module paths, a rank each, alpha = rank so that scaling is 1."""
        return lora_config({name: self.rank(layer) for name, layer in self.find_layers(model).items()})


def lora_config(ranks: dict[str, int]) -> LoraConfig:
    """A stock LoRA config for the given module paths and their ranks (scaling 1, no dropout)."""
    from peft import LoraConfig

    common = Counter(ranks.values()).most_common(1)[0][0]
    # PEFT matches these keys as regular expressions at the end of a path: unanchored, "out" would catch "x.out" too.
    pattern = {f"^{re.escape(name)}": rank for name, rank in ranks.items() if rank != common}
    return LoraConfig(
        r=common,
        lora_alpha=common,
        lora_dropout=0.0,
        target_modules=list(ranks),
        rank_pattern=dict(pattern),
        alpha_pattern=dict(pattern),
    )


def _count_blocks(model: nn.Module) -> dict[str, int]:
    """Number of encoder layers of each tower of a CLIPModel; empty for other models."""
    found = (_BLOCK_PATH.search(name) for name, _ in model.named_modules())
    blocks: dict[str, int] = {}
    for block in found:
        if block:
            blocks[block[1]] = max(blocks.get(block[1], 0), int(block[2]) + 1)
    return blocks


def _check_layer(name: str, module: nn.Module) -> None:
    if type(module) not in (nn.Linear, nn.Conv2d):
        raise ValueError(
            f"{name} is a {type(module).__name__}; a tail fits nn.Linear and nn.Conv2d. Name other target_modules"
        )
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        raise ValueError(f"{name} is a convolution in {module.groups} groups; a tail needs groups=1. Leave it out")
