"""A lock on a file that goes with its process, whatever ends it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from clip_more.config import ConfigError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two processes apart there
    fcntl = None  # type: ignore[assignment]


@contextmanager
def held(path: Path, refusal: Callable[[str], str]) -> Iterator[None]:
    """Inside, no other process can hold this lock.

    The lock is the process's own (data workers do not inherit it) and goes with it, whatever ends it.

    Args:
        path: The lock's file, removed at the end.
        refusal: Makes an error's sentence of who holds the lock.

    Raises:
        ConfigError: If another process holds it now.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        taken = _take(file)
        if not taken:  # `is_held` may have looked just now, which takes it for an instant
            time.sleep(0.2)
            taken = _take(file)
        if not (taken and _is_still(path, file)):
            file.seek(0)
            raise ConfigError(refusal(file.read().strip() or "another process"))
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_held(path: Path) -> bool:
    """Whether another process holds this lock now, as far as this machine can tell.

    Not for the process that holds it: closing the file here would let its own lock go.
    """
    try:
        with path.open("r+", encoding="utf-8") as file:
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
        raise ConfigError(f"{file.name}: this disk takes no locks ({error.strerror}); write to another") from None
    return True


def _is_still(path: Path, file: IO[str]) -> bool:
    """Whether the open file is the one of that name: its holder may have removed it meanwhile."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
