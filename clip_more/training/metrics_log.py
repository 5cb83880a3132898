"""metrics.jsonl, as the trainer writes it."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

_FILE = "metrics.jsonl"


class MetricsLog:
    """metrics.jsonl: one JSON object an event, appended.

    Args:
        folder: Of the run.
        active: Whether this process writes; only the one does that has claimed the folder.
    """

    def __init__(self, folder: Path, active: bool = False) -> None:
        self.path = folder / _FILE
        self.active = active

    def write(self, event: str, **values: Any) -> None:
        """Append one event with the time of day, and the CPU seconds that this process has taken."""
        if not self.active:
            return
        clocks = {"time": round(time.time(), 3), "cpu": round(time.process_time(), 3)}
        line = json.dumps({"event": event, **clocks, **values}, allow_nan=False)
        try:
            with self.path.open("a+b") as file:
                file.seek(max(0, file.tell() - 1))
                cut = file.read() not in (b"", b"\n")  # a kill may have left half a line
                file.write(("\n" * cut + line + "\n").encode())
        except OSError as error:
            raise OSError(
                error.errno, f"{self.path} could not be written: {error.strerror}. The last checkpoint is untouched"
            ) from error

    def write_if_possible(self, event: str, **values: Any) -> None:
        """The same where a full disk, say, is no reason to fail: another failure is being reported."""
        with suppress(OSError):
            self.write(event, **values)

    def offset(self) -> int:
        """Bytes written so far, on disk: what stands behind them was not yet, when this was asked."""
        with self.path.open("a+b") as file:
            os.fsync(file.fileno())
            return file.tell()


def last_photos_a_step(folder: Path) -> int | None:
    """Photos of a step when the run was last started, whatever else became of its log; None where it does not say."""
    lines = (folder / _FILE).read_bytes().splitlines() if (folder / _FILE).is_file() else []
    for line in reversed(lines):
        if line.startswith(b'{"event": "start"'):
            with suppress(ValueError, KeyError):
                return json.loads(line)["photos_a_step"]
    return None
