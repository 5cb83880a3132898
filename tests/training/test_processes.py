"""Two real CPU processes over gloo, started as recipes/README.md says."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from clip_more.models.clip import load_clip
from clip_more.recipe import from_dict
from clip_more.training.loop import train

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """A list-file data set of 16 + 4 noisy photos, labelled 0, 1, 0 2, and a recipe of two steps on it."""
    generator = np.random.default_rng(0)
    for n in range(20):
        PIL.Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{n:02d}.png")
    rows = [f"{n:02d}.png {('0', '1', '0 2')[n % 3]}" for n in range(20)]
    (tmp_path / "train.txt").write_text("\n".join(rows[:16]) + "\n")
    (tmp_path / "test.txt").write_text("\n".join(rows[16:]) + "\n")
    (tmp_path / "classes.txt").write_text("red 0\ngreen 1\nblue 2\n")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield {
        "dataset": "lists", "data_root": str(tmp_path), "train_list": "train.txt", "test_list": "test.txt",
        "class_file": "classes.txt", "head_min": 6, "tail_max": 6, "model": "tiny", "tuning": "more", "method": "x",
        "lr": 1e-3, "lr_head": 1e-2, "max_steps": 2, "workers": 0, "log_every": 1, "output_dir": str(tmp_path / "runs"),
    }  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)


def launch(settings, **environment):
    """Two processes by `accelerate launch`; returns (exit code, what they printed)."""
    recipe = Path(settings["data_root"]) / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    ours = ("ACCELERATE_", "MASTER_", "TORCHELASTIC_")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ours) and k not in ("RANK", "WORLD_SIZE")}
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0",
        "--config_file", str(REPOSITORY / "recipes/accelerate/cpu2.yaml"),
        "-m", "clip_more.cli", "train", str(recipe), "--processes", "2",
    ]  # fmt: skip
    started = subprocess.Popen(
        command,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = started.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        pytest.fail(f"two processes did not end within 240 s:\n{started.communicate()[0][-3000:]}")
    return started.returncode, printed


def train_events(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == "train"]


def test_two_processes_leave_one_run_with_the_weights_of_one_process(settings):
    code, printed = launch({**settings, "batch_size": 4}, ACCELERATE_USE_CPU="true")
    print(printed)
    two = Path(settings["output_dir"]) / "lists-x"
    one = train(from_dict({**settings, "batch_size": 4, "accumulation": 2, "run": "one"}, "test"))
    other = train(from_dict({**settings, "batch_size": 4, "run": "other"}, "test"))
    start = load_clip("tiny").model.state_dict()
    for part in ("general", "merged"):
        a,b,c = (load_file(f / part / "model.safetensors") for f in (two, one, other))
        d = sorted(((a[k]-b[k]).abs().max().item(), (a[k]-c[k]).abs().max().item(), (a[k]-start[k]).abs().max().item(), k) for k in a)
        for x in d[-12:]: print(x)
        d = sorted((((a[k]-b[k]).abs().sum()/(a[k]-start[k]).abs().sum()).item(), ((a[k]-c[k]).abs().sum()/ (a[k]-start[k]).abs().sum()).item(), k) for k in a)
        for x in d[-12:]: print(x)
    for f in (two, one, other): print(train_events(f))
    assert 0
