"""The tables of docs/scaling.md, as Markdown; figures that do not depend on the photos are in scaling_lists.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from scaling_lists import assumptions, many, quantities
from scaling_machine import A_NODE, H100, H200, counted_ratios, measured_ratios, overheads, text_seconds
from scaling_memory import memory
from scaling_plan import (
    COCO,
    COCO_EPOCHS,
    COCO_PHOTOS,
    JPEG,
    OPEN,
    PHOTOS,
    PREPARED,
    PREPARED_BYTES,
    WORKERS,
    Plan,
    both,
    table,
)  # fmt: skip
from scaling_step import ECONOMICAL, EXACT, LAST, LORA, METHODS, PLAIN, STOPPED, UPPER, Job


def expected(plan: Plan) -> str:
    """What COCO's 80 classes take."""
    rows = []
    for clip, job in COCO.items():
        for method in METHODS:
            low, high = (plan.rate(method, job, share=share) for share in (plan.assumed.low, plan.assumed.high))
            eight, many = plan.rate(method, job, A_NODE), plan.rate(method, job, 64)
            hours = COCO_EPOCHS * COCO_PHOTOS / eight / 3600 * A_NODE
            rows.append(
                (clip.name, method.name, method.key, f"{low:,.0f} to {high:,.0f}", f"{eight:,.0f}", f"{many:,.0f}",
                 f"{memory(method, job).total / 1e9:.0f}", f"{hours:.2f}", f"{plan.assumed.price * hours:.2f}")
            )  # fmt: skip
    head = ("CLIP", "method", "key", "photos/s, 1 GPU", "8 GPUs", "64 GPUs", "GB a GPU", "GPU h, 5 epochs", "US$")
    return table(head, rows, left=3)


def open_images(plan: Plan) -> str:
    """What an epoch of 9 million photos by 20,000 classes takes with the text tower frozen."""
    rows = []
    for method in (PLAIN, STOPPED, EXACT, UPPER, LAST, ECONOMICAL, LORA):
        rates = [[plan.rate(method, job, gpus) for job in OPEN.values()] for gpus in (1, A_NODE, 64)]
        minutes = (both((PHOTOS / rate / 60 for rate in of_gpus), ".1f") for of_gpus in rates)
        hours = [64 * PHOTOS / rate / 3600 for rate in rates[-1]]
        cost = both((plan.assumed.price * h for h in hours), ".1f")
        kept = both((memory(method, job).total / 1e9 for job in OPEN.values()), ".0f")
        rows.append((method.name, both(rates[0], ",.0f"), *minutes, both(hours, ".1f"), cost, kept))
    head = ("B/16; L/14", "photos/s, 1 GPU", "min, 1 GPU", "8 GPUs", "64 GPUs", "GPU h", "US$", "GB a GPU")
    return table(head, rows)


TEXTS = (
    ("step", "every step, all prompts at once", ""),
    ("chunks", "every step, in chunks", "`text_chunk: 1024`"),
    ("refresh", "every tenth step, in chunks", "`text_refresh: 10`"),
    ("sampled", "2,000 classes a step, in chunks", "`text_classes: 2000`"),
    ("frozen", "never", "`text_tower: freeze`, `tail_towers: vision`"),
)


def texts(plan: Plan) -> str:
    """What the text tower takes of a step of MORE over 20,000 classes."""
    rows = []
    overhead = overheads(plan.measured).get(STOPPED, 1.0)
    for text, name, key in TEXTS:
        jobs = [replace(job, text=text) for job in OPEN.values()]
        read = both((1e3 * text_seconds(STOPPED, job, H100, plan.assumed, overhead) for job in jobs), ",.0f")
        whole = both((1e3 * plan.step(STOPPED, job).total for job in jobs), ",.0f")
        hours = [64 * PHOTOS / plan.rate(STOPPED, job, 64) / 3600 for job in jobs]
        kept = "; ".join(_gigabytes(memory(STOPPED, job).total, plan) for job in jobs)
        cost = both((plan.assumed.price * h for h in hours), ",.0f")
        rows.append((name, key, read, whole, both(hours, ",.0f"), cost, kept))
    head = ("text tower is run", "key", "its ms a step, B/16; L/14", "step, ms", "GPU h", "US$", "GB a GPU")
    return table(head, rows, left=2)


