"""Two real CPU processes over gloo: started as recipes/README.md says, or forked where only their number matters."""

import json
import os
import re
import shlex
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

from clip_more.cli import main
from clip_more.models.clip import load_clip
from clip_more.recipe import from_dict
from clip_more.training import guards
from clip_more.training.average import RunningAverage
from clip_more.training.loop import train
from clip_more.training.prepared import Prepared
from clip_more.training.processes import make_accelerator
from clip_more.training.sharding import is_sharded, optimizer_tensors
from tests.training import two_processes
from tests.training.forked_pair import PATIENCE, fork_two
from tests.training.tiny_task import ALPHA, adamw, gradients, photos, tiny_task
from tests.training.two_processes import CASES, PHOTOS, micro_batches

REPOSITORY = Path(__file__).resolve().parents[2]
# What sums in another order change in a gradient, over the largest of all gradients.
ROUNDING = 1e-6
# How the commands of recipes/README.md end.
DDP, FSDP2 = "bce_more.yaml --processes 2", "bce_more.yaml --processes 2 --distribution fsdp2"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the launched ones: sums in the same order."""
    threads, before = torch.get_num_threads(), os.environ.get("ACCELERATE_USE_CPU")
    torch.set_num_threads(1)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.set_num_threads(threads)
    if before is None:
        del os.environ["ACCELERATE_USE_CPU"]
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    """A list-file data set of 16 + 5 noisy photos, labelled 0, 1, 0 2, and a recipe of four steps on it.

    Five test photos in batches of four over two processes: evaluation has an uneven end.
    """
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for n in range(21):
        PIL.Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{n:02d}.png")
    rows = [f"{n:02d}.png {('0', '1', '0 2')[n % 3]}" for n in range(21)]
    (folder / "train.txt").write_text("\n".join(rows[:16]) + "\n")
    (folder / "test.txt").write_text("\n".join(rows[16:]) + "\n")
    (folder / "classes.txt").write_text("red 0\ngreen 1\nblue 2\n")
    return {
        "dataset": "lists", "data_root": str(folder), "train_list": "train.txt", "test_list": "test.txt",
        "class_file": "classes.txt", "head_min": 6, "tail_max": 6, "model": "tiny", "tuning": "more", "method": "x",
        "lr": 1e-3, "lr_head": 1e-2, "batch_size": 4, "max_steps": 4, "checkpoint_every": 2, "workers": 0,
        "log_every": 1, "sampler": "progressive", "epochs": 2.0, "keep": "ema", "ema_decay": 0.5, "bootstrap": 0,
        "output_dir": str(folder / "runs"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def one(settings):
    """One process, without interruption: what every other run here must equal."""
    return train(from_dict({**settings, "accumulation": 2, "run": "one"}, "test"))


def recipe(settings, run, **keys):
    path = Path(settings["data_root"]) / f"{run}.yaml"
    path.write_text(yaml.safe_dump({**settings, "run": run, **keys}))
    return path


def readme_command(ending):
    """Variables and words after `accelerate launch` of the command for two CPU processes in recipes/README.md."""
    text = (REPOSITORY / "recipes/README.md").read_text().replace("\\\n", " ")
    commands = [line.strip() for line in text.splitlines() if line.startswith("    ") and "accelerate launch" in line]
    (command,) = [line for line in commands if "cpu2.yaml" in line and line.endswith(ending)]
    variables, words = command.split("accelerate launch")
    return dict(pair.split("=") for pair in variables.split()), shlex.split(words)


def launch(words, **environment):
    """`accelerate launch` with these words, on a free port; returns (exit code, what was printed)."""
    ours = ("ACCELERATE_", "MASTER_", "TORCHELASTIC_")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(ours) and k not in ("RANK", "WORLD_SIZE")}
    started = subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0", *map(str, words)],
        cwd=REPOSITORY,
        env={**clean, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = started.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(started.pid, signal.SIGKILL)
        pytest.fail(f"two processes did not end within {PATIENCE} s:\n{started.communicate()[0][-3000:]}")
    return started.returncode, printed


def launch_as_in_the_readme(recipe, ending):
    environment, words = readme_command(ending)
    place = next(i for i, word in enumerate(words) if word.endswith(".yaml") and words[i - 1] == "train")
    return launch([*words[:place], recipe, *words[place + 1 :]], **environment)


def at_step(step, act):
    """Do `act` after an optimiser step, on this process."""
    after_step = Prepared.after_step

    def told(self, done, *, moved):
        after_step(self, done, moved=moved)
        assert is_sharded(self.trained) == (self.distribution == "fsdp2")
        if done == step:
            act()

    Prepared.after_step = told


def fail():
    raise RuntimeError("the disk of this machine is gone")


FAULTS = {
    "raise": fail,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "signal": lambda: os.kill(os.getpid(), signal.SIGUSR1),
}


def train_with(recipe, fault):
    if fault is not None and fault[0] == "kill":
        guards._PATIENCE = 1.0  # there is no reason to wait for
    at_step(*((fault[1], FAULTS[fault[0]]) if fault else (None, None)))
    sys.exit(main(["train", str(recipe)]))


def two(recipe, faulty=None, fault=None):
    """A run of two processes, one of them with a fault."""
    folder = recipe.with_suffix("")
    folder.mkdir(exist_ok=True)
    return fork_two(folder, train_with, *((recipe, fault if rank == faulty else None) for rank in range(2)))


def events(folder, *kinds):
    """Lines of metrics.jsonl of these kinds."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] in kinds]


