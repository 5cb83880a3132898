"""A folder's files by size and hash, so that whatever happens to their bytes is seen before they are used.

The hash is XXH3 with 128 bits: it finds damage as surely as SHA-256 does, at ten times its speed and more where the
processor has no instruction for SHA. Against forging neither helps, as the hashes lie beside the files.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

_MANIFEST = "manifest.json"
_FORMAT = 1


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, read or trusted; the text says which file, why, and what to do."""


class DamagedError(CheckpointError):
    """The bytes are not those that were written; other faults of reading (permission, say) may pass."""


def write_manifest(folder: Path, hashes: Mapping[str, str]) -> None:
    """Write `folder/manifest.json` for files with these hashes, and flush it to disk."""
    files = {file: {"bytes": (folder / file).stat().st_size, "xxh128": digest} for file, digest in hashes.items()}
    (folder / _MANIFEST).write_bytes(_encoded(files))
    to_disk(folder / _MANIFEST)


def read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    """`{file: {"bytes": int, "xxh128": hex}}`.

    Raises:
        CheckpointError: If it is missing, cannot be read, or has any byte that `write_manifest` would not have written.
    """
    path = folder / _MANIFEST
    try:
        held = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise DamagedError(f"{path} is missing") from None
    except OSError as error:
        raise unreadable(path, error) from error
    try:
        files = {
            str(file): {"bytes": int(written["bytes"]), "xxh128": str(written["xxh128"])}
            for file, written in json.loads(held)["files"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedError(f"{path} is damaged: it does not read as a list of files") from None
    if held != _encoded(files):
        raise DamagedError(f"{path} is damaged, or another version of clip_more has written it")
    return files


def verify(checkpoint: Path) -> None:
    """Read every byte of a checkpoint and compare with its manifest. Files that the manifest does not list are ignored.

    Raises:
        CheckpointError: If a file is missing, truncated or changed, naming it, or cannot be read.
    """
    files = read_manifest(checkpoint)
    for file, written in files.items():
        _check_size(checkpoint / file, written["bytes"])
    with ThreadPoolExecutor() as pool:
        found = pool.map(hash_file, [checkpoint / file for file in files])
        for (file, written), digest in zip(files.items(), found, strict=True):
            if digest != written["xxh128"]:
                raise DamagedError(
                    f"{checkpoint / file} is damaged: its bytes are not those that manifest.json tells of"
                )


def hash_file(path: Path) -> str:
    """XXH3 of a file's bytes, 128 bits in hex as `xxh128sum` prints them; lets other threads run meanwhile."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def to_disk(path: Path) -> None:
    """Flush a file or a folder's list of names to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot flush a folder.
        if error.errno != errno.EINVAL or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def unreadable(path: Path, error: Exception) -> CheckpointError:
    """For a file that gives an error: damaged if the disk says so, else of a kind that may pass."""
    kind = DamagedError if getattr(error, "errno", None) == errno.EIO else CheckpointError
    return kind(f"{path} cannot be read: {reason(error)}")


def reason(error: Exception) -> str:
    """The system's words without number and file name."""
    return getattr(error, "strerror", None) or str(error)


def _check_size(path: Path, expected: int) -> None:
    try:
        held = path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last: no file can have such a name
        raise DamagedError(f"{path} is missing") from None
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(held.st_mode):
        raise DamagedError(f"{path} is not a file")
    if held.st_size != expected:
        word = "truncated" if held.st_size < expected else "too long"
        raise DamagedError(f"{path} is {word}: {held.st_size} bytes of {expected}")


def _encoded(files: dict[str, dict[str, Any]]) -> bytes:
    return json.dumps({"format": _FORMAT, "files": dict(sorted(files.items()))}, indent=1).encode()
