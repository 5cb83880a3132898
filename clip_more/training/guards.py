"""What ends a run, or a step, before it does harm; and how all processes end for the same reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from accelerate.utils import broadcast_object_list

from clip_more.training.signals import Stopped

if TYPE_CHECKING:
    from accelerate import Accelerator

_FAILED = "clip_more/failed"
_PATIENCE = timedelta(seconds=5)


class TrainingError(RuntimeError):
    """Training cannot go on; the message says since which step, and what is left."""


def step_losses(
    accelerator: Accelerator, window: list[dict[str, Any]], norm: float, stop: bool
) -> tuple[dict[str, float], bool]:
    """Losses of an optimiser step, and whether any process was asked to stop; one exchange between processes.

    Args:
        accelerator: Of the run.
        window: What the task returned for each micro-batch of the step.
        norm: 2-norm of the gradient, the same on all processes.
        stop: Whether this process was asked to stop.

    Returns:
        loss, base, discrepancy (where it was taken) and gradient_norm, means over micro-batches and processes; and
        whether all shall stop.
    """
    names = [name for name in ("loss", "base", "discrepancy") if window[-1][name] is not None]
    means = [torch.stack([losses[name].detach().float() for losses in window]).mean() for name in names]
    values = torch.stack([*means, torch.tensor(float(stop), device=means[0].device)])
    if accelerator.num_processes > 1:
        values = accelerator.reduce(values, reduction="mean")
    *losses, stopping = values.tolist()
    return dict(zip(names, losses, strict=True)) | {"gradient_norm": norm}, stopping > 0


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
    try:
        yield
    except (Exception, Stopped) as error:
        if accelerator.num_processes == 1:
            raise
        if isinstance(error, Stopped):
            if not error.agreed:
                _tell(f"process {accelerator.process_index}, which was asked to stop: {error}")
            raise
        reason = _told(wait=_is_communication(error))
        if reason is not None:
            raise TrainingError(f"ended because of {reason}") from error
        if _is_communication(error):
            raise TrainingError(
                "another process is gone without a word: killed, out of memory, or its machine is down. The same "
                "command goes on from the last checkpoint"
            ) from error
        _tell(f"process {accelerator.process_index}: {error}")
        raise


def _tell(reason: str) -> None:
    """Leave the reason in the store, break the connections that others wait on, and let them read it first.

    The store may live in this very process.
    """
    try:
        store, rank, count = _store(), torch.distributed.get_rank(), torch.distributed.get_world_size()
        store.set(_FAILED, reason)
        torch.distributed.destroy_process_group()
        store.wait([f"{_FAILED}/{other}" for other in range(count) if other != rank], _PATIENCE)
    except Exception:  # the store lived in a process that is gone, or another did not ask in time
        return


def _told(wait: bool) -> str | None:
    try:
        store = _store()
        if wait:
            store.wait([_FAILED], _PATIENCE)
        elif not store.check([_FAILED]):
            return None
        reason = store.get(_FAILED).decode()
        store.set(f"{_FAILED}/{torch.distributed.get_rank()}", "read")
        return reason
    except Exception:  # nothing told in time, or the store lived in a process that is gone
        return None


def _store() -> Any:
    return torch.distributed.distributed_c10d._get_default_store()


def _is_communication(error: Exception) -> bool:
    """Whether the error is about another process rather than this one."""
    if isinstance(error, OSError):  # a download's, say
        return False
    text = f"{type(error).__name__} {error}"
    words = ("Connection closed by peer", "Connection reset", "gloo", "NCCL", "DistBackendError", "DistNetworkError")
    return any(word in text for word in words)
