"""Checkpoints that are complete or absent, and the state they bring back."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from clip_more.files import written_aside

if TYPE_CHECKING:
    from accelerate import Accelerator

    from clip_more.training.average import RunningAverage

BEST_WEIGHTS = "best.safetensors"
_PREFIX = "step_"


def save_checkpoint(
    folder: Path,
    accelerator: Accelerator,
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: RunningAverage | None,
    progress: dict[str, Any],
    keep: int = 2,
) -> Path:
    """Write `folder/step_N`: aside, to disk, then renamed; older ones beyond `keep` go afterwards.

    Args:
        folder: The run's checkpoints/.
        accelerator: Its main process writes; every process adds its random state.
        task: Unwrapped.
        optimizer: As prepared.
        average: Running average of the weights, if one is kept.
        progress: Plain values to find again: `step`, the optimiser steps done, and the best figure so far.
        keep: How many to leave in the folder.
    """
    step = progress["step"]
    target, aside = folder / f"{_PREFIX}{step}", folder / f".{_PREFIX}{step}.tmp"
    if accelerator.is_main_process:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file(_tensors(task), aside / "model.safetensors")
        if average is not None:
            save_file(average.tensors, aside / "average.safetensors")
        torch.save(optimizer.state_dict(), aside / "optimizer.pt")
        if accelerator.scaler is not None:
            torch.save(accelerator.scaler.state_dict(), aside / "scaler.pt")
        (aside / "progress.json").write_text(json.dumps(progress))
    accelerator.wait_for_everyone()
    torch.save(_random_state(), aside / f"random_{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _to_disk(aside)
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
        _to_disk(folder, inside=False)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return target


def load_checkpoint(
    checkpoint: Path,
    accelerator: Accelerator,
    task: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: RunningAverage | None,
) -> dict[str, Any]:
    """Bring everything back to where `save_checkpoint` left it; returns progress.

    Raises:
        ValueError: If the checkpoint does not fit the model (a changed recipe, say).
    """
    load_weights(task, checkpoint / "model.safetensors")
    if average is not None:
        average.tensors = load_file(checkpoint / "average.safetensors", device=str(accelerator.device))
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu"))
    if accelerator.scaler is not None and (checkpoint / "scaler.pt").exists():
        accelerator.scaler.load_state_dict(torch.load(checkpoint / "scaler.pt", weights_only=True))
    mine = checkpoint / f"random_{accelerator.process_index}.pt"
    if mine.exists():
        _set_random_state(torch.load(mine, weights_only=True))
    return json.loads((checkpoint / "progress.json").read_text())


def save_weights(task: nn.Module, path: Path) -> None:
    """Write the task's weights, complete or not at all."""
    with written_aside(path) as aside:
        save_file(_tensors(task), aside)


def load_weights(task: nn.Module, path: Path) -> None:
    """Put weights that `save_weights` or a checkpoint wrote into the task.

    Raises:
        ValueError: If they do not fit the model (a changed recipe, say).
    """
    held = load_file(path)
    expected = task.state_dict().keys()
    differing = sorted(held.keys() ^ expected)
    if differing:
        raise ValueError(f"{path} does not fit this recipe's model: {', '.join(differing[:3])} ... differ")
    task.load_state_dict(held)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(_PREFIX)))


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}


def _random_state() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 (libraries may use it)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": [version, list(words), gauss],
        "numpy": {
            "key": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
            "pos": int(numpy["state"]["pos"]),
            "has_gauss": int(numpy["has_gauss"]),
            "gauss": float(numpy["gauss"]),
        },
    }
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        state["accelerator"] = torch.get_device_module(device).get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        ("MT19937", numpy["key"].numpy().astype(np.uint32), numpy["pos"], numpy["has_gauss"], numpy["gauss"])
    )
    if "accelerator" in state and torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        torch.get_device_module(device).set_rng_state(state["accelerator"])


def _to_disk(folder: Path, inside: bool = True) -> None:
    for path in [*(folder.iterdir() if inside else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
