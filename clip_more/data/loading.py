"""Photos from data workers: processes that end with the run, never before it, and that say what they were reading."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from clip_more.data.opening import PhotoError
from clip_more.data.photos import Photos

# Seconds between looks at whether the trainer is still there.
_WATCH = 2.0
_PASSED_ON = re.compile(
    rf"^Caught PhotoError in .*{re.escape(PhotoError.__module__)}\.PhotoError: (.*?)\s*$", re.DOTALL
)
_TIMED_OUT = re.compile(r"DataLoader timed out after ([\d.]+) seconds")
_DIED = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? (\d+)[^)]*\) (?:is (killed by signal: [\w ]+)|exited unexpectedly)"
)


def photo_loader(
    photos: Photos,
    *,
    workers: int,
    timeout: float = 0.0,
    batch_size: int | None = None,
    batch_sampler: Iterable[list[Any]] | None = None,
    pin_memory: bool = False,
) -> DataLoader:
    """A `DataLoader`, to be read through `batches`.

    Args:
        photos: What it loads.
        workers: Processes that load; 0 for this one. Ctrl-C and SIGUSR1 do not end them, nor does a SIGTERM that
            is not the trainer's own: a scheduler signals every process of a job, and the run still has to save.
        timeout: Seconds to wait for a batch from workers; 0 for ever.
        batch_size: For all photos in their order, the last batch uneven.
        batch_sampler: Or the batches themselves, as of a `PhotoStream`.
        pin_memory: Copy batches to pinned memory, for a GPU.
    """
    batching: dict[str, Any] = {"batch_size": batch_size} if batch_sampler is None else {"batch_sampler": batch_sampler}
    return DataLoader(
        photos,
        num_workers=workers,
        timeout=timeout if workers else 0,
        pin_memory=pin_memory,
        worker_init_fn=_in_worker,
        multiprocessing_context=_context(workers),
        # Workers draw their seeds from it, and leave the stream that dropout draws from alone.
        generator=torch.Generator(),
        **batching,
    )


def batches(loader: Iterable[dict[str, Any]], photos: Photos) -> Iterator[dict[str, Any]]:
    """The batches of a loader of `photos`, from `photo_loader` or prepared by Accelerate.

    Raises:
        PhotoError: No batch came in time, or a worker died; names what the workers were reading. They are ended then,
            however stuck, so that this process can end too. Or a photo cannot be read.
    """
    iterator: Iterator[dict[str, Any]] | None = None
    with _deaths.kept_back():
        while True:
            sentence = None
            try:
                with _deaths.told():
                    iterator = iterator or iter(loader)
                    batch = next(iterator, None)
            except Exception as error:
                sentence = _explained(str(error), photos.in_hand())
                # Before the error goes, and the iterator with it: torch would wait seconds for each to end by itself.
                _end_workers(photos)
                if sentence is None:
                    raise
            if sentence is not None:
                # Here and not above, where the traceback would keep the iterator alive.
                del iterator
                raise PhotoError(sentence)
            if batch is None:
                return
            yield batch


def _explained(text: str, in_hand: dict[int, str | None]) -> str | None:
    """What a `DataLoader` says about its workers as a sentence about photos; None if it is about something else."""
    if passed_on := _PASSED_ON.search(text):
        return passed_on[1]
    if timed_out := _TIMED_OUT.search(text):
        names = [name for pid, name in in_hand.items() if name is not None and pid != os.getpid()]
        reading = f"the data workers are stuck at {', '.join(names)}" if names else "no data worker has a photo open"
        return (
            f"no batch came for {float(timed_out[1]):g} s; {reading}. See whether the disk or network share "
            "answers; if it is only slow, raise worker_timeout (0 waits for ever)"
        )
    if died := _DIED.search(text):
        name = in_hand.get(int(died[1]))
        reading = f" while it read {name}" if name else ""
        return f"data worker {died[1]} died{reading} ({died[2] or 'exited unexpectedly'}). {_remedy(text, name)}"
    return None


def _remedy(text: str, name: str | None) -> str:
    if "Bus error" in text:
        return "Shared memory is full, it seems: enlarge /dev/shm, or set fewer workers"
    if "Killed" in text or name is None:
        return "Memory ran out, perhaps: set fewer workers"
    return "If it happens again, replace the photo: it may crash its decoder"


def _end_workers(photos: Photos) -> None:
    """SIGKILL, as a worker whose disk is dead hears nothing else."""
    pids = photos.in_hand()
    workers = [child for child in multiprocessing.active_children() if child.pid in pids]
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join(timeout=5)


# What a scheduler or a terminal sends to every process of a job.
_SIGNALS = {getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)}


if hasattr(signal, "sigtimedwait"):

    class _Worker(multiprocessing.context.ForkProcess):
        """A data worker, born with signals blocked: blocking them itself, it would be open for its first moments."""

        def start(self) -> None:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                super().start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)

    class _ForkContext(multiprocessing.context.ForkContext):
        Process = _Worker


def _context(workers: int) -> Any:
    """How a `DataLoader` starts its workers; None for Python's own way."""
    forks = hasattr(signal, "sigtimedwait") and multiprocessing.get_start_method() == "fork"
    return _ForkContext() if workers and forks else None


class _Deaths:
    """Workers' deaths, told where photos are asked for.

    torch raises from a signal handler, in whichever line the training is just then: nobody there knows of photos.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._asked = False
        self._untold = False
        self._torchs: Any = None

    @contextlib.contextmanager
    def kept_back(self) -> Iterator[None]:
        """Nothing is raised inside but in `told`; validation may nest in training."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0 and self._torchs is not None:
                if threading.current_thread() is threading.main_thread():
                    signal.signal(signal.SIGCHLD, self._torchs)
                self._torchs, self._untold = None, False

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """Deaths are raised inside, those of before too."""
        self._asked = True
        try:
            if self._untold:
                self._untold = False
                self._torchs(signal.SIGCHLD, None)
            yield
        finally:
            self._asked = False
            self._take_over()

    def _take_over(self) -> None:
        """torch sets its handler when the first workers start."""
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
            return
        handler = signal.getsignal(signal.SIGCHLD)
        if callable(handler) and handler != self._note:
            self._torchs = handler
            signal.signal(signal.SIGCHLD, self._note)

    def _note(self, number: int, frame: Any) -> None:
        if self._asked:
            self._torchs(number, frame)
        else:
            self._untold = True


_deaths = _Deaths()


def _in_worker(_: int) -> None:
    """Signals of a data worker, from the moment it starts."""
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):
        # Where the trainer forked this process all are blocked; where a server did, none.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS - {signal.SIGTERM})
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_trainer, args=(os.getppid(),), daemon=True).start()


def _obey_trainer(parent: int) -> None:
    """End this worker when the trainer says so or is gone, also where its main thread waits for a disk.

    Args:
        parent: Process id of the worker's parent when it started: the trainer, or Python's fork server.
    """
    # Multiprocessing knows who asked for this process, whoever forked it.
    process = multiprocessing.parent_process()
    trainer = parent if process is None else process.pid
    while True:
        received = signal.sigtimedwait({signal.SIGTERM}, _WATCH)
        if os.getppid() != parent or (received is not None and received.si_pid == trainer):
            os._exit(0)
