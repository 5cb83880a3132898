"""Checkpoints on disk: complete or absent, the damaged ones set aside.

A checkpoint is a folder `step_N` (or `best_step_N`) of safetensors and JSON files and a `manifest.json` that lists
them. What is being written, replaced or removed stands beside it under a hidden name, so that a kill at any moment
leaves only complete ones to be listed. What the files mean is `training/state.py`'s business.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from clip_more.files import as_others
from clip_more.training.manifest import (
    CheckpointError,
    DamagedError,
    hash_file,
    read_manifest,
    reason,
    to_disk,
    unreadable,
    verify,
    write_manifest,
)

_STEP = re.compile(r"step_([0-9]+)")
_BEST = re.compile(r"best_step_[0-9]+")
_HIDDEN = re.compile(r"\.((?:best_)?step_[0-9]+)\.(new|old|gone)")


def write_checkpoint(
    folder: Path, name: str, tensors: Mapping[str, Mapping[str, torch.Tensor]], documents: Mapping[str, Any]
) -> Path:
    """Write `folder/name` aside, flush it to disk, then rename it; one of that name is replaced only at the end.

    Args:
        folder: The run's checkpoints/; made if need be.
        name: `step_N` or `best_step_N`.
        tensors: Becomes `<key>.safetensors`. Any device; tensors that share memory are written as several.
        documents: Becomes `<key>.json`.

    Raises:
        CheckpointError: On a full disk, missing permission or any other fault of writing. Nothing of it stays, and the
            checkpoints before are untouched.
    """
    if not _STEP.fullmatch(name.removeprefix("best_")):
        raise ValueError(f"a checkpoint is named step_N or best_step_N, not {name}")
    texts = {f"{key}.json": json.dumps(value).encode() for key, value in documents.items()}
    needed = sum(map(len, texts.values())) + sum(t.nbytes for held in tensors.values() for t in held.values())
    aside = _hidden(folder / name, "new")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        require_space(folder, needed, f"checkpoint {name}")
        aside.mkdir(parents=True)
        _fill(aside, tensors, texts)
        _put(aside, folder / name)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"{folder}: checkpoint {name} could not be written: {reason(error)} ({_size(needed)} needed, "
            f"{_size(_free(folder))} free there). The checkpoints before it are untouched: mend that, then run the "
            "same command again"
        ) from error
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(_hidden(folder / name, "old"), ignore_errors=True)
    return folder / name


def newest_intact(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest `step_N` that `verify` accepts; None if there are no checkpoints at all.

    Damaged ones before it are renamed `damaged_step_N`, which nothing lists or removes, and told through `say`.

    Raises:
        CheckpointError: If there are only damaged ones, now or since an earlier call, or one cannot be read for a
            reason that may pass (permission, say).
    """
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            verify(checkpoint)
        except DamagedError as error:
            say(f"{error}. This checkpoint is not used; it is kept as {_set_aside(checkpoint).name}")
        else:
            return checkpoint
    if damaged := sorted(path.name for path in _folders(folder) if path.name.startswith("damaged_step_")):
        raise CheckpointError(
            f"{folder} holds no intact checkpoint, only {', '.join(damaged)}: mend one and give it back its name, or "
            "remove them to train from the start"
        )
    return None


def holds(checkpoint: Path, key: str) -> bool:
    """Whether tensors or a document were written under this key."""
    return not {f"{key}.safetensors", f"{key}.json"}.isdisjoint(read_manifest(checkpoint))


