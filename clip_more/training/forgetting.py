"""Which train photos a run classifies rightly after each epoch: what forgetting scores are counted from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from clip_more.files import written_aside
from clip_more.training.guards import on_main
from clip_more.training.prepared import Prepared
from clip_more.training.run import Run

FOLDER = "forgetting"


def note_correct(run: Run, prepared: Prepared, step: int) -> None:
    """Judge the train photos, without augmentation, and write `forgetting/step_N.safetensors`.

    Its tensor `correct` (N,) uint8 says for each train photo, in the order of the data, whether the class with the
    highest logit is one of its labels.
    """
    with prepared.judged():
        predictions = run.logits(run.data.train, "forgetting")
    best = predictions.scores.argmax(axis=1)
    correct = predictions.targets[np.arange(len(best)), best]
    on_main(run.accelerator, lambda: _write(run.folder / FOLDER / f"step_{step:08d}.safetensors", correct))


def _write(path: Path, correct: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    with written_aside(path) as aside:
        save_file({"correct": torch.from_numpy(correct.astype(np.uint8))}, aside)
