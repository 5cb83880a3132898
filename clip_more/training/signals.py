"""Signals that ask a run to stop: it saves at the next step, and ends with an exit code of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# EX_TEMPFAIL of sysexits.h: not an error, try again. What a job script asks for before it queues the run again.
EXIT_STOPPED = 75

# A scheduler's notice, Ctrl-C, and the early warning that SLURM sends with `--signal`.
_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")


class Stopped(BaseException):
    """The run was asked to stop, and what it had done is saved; naming it again goes on.

    Like KeyboardInterrupt no Exception: it may come anywhere, and nobody on the way shall take it for their own fault.

    Attributes:
        agreed: All processes stop after the same step.
    """

    def __init__(self, text: str, agreed: bool = False) -> None:
        super().__init__(text)
        self.agreed = agreed


class StopRequest:
    """Inside, a signal raises `Stopped` (Ctrl-C `KeyboardInterrupt`, as ever), and while `deferred` only sets a flag.

    In a thread other than the main one signals stay as they are.

    Attributes:
        name: Of the first signal that came while deferred, such as ``SIGTERM``; None as long as none did.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._deferring = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Between two steps the loop reads `name`; a second Ctrl-C ends the run at once."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def _note(self, number: int, _: Any) -> None:
        name = signal.Signals(number).name
        if self._deferring and self.name is None:
            self.name = name
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"\n{name}: saving after this step, then stopping\n".encode())
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        elif not self._deferring:
            raise Stopped(f"{name}, with no step to save")
