"""Section ``step``: one training step, optimiser included, of ours beside plain fine-tuning, stock PEFT and open_clip.

64 photos a step, with --quick 32. Every contender is first compared with passes written down by hand (bench_checks.py).

`stopped` is MORE at its defaults, `exact` and all below it with L_MORE's gradient in both passes, as in PEFT's.
`one_pass` is our own plain fine-tuning (`tuning: full`). `exact_vs_one_pass` is the price of the second pass, and
`one_pass_vs_plain` what our code spares whatever the method: of the last block it computes one token. With three layers
that is much more than with twelve, so the ratios of --quick do not stand for the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from bench_batch import CONTEXT, clip, synthetic_batch
from bench_checks import check_contenders
from bench_contenders import OURS, contender, stepper
from bench_peers import PEERS
from bench_rows import Options, Row, compared, interleaved

# Ours, its peer, and the goals in fp32 and bf16.
ROWS: dict[str, tuple[str, str, tuple[float, float] | None]] = {
    "stopped_vs_plain": ("stopped", "plain", None),
    "stopped_vs_plain_padded": ("stopped", "plain_padded", None),
    "stopped_vs_peft_stopped": ("stopped", "peft_stopped", None),
    "stopped_vs_open_clip": ("stopped", "open_clip", None),
    "exact_vs_plain": ("exact", "plain", (2.10, 2.25)),
    "upper_half_vs_plain": ("upper_half", "plain", (1.65, 1.65)),
    "last4_vs_plain": ("last4", "plain", (1.45, 1.45)),
    "text_only_vs_plain": ("text_only", "plain", (1.15, 1.15)),
    "economical_vs_plain": ("economical", "plain", (1.30, 1.45)),
    "exact_vs_peft": ("exact", "peft", (0.80, 0.80)),
    "whole_vs_stock": ("exact", "peft_padded", (0.30, 0.30)),
    "one_pass_vs_plain": ("one_pass", "plain", None),
    "exact_vs_one_pass": ("exact", "one_pass", None),
    "exact_vs_plain_padded": ("exact", "plain_padded", None),
    "exact_vs_lora": ("exact", "lora", None),
    "exact_vs_open_clip": ("exact", "open_clip", None),
}


def photos(options: Options) -> int:
    """Photos a step."""
    return 32 if options.quick else 64


def step(options: Options) -> Iterator[Row]:
    """Rows of the section."""
    names = present()
    check_contenders(names, options.device)
    batch = synthetic_batch(options.device, photos(options))
    model = clip(options.quick, options.device)
    contenders = {name: contender(name, model, batch) for name in names}
    classes, tokens = batch.trimmed["input_ids"].shape
    print(f"  {photos(options)} photos, {classes} prompts of {tokens} tokens (padded: {CONTEXT}); {tailed(contenders)}")
    for dtype in options.dtypes:
        moments: defaultdict[Any, Any] = defaultdict(dict)
        steps = {name: stepper(value, options.device, dtype, moments) for name, value in contenders.items()}
        seconds = interleaved(steps, options)
        for row, (own, peer, goals) in ROWS.items():
            if peer in seconds:
                goal = goals and goals[dtype == "bf16"]
                yield compared(f"step.{row}", dtype, seconds[own], seconds[peer], goal=goal)


def present() -> list[str]:
    """Names of the contenders whose libraries can be imported."""
    try:
        import open_clip  # noqa: F401
    except ImportError as error:
        print(f"  open_clip cannot be imported, its rows are left out: {error}")
        return [name for name in (*OURS, *PEERS) if name != "open_clip"]
    return [*OURS, *PEERS]


def tailed(contenders: dict[str, Any]) -> str:
    """How many layers of the image tower have a tail, in words."""
    layers = {
        name: {key.split(".layers.")[1].split(".")[0] for key, _ in contenders[name].model.named_parameters()
               if ".lora_A." in key and "vision_model.encoder.layers." in key}
        for name in OURS if name != "one_pass"
    }  # fmt: skip
    return "image layers with a tail: " + ", ".join(f"{name} {len(found)}" for name, found in layers.items())