def read_tensors(checkpoint: Path, key: str, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a key, in memory of their own: the checkpoint may be removed while they are in use.

    Raises:
        CheckpointError: If there are none or they cannot be read.
    """
    path = _listed(checkpoint, f"{key}.safetensors")
    try:
        return load_file(path, device=device, backend="pread")
    except (OSError, SafetensorError) as error:
        raise unreadable(path, error) from error


def read_document(checkpoint: Path, key: str) -> Any:
    """The plain values of a key.

    Raises:
        CheckpointError: If there are none or they cannot be read.
    """
    path = _listed(checkpoint, f"{key}.json")
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints `step_N`, oldest first."""
    found = [path for path in _folders(folder) if _STEP.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def prune(folder: Path, keep: int, best: Collection[str] = ()) -> None:
    """Remove all but the last `keep` (1 or more) `step_N`, and every `best_step_N` but those named in `best`.

    Raises:
        CheckpointError: If one cannot be removed.
    """
    others = [path for path in _folders(folder) if _BEST.fullmatch(path.name) and path.name not in best]
    for old in [*list_checkpoints(folder)[:-keep], *others]:
        gone = _hidden(old, "gone")
        shutil.rmtree(gone, ignore_errors=True)
        _rename(old, gone)
        shutil.rmtree(gone, ignore_errors=True)


def clean(folder: Path) -> None:
    """Remove what a kill left half written or half removed; a checkpoint that it left displaced gets its place back."""
    for path in _folders(folder):
        if not (hidden := _HIDDEN.fullmatch(path.name)):
            continue
        if hidden[2] == "old" and not (folder / hidden[1]).exists():
            _rename(path, folder / hidden[1])
        else:
            shutil.rmtree(path, ignore_errors=True)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse before anything is written.

    Args:
        folder: Where `what` shall go; need not exist yet.
        needed: In bytes.
        what: What is to be written, for the message.

    Raises:
        CheckpointError: If the disk has fewer bytes free than needed.
    """
    if (free := _free(folder)) < needed:
        raise CheckpointError(
            f"{folder}: the disk is too full for {what}: {_size(needed)} needed, {_size(free)} free there. Nothing was "
            "written and what was there is untouched: make room, then run the same command again"
        )


def _fill(folder: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], texts: Mapping[str, bytes]) -> None:
    """Write the files and their manifest, all flushed to disk.

    A file is flushed and hashed while the next is written, so the largest come first; a hash is of what the file holds.
    """
    hashes: dict[str, Future[str]] = {}
    flushes: list[Future[None]] = []
    with ThreadPoolExecutor() as pool:

        def written(file: str) -> None:
            flushes.append(pool.submit(to_disk, folder / file))
            hashes[file] = pool.submit(hash_file, folder / file)

        for key, held in sorted(tensors.items(), key=lambda item: -sum(t.nbytes for t in item[1].values())):
            save_file(_apart(held), folder / f"{key}.safetensors")
            as_others(folder / f"{key}.safetensors")
            written(f"{key}.safetensors")
        for file, text in texts.items():
            (folder / file).write_bytes(text)
            written(file)
    for flush in flushes:
        flush.result()
    write_manifest(folder, {file: digest.result() for file, digest in hashes.items()})
    to_disk(folder)


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """On the CPU, contiguous, and no two in the same storage, which safetensors refuses."""
    apart, storages = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        apart[name] = tensor
    return apart


def _put(aside: Path, target: Path) -> None:
    """Rename a complete folder to its name; one that stands there moves to a hidden name."""
    old = _hidden(target, "old")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    try:
        aside.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    to_disk(target.parent)


def _set_aside(checkpoint: Path) -> Path:
    aside, number = checkpoint.with_name(f"damaged_{checkpoint.name}"), 2
    while aside.exists():
        aside, number = checkpoint.with_name(f"damaged_{checkpoint.name}_{number}"), number + 1
    _rename(checkpoint, aside)
    return aside


def _rename(old: Path, new: Path) -> None:
    try:
        old.rename(new)
        to_disk(new.parent)
    except OSError as error:
        raise CheckpointError(f"{old} could not be renamed {new.name}: {reason(error)}") from error


def _folders(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unreadable(folder, error) from error


def _listed(checkpoint: Path, file: str) -> Path:
    if file not in read_manifest(checkpoint):
        raise CheckpointError(f"{checkpoint} holds no {file}")
    return checkpoint / file


def _hidden(checkpoint: Path, state: str) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}.{state}")


def _free(folder: Path) -> int:
    """Of the disk that holds the folder, or would: the nearest one above it that is there counts."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        if folder == folder.parent:
            raise
        return _free(folder.parent)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
