"""What a training step keeps on a GPU, counted; a bound that lies above the true peak."""

from __future__ import annotations

from dataclasses import dataclass

from scaling_counts import CONTEXT, Tower
from scaling_step import Job, Method

VOCABULARY = 49408
# Float tensors (N, C) that are there at once: targets, logits of both passes, terms of both losses and their gradients.
LOGIT_TENSORS = 8


def trained(method: Method, job: Job) -> float:
    """Numbers that an optimiser moves; stock ones have the whole token table."""
    clip = job.clip
    tail = _tail(method, job)
    if method.form == "lora":
        return tail
    rows = VOCABULARY if method.form in ("plain", "peft") else job.rows
    text = 0 if job.text == "frozen" else clip.text.parameters(rows)
    return clip.vision.parameters() + text + tail


def _tail(method: Method, job: Job) -> float:
    if method.form == "plain":
        return 0
    vision, text = job.clip.vision, job.clip.text
    image = vision.tail_parameters(vision.split(method.depth)) if method.image_tail else 0
    return image + (0 if job.text == "frozen" else text.tail_parameters(text.split(method.depth)))


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        state: Weights, gradients, two moments, and DDP's buckets where there are several GPUs.
        copies: Of the weights in half precision, which autocast keeps through a step.
        fixed: Activations that do not grow with the photos: the text tower's, and one W + B A.
        a_photo: Activations of both passes, and logits.
        total: Of all; the true peak is lower, as gradients come when activations go.
    """

    state: float
    copies: float
    fixed: float
    a_photo: float
    total: float

    def fits(self, room: float) -> int:
        """Photos of a micro-batch in so many bytes."""
        return int((room - self.state - self.copies - self.fixed) // self.a_photo)


def memory(method: Method, job: Job, gpus: int = 8, checkpointing: bool = False) -> Memory:
    """What a step keeps at most."""
    clip, moved = job.clip, trained(method, job)
    frozen = clip.parameters(VOCABULARY) + _tail(method, job) - moved
    state = 16 * moved + (4 * moved if gpus > 1 else 0) + 4 * max(frozen, 0)
    copies = 2 * sum(
        matrix.size
        for tower in (clip.vision, clip.text)
        for stage in tower.stages(tower.tokens if tower.patch else job.tokens)
        for matrix in stage.matrices
    )
    image = _kept(method, clip.vision, clip.vision.tokens, method.image_tail, checkpointing)
    a_photo = image[0] + method.fraction * image[1] + LOGIT_TENSORS * 4 * job.prompts
    fixed = 6.0 * clip.vision.width * clip.vision.mlp
    if job.chunked:
        prompts = min(job.chunk, job.prompts)
        fixed += prompts * sum(clip.text.kept(job.tokens))
    elif job.text == "step":
        tokens = CONTEXT if method.form == "lora" else job.tokens
        read = _kept(method, clip.text, tokens, True, checkpointing)
        fixed += job.prompts * (read[0] + method.of_prompts(job.prompts) * read[1])
    return Memory(state, copies, fixed, a_photo, state + copies + fixed + job.photos * a_photo)


def _kept(method: Method, tower: Tower, tokens: int, tailed: bool, checkpointing: bool) -> tuple[float, float]:
    """Bytes a row of the whole pass, and of the general one."""
    blocks = tower.kept(tokens, readout=method.form == "more")
    once = 0
    if checkpointing:  # the inputs of all blocks, and one block made again
        once = blocks[0]
        blocks = (4 * tower.width * tokens,) * tower.layers
    split = tower.split(method.depth) if method.form == "more" else 0
    general = sum(blocks[max(split - 1, 0) :]) if method.two_passes and method.gradient and tailed else 0
    return once + sum(blocks), general
