"""Signals that ask a run to stop: it saves at the next step, and ends with an exit code of its own."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

# EX_TEMPFAIL of sysexits.h: not an error, try again. What a job script asks for before it queues the run again.
EXIT_STOPPED = 75

# A scheduler's notice, Ctrl-C, and the early warning that SLURM sends with `--signal`.
_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1")


class Stopped(Exception):
    """The run was asked to stop and has saved; naming it again goes on."""


class StopRequest:
    """Inside, signals set a flag instead of ending the process; the loop reads it between two steps.

    A second Ctrl-C ends the process at once. In a thread other than the main one signals stay as they are.

    Attributes:
        name: Of the first signal that came, such as ``SIGTERM``; None as long as none did.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: Any) -> None:
        if self.name is None:
            self.name = signal.Signals(number).name
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"\n{self.name}: saving after this step, then stopping\n".encode())
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