def _gigabytes(size: float, plan: Plan) -> str:
    """GB, and what it is too much for."""
    lacking = [gpu.name for gpu in (H100, H200) if size > plan.assumed.usable * gpu.memory]
    return f"{size / 1e9:.0f}" + (f" (too much for an {lacking[-1].split()[0]})" if lacking else "")


def memories(plan: Plan) -> str:
    """What fills a GPU's memory, and how many photos fit."""
    rows = []
    for clip, job in COCO.items():
        for method in (PLAIN, STOPPED, EXACT, LORA):
            kept = memory(method, job)
            less = memory(method, job, checkpointing=True)
            fits = [f"{m.fits(plan.assumed.usable * gpu.memory):,}" for m in (kept, less) for gpu in (H100, H200)]
            parts = (f"{part / 1e9:.1f}" for part in (kept.state, kept.copies, kept.fixed))
            rows.append(
                (clip.name, method.name, *parts, f"{kept.a_photo / 1e6:.0f}", f"{less.a_photo / 1e6:.0f}", *fits)
            )
    head = (
        "CLIP", "method", "state, GB", "bf16 copies", "text, W + BA", "MB a photo", "checkpointed",
        "fit 80 GB", "141 GB", "80, checkp.", "141, checkp.",
    )  # fmt: skip
    return table(head, rows, left=2)


def decoding(plan: Plan) -> str:
    """How many cores of the CPU a GPU wants, and what is read from the disk."""
    rows = []
    for method in (PLAIN, STOPPED, EXACT, LAST, ECONOMICAL, LORA):
        rates = [plan.rate(method, job) for job in COCO.values()]
        read = [plan.rate(method, job, 64) * PREPARED_BYTES / 1e9 for job in COCO.values()]
        cores = (both((rate / core for rate in rates), ".1f") for core in (JPEG, PREPARED))
        speeds = (both((min(1, n * JPEG / rate) for rate in rates), ".0%") for n in (WORKERS, plan.assumed.cores))
        rows.append((method.name, both(rates, ",.0f"), *cores, *speeds, both(read, ".0f")))
    head = (
        "B/16; L/14", "photos/s a GPU", "cores a GPU, JPEG", "prepared", f"speed from JPEG, `workers: {WORKERS}`",
        f"`workers: {plan.assumed.cores}`", "64 GPUs read, prepared, GB/s",
    )  # fmt: skip
    return table(head, rows)


def precision(plan: Plan) -> str:
    """What share of a step of MORE the fp32 part of W + B A is."""
    rows = []
    for clip in COCO:
        for name, tf32 in (("fp32 (PyTorch's default)", False), ("TF32", True)):
            shares = []
            for photos in (16, 32, 64, 128, 256):
                step = plan.step(STOPPED, Job(clip, photos), tf32=tf32)
                shares.append(f"{step.tail / step.total:.1%}")
            rows.append((clip.name, name, *shares))
    return table(("CLIP", "rate of B A", *(f"{n} photos" for n in (16, 32, 64, 128, 256))), rows, left=2)


def ratios(plan: Plan) -> str:
    """Counted beside measured."""
    counted, found = counted_ratios(), measured_ratios(plan.measured)
    rows = []
    for method in METHODS:
        seen = f"{found[method]:.2f}" if method in found else "not measured"
        overhead = overheads(plan.measured).get(method, 1.0)
        rows.append((method.name, f"{counted[method]:.2f}", seen, f"{overhead:.2f}"))
    measured = f"measured ({plan.note})" if plan.note else "measured"
    return table(("beside plain fine-tuning", "counted", measured, "overhead"), rows)


TABLES: dict[str, Callable[[Plan], str]] = {
    "expected": expected,
    "open_images": open_images,
    "texts": texts,
    "memories": memories,
    "precision": precision,
    "quantities": quantities,
    "decoding": decoding,
    "many": many,
    "ratios": ratios,
    "assumptions": assumptions,
}