def assert_equals(run, one, start, record_property):
    """Weights, test logits and losses of a run against those of one process; differences are recorded.

    The keys' biases are left out: a softmax does not feel them, and AdamW takes the rounding of their gradient for one.
    """
    for part in ("general", "merged"):
        ours, theirs = (load_file(folder / part / "model.safetensors") for folder in (run, one))
        assert ours.keys() == theirs.keys()
        felt = [key for key in ours if not key.endswith("k_proj.bias")]
        largest = max((ours[key] - theirs[key]).abs().max().item() for key in felt)
        moved = max((ours[key] - start[key]).abs().max().item() for key in felt if key != "logit_scale")
        record_property(f"largest difference, {part}", largest)
        assert largest <= 3e-5 < 1e-3 < moved, f"{part}: they differ by up to {largest:.1e} and moved by {moved:.1e}"
    for file in sorted((one / "report").glob("*.safetensors")):
        ours, theirs = load_file(run / "report" / file.name), load_file(file)
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, rtol=1e-3, atol=1e-3, msg=f"{file.name} {key}")
    ours, theirs = (json.loads((folder / "report/results.json").read_text())["map"] for folder in (run, one))
    assert ours == theirs
    logged = {event["step"]: event for event in events(run, "train")}
    for event in events(one, "train"):
        for name in ("loss", "gradient_norm"):
            assert logged[event["step"]][name] == pytest.approx(event[name], rel=1e-4), (event["step"], name)


