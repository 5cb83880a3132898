"""Figures of docs/scaling.md that stand by themselves: of a step, of many photos and classes, and what is assumed."""

from __future__ import annotations

from collections.abc import Callable

from scaling_counts import B16, Clip, Matrix, weight_space
from scaling_machine import H100, H200, UPDATE_BYTES, all_reduce, reachable, sharded, traffic
from scaling_memory import trained
from scaling_plan import (
    CLASSES,
    COCO,
    JPEG,
    PHOTOS,
    PREPARED,
    PREPARED_BYTES,
    ROWS,
    TEST,
    TOKENS,
    Plan,
    table,
)  # fmt: skip
from scaling_step import EXACT, PLAIN, STOPPED, Method


def quantities(plan: Plan) -> str:
    """Figures of a step of MORE that do not depend on the number of photos."""
    rows = [(name, *(figure(plan, clip) for clip in COCO)) for name, figure in QUANTITIES.items()]
    return table(("MORE, 80 classes", *(clip.name for clip in COCO)), rows)


def _moved(clip: Clip, method: Method = STOPPED) -> float:
    return trained(method, COCO[clip])


def _matrices(clip: Clip) -> list[Matrix]:
    """All whose W + B A is made again backward."""
    towers = (clip.vision.stages(clip.vision.tokens), clip.text.stages(10))
    return [matrix for stages in towers for stage in stages for matrix in stage.matrices if not matrix.first]


def _again(clip: Clip) -> int:
    """Operations of W + B A in the backward pass alone."""
    return sum(matrix.tail_product for matrix in _matrices(clip))


def _sizes(clip: Clip) -> int:
    return sum(matrix.size for matrix in _matrices(clip))


def _window(plan: Plan, clip: Clip) -> float:
    """Seconds in which the full pass goes back: half of its products and those of the general pass, which does not."""
    return 1 / 2 * plan.step(STOPPED, COCO[clip]).products


def _sharded(plan: Plan, clip: Clip, which: int, scale: float, form: str) -> str:
    """Bytes (`which` 0) or seconds (1) of FSDP2 by method."""
    methods = (STOPPED, EXACT, PLAIN)
    moved = (sharded(4 * _moved(clip, method), H100, plan.assumed, 64, method)[which] for method in methods)
    first, *others = (format(scale * value, form) for value in moved)
    return f"{first} ({'; '.join(others)})"


def _stream(plan: Plan) -> float:
    return plan.assumed.memory_share * H100.memory_rate


QUANTITIES: dict[str, Callable[[Plan, Clip], str]] = {
    "trained, tail included, millions": lambda p, c: f"{_moved(c) / 1e6:.1f}",
    "of these the tail": lambda p, c: f"{(c.vision.tail_parameters() + c.text.tail_parameters()) / 1e6:.1f}",
    "forward pass of one photo, GFLOP (stock)": lambda p, c: f"{_forward(c):.1f}",
    "bytes it moves, forward and backward, nothing fused, GB": lambda p, c: f"{traffic(c) / 1e9:.2f}",
    "so the bf16 peak is reached to (H200)": lambda p, c: (
        f"{reachable(c, H100, p.assumed):.0%} ({reachable(c, H200, p.assumed):.0%})"
    ),
    "W + BA and its gradients, GFLOP a micro-batch": lambda p, c: (
        f"{sum(weight_space(t.stages(n)) for t, n in ((c.vision, c.vision.tokens), (c.text, 10))) / 1e9:.0f}"
    ),
    "of these W + BA made again backward": lambda p, c: f"{_again(c) / 1e9:.0f}",
    "its time in fp32, ms": lambda p, c: f"{1e3 * _again(c) / (p.assumed.fp32_share * H100.fp32):.1f}",
    "what that saves in bf16, GB (fp32)": lambda p, c: f"{2e-9 * _sizes(c):.2f} ({4e-9 * _sizes(c):.2f})",
    "the update at the memory's rate, ms (H200)": lambda p, c: (
        f"{1e3 * UPDATE_BYTES * _moved(c) / _stream(p):.1f} "
        f"({1e3 * UPDATE_BYTES * _moved(c) / (p.assumed.memory_share * H200.memory_rate):.1f})"
    ),
    "gradients, GB": lambda p, c: f"{4e-9 * _moved(c):.2f}",
    "DDP, 8 GPUs over NVLink, ms": lambda p, c: f"{1e3 * all_reduce(4 * _moved(c), H100, p.assumed, 8):.1f}",
    "DDP, 64 GPUs, a link of 400 Gb/s for each GPU, ms": lambda p, c: (
        f"{1e3 * all_reduce(4 * _moved(c), H100, p.assumed, 64):.1f}"
    ),
    "DDP, 64 GPUs, one such link a node, ms": lambda p, c: (
        f"{1e3 * all_reduce(4 * _moved(c), H100, p.assumed, 64, rails=1):.1f}"
    ),
    "time in which that can hide, ms": lambda p, c: f"{1e3 * _window(p, c):.0f}",
    "FSDP2, 64 GPUs, GB a step (gradient in both passes; plain)": lambda p, c: _sharded(p, c, 0, 1e-9, ".1f"),
    "FSDP2, 64 GPUs, ms (the same)": lambda p, c: _sharded(p, c, 1, 1e3, ".0f"),
    "checkpoint, GB (its writing, s)": lambda p, c: f"{12e-9 * _moved(c):.1f} ({12 * _moved(c) / p.assumed.disk:.1f})",
}


