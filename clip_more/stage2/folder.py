"""The folder of one method: an exported classifier with the encoder of the run and another head."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from clip_more.models.head_files import FILE as HEAD_FILE
from clip_more.models.head_files import WEIGHTS as HEAD_WEIGHTS
from clip_more.models.multilabel import FILE as PROMPT_FILE
from clip_more.models.open_clip_files import CONFIG_FILE

SELECTION = "selection.json"
# Files of merged/ that belong to its head or tell of its results; open_clip's are the same weights once more.
_NOT_ENCODER = {PROMPT_FILE, HEAD_FILE, HEAD_WEIGHTS, "README.md", CONFIG_FILE, "open_clip_model.safetensors"}


def link_encoder(merged: Path, folder: Path) -> None:
    """Put the files of an encoder into another folder: as hard links, or as copies where there can be none."""
    for path in sorted(merged.iterdir()):
        if not path.is_file() or path.name in _NOT_ENCODER or path.suffix == ".png" or path.name.startswith("."):
            continue
        try:
            os.link(path, folder / path.name)
        except OSError:
            shutil.copyfile(path, folder / path.name)


def weight_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of weights, by name."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            found[path.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def read_selection(folder: Path) -> dict[str, Any]:
    """What `selection.json` of a method's folder says; nothing where it is absent or damaged."""
    try:
        content = json.loads((folder / SELECTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
