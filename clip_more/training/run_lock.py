"""One trainer a run: a lock that goes with its process, whatever ends it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from clip_more.config import ConfigError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two trainers apart there
    fcntl = None  # type: ignore[assignment]

_LOCK = ".lock"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other trainer can take this run: two of them would write one folder in turns.

    The lock is the process's own (data workers do not inherit it) and goes with it, whatever ends it.

    Raises:
        ConfigError: If another process trains this run now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("a+", encoding="utf-8") as file:
        taken = _take(file)
        if not taken:  # `clip-more runs` may have looked just now, which takes it for an instant
            time.sleep(0.2)
            taken = _take(file)
        if not (taken and _is_still(folder / _LOCK, file)):
            file.seek(0)
            who = file.read().strip() or "another process"
            raise ConfigError(f"{folder} is being trained by {who}; wait for it, or name another run with --run NAME")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        try:
            yield
        finally:
            (folder / _LOCK).unlink(missing_ok=True)


def locked(folder: Path) -> bool:
    """Whether another process trains this run now, as far as this machine can tell.

    Not for the process that trains it: closing the file here would let its own lock go.
    """
    try:
        with (folder / _LOCK).open("r+", encoding="utf-8") as file:
            return not _take(file)
    except (OSError, ConfigError):
        return False


def _take(file: IO[str]) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:
        raise ConfigError(
            f"{file.name}: this disk takes no locks ({error.strerror}); put output_dir on another"
        ) from None
    return True


def _is_still(path: Path, file: IO[str]) -> bool:
    """Whether the open file is the one of that name: its holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