def _forward(clip: Clip) -> float:
    stages = clip.vision.stages(clip.vision.tokens, False)
    return sum(s.attention + sum(matrix.products for matrix in s.matrices) for s in stages) / 1e9


def many(plan: Plan) -> str:
    """What 9 million photos by 20,000 classes take beside the towers."""
    pairs, photos, scores, batch = PHOTOS * CLASSES, PHOTOS / 1e9, TEST * CLASSES / 1e9, COCO[B16].photos
    hours = PHOTOS / JPEG / 3600
    rows = [
        ("labels as a matrix of bool (of fp32)", "N C", f"{pairs / 1e9:,.0f} GB ({4e-9 * pairs:,.0f})"),
        ("labels as our lists, 3 positives a photo", "8 B a label, 2 x 4 B a photo", f"{(8 * 3 + 8) * photos:.2f} GB"),
        ("names and paths of the photos", "16 + 60 B, 2 x 4 B a photo", f"{(16 + 60 + 8) * photos:.2f} GB"),
        ("unknown labels with `unlisted: ignore`", "at most 2^31 - 1", f"{pairs / 1e9:,.0f} billion: refused"),
        ("classes that `unlisted: ignore` has room for", "(2^31 - 1) / N", f"{(2**31 - 1) // PHOTOS}"),
        ("`val_fraction`, `missing_labels`", "two matrices of bool", f"{2e-9 * pairs:,.0f} GB"),
        ("targets and known of a batch", "5 B a class and photo", f"{5e-6 * batch * CLASSES:.1f} MB"),
        ("its logits, and what is made of them", "fp32, eight tensors", f"{32e-6 * batch * CLASSES:.0f} MB"),
        ("`head_start: fit`", "20,000 photos by C, float64, eight arrays", f"{64e-9 * 2e4 * CLASSES:.0f} GB a process"),
        ("`head_start: none`", "every photo is opened once, by one core", f"{hours:.1f} h"),
        ("scores of 125,000 test photos", "fp32", f"{4 * scores:.0f} GB"),
        ("with targets and known, on every process", "9 B, twice while joined", f"{18 * scores:.0f} GB a process"),
        ("prepared photos, `raw` (`jpeg`)", "265 kB, a seventh", f"{PREPARED_BYTES * photos / 1e3:.1f} TB "
         f"({PREPARED_BYTES / 7 * photos / 1e3:.2f})"),
        ("preparing them, or an epoch from JPEG", "398.9 a second and core", f"{hours:.1f} core hours"),
    ]  # fmt: skip
    return table((f"N = {PHOTOS:,} photos, C = {CLASSES:,}", "how", "takes"), rows, left=2)


def assumptions(plan: Plan) -> str:
    """Rates and assumptions."""
    a, sheet, batches = plan.assumed, "data sheet", "; ".join(str(job.photos) for job in COCO.values())
    rates = "; ".join(f"{rate / 1e12:.1f}" for rate in (H100.half, H100.tf32, H100.fp32))
    stores = "; ".join(f"{gpu.memory / 1e9:.0f} GB, {gpu.memory_rate / 1e12} TB/s" for gpu in (H100, H200))
    shares = "; ".join(f"{share:.0%}" for share in (a.fp32_share, a.memory_share, a.network_share))
    rows = [
        ("bf16; TF32; fp32, 10^12 operations a second, dense, H100 and H200 SXM", rates, sheet),
        ("memory and its rate, H100; H200", stores, sheet),
        ("NVLink, each way; InfiniBand, a GPU", f"{H100.nvlink / 1e9:.0f} GB/s; {8e-9 * H100.network:.0f} Gb/s", sheet),
        ("share of the bf16 peak that the passes reach", f"{a.share:.0%} ({a.low:.0%} to {a.high:.0%})", "assumed"),
        ("that large products alone reach", f"{a.alone:.0%}", "assumed"),
        ("share of the fp32 or TF32 peak; of the memory's rate; of the network's", shares, "assumed"),
        ("memory that can be used; CPU cores a GPU", f"{a.usable:.0%}; {a.cores}", "assumed"),
        ("writing to the disk", f"{a.disk / 1e9:.0f} GB/s", "assumed"),
        ("a GPU hour", f"US$ {a.price:.2f}", "assumed"),
        ("photos of a micro-batch and GPU, B/16; L/14", batches, "chosen"),
        ("COCO: prompts; their tokens; rows of the token table", "80; 10; 100", "counted"),
        ("Open Images: the same", f"{CLASSES:,}; {TOKENS}; {ROWS:,}", "assumed"),
        ("photos a second and core: JPEG of 480 px; prepared", f"{JPEG}; {PREPARED:,.0f}", "measured on a CPU"),
    ]  # fmt: skip
    return table(("", "value", "is"), rows, left=3)
