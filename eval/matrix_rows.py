"""The method matrix as data: the tasks, the rows of each table, and the config of every run."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_more.config import LOSSES, LOSSES_OF_ONE_LABEL, ConfigError, TrainConfig
from clip_more.recipe import load_config

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
# Alike in all runs: one process, no intervals over test photos, one checkpoint at a time.
SHARED = {"bootstrap": 0, "keep_checkpoints": 1, "workers": 0}
MORE = {"tuning": "more", "rho": 0.1, "amplitude": 1.0, "discrepancy_gradient": "both"}


@dataclass(frozen=True)
class Task:
    """A data set, and what all runs on it share.

    Attributes:
        recipe: Below recipes/; names the data.
        epochs: Passes over train.
        more: Keys of the rows with MORE.
        seconds: About what a run takes on a free core, plain and with MORE: for the time that is left.
        on_disk: Whether it is a folder, below the one that `--data_root` names.
        pretrained: Whether its CLIP is, so that it can do something before training.
    """

    recipe: str
    epochs: float
    more: dict[str, Any]
    seconds: tuple[float, float]
    on_disk: bool = False
    pretrained: bool = True


TASKS = {
    "digits_lt": Task("digits_lt/ce.yaml", 5, MORE | {"discrepancy_weighting": "sample"}, (13, 25)),
    "digits_mlt": Task("digits_mlt/bce.yaml", 8, MORE | {"discrepancy_weighting": "label"}, (12, 23)),
    "voc2012_lt_tiny": Task(
        "voc2012_lt_tiny/bce.yaml", 12, MORE | {"discrepancy_weighting": "label"}, (68, 119),
        on_disk=True, pretrained=False,
    ),
}  # fmt: skip
# Photos of test and train are kept decoded, with this shorter side at most: digits have 32, a `small` CLIP sees 96.
SHORT_SIDE = 128


@dataclass(frozen=True)
class Row:
    """One method: a line of a table, with and without MORE.

    Attributes:
        bed: Its table, and the folder of its runs.
        part: Its part of the table.
        label: Its name there.
        run: Of its runs; rows of one run name are the same runs.
        task: What it is trained on.
        recipe: Below recipes/.
        values: Keys that it has otherwise.
        methods: Second stages on the finished run; each is a line of its own.
    """

    bed: str
    part: str
    label: str
    run: str
    task: str
    recipe: str
    values: dict[str, Any] = field(default_factory=dict)
    methods: tuple[str, ...] = ()


_SAMPLERS: dict[str, dict[str, Any]] = {
    "square_root": {},
    "class_balanced": {},
    "distribution_balanced": {},
    "weighted": {"sampler_exponent": 0.25},
    "progressive": {},
    "class_aware": {},
}
# Cosines that the loss scales; weights by class set in after four fifths of the steps, as in recipes/cifar100_lt.
_LDAM = {"head": "cosine", "head_init": "text", "ldam_defer": 0.8}
_ONE_LABEL = tuple(loss for loss in LOSSES if loss in LOSSES_OF_ONE_LABEL)
_ANY_LABELS = tuple(loss for loss in LOSSES if loss not in LOSSES_OF_ONE_LABEL)


def _losses(bed: str, losses: tuple[str, ...]) -> list[Row]:
    return [
        Row(bed, "losses, sampler instance", loss, loss, bed, TASKS[bed].recipe,
            {"loss": loss} | (_LDAM if loss == "ldam" else {}))
        for loss in losses
    ]  # fmt: skip


def _samplers(bed: str, loss: str) -> list[Row]:
    part, recipe = f"samplers, loss {loss}", TASKS[bed].recipe
    rows = [Row(bed, part, "instance", loss, bed, recipe, {"loss": loss})]
    for name, more in _SAMPLERS.items():
        label = name
        if name == "distribution_balanced" and loss in LOSSES_OF_ONE_LABEL:
            # With one label a photo it has the weights of class_balanced, and so the same draws.
            label, name = f"{name} (the same runs)", "class_balanced"
        run, values = f"{loss}-{name}", {"loss": loss, "sampler": name, **more}
        rows.append(Row(bed, part, label, run, bed, recipe, values))
    return rows


ROWS = (
    *_losses("digits_lt", (*_ONE_LABEL, *_ANY_LABELS)),
    *_samplers("digits_lt", "ce"),
    *_losses("digits_mlt", _ANY_LABELS),
    *_samplers("digits_mlt", "bce"),
    *(
        Row("voc2012_lt_tiny", "recipes", name, name, "voc2012_lt_tiny", f"voc2012_lt_tiny/{name}.yaml",
            {"image_size": 64})
        for name in ("bce", "asl", "db_focal", "cb_bce", "class_aware")
    ),
    Row(
        "stage2", "digits_lt, ce, linear head", "joint", "digits_lt-ce", "digits_lt", "digits_lt/ce.yaml",
        {"head": "linear", "head_init": "class_mean", "val_fraction": 0.2},
        ("crt", "ncm", "tau", "lws", "maxnorm_cb", "la_additive", "la_multiplicative"),
    ),
    # Text prompts have rows of one norm, so tau and maxnorm_cb have nothing to do; la_multiplicative wants one label.
    Row(
        "stage2", "digits_mlt, bce, prompts", "joint", "digits_mlt-bce", "digits_mlt", "digits_mlt/bce.yaml",
        {"val_fraction": 0.2}, ("crt", "ncm", "lws", "la_additive"),
    ),
)  # fmt: skip
BEDS = tuple(dict.fromkeys(row.bed for row in ROWS))


def photos_folder(out: Path, task: str) -> Path:
    """Where the decoded photos of a task are."""
    return out / "data" / task


def photos_config(task: str, data_root: str | None) -> TrainConfig:
    """The recipe that names the photos of a task, to prepare them.

    Args:
        task: A name of `TASKS`.
        data_root: Folder of the data sets that are folders; that of CLIP_MORE_TEST_DATA without it.

    Raises:
        ConfigError: The task needs a folder, and none is named.
    """
    values: dict[str, Any] = {}
    if TASKS[task].on_disk:
        root = data_root or os.environ.get("CLIP_MORE_TEST_DATA")
        if not root:
            raise ConfigError(f"{task} needs photos: name the folder that holds {task}/ with --data_root")
        values["data_root"] = str(Path(root) / task)
    return load_config(RECIPES / TASKS[task].recipe, values)


def run_config(
    row: Row, more: bool, seed: int, out: Path, *, epochs: float | None = None, max_steps: int | None = None
) -> TrainConfig:
    """The checked config of one run.

    Args:
        row: Its method.
        more: With MORE.
        seed: Of weights, order, augmentation and splits.
        out: Folder of the matrix.
        epochs: In place of the task's.
        max_steps: Stop after so many steps.
    """
    task, method = TASKS[row.task], f"{row.run}-more" if more else row.run
    values = {
        **SHARED,
        **row.values,
        **(task.more if more else {}),
        "dataset": "prepared",
        "data_root": str(photos_folder(out, row.task)),
        "dataset_name": row.task,
        "method": method,
        "output_dir": str(out / row.bed),
        "run": f"{method}-s{seed}",
        "seed": seed,
        "epochs": float(task.epochs if epochs is None else epochs),
        "max_steps": max_steps,
    }
    return load_config(RECIPES / row.recipe, values)
