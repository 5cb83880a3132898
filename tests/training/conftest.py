"""A small data set, its recipe, uninterrupted runs of it, and what became of the killed ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from accelerate.state import AcceleratorState

from clip_more.models import tokenizer
from tests.training.killing import KILLED, finish
from tests.training.one_tokenizer import shared_tokenizer
from tests.training.twins import Twin, write_recipe

COLOURS = {"red square": (220, 30, 30), "green square": (30, 200, 30), "blue square": (40, 40, 230)}


@pytest.fixture(scope="package", autouse=True)
def one_tokenizer():
    """No test of this room changes a tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer, "clip_tokenizer", shared_tokenizer())
        yield


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """Accelerate keeps its precision for the life of a process; each run here sets its own."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def no_figures(request, monkeypatch):
    """Figures are half of what a run of seconds costs; a test that looks for them asks for `figures`."""
    if "figures" in request.fixturenames:
        return
    import clip_more.evaluation.plots
    import clip_more.training.report

    def touched(profile, before, after, path, **_):
        Path(path).touch()

    monkeypatch.setattr(clip_more.evaluation.plots, "plot_ap_by_frequency", touched)
    monkeypatch.setattr(clip_more.training.report, "plot_ap_by_frequency", touched)
    monkeypatch.setattr(clip_more.training.report, "plot_training", lambda metrics, path: Path(path).touch())


@pytest.fixture
def figures():
    """Runs of this test draw their figures."""


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """Forty photos with coloured squares in a list-file data set: red common, green less so, blue rare."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    lines = {"train": [], "test": []}
    for n in range(40):
        split = "train" if n < 24 else "test"
        present = [c for c, share in enumerate((0.8, 0.4, 0.25)) if rng.random() < share] if n > 2 else [0, 1, 2]
        image = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
        for c in present:
            y, x = rng.integers(0, 20, 2)
            image[y : y + 12, x : x + 12] = list(COLOURS.values())[c]
        PIL.Image.fromarray(image).save(root / f"{n:02d}.png")
        lines[split].append(" ".join([f"{n:02d}.png", *map(str, present)]))
    for split, rows in lines.items():
        (root / f"{split}.txt").write_text("\n".join(rows) + "\n")
    (root / "classes.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(COLOURS)))
    return root


def recipe_of(squares: Path, output: Path) -> dict[str, Any]:
    """Keys of a run of six steps, below `output`."""
    return {
        "dataset": "lists", "data_root": str(squares), "train_list": "train.txt", "test_list": "test.txt",
        "class_file": "classes.txt", "head_min": 12, "tail_max": 8, "model": "tiny", "tuning": "more", "method": "x",
        "dropout": 0.2, "lr": 1e-3, "lr_head": 1e-2, "batch_size": 8, "epochs": 2, "workers": 0, "log_every": 1,
        "output_dir": str(output),
    }  # fmt: skip


@pytest.fixture
def settings(squares, tmp_path):
    return recipe_of(squares, tmp_path / "runs")


@pytest.fixture
def events():
    """A function: the events of one kind in a run's metrics.jsonl."""

    def read(folder, kind):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return [e for e in map(json.loads, lines) if e["event"] == kind]

    return read


@pytest.fixture(scope="session")
def twin(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Twin]:
    """The uninterrupted run of a setting; each is trained once."""
    twins: dict[str, Twin] = {}

    def trained(setting: str) -> Twin:
        if setting not in twins:
            recipe = write_recipe(squares, tmp_path_factory.mktemp("twin"), setting)
            twins[setting] = Twin(recipe.parent / "run", finish(recipe)[1])
        return twins[setting]

    return trained


@pytest.fixture(autouse=True)
def killed(request):
    """Tells the summary which runs this test killed."""
    before = len(KILLED)
    yield
    request.node.user_properties += [("killed", kill) for kill in KILLED[before:]]
