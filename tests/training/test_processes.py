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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the launched ones: sums in the same order
    AcceleratorState._reset_state(reset_partial_state=True)
    yield {
        "dataset": "lists", "data_root": str(tmp_path), "train_list": "train.txt", "test_list": "test.txt",
        "class_file": "classes.txt", "head_min": 6, "tail_max": 6, "model": "tiny", "tuning": "more", "method": "x",
        "lr": 1e-3, "lr_head": 1e-2, "batch_size": 4, "max_steps": 2, "workers": 0, "log_every": 1,
        "output_dir": str(tmp_path / "runs"),
    }  # fmt: skip
    torch.set_num_threads(threads)
    AcceleratorState._reset_state(reset_partial_state=True)


def launch(*program, **environment):
    """Start `program` as two processes, as recipes/README.md does; returns (exit code, what they printed)."""
    ours = ("ACCELERATE_", "MASTER_", "TORCHELASTIC_")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ours) and k not in ("RANK", "WORLD_SIZE")}
    config = str(REPOSITORY / "recipes/accelerate/cpu2.yaml")
    started = subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", "--config_file", config]
        + [str(part) for part in program],
        cwd=REPOSITORY,
        env={**clean, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment},
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


def events(folder):
    """metrics.jsonl without times of day."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def test_two_processes_leave_one_run_that_equals_one_process_on_the_same_photos(settings, record_property):
    """Batch k of the loader goes to rank k mod 2, so one process with accumulation 2 sees the same photos a step."""
    runs, start = Path(settings["output_dir"]), load_clip("tiny").model.state_dict()
    recipe = runs.parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**settings, "run": "two"}))
    code, printed = launch("-m", "clip_more.cli", "train", recipe, "--processes", "2", ACCELERATE_USE_CPU="true")
    assert code == 0, printed[-3000:]
    assert [path.name for path in runs.iterdir()] == ["two"]
    assert [path.parent.name for path in runs.rglob("config.yaml")] == ["two"]
    assert [event["event"] for event in events(runs / "two")] == ["head_start", "train", "train", "done"]
    assert (runs / "two/checkpoints/step_2/random_1.pt").exists()

    train(from_dict({**settings, "accumulation": 2, "run": "one"}, "test"))
    for ours, theirs in zip(events(runs / "two"), events(runs / "one"), strict=True):
        assert ours == {k: pytest.approx(v, rel=1e-4) if isinstance(v, float) else v for k, v in theirs.items()}
    for part in ("general", "merged"):
        two, one = (load_file(runs / run / part / "model.safetensors") for run in ("two", "one"))
        largest = max((two[key] - one[key]).abs().max().item() for key in two)
        moved = max((two[key] - start[key]).abs().max().item() for key in two if key != "logit_scale")
        record_property(f"largest difference, {part}", largest)
        assert largest <= 1e-5 < 100e-5 < moved, f"{part}: they differ by up to {largest:.1e} and moved by {moved:.1e}"


ALONE = """
import sys
from pathlib import Path
from clip_more.recipe import from_dict
from clip_more.training.processes import make_accelerator
Path(sys.argv[1]).joinpath(f"accepted {make_accelerator(from_dict({'dataset': 'digits_mlt'}, 'test'))}").touch()
"""


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path):
    """The same launch without the variable; the check alone, since importing all of a run would double the time."""
    (tmp_path / "alone.py").write_text(ALONE)
    code, printed = launch(tmp_path / "alone.py", tmp_path, CUDA_VISIBLE_DEVICES="")
    assert code != 0
    assert "the launcher started 2 processes, but Accelerate sees 1" in printed
    assert "On CPUs put ACCELERATE_USE_CPU=true in front" in printed
    assert not list(tmp_path.glob("accepted*"))
