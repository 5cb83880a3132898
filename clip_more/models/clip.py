"""One internal model, transformers' `CLIPModel`, whatever form the checkpoint came in."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_more.models.processor import geometry_of, interpolation_of, set_geometry, set_image_size

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPModel, PreTrainedTokenizerBase

    from clip_more.models.towers import Tower


class Clip(nn.Module):
    """A CLIP with what belongs to it.

    Attributes:
        model: transformers' CLIPModel, possibly with a tail in its layers.
        tokenizer: Its tokenizer.
        image_processor: Its preprocessing.
        source: Where it came from, as printed; says so where the weights are random.
        geometry: How a photo is brought into a square: `crop`, `squash` or `pad`; as the image processor does without
            it. (No CLIP image processor can say `pad`: it then stays at what it was.)
    """

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: CLIPImageProcessor,
        source: str,
        geometry: str | None = None,
    ) -> None:
        from clip_more.models.towers import read_out_last

        super().__init__()
        for tower in (model.vision_model, model.text_model):
            read_out_last(tower)
        self.model: Any = model  # transformers' type leaves open what its configs and outputs hold
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.source = source
        self.geometry = geometry or geometry_of(image_processor)
        if self.geometry != "pad":
            set_geometry(image_processor, self.geometry)

    def __deepcopy__(self, memo: dict[int, Any]) -> Clip:
        """A copy of all but the tokenizer, whose 50,000 merges nobody changes."""
        memo[id(self.tokenizer)] = self.tokenizer
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied

    @property
    def vision(self) -> Tower:
        """The vision tower in stages."""
        from clip_more.models.towers import VisionTower

        return VisionTower(self.model)

    @property
    def text(self) -> Tower:
        """The text tower in stages."""
        from clip_more.models.towers import TextTower

        return TextTower(self.model)

    def encode_image(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, D), not normalised."""
        return self.vision(pixel_values)

    def encode_text(self, input_ids: Tensor) -> Tensor:
        """(P, L) token ids -> (P, D), not normalised.

        The tower is causal and reads out at the end token, so what pads a prompt changes nothing and needs no mask.
        """
        return self.text(input_ids)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (P, L), L being the longest of `texts` and at most the context length; longer texts are cut."""
        ids = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.context_length, return_tensors="pt"
        )
        return ids["input_ids"]

    @property
    def image_size(self) -> int:
        """Side of the square image the vision tower reads, in pixels."""
        return int(self.model.config.vision_config.image_size)

    @property
    def context_length(self) -> int:
        """Longest prompt the text tower reads, in tokens, both marks included."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def interpolation(self) -> str:
        """How photos are resized: `bicubic` or `bilinear`."""
        return interpolation_of(self.image_processor)

    @property
    def image_mean(self) -> tuple[float, ...]:
        """Mean of each channel that is subtracted from images in [0, 1]."""
        return tuple(self.image_processor.image_mean)

    @property
    def image_std(self) -> tuple[float, ...]:
        """Standard deviation of each channel that images in [0, 1] are divided by."""
        return tuple(self.image_processor.image_std)


def load_clip(source: str, *, image_size: int | None = None, geometry: str | None = None, seed: int = 0) -> Clip:
    """Load a CLIP in fp32, in eval mode, on the CPU.

    Args:
        source: A preset with random weights (`tiny`, `small`); `digits`, the demo's pretrained tiny CLIP; a folder or
            Hub id in transformers' or open_clip's form; `open_clip:<architecture>/<tag>`, fetched by open_clip; or
            `open_clip:<architecture>:<file>`.
        image_size: Another image size: position embeddings are interpolated to it.
        geometry: How photos are brought into a square, where not as the checkpoint's own processor does: `crop`,
            `squash` or `pad`.
        seed: Draws the weights of a preset; without effect elsewhere.

    Raises:
        FileNotFoundError: If a folder, file or model is not there, or cannot be fetched.
        ValueError: If it is there and is not a CLIP that we can load.
    """
    clip = _load(str(source), seed, geometry)
    if image_size is not None and image_size != clip.image_size:
        resize_positions(clip.model, image_size)
        set_image_size(clip.image_processor, image_size)
    return clip


def resize_positions(model: CLIPModel, image_size: int) -> None:
    """Make `model` read images of `image_size` pixels a side, in place.

    The grid of position embeddings is interpolated (bicubic, antialiased, as open_clip does); the class token keeps
    its own. The new size is written into the configuration, so the saved model needs nothing special.

    Raises:
        ValueError: If `image_size` is not a positive multiple of the patch size.
    """
    config: Any = model.config.vision_config
    embeddings: Any = model.vision_model.embeddings
    patch = config.patch_size
    if image_size <= 0 or image_size % patch:
        below = max(image_size // patch, 1) * patch
        raise ValueError(
            f"image size {image_size} is not a multiple of the patch size {patch}; take {below} or {below + patch}"
        )
    old = embeddings.position_embedding.weight.detach()
    grid, new_grid = config.image_size // patch, image_size // patch
    if new_grid != grid:
        patches = old[1:].float().view(1, grid, grid, -1).permute(0, 3, 1, 2)
        patches = F.interpolate(patches, (new_grid, new_grid), mode="bicubic", align_corners=False, antialias=True)
        resized = torch.cat([old[:1], patches.permute(0, 2, 3, 1).flatten(0, 2).to(old.dtype)])
        trained = embeddings.position_embedding.weight.requires_grad
        embeddings.position_embedding = nn.Embedding.from_pretrained(resized, freeze=not trained)
        embeddings.num_patches, embeddings.num_positions = new_grid**2, new_grid**2 + 1
        embeddings.position_ids = torch.arange(new_grid**2 + 1, device=old.device).expand((1, -1))
    config.image_size = embeddings.image_size = embeddings.config.image_size = image_size


def _load(source: str, seed: int, geometry: str | None) -> Clip:
    from clip_more.models import folders, open_clip_files
    from clip_more.models.presets import PRESETS, random_clip
    from clip_more.models.processor import clip_image_processor, load_image_processor
    from clip_more.models.tokenizer import clip_tokenizer, load_tokenizer

    printed, folder, preprocess = source, None, None
    model: Any
    if source in PRESETS:
        model, printed = random_clip(source, seed), f"{source} (random weights, seed {seed})"
    elif source.startswith("open_clip:"):
        model, preprocess = open_clip_files.load_source(source)
    else:
        folder, printed = folders.find_folder(source)
        if (folder / "config.json").is_file():
            model = folders.load_transformers(folder)
        else:
            model, preprocess = open_clip_files.load_folder(folder)
    size, text = int(model.config.vision_config.image_size), model.config.text_config
    if folder is None or preprocess is not None:
        processor = clip_image_processor(size, preprocess)
    else:
        processor = load_image_processor(folder, size)
    if folder is None:
        tokenizer = clip_tokenizer(text.max_position_embeddings)
    else:
        tokenizer = load_tokenizer(folder, text.vocab_size, text.max_position_embeddings)
    return Clip(model, tokenizer, processor, printed, geometry)
