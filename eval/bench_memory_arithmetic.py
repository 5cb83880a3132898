"""What fills the memory of a training step, counted: why exact MORE takes what it does beside the other contenders.

In MiB of fp32, for ViT-B/32, 16 photos and 80 prompts of 9 tokens:

    P   weights; their gradients take as much, AdamW's two moments twice as much    577, with a tail 649
    A   activations that a pass keeps for its backward pass                         900, of them text 338
    K   W + BA, which the full pass keeps for the gradients of its inputs           480
    T   A(x) of every token, which LoRA's token-space form keeps                    27
    G   gradients of the text tower, whose backward pass comes first                241
    E   the token table's part of them: the largest parameter                       97

The peak is one of three moments. Where the last forward pass ends, there is no gradient yet: 3 P + A a pass, and K for
exact MORE or T for PEFT. After the first text tower's backward pass its A has made room for G, which is more where the
tower has few layers. In AdamW's update it is 4 P, and 2 E on a CPU, which takes parameter by parameter, or P on a GPU,
which takes all at once.

So exact MORE takes 1.6 times plain fine-tuning's 2,631: 215 more for three copies of the tail, 900 for the second pass
and 480 for W + BA. Beside PEFT it has K - T = 453 too much, a ratio of 1.12; made anew in the backward pass, W + BA
would take no more than its largest layer, 9, and the ratio would be 0.995. With activation checkpointing W + BA is made
anew already, the update is the peak, and all that is left of MORE is four copies of the tail: 1.11.

Measured for exact MORE, PEFT and plain fine-tuning were 4,334, 3,881 and 2,711; checkpointed 2,865, 2,866 and 2,557.
What each has more is code, Python's objects and small blocks, 50 to 80; embeddings and norms, 7 a pass; and the
gradients inside the layer that is run back, 20 to 40.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench_step import Batch
from clip_more.adapters import MoreConfig

if TYPE_CHECKING:
    from transformers import CLIPModel


@dataclass(frozen=True)
class Tensors:
    """MiB of fp32, by the letters of the text above; `tail` is what A and B add to P."""

    weights: float
    tail: float
    activations: float
    text_activations: float
    full_weights: float
    token_space: float
    text_weights: float
    table: float


def count(model: CLIPModel, batch: Batch) -> Tensors:
    """Count the tensors of a plain CLIP on a batch; both may lie on the meta device.

    An encoder layer of width D and MLP width M keeps 8 D + 3 M numbers a token: its input, both normalised inputs,
    queries, keys, values, the attention's result and the sum with the input; the argument of quick GELU, its sigmoid
    and their product.
    """
    config: Any = model.config
    vision, text = config.vision_config, config.text_config
    tokens = {
        "vision_model.": len(batch.pixel_values) * (1 + (vision.image_size // vision.patch_size) ** 2),
        "text_model.": batch.input_ids.numel(),
    }
    seen, read = (
        rows * tower.num_hidden_layers * (8 * tower.hidden_size + 3 * tower.intermediate_size)
        for tower, rows in zip((vision, text), tokens.values(), strict=True)
    )
    lora = MoreConfig()
    layers = lora.find_layers(model)
    shapes = {name: layer.get_parameter("weight").flatten(1).shape for name, layer in layers.items()}
    ranks = {name: lora.rank(layer) for name, layer in layers.items()}
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}
    numbers = Tensors(
        weights=sum(parameters.values()),
        tail=sum(ranks[name] * sum(shape) for name, shape in shapes.items()),
        activations=seen + read,
        text_activations=read,
        full_weights=sum(shape.numel() for shape in shapes.values()),
        token_space=sum(rows * rank for tower, rows in tokens.items() for name, rank in ranks.items() if tower in name),
        text_weights=sum(number for name, number in parameters.items() if name.startswith("text_model.")),
        table=max(parameters.values()),
    )
    return Tensors(*(4 * number / 2**20 for number in vars(numbers).values()))


def peaks(tensors: Tensors, device: str) -> dict[str, tuple[float, float]]:
    """MiB of each contender without and with activation checkpointing, which leaves the update as the peak."""
    contenders = {
        "plain": (tensors.weights, 1, 0.0),
        "peft": (tensors.weights + tensors.tail, 2, tensors.token_space),
        "exact": (tensors.weights + tensors.tail, 2, tensors.full_weights),
    }
    results = {}
    for name, (weights, passes, kept) in contenders.items():
        forward = 3 * weights + passes * tensors.activations + kept
        text_done = forward - tensors.text_activations + tensors.text_weights
        update = 4 * weights + (weights if device == "cuda" else 2 * tensors.table)
        results[name] = max(forward, text_done, update), update
    return results
