"""What fills the memory of a training step, counted: why exact MORE takes what it does beside the other contenders.

In MiB of fp32, for ViT-B/32, 16 photos and 80 prompts of 10 tokens:

    P   weights; their gradients take as much, AdamW's two moments twice as much    577, with a tail 649
    A   activations that a pass keeps for its backward pass                         938, of them text 375
    S   the part that ours does not keep: its last blocks read out one token        62, of them text 25
    K   W + BA, which the full pass would keep for the gradients of its inputs      480
    C   the part of it that is kept: the patch embedding, a convolution             9
    T   A(x) of every token, which LoRA's token-space form keeps                    28
    G   gradients of a tower's layers                                               image 334, text 241

The peak is one of three moments. Where the last forward pass ends, there is no gradient yet: 3 P + A a pass, less S a
pass and plus C for exact MORE, plus T for PEFT. After the first tower's backward pass its A has made room for G, which
is more where the tower has few layers; a stock CLIPModel goes back through the text tower first, ours through the image
tower. In AdamW's update it is 4 P; the fused one takes no more.

So exact MORE takes 1.39 times plain fine-tuning's 2,669: 215 more for three copies of the tail, 813 for the second
pass, which is A less two S, and C. Beside PEFT it has 144 less, two S and T but for C: a ratio of 0.96. Kept, K would
be 471 more and the ratio 1.08; made anew in the backward pass, W + BA is there for one layer at a time, 9 at most. With
activation checkpointing the update is the peak, and all that is left of MORE is four copies of the tail: 1.12.

Measured for exact MORE, PEFT and plain fine-tuning were 3,825, 3,941 and 2,730; checkpointed 2,654, 2,736 and 2,388.
What each has more is code, Python's objects and small blocks, and the gradients inside the layer that is run back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench_batch import Batch
from clip_more.adapters import MoreConfig

if TYPE_CHECKING:
    from transformers import CLIPModel


@dataclass(frozen=True)
class Tower:
    """MiB of fp32 of one tower.

    Attributes:
        weights: Its parameters, without its projection.
        activations: What a pass keeps for its backward pass.
        spared: The part of them that ours does not keep: its last block reads out one token.
    """

    weights: float
    activations: float
    spared: float


@dataclass(frozen=True)
class Tensors:
    """MiB of fp32, by the letters of the text above; `tail` is what A and B add to P."""

    weights: float
    tail: float
    image: Tower
    text: Tower
    token_space: float
    kernel: float
    full_weights: float


def count(model: CLIPModel, batch: Batch) -> Tensors:
    """Count the tensors of a plain CLIP on a batch; both may lie on the meta device.

    An encoder layer of width D and MLP width M keeps 8 D + 3 M numbers a token: its input, both normalised inputs,
    queries, keys, values, the attention's result and the sum with the input; the argument of quick GELU, its sigmoid
    and their product. Of our last layer remain its input, the first normalised input, keys and values: 4 D.
    """
    lora = MoreConfig()
    layers = lora.find_layers(model)
    shapes = {name: layer.get_parameter("weight").flatten(1).shape for name, layer in layers.items()}
    ranks = {name: lora.rank(layer) for name, layer in layers.items()}
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    config: Any = model.config
    sides = config.vision_config.image_size // config.vision_config.patch_size
    seen, read = len(batch.pixel_values) * (1 + sides**2), batch.trimmed["input_ids"].numel()
    tokens = {"vision_model.": seen, "text_model.": read}
    towers = []
    for (prefix, rows), tower in zip(tokens.items(), (config.vision_config, config.text_config), strict=True):
        layer = 8 * tower.hidden_size + 3 * tower.intermediate_size
        towers.append(
            Tower(
                weights=_mib(sum(number for name, number in parameters.items() if name.startswith(prefix))),
                activations=_mib(rows * tower.num_hidden_layers * layer),
                spared=_mib(rows * (layer - 4 * tower.hidden_size)),
            )
        )
    return Tensors(
        weights=_mib(sum(parameters.values())),
        tail=_mib(sum(ranks[name] * sum(shape) for name, shape in shapes.items())),
        image=towers[0],
        text=towers[1],
        token_space=_mib(sum(rows * rank for t, rows in tokens.items() for name, rank in ranks.items() if t in name)),
        kernel=_mib(sum(shape.numel() for name, shape in shapes.items() if "patch_embedding" in name)),
        full_weights=_mib(sum(shape.numel() for shape in shapes.values())),
    )


def peaks(tensors: Tensors) -> dict[str, tuple[float, float]]:
    """MiB of each contender without and with activation checkpointing, which leaves the update as the peak."""
    image, text = tensors.image, tensors.text
    plain, tailed = tensors.weights, tensors.weights + tensors.tail
    activations = image.activations + text.activations
    ours = activations - image.spared - text.spared
    # Where the passes end; and what the first tower to go back takes and gives.
    contenders = {
        "plain": (plain, 3 * plain + activations, text.weights - text.activations),
        "peft": (tailed, 3 * tailed + 2 * activations + tensors.token_space, text.weights - text.activations),
        "exact": (tailed, 3 * tailed + 2 * ours + tensors.kernel, image.weights - image.activations + image.spared),
    }
    return {name: (max(end, end + back, 4 * kept), 4 * kept) for name, (kept, end, back) in contenders.items()}


def _mib(numbers: int) -> float:
    return 4 * numbers / 2**20
