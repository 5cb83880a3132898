"""How long a step takes on a GPU, and what goes over the network; figures that nobody measured."""

from __future__ import annotations

from dataclasses import dataclass

from scaling_counts import B32, Clip, products
from scaling_memory import trained
from scaling_step import (
    ECONOMICAL,
    EXACT,
    LAST,
    LORA,
    METHODS,
    PEFT,
    PLAIN,
    STOPPED,
    TEXT_ONLY,
    UPPER,
    Job,
    Method,
    image_work,
    text_work,
    work,
)

# Rows of section step beside plain fine-tuning.
ROWS = {
    STOPPED: "stopped_vs_plain",
    EXACT: "exact_vs_plain",
    UPPER: "upper_half_vs_plain",
    LAST: "last4_vs_plain",
    TEXT_ONLY: "text_only_vs_plain",
    ECONOMICAL: "economical_vs_plain",
}
# Bytes a number: W read, the sum written, read, written in half precision; forward and backward; the gradient of W read
# for those of B and of A.
SUM_BYTES, GRADIENT_BYTES = 14, 8
# Bytes a parameter: weight, gradient and two moments read, three of them written; and clipping, which reads the
# gradient for its norm, reads it and writes it.
UPDATE_BYTES = 28 + 12


@dataclass(frozen=True)
class Gpu:
    """Peak rates of a data sheet, without sparsity: operations a second, bytes a second each way, bytes."""

    name: str
    half: float
    tf32: float
    fp32: float
    memory_rate: float
    memory: float
    nvlink: float = 450e9
    network: float = 50e9


H100 = Gpu("H100 SXM", 989.4e12, 494.7e12, 66.9e12, 3.35e12, 80e9)
H200 = Gpu("H200 SXM", 989.4e12, 494.7e12, 66.9e12, 4.8e12, 141e9)
A_NODE = 8


@dataclass(frozen=True)
class Assumptions:
    """Nobody measured these.

    Attributes:
        share: Of the half-precision peak that a tower's passes reach as a whole, norms and activations included.
        low: The least of its range.
        high: The most.
        alone: Of the half-precision peak that large products by themselves reach.
        fp32_share: Of the fp32 or TF32 peak.
        memory_share: Of the memory's rate.
        network_share: Of NVLink's and of the network's rate.
        usable: Of a GPU's memory.
        price: US dollars a GPU hour.
        cores: Of the CPU a GPU.
        disk: Bytes a second that a checkpoint is written at.
    """

    share: float = 0.2
    low: float = 0.15
    high: float = 0.4
    alone: float = 0.6
    fp32_share: float = 0.6
    memory_share: float = 0.7
    network_share: float = 0.7
    usable: float = 0.9
    price: float = 2.5
    cores: int = 14
    disk: float = 1e9


@dataclass(frozen=True)
class Seconds:
    """Of a step of one micro-batch: products in half precision, fp32 work of the tail, other, and network exposed."""

    products: float
    tail: float
    logits: float
    update: float
    network: float

    @property
    def total(self) -> float:
        """A step."""
        return self.products + self.tail + self.logits + self.update + self.network


def seconds(
    method: Method,
    job: Job,
    gpu: Gpu,
    assumed: Assumptions,
    *,
    gpus: int = 1,
    overhead: float = 1.0,
    share: float | None = None,
    tf32: bool = False,
) -> Seconds:
    """A step.

    Args:
        method: What is trained.
        job: On what.
        gpu: Peak rates.
        assumed: Shares of them.
        gpus: How many average their gradients.
        overhead: Measured over counted time beside plain fine-tuning.
        share: Of the half-precision peak, where not as assumed.
        tf32: Whether fp32 products are taken in TF32.
    """
    share = assumed.share if share is None else share
    whole = work(method, job)
    rate = assumed.fp32_share * (gpu.tf32 if tf32 else gpu.fp32)
    stream = assumed.memory_share * gpu.memory_rate
    # W + B A is made forward and backward, and the gradients of B and A read that of W.
    sums = whole.sums * (2 * SUM_BYTES + GRADIENT_BYTES) / stream
    products = overhead * (whole.once + whole.again) / (share * gpu.half)
    # Where both passes go back the general one is first: gradients are whole, and sent, while the full one goes back.
    window = 2 / 3 * image_work(method, job).once / (share * gpu.half)
    sent = all_reduce(4 * trained(method, job), gpu, assumed, gpus)
    return Seconds(
        products=products,
        tail=whole.tail / rate + sums,
        logits=whole.logits / rate,
        update=UPDATE_BYTES * trained(method, job) / stream,
        network=max(0.0, sent - window),
    )


