"""What fills the memory of a training step, counted: why exact MORE takes what it does beside the other contenders.

In MiB of fp32, for ViT-B/32, 16 photos and 80 prompts of 9 tokens:

    P   weights; their gradients take as much, AdamW's two moments twice as much    577, with a tail 649
    A   activations that a pass keeps for its backward pass                         900
    K   W + BA, which the full pass keeps for the gradients of its inputs           480
    T   A(x) of every token, which LoRA's token-space form keeps                    27
    E   the token table, the largest parameter                                      97

The peak is either where the last forward pass ends and there is no gradient yet: 3 P + A a pass, and K for exact MORE
or T for PEFT. Or it is in AdamW's update: 4 P, and 2 E on a CPU, which takes parameter by parameter, or P on a GPU,
which takes all at once. So exact MORE takes 1.6 times plain fine-tuning's 2,631: 215 more for three copies of the tail,
900 for the second pass and 480 for W + BA. Beside PEFT it has K - T = 453 too much, a ratio of 1.12; made anew in the
backward pass, W + BA would take no more than its largest layer, 9, and the ratio would be 0.995. With activation
checkpointing W + BA is made anew already, the update is the peak, and all that is left of MORE is four copies of the
tail: 1.11.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from bench_step import Batch
from clip_more.adapters import MoreConfig


@dataclass(frozen=True)
class Tensors:
    """MiB of fp32, by the letters of the text above; `tail` is what A and B add to P."""

    weights: float
    tail: float
    activations: float
    full_weights: float
    token_space: float
    table: float


def count(model: nn.Module, batch: Batch) -> Tensors:
    """Count the tensors of a plain CLIP on a batch; both may lie on the meta device.

    An encoder layer of width D and MLP width M keeps 8 D + 3 M numbers a token: its input, both normalised inputs,
    queries, keys, values, the attention's result and the sum with the input; the argument of quick GELU, its sigmoid
    and their product. Layer norms' statistics, embeddings and projections, some 2 % more, are left out.
    """
    towers = {"vision_model.": model.config.vision_config, "text_model.": model.config.text_config}
    patches = (model.config.vision_config.image_size // model.config.vision_config.patch_size) ** 2
    tokens = {"vision_model.": len(batch.pixel_values) * (patches + 1), "text_model.": batch.input_ids.numel()}
    lora = MoreConfig()
    layers = lora.find_layers(model)
    shapes = {name: layer.get_parameter("weight").flatten(1).shape for name, layer in layers.items()}
    ranks = {name: lora.rank(layer) for name, layer in layers.items()}
    per_tower = [
        tokens[path] * tower.num_hidden_layers * (8 * tower.hidden_size + 3 * tower.intermediate_size)
        for path, tower in towers.items()
    ]
    parameters = [parameter.numel() for parameter in model.parameters()]
    numbers = Tensors(
        weights=sum(parameters),
        tail=sum(ranks[name] * sum(shape) for name, shape in shapes.items()),
        activations=sum(per_tower),
        full_weights=sum(shape.numel() for shape in shapes.values()),
        token_space=sum(tokens[path] * rank for path in towers for name, rank in ranks.items() if path in name),
        table=max(parameters),
    )
    return Tensors(*(4 * number / 2**20 for number in vars(numbers).values()))


def peaks(tensors: Tensors, device: str) -> dict[str, tuple[float, float]]:
    """MiB of each contender without and with activation checkpointing, which leaves the update as the peak."""
    extra = {"plain": (0.0, 1, 0.0), "peft": (tensors.tail, 2, tensors.token_space)}
    extra["exact"] = (tensors.tail, 2, tensors.full_weights)
    results = {}
    for name, (tail, passes, kept) in extra.items():
        weights = tensors.weights + tail
        forward = 3 * weights + passes * tensors.activations + kept
        update = 4 * weights + (weights if device == "cuda" else 2 * tensors.table)
        results[name] = max(forward, update), update
    return results
