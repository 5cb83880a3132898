"""A damaged checkpoint is found, named and set aside; the run goes on from the one before, bit for bit."""

import shutil

import pytest

from tests.training.killing import Death, Trainer, finish
from tests.training.twins import course, differences, write_recipe


@pytest.fixture(scope="module")
def dead(squares, tmp_path_factory):
    """A run that died at step 4 and left the checkpoints of steps 2 and 3."""
    recipe = write_recipe(squares, tmp_path_factory.mktemp("dead"), "accumulation")
    with Trainer(recipe, Death("save", time=4, operation=0)) as trainer:
        trainer.end()
    folder = recipe.parent / "run"
    assert sorted(path.name for path in (folder / "checkpoints").glob("step_*")) == ["step_2", "step_3"]
    return folder


@pytest.fixture
def copied(dead, squares, tmp_path):
    """A copy of it, to be damaged, and its recipe."""
    shutil.copytree(dead, tmp_path / "run")
    return tmp_path / "run", write_recipe(squares, tmp_path, "accumulation")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", flip_a_bit),
        ("optimizer.safetensors", cut_off),
        ("random_0.safetensors", lambda path: path.unlink()),
    ],
    ids=["bit", "truncated", "missing"],
)
def test_damaged_checkpoint_is_named_and_the_one_before_used(name, damage, copied, twin):
    folder, recipe = copied
    damage(folder / "checkpoints/step_3" / name)
    trainer, _ = finish(recipe)
    said = trainer.output.read_text()
    assert name in said
    assert "damaged_step_3" in said
    assert (folder / "checkpoints/damaged_step_3").is_dir()
    assert trainer.resumed == 2
    assert differences(folder, twin("accumulation").folder) == []
    assert course(folder) == course(twin("accumulation").folder)


def test_run_without_an_intact_checkpoint_is_refused(copied):
    folder, recipe = copied
    for step in (2, 3):
        flip_a_bit(folder / f"checkpoints/step_{step}/model.safetensors")
    for _ in range(2):  # the second time they are set aside already
        with Trainer(recipe) as trainer:
            assert trainer.end() == 1
        last = trainer.output.read_text().splitlines()[-1]
        assert "damaged_step_2" in last
        assert "damaged_step_3" in last
    assert not (folder / "merged").exists()
