"""One trainer a run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from clip_more.lock import held, is_held

_LOCK = ".lock"


def alone(folder: Path) -> AbstractContextManager[None]:
    """Inside, no other trainer can take this run: two of them would write one folder in turns.

    Raises:
        ConfigError: If another process trains this run now.
    """
    return held(
        folder / _LOCK,
        lambda who: f"{folder} is being trained by {who}; wait for it, or name another run with --run NAME",
    )


def locked(folder: Path) -> bool:
    """Whether another process trains this run now; not for the process that trains it, as `is_held` says."""
    return is_held(folder / _LOCK)