def traffic(clip: Clip) -> float:
    """Bytes that norms, casts, activations, sums and the products' own reading and writing move for one photo and pass.

    An estimate for stock modules under autocast, nothing fused: forward 88 D + 18 M a token and block, backward twice
    that.
    """
    tower = clip.vision
    return 3.0 * tower.tokens * tower.layers * (88 * tower.width + 18 * tower.mlp)


def reachable(clip: Clip, gpu: Gpu, assumed: Assumptions) -> float:
    """The share of the half-precision peak that `traffic` leaves to a plain pass."""
    operations = products(clip.vision.stages(clip.vision.tokens, False))
    ideal = operations / gpu.half
    return ideal / (ideal / assumed.alone + traffic(clip) / (assumed.memory_share * gpu.memory_rate))


def all_reduce(size: float, gpu: Gpu, assumed: Assumptions, gpus: int, rails: int = A_NODE) -> float:
    """Seconds in which `gpus` GPUs average `size` bytes, in rings; of several nodes through `rails` links a node."""
    if gpus == 1:
        return 0.0
    rate = gpu.nvlink if gpus <= A_NODE else min(gpu.nvlink, rails * gpu.network)
    return 2 * (gpus - 1) / gpus * size / (assumed.network_share * rate)


def sharded(size: float, gpu: Gpu, assumed: Assumptions, gpus: int, method: Method) -> tuple[float, float]:
    """Bytes that FSDP2 moves a GPU and step, and their seconds.

    A pass gathers the weights, one with a gradient gathers them again on its way back and scatters the gradients.
    """
    general = 0 if not method.two_passes else 3 if method.gradient else 1
    moved = (3 + general) * (gpus - 1) / gpus * size
    rate = gpu.nvlink if gpus <= A_NODE else min(gpu.nvlink, A_NODE * gpu.network)
    return moved, moved / (assumed.network_share * rate)


def overheads(measured: dict[str, float]) -> dict[Method, float]:
    """Measured over counted time beside plain fine-tuning, on the shape of the benchmark, by method."""
    counted = counted_ratios()
    return {method: ratio / counted[method] for method, ratio in measured_ratios(measured).items()}


def counted_ratios() -> dict[Method, float]:
    """Operations beside those of plain fine-tuning, on the shape of the benchmark."""
    job = Job(B32, photos=64)
    return {method: work(method, job).total / work(PLAIN, job).total for method in METHODS}


def measured_ratios(measured: dict[str, float]) -> dict[Method, float]:
    """Rows of the benchmark as ratios to plain fine-tuning."""
    found = {PLAIN: 1.0} | {method: measured[row] for method, row in ROWS.items()}
    if "exact_vs_lora" in measured:
        found[LORA] = measured["exact_vs_plain"] / measured["exact_vs_lora"]
    return found | {PEFT: measured["exact_vs_plain"] / measured["exact_vs_peft"]}


def text_seconds(method: Method, job: Job, gpu: Gpu, assumed: Assumptions, overhead: float = 1.0) -> float:
    """What the text tower takes of a step, on average; `overhead` as in `seconds`."""
    text = text_work(method, job)
    stream = assumed.memory_share * gpu.memory_rate
    sums = text.sums * (2 * SUM_BYTES + GRADIENT_BYTES) / stream
    products = overhead * (text.once + text.again) / (assumed.share * gpu.half)
    return products + text.tail / (assumed.fp32_share * gpu.fp32) + sums
