"""Photos to be looked at, without labels: those below a folder, or those that a text file lists."""

from __future__ import annotations

import os
from pathlib import Path

from clip_more.data.folder_scan import PHOTO_SUFFIXES, photos_below


def list_photos(source: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """The photos of a folder, at any depth and by name, or of a text file with one path a line.

    Returns:
        N paths, and the N names that results call them by: relative to the folder; as the list writes them.

    Raises:
        FileNotFoundError: There is no such folder or file.
        ValueError: It names no photo, is a photo itself, or is no UTF-8 text.
    """
    source = Path(source)
    if source.is_dir():
        names = photos_below(source)
        if not names:
            raise ValueError(f"there are no photos below {source} ({', '.join(sorted(PHOTO_SUFFIXES))})")
        if foreign := [name for name in names if not _is_utf8(name)]:
            raise ValueError(f"{source}: the name of photo {foreign[0]!r} is not UTF-8; rename it")
        return [os.path.join(source, name) for name in names], names
    if not source.is_file():
        raise FileNotFoundError(f"there is no folder or file {source}")
    if source.suffix.casefold() in PHOTO_SUFFIXES:
        raise ValueError(f"{source} is a photo; give its folder, or a text file with one path a line")
    try:
        text = source.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text: {error}") from error
    names = [line for line in (line.strip(" \t\r") for line in text.split("\n")) if line]
    if not names:
        raise ValueError(f"{source} lists no photo; write one path a line")
    if zero := [name for name in names if "\0" in name]:
        raise ValueError(f"{source}: {zero[0]!r} holds a zero byte, which no file name can")
    return [os.path.join(source.parent, name) for name in names], names


def _is_utf8(name: str) -> bool:
    """Whether a file's name is one that a table can hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
