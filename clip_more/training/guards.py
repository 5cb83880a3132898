"""What ends a run, or a step, before it does harm; and how all processes end for the same reason."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from accelerate.utils import broadcast_object_list
from torch.distributed.tensor import DTensor

from clip_more.training.signals import Stopped

if TYPE_CHECKING:
    from accelerate import Accelerator

_FAILED = "clip_more/failed"
_PATIENCE = 5.0  # seconds


class TrainingError(RuntimeError):
    """Training cannot go on; the message says since which step, and what is left."""


def step_losses(
    accelerator: Accelerator, window: list[dict[str, Any]], norm: Any, stop: bool
) -> tuple[dict[str, float], bool]:
    """Losses of an optimiser step, and whether any process was asked to stop.

    One exchange between processes, and the one time that the host waits for the device, in a step whose loss neither
    draws nor masks classes.

    Args:
        accelerator: Of the run.
        window: What the task returned for each micro-batch of the step.
        norm: 2-norm of the gradient, the same on all processes; a number or a tensor, sharded or not.
        stop: Whether this process was asked to stop.

    Returns:
        loss, base, discrepancy (where it was taken) and gradient_norm, means over micro-batches and processes; and
        whether all shall stop.
    """
    names = [name for name in ("loss", "base", "discrepancy") if window[-1][name] is not None]
    means = [torch.stack([losses[name].detach().float() for losses in window]).mean() for name in names]
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    others = [torch.as_tensor(value, dtype=torch.float32, device=means[0].device) for value in (norm, float(stop))]
    values = torch.stack([*means, *others])
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values, reduction="mean")
    *losses, stopping = values.tolist()
    return dict(zip([*names, "gradient_norm"], losses, strict=True)), stopping > 0


def not_finite(values: dict[str, float], *, scaled: bool) -> str | None:
    """The values of a step in words where one is not finite; None where all are.

    Args:
        values: From `step_losses`.
        scaled: Under fp16 an infinite gradient is the scaler's business: it skips the step and lowers its scale.
    """
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if not broken or (scaled and broken == ["gradient_norm"]):
        return None
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def require_scale(accelerator: Accelerator, step: int) -> None:
    """Under fp16 the scaler halves its scale and skips the step as long as gradients are not finite; not for ever.

    Raises:
        TrainingError: If the scale has fallen below 1.
    """
    if accelerator.optimizer_step_was_skipped and accelerator.scaler.get_scale() < 1:
        raise TrainingError(
            f"gradients are not finite at step {step}, at any scale of fp16; take mixed_precision: bf16, or a lower lr"
        )


def on_main(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Do something on the main process alone; if it fails there, all processes fail for that reason.

    Raises:
        TrainingError: On the other processes; the main one raises what `action` did.
    """
    failure: list[str | None] = [None]
    try:
        if accelerator.is_main_process:
            action()
    except (Exception, Stopped) as error:
        failure = [str(error)]
        raise
    finally:
        if accelerator.num_processes > 1:
            broadcast_object_list(failure)
    if failure[0] is not None:
        raise TrainingError(f"the main process failed: {failure[0]}")


@contextmanager
def shared_failure(accelerator: Accelerator) -> Iterator[None]:
    """What ends the body on one process is told to the others, which end too, and say why.

    A process that dies without a word (killed, out of memory) breaks the others' connections: they say that.

    Raises:
        TrainingError: On a process that ends because of another.
    """
    if accelerator.num_processes == 1:
        yield
        return
    others = _Others(accelerator)
    others.start()
    try:
        yield
    except (Exception, Stopped) as error:
        if isinstance(error, Stopped):
            if not error.agreed:
                others.tell(f"process {accelerator.process_index}, which was asked to stop: {error}")
            raise
        communication = _is_communication(error)
        others.heard.wait(_PATIENCE if communication else 0)
        if others.reason is not None:
            raise TrainingError(f"ended because of {others.reason}") from error
        if communication:
            raise TrainingError(
                "another process is gone without a word: killed, out of memory, or its machine is down. The same "
                "command goes on from the last checkpoint"
            ) from error
        others.tell(f"process {accelerator.process_index}: {error}")
        raise
    finally:
        others.done.set()


class _Others(threading.Thread):
    """Listens for the reason that another process leaves in the process group's store, and leaves this one's there.

    A process that waits for a dead one hears of it only when its connection breaks, and then the store may be gone,
    if it lived in the dead one: so a thread looks meanwhile.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        super().__init__(daemon=True)
        self.reason: str | None = None
        self.heard, self.done = threading.Event(), threading.Event()
        self._rank, self._count = accelerator.process_index, accelerator.num_processes
        self._store: Any = torch.distributed.distributed_c10d._get_default_store()

    def run(self) -> None:
        with suppress(Exception):  # the store lived in a process that is gone
            while not self.done.wait(1.0):
                if self._store.check([_FAILED]):
                    self.reason = self._store.get(_FAILED).decode()
                    self._store.set(f"{_FAILED}/{self._rank}", "heard")
                    self.heard.set()
                    return

    def tell(self, reason: str) -> None:
        """Leave a reason, and stay until all have heard it: the store may live in this very process."""
        self.done.set()
        with suppress(Exception):
            self._store.set(_FAILED, reason)
            others = [f"{_FAILED}/{rank}" for rank in range(self._count) if rank != self._rank]
            self._store.wait(others, timedelta(seconds=_PATIENCE))


def _is_communication(error: Exception) -> bool:
    """Whether the error is about another process rather than this one."""
    if isinstance(error, OSError):  # a download's, say
        return False
    text = f"{type(error).__name__} {error}"
    words = ("Connection closed by peer", "Connection reset", "gloo", "NCCL", "DistBackendError", "DistNetworkError")
    return any(word in text for word in words)