@pytest.fixture(scope="module")
def start():
    return load_clip("tiny").model.state_dict()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What two_processes.py left."""
    folder = tmp_path_factory.mktemp("two_processes")
    for code, printed in fork_two(folder, two_processes.run, (folder,), (folder,)):
        assert code == 0, printed[-3000:]
    return folder


@pytest.mark.parametrize(("name", "way"), [(name, way) for name, (_, _, ways) in CASES.items() for way in ways])
def test_gradients_of_two_processes_are_those_of_one_on_the_same_photos(shared, name, way, record_property):
    settings, accumulation, _ = CASES[name]
    task, _ = tiny_task(**settings)
    one = gradients(task, micro_batches(accumulation))
    two = load_file(shared / f"{name}.{way}.safetensors")
    assert one.keys() == two.keys()
    largest = max(gradient.abs().max().item() for gradient in one.values())
    difference = max((one[key] - two[key]).abs().max().item() for key in one)
    record_property("difference over largest gradient", difference / largest)
    assert difference <= ROUNDING * largest, f"{difference:.1e} of {largest:.1e}"


def test_steps_in_shards_are_those_of_one_process(shared, record_property):
    """Norms, clipping, AdamW and the running average, saved after two steps and loaded into new shards for a third.

    Numbers whose gradient is rounding alone are left out: AdamW takes it for one. So it is with the keys' biases, which
    a softmax does not feel.
    """
    task, config = tiny_task()
    optimizer, average, norms = adamw(task, config), RunningAverage(task, 0.9), []
    felt = {name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in task.state_dict().items()}
    for step in range(1, 4):
        optimizer.zero_grad()
        task(photos(PHOTOS), alpha=ALPHA)["loss"].backward()
        found = {name: p.grad.abs() for name, p in task.named_parameters() if p.grad is not None}
        largest = max(gradient.max() for gradient in found.values())
        for name, gradient in found.items():
            felt[name] &= (gradient == 0) | (gradient > ROUNDING * largest)
        norms.append(torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0).item())
        optimizer.step()
        task.classifier.head.clamp_scale()
        average.update(task, step)
    assert sum(mask.sum() for mask in felt.values()) > 0.98 * sum(mask.numel() for mask in felt.values())
    state = load_file(shared / "optimizer.safetensors")
    assert state.pop("norms").tolist() == pytest.approx(norms, rel=1e-5)
    for kind, ours, theirs, bound in (
        ("weights", load_file(shared / "weights.safetensors"), task.state_dict(), 3e-5),
        ("averages", load_file(shared / "averages.safetensors"), average.tensors, 3e-5),
        ("optimizer", state, optimizer_tensors(task, optimizer)[0], 1e-6),
    ):
        assert ours.keys() == theirs.keys()
        differences = {key: (ours[key] - theirs[key]).abs() for key in ours}
        if kind != "optimizer":
            differences = {key: difference[felt[key]] for key, difference in differences.items()}
        largest = max(difference.max().item() for difference in differences.values() if difference.numel())
        record_property(f"largest difference, {kind}", largest)
        assert largest <= bound, kind


def test_two_processes_leave_one_run_that_equals_one_process_on_the_same_photos(settings, one, start, record_property):
    code, printed = launch_as_in_the_readme(recipe(settings, "ddp"), DDP)
    assert code == 0, printed[-3000:]
    runs = one.parent
    assert [path.parent.name for path in runs.rglob("config.yaml") if path.parent.name != "one"] == ["ddp"]
    assert [event["event"] for event in events(runs / "ddp", "head_start", "start", "done")] == [
        "head_start", "start", "done",
    ]  # fmt: skip
    (begun,) = events(runs / "ddp", "start")
    assert (begun["processes"], begun["distribution"], begun["photos_a_step"]) == (2, "ddp", 8)
    assert_equals(runs / "ddp", one, start, record_property)


def test_a_signal_to_one_of_two_stops_both_and_the_sharded_run_goes_on(settings, one, start, record_property):
    """In shards from the first step to the last: a part of it may equal one process to the bit by rounding alone."""
    path = recipe(settings, "sharded", processes=2, distribution="fsdp2")
    stopped = two(path, faulty=1, fault=("signal", 1))
    assert [code for code, _ in stopped] == [75, 75], stopped
    folder = one.parent / "sharded"
    assert [event["step"] for event in events(folder, "stopped")] == [2]

    code, printed = launch_as_in_the_readme(path, FSDP2)
    assert code == 0, printed[-3000:]
    assert [event["distribution"] for event in events(folder, "start")] == ["fsdp2", "fsdp2"]
    (resumed,) = events(folder, "resume")
    assert (resumed["step"], resumed["exact"]) == (2, True)
    assert_equals(folder, one, start, record_property)


def test_a_process_that_fails_ends_the_other_with_its_reason_and_one_process_goes_on(
    settings, one, start, record_property
):
    """The first process is the harder case: the store in which it leaves its reason ends with it."""
    path = recipe(settings, "failed", distribution="fsdp2")
    (faulty_code, faulty_printed), (code, printed) = two(path, faulty=0, fault=("raise", 3))
    reason = "the disk of this machine is gone"
    assert code == faulty_code == 1, printed + faulty_printed
    assert reason in faulty_printed
    assert f"ended because of process 0: {reason}" in printed
    assert main(["train", str(path), "--accumulation", "2", "--distribution", "one"]) == 0
    folder = one.parent / "failed"
    (resumed,) = events(folder, "resume")
    assert (resumed["step"], resumed["exact"]) == (2, False)
    assert "1 process(es) (one), before 2 (fsdp2)" in resumed["why"]
    assert_equals(folder, one, start, record_property)


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_process_that_is_killed_ends_the_other(settings, faulty):
    """The other is in a collective call with it; the killed rank 0 takes the store along through which they talk."""
    distribution = ("ddp", "fsdp2")[faulty]
    ended = two(recipe(settings, f"killed_{faulty}", distribution=distribution), faulty=faulty, fault=("kill", 1))
    assert ended[faulty][0] == -signal.SIGKILL
    code, printed = ended[1 - faulty]
    assert code == 1, printed
    assert "another process is gone without a word" in printed
    assert not re.search("Traceback", printed)


ENVIRONMENT = """
import json, os, sys
from pathlib import Path
Path(sys.argv[1], os.environ["RANK"] + ".json").write_text(json.dumps(dict(os.environ)))
"""


def accelerator_under(told):
    """With the variables of a launcher, save that nobody keeps the store of its processes any more."""
    ours = {name: os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT")}
    os.environ.clear()
    os.environ.update({**told, **ours, "TORCHELASTIC_USE_AGENT_STORE": "False"})
    make_accelerator(from_dict({"dataset": "digits_mlt"}, "test"))


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path):
    """The same launch without the variable: what the launcher tells each process is what it is refused for."""
    (tmp_path / "environment.py").write_text(ENVIRONMENT)
    _, words = readme_command(DDP)
    words = [*words[: words.index("-m")], tmp_path / "environment.py", tmp_path]
    code, printed = launch(words, CUDA_VISIBLE_DEVICES="")
    assert code == 0, printed[-3000:]
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [(own["RANK"], own["WORLD_SIZE"]) for own in told] == [("0", "2"), ("1", "2")]
    for code, printed in fork_two(tmp_path, accelerator_under, *((own,) for own in told)):
        assert code == 1
        assert "the launcher started 2 processes, but Accelerate sees 1" in printed
        assert "On CPUs put ACCELERATE_USE_CPU=true in front" in printed
