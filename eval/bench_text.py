"""Section ``text``: what the trained text tower costs on COCO's 80 one-template prompts, forward and backward.

`trimmed_vs_padded` is the tower and nothing else: prompts as long as the longest beside prompts of 77 tokens.
`once_vs_per_micro_batch` is a step of exact MORE in four micro-batches, without the optimiser: the tower run once,
beside the tower run with each of them, both ours. 16 photos a micro-batch, with --quick 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench_batch import Batch, clip, same_weights, synthetic_batch
from bench_checks import random_tail
from bench_contenders import classifier, contender
from bench_peers import ALPHA
from bench_rows import Options, Row, compared, interleaved
from bench_step import photos
from clip_more.config import TrainConfig

MICRO_BATCHES = 4


def text(options: Options) -> Iterator[Row]:
    """Rows of the section."""
    yield from trimmed(options)
    yield from once(options)


def trimmed(options: Options) -> Iterator[Row]:
    """Ours, as the training step runs it, beside the stock tower on prompts of 77 tokens."""
    model = clip(options.quick, options.device)
    batch = synthetic_batch(options.device, photos=1)
    own = classifier(TrainConfig(), same_weights(model), batch)
    encoders: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: own.head.text_features(own.clip),
        "padded": lambda: F.normalize(model.get_text_features(**batch.padded).pooler_output.float(), dim=-1),
    }
    check_same_features(encoders)
    trained = [*model.text_model.parameters(), *model.text_projection.parameters()]
    for dtype in options.dtypes:
        contenders = {name: there_and_back(encode, trained, options.device, dtype) for name, encode in encoders.items()}
        seconds = interleaved(contenders, options)
        yield compared("text.trimmed_vs_padded", dtype, seconds["ours"], seconds["padded"], goal=0.15)


def check_same_features(encoders: dict[str, Callable[[], Tensor]]) -> None:
    """What is timed must be the same function.

    Raises:
        RuntimeError: The features (C, D) differ.
    """
    with torch.no_grad():
        found, wanted = encoders["ours"](), encoders["padded"]()
    far = (found - wanted).abs().max()
    if not far < 1e-5:
        raise RuntimeError(f"Cut prompts and padded ones differ by {far:.1e} in their features.")


def there_and_back(
    encode: Callable[[], Tensor], trained: list[nn.Parameter], device: str, dtype: str
) -> Callable[[], None]:
    """Features and the gradients of all of the tower's parameters, as a call without arguments."""
    upstream: list[Tensor] = []

    def run() -> None:
        with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bf16"):
            features = encode()
        if not upstream:
            upstream.append(torch.randn_like(features))
        torch.autograd.grad(features, trained, upstream[0])

    return run


def once(options: Options) -> Iterator[Row]:
    """The text tower once a step, beside once a micro-batch."""
    model = clip(options.quick, options.device)
    batch = synthetic_batch(options.device, photos(options))
    exact = contender("exact", model, batch)
    random_tail(exact)
    check_same_gradients(exact.model, batch)
    for dtype in options.dtypes:
        contenders = {
            "once": accumulated(exact.model, batch, options.device, dtype, once=True),
            "each": accumulated(exact.model, batch, options.device, dtype, once=False),
        }
        seconds = interleaved(contenders, options)
        yield compared("text.once_vs_per_micro_batch", dtype, seconds["once"], seconds["each"], goal=None)


def accumulated(task: nn.Module, batch: Batch, device: str, dtype: str, *, once: bool) -> Callable[[], None]:
    """Gradients of a step, left in the parameters, as a call without arguments."""
    split = {name: tensor.chunk(MICRO_BATCHES) for name, tensor in batch.inputs().items()}
    parts = [dict(zip(split, tensors, strict=True)) for tensors in zip(*split.values(), strict=True)]

    def run() -> None:
        task.zero_grad()
        for number, part in enumerate(parts, 1):
            with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == "bf16"):
                loss = task(part, alpha=ALPHA, last=not once or number == len(parts))["loss"]
            loss.backward()

    return run


def check_same_gradients(task: nn.Module, batch: Batch) -> None:
    """What is timed must be the same function.

    Raises:
        RuntimeError: The gradients of a step differ.
    """
    found = []
    for once in (True, False):
        accumulated(task, batch, batch.targets.device.type, "fp32", once=once)()
        found.append(torch.cat([p.grad.flatten() for p in task.parameters() if p.grad is not None]))
    far = (found[0] - found[1]).norm() / found[1].norm()
    if not far < 1e-5:
        raise RuntimeError(f"The text tower run once and run with each micro-batch differ by {far:.1e} in gradients.")
