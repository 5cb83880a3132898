"""What a training step takes, by method: operations of one micro-batch that is a whole step, on one GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

from scaling_counts import CONTEXT, Clip, Stage, Tower, forward, products, token_space, weight_space

# As clip_more.training.task has it; named again here, so that this program needs no torch.
LEAST_CLASSES = 32


@dataclass(frozen=True)
class Method:
    """A way to fine-tune.

    Attributes:
        name: In the tables.
        key: The recipe's key; empty for what stock libraries do.
        form: ``plain`` (one pass), ``more`` (ours), ``peft`` (stock LoRA over a trained base, two passes) or ``lora``
            (stock LoRA over a frozen base, one pass, prompts of 77 tokens).
        depth: Share of the blocks with a tail.
        fraction: Share of the photos, and of many prompts, that the general pass takes.
        image_tail: Whether the image tower has a tail.
        gradient: Whether the general pass has a gradient.
    """

    name: str
    key: str = ""
    form: str = "more"
    depth: float = 1.0
    fraction: float = 1.0
    image_tail: bool = True
    gradient: bool = True

    @property
    def two_passes(self) -> bool:
        """Whether there is a general pass."""
        return self.form in ("more", "peft")

    def of_prompts(self, prompts: int) -> float:
        """Share of the prompts that the general pass takes; of few it takes all."""
        return min(1.0, max(self.fraction, LEAST_CLASSES / prompts))


PLAIN = Method("plain, stock", form="plain")
STOPPED = Method("MORE at its defaults", "`tuning: more`", gradient=False)
EXACT = Method("gradient in both passes", "`discrepancy_gradient: both`")
# With the gradient in both passes, too, as they were measured.
UPPER = Method("the same, upper half", "`tail_depth: 0.5`", depth=1 / 2)
LAST = Method("the same, last third", "`tail_depth: 0.333`", depth=1 / 3)
TEXT_ONLY = Method("the same, tail on text alone", "`tail_towers: text`", image_tail=False)
ECONOMICAL = Method("the same, economical", "`discrepancy_fraction: 0.125`", fraction=1 / 8)
PEFT = Method("PEFT, two passes, stock", form="peft")
LORA = Method("LoRA, base frozen, stock", form="lora")
METHODS = (PLAIN, STOPPED, EXACT, UPPER, LAST, TEXT_ONLY, ECONOMICAL, PEFT, LORA)


@dataclass(frozen=True)
class Job:
    """What a step is of.

    Attributes:
        clip: The architecture.
        photos: Of a micro-batch, on one GPU.
        classes: C, one prompt each.
        tokens: Of the longest prompt.
        rows: Of the token table that the prompts use.
        text: ``step`` (all prompts in every step), ``chunks`` (the same in chunks), ``refresh`` (in every
            `refresh`-th step, in chunks), ``sampled`` (`sampled` classes a step, in chunks) or ``frozen``.
        chunk: Prompts of a chunk.
        refresh: Steps from one run of the text tower to the next.
        sampled: Classes of a step.
    """

    clip: Clip
    photos: int
    classes: int = 80
    tokens: int = 10
    rows: int = 100
    text: str = "step"
    chunk: int = 1024
    refresh: int = 10
    sampled: int = 2000

    @property
    def prompts(self) -> int:
        """That the text tower reads when it is run."""
        return self.sampled if self.text == "sampled" else self.classes

    @property
    def chunked(self) -> bool:
        """Whether they go through it in chunks."""
        return self.text in ("chunks", "refresh", "sampled")


@dataclass(frozen=True)
class Work:
    """Operations, of half precision unless it says otherwise; and numbers.

    Attributes:
        once: Of the pass with the tail, and of what both passes share.
        again: Of the general pass.
        tail: Of W + B A and the gradients of B and A; fp32.
        sums: How many numbers of W + B A are made, forward; once more backward.
        logits: Of the logits and their gradients; fp32.
    """

    once: float
    again: float = 0.0
    tail: float = 0.0
    sums: float = 0.0
    logits: float = 0.0

    @property
    def total(self) -> float:
        """Operations of every kind."""
        return self.once + self.again + self.tail + self.logits


def image_work(method: Method, job: Job) -> Work:
    """The image tower, forward and backward."""
    tower = job.clip.vision
    stages = tower.stages(tower.tokens, method.form == "more")
    seen = method.fraction * job.photos
    return _work(method, tower, stages, job.photos, seen) if method.image_tail else Work(job.photos * products(stages))


def text_work(method: Method, job: Job) -> Work:
    """The text tower, forward and backward, on average over the steps; it is run on every GPU."""
    if job.text == "frozen":
        return Work(0)
    tower = job.clip.text
    stages = tower.stages(CONTEXT if method.form == "lora" else job.tokens, method.form == "more")
    # The economical mode draws classes where nothing else does.
    drawn = job.prompts * (method.of_prompts(job.prompts) if job.text in ("step", "chunks") else 1)
    work = _work(method, tower, stages, job.prompts, drawn, apart=job.chunked)
    if not job.chunked:
        return work
    # Each chunk makes its W + B A, and is run forward again, the general pass only where it has a gradient.
    chunks = -(-job.prompts // job.chunk)
    runs = 1 / job.refresh if job.text == "refresh" else 1.0
    return Work(
        once=runs * work.once * 4 / 3,
        again=runs * work.again * (4 / 3 if method.gradient else 1),
        tail=runs * work.tail * 5 / 4 * chunks,
        sums=runs * work.sums * 3 / 2 * chunks,
    )


def work(method: Method, job: Job) -> Work:
    """A step, forward and backward."""
    image, text = image_work(method, job), text_work(method, job)
    logits = 6.0 * job.photos * job.clip.vision.joint * job.prompts
    share = 0.0
    if method.two_passes:
        share = method.fraction * (method.of_prompts(job.prompts) if job.text in ("step", "chunks") else 1)
    again = share * (logits if method.gradient else logits / 3)
    if job.text == "frozen":  # the features need no gradient
        logits *= 2 / 3
        again *= 2 / 3 if method.gradient else 1
    return Work(
        image.once + text.once, image.again + text.again, image.tail + text.tail, image.sums + text.sums,
        logits + again,
    )  # fmt: skip


def _work(
    method: Method, tower: Tower, stages: tuple[Stage, ...], full: float, general: float, apart: bool = False
) -> Work:
    """A tower: `full` rows with the tail, `general` without it; `apart`, the passes share nothing."""
    whole = products(stages)
    if method.form == "plain":
        return Work(full * whole)
    if method.form == "lora":
        if not tower.patch:  # nothing below the first block is trained: its queries, keys and values end the way back
            key, value, query, *rest = stages[1].matrices
            ends = (replace(matrix, first=True) for matrix in (key, value, query))
            stages = (stages[0], replace(stages[1], matrices=(*ends, *rest)), *stages[2:])
        return Work(full * (products(stages, frozen=True) + token_space(stages)))
    if method.form == "peft":
        return Work(full * (whole + token_space(stages)), full * whole)
    above = stages[tower.split(method.depth) :]
    seen = stages if apart else above
    again = products(seen) if method.gradient else forward(seen)
    sizes = sum(matrix.size for stage in above for matrix in stage.matrices)
    return Work(full * whole, general * again, weight_space(above), sizes)
