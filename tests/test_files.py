import os

import pytest
import torch
from safetensors.torch import save_file

from clip_more.files import filled_aside, written_aside
from clip_more.training.checkpoint import write_checkpoint


@pytest.fixture
def mask():
    before = os.umask(0o027)
    yield 0o666 & ~0o027
    os.umask(before)


@pytest.mark.skipif(os.name != "posix", reason="rights are POSIX's")
def test_weights_can_be_read_by_whoever_may_read_new_files(tmp_path, mask):
    weights = {"a": torch.zeros(1)}
    with written_aside(tmp_path / "one.safetensors") as aside:
        save_file(weights, aside)
    with filled_aside(tmp_path / "folder") as aside:
        save_file(weights, aside / "two.safetensors")
    write_checkpoint(tmp_path, "step_1", {"model": weights}, {"progress": {}})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {path.name: mask for path in files}


def test_what_fails_leaves_the_old_file_and_nothing_beside(tmp_path):
    def fail():
        with written_aside(tmp_path / "a.txt") as aside:
            aside.write_text("half")
            raise RuntimeError("no")

    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError, match="no"):
        fail()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]
