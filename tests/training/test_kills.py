"""A killed run, named again, ends where the uninterrupted one does: bit for bit, with nothing unreadable left.

`CLIP_MORE_KILLS=20` kills at that many random moments, and before each file operation (`make soak`).
"""

import random
import signal

import pytest

from tests.training.killing import KILLED, KILLS, Death, Trainer, finish
from tests.training.twins import SETTINGS, course, differences, hidden, newest_checkpoint, unreadable, write_recipe

soak = pytest.mark.skipif(KILLS == 1, reason="make soak")


def go_on(recipe, setting, twin, where):
    """Resume a dead run to its end, and hold it against its twin."""
    folder = recipe.parent / "run"
    assert unreadable(folder) == []
    newest, done = newest_checkpoint(folder), (folder / "report/results.json").exists()
    origin = "nothing, done" if done else "the start" if newest is None else f"step {newest}"
    KILLED.append((setting, where, origin, "NO"))
    trainer, _ = finish(recipe)
    assert trainer.resumed == (None if done else newest)
    compare(folder, twin)
    KILLED[-1] = (*KILLED[-1][:3], "yes")


def compare(folder, twin):
    assert differences(folder, twin.folder) == []
    assert course(folder) == course(twin.folder)
    assert unreadable(folder) + hidden(folder) == []


@pytest.mark.parametrize("number", range(KILLS))
def test_run_killed_at_a_random_moment(number, twin, squares, tmp_path):
    setting = list(SETTINGS)[number % len(SETTINGS)]
    whole = twin(setting)
    moment = 0.5 if KILLS == 1 else random.random()  # the suite shall never fail by chance
    seconds, attempt, deaths = moment * whole.seconds, 0, []
    while not deaths:
        recipe = write_recipe(squares, tmp_path / str(attempt), setting)
        deaths += kill_after(recipe, seconds)
        seconds, attempt = seconds / 2, attempt + 1
    if number % 3 == 2:
        assert unreadable(recipe.parent / "run") == []
        deaths += kill_after(recipe, random.uniform(0, whole.seconds / 2))
    go_on(recipe, setting, whole, "; ".join(deaths))


def kill_after(recipe, seconds):
    """Where the trainer was hit, if it was not done by then."""
    with Trainer(recipe) as trainer:
        if not trainer.run_for(seconds):
            return []
        trainer.kill()
        return [trainer.where] if trainer.end() == -signal.SIGKILL else []


@pytest.mark.parametrize(
    "death",
    [
        pytest.param(Death("save", time=4, operation=3), id="between two files"),
        pytest.param(Death("save", time=4, size=1_000_000), id="in the middle of one", marks=soak),
    ],
)
def test_run_killed_inside_a_save(death, twin, squares, tmp_path):
    recipe = write_recipe(squares, tmp_path, "accumulation")
    with Trainer(recipe, death) as trainer:
        assert trainer.end() in (-signal.SIGKILL, -signal.SIGXFSZ)
    assert trainer.inside == ["save"]
    assert any("step_4" in name for name in hidden(tmp_path / "run"))
    assert newest_checkpoint(tmp_path / "run") == 3
    go_on(recipe, "accumulation", twin("accumulation"), trainer.where)


def test_run_killed_between_the_folders_of_its_export(twin, squares, tmp_path):
    recipe = write_recipe(squares, tmp_path, "accumulation")
    with Trainer(recipe, Death("files for transformers", time=2, operation=1)) as trainer:
        assert trainer.end() == -signal.SIGKILL
    folder = tmp_path / "run"
    assert (folder / "general").is_dir()
    assert not (folder / "merged").exists()
    go_on(recipe, "accumulation", twin("accumulation"), trainer.where)


@pytest.mark.parametrize("name", ["SIGTERM", *(["SIGINT", "SIGUSR1"] if KILLS > 1 else [])])
def test_signal_to_all_processes_saves_and_ends_with_its_own_code(name, twin, squares, tmp_path):
    recipe = write_recipe(squares, tmp_path, "accumulation", workers=2, checkpoint_every=6)
    with Trainer(recipe) as trainer:
        trainer.reach("step 3")
        trainer.signal_all(getattr(signal, name))
        assert trainer.end() == 75
    assert trainer.inside == []
    assert newest_checkpoint(tmp_path / "run") == trainer.step < 6
    go_on(recipe, "accumulation", twin("accumulation"), f"step {trainer.step}, {name}: saved, exit code 75")


@soak
@pytest.mark.parametrize(
    ("stage", "time", "setting", "every"),
    [
        ("save", 1, "running average", 1),
        ("save of the best", 2, "best weights", 1),
        ("save", 3, "best weights", 1),
        ("report", 1, "accumulation", 6),
    ],
)
def test_run_killed_before_a_file_operation(stage, time, setting, every, twin, squares, tmp_path):
    operation = random.randrange(every)
    while True:
        recipe = write_recipe(squares, tmp_path / str(operation), setting)
        with Trainer(recipe, Death(stage, time=time, operation=operation)) as trainer:
            if trainer.end() == 0:
                break
        go_on(recipe, setting, twin(setting), f"{trainer.where}, file operation {operation}")
        operation += every
    assert operation > 2
