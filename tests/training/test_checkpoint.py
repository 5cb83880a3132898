import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import traceback
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError

from clip_more.training import checkpoint as module
from clip_more.training.checkpoint import (
    CheckpointError,
    clean,
    holds,
    list_checkpoints,
    newest_intact,
    prune,
    read_document,
    read_tensors,
    require_space,
    verify,
    write_checkpoint,
)

FILES = ["model.safetensors", "optimizer.safetensors", "progress.json", "manifest.json"]


@pytest.fixture(autouse=True)
def no_flush(monkeypatch):
    """Killed processes lose nothing that was written, so tests need not wait for the disk."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def write(folder: Path, name: str, value: float = 0.0) -> Path:
    tensors = {"model": {"weight": torch.full((3, 2), value)}, "optimizer": {"step": torch.tensor(value)}}
    return write_checkpoint(folder, name, tensors, {"progress": {"value": value}})


def value_of(checkpoint: Path) -> float:
    verify(checkpoint)
    return read_document(checkpoint, "progress")["value"]


def flip(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is written comes back.


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
def test_tensors_of_every_type_come_back_bit_for_bit(tmp_path, dtype):
    values = torch.randint(0, 2, (2, 3)).to(dtype)
    written = {"a": values, "scalar": torch.ones((), dtype=dtype), "empty": torch.empty(0)}
    held = read_tensors(write_checkpoint(tmp_path, "step_1", {"model": written}, {}), "model")
    assert held.keys() == written.keys()
    for name, tensor in written.items():
        assert held[name].dtype == tensor.dtype
        assert held[name].shape == tensor.shape
        assert torch.equal(held[name], tensor), name


def test_tensors_that_share_memory_or_are_parts_of_others_come_back_whole(tmp_path):
    weight = torch.randn(4, 6, requires_grad=True)
    written = {"weight": weight, "tied": weight, "transposed": weight.t(), "row": weight[2], "columns": weight[:, 1:3]}
    held = read_tensors(write_checkpoint(tmp_path, "step_1", {"model": written}, {}), "model")
    for name, tensor in written.items():
        assert torch.equal(held[name], tensor), name


def test_documents_come_back(tmp_path):
    progress = {"step": 3, "best": 0.1 + 0.2, "why": None, "names": ["é", "b"]}
    written = write_checkpoint(tmp_path, "step_3", {}, {"progress": progress, "none": None})
    assert read_document(written, "progress") == progress
    assert read_document(written, "none") is None


def test_holds_tells_what_was_written_and_reading_anything_else_is_refused(tmp_path):
    written = write(tmp_path, "step_1")
    assert holds(written, "model")
    assert holds(written, "progress")
    assert not holds(written, "average")
    with pytest.raises(CheckpointError, match=r"step_1 holds no average\.safetensors"):
        read_tensors(written, "average")
    with pytest.raises(CheckpointError, match=r"step_1 holds no model\.json"):
        read_document(written, "model")


def test_what_was_read_does_not_change_with_the_file(tmp_path):
    written = write(tmp_path, "step_1", 2.5)
    held = read_tensors(written, "model")["weight"]
    with (written / "model.safetensors").open("r+b") as file:
        file.write(bytes((written / "model.safetensors").stat().st_size))
    assert torch.equal(held, torch.full((3, 2), 2.5))


def test_a_name_that_nothing_would_list_is_refused(tmp_path):
    with pytest.raises(ValueError, match="step_N or best_step_N, not last"):
        write(tmp_path, "last")


# Damage is seen.


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("harm", "word"), [(flip, "damaged"), (cut, "truncated|damaged"), (Path.unlink, "missing")])
def test_a_flipped_bit_a_cut_and_a_loss_are_seen_and_the_file_is_named(tmp_path, file, harm, word):
    written = write(tmp_path, "step_1")
    verify(written)
    harm(written / file)
    with pytest.raises(CheckpointError, match=rf"step_1/{file} is ({word})"):
        verify(written)


def test_truncation_tells_both_sizes(tmp_path):
    written = write(tmp_path, "step_1")
    size = (written / "model.safetensors").stat().st_size
    os.truncate(written / "model.safetensors", 10)
    with pytest.raises(CheckpointError, match=f"is truncated: 10 bytes of {size}"):
        verify(written)


def test_a_file_that_has_grown_or_become_a_folder_is_seen(tmp_path):
    written = write(tmp_path, "step_1")
    with (written / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is too long"):
        verify(written)
    (written / "model.safetensors").unlink()
    (written / "model.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a file"):
        verify(written)


def test_a_stranger_among_the_files_does_no_harm_and_is_not_read(tmp_path):
    written = write(tmp_path, "step_1")
    (written / ".DS_Store").write_bytes(b"\0")
    (written / "average.safetensors").write_bytes(b"\0")
    verify(written)
    assert not holds(written, "average")


@pytest.mark.parametrize(
    "junk",
    [b"", b"\0" * 300, b"{", b"[]", b"3", b"null", b"{}", b'{"format": 1, "files": []}', b"\xff\xfe", b"[" * 100_000,
     b'{"format": 1, "files": {"progress.json": {}}}', b'{"format": 1, "files": {"progress.json": 3}}',
     b'{"format": 2, "files": {}}', b'{"format": 1, "files": {"x": {"bytes": 0, "xxh128": ""}}}'],
    ids=lambda junk: repr(junk[:40]),
)  # fmt: skip
def test_a_manifest_that_is_junk_is_damage(tmp_path, junk):
    written = write(tmp_path, "step_1")
    (written / "manifest.json").write_bytes(junk)
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        verify(written)


def test_a_manifest_with_a_name_that_no_file_can_have_is_damage(tmp_path):
    path = write_checkpoint(tmp_path, "step_1", {}, {"progress": 1}) / "manifest.json"
    path.write_text(path.read_text().replace("progress", r"\u0000"))
    with pytest.raises(CheckpointError, match="is missing"):
        verify(path.parent)


def test_the_manifest_of_another_checkpoint_is_damage(tmp_path):
    one, two = write(tmp_path, "step_1", 1.0), write(tmp_path, "step_2", 2.0)
    shutil.copy(one / "manifest.json", two / "manifest.json")
    with pytest.raises(CheckpointError, match="damaged"):
        verify(two)


@pytest.fixture(scope="module")
def one_checkpoint(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("fuzz"), "step_1", 1.5)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_changed_byte_passes(one_checkpoint, data):
    path = one_checkpoint / data.draw(st.sampled_from(FILES))
    held = path.read_bytes()
    start = data.draw(st.integers(0, len(held)))
    end = data.draw(st.integers(start, min(len(held), start + 4)))
    changed = held[:start] + data.draw(st.binary(max_size=4)) + held[end:]
    try:
        path.write_bytes(changed)
        if changed == held:
            verify(one_checkpoint)
        else:
            with pytest.raises(CheckpointError, match=r"is (damaged|truncated|too long|missing)"):
                verify(one_checkpoint)
    finally:
        path.write_bytes(held)


# The newest intact one is found.


def test_checkpoints_are_listed_by_number_and_nothing_else_is(tmp_path):
    for name in ("step_10", "step_9", "step_100", "best_step_9"):
        write(tmp_path, name)
    for name in ("step_", "step_1x", "step_²", "damaged_step_3", ".step_4.new", ".step_4.old", ".step_4.gone", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "step_5").write_text("")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_9", "step_10", "step_100"]


def test_no_folder_and_an_empty_one_hold_no_checkpoint(tmp_path):
    said = []
    assert newest_intact(tmp_path / "none", said.append) is None
    assert newest_intact(tmp_path, said.append) is None
    assert said == []


def test_damaged_ones_are_named_and_kept_and_the_one_before_is_used(tmp_path):
    for step in (8, 9, 10):
        write(tmp_path, f"step_{step}")
    flip(tmp_path / "step_10" / "optimizer.safetensors")
    (tmp_path / "step_9" / "progress.json").unlink()
    said = []
    assert newest_intact(tmp_path, said.append) == tmp_path / "step_8"
    assert names(tmp_path) == ["damaged_step_10", "damaged_step_9", "step_8"]
    assert len(said) == 2
    assert "step_10/optimizer.safetensors is damaged" in said[0]
    assert "kept as damaged_step_10" in said[0]
    assert "step_9/progress.json is missing" in said[1]


def test_older_ones_are_not_touched_when_the_newest_is_intact(tmp_path):
    write(tmp_path, "step_1")
    write(tmp_path, "step_2")
    flip(tmp_path / "step_1" / "progress.json")
    assert newest_intact(tmp_path, pytest.fail) == tmp_path / "step_2"
    assert names(tmp_path) == ["step_1", "step_2"]


def test_a_step_that_is_damaged_again_gets_a_number(tmp_path):
    write(tmp_path, "step_1")
    for _ in range(3):
        flip(write(tmp_path, "step_2") / "progress.json")
        newest_intact(tmp_path, str)
    assert names(tmp_path) == ["damaged_step_2", "damaged_step_2_2", "damaged_step_2_3", "step_1"]


def test_only_damaged_ones_are_refused_every_time(tmp_path):
    for step in (1, 2):
        flip(write(tmp_path, f"step_{step}") / "model.safetensors")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="no intact checkpoint, only damaged_step_1, damaged_step_2: "):
            newest_intact(tmp_path, str)


def test_a_file_that_may_not_be_read_now_is_no_damage(tmp_path, monkeypatch):
    write(tmp_path, "step_1")
    monkeypatch.setattr("hashlib.file_digest", failing(errno.EACCES))
    with pytest.raises(CheckpointError, match=r"step_1/.* cannot be read: Permission denied"):
        newest_intact(tmp_path, pytest.fail)
    assert names(tmp_path) == ["step_1"]


def test_a_file_that_the_disk_cannot_read_is_damage(tmp_path, monkeypatch):
    write(tmp_path, "step_1")
    said = []
    monkeypatch.setattr("hashlib.file_digest", failing(errno.EIO))
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        newest_intact(tmp_path, said.append)
    assert "cannot be read: Input/output error" in said[0]


# A write that fails costs nothing.


def failing(number: int):
    def fail(*_args, **_kwargs):
        raise OSError(number, os.strerror(number))

    return fail


def serialiser_failing(tensors, path):
    Path(path).write_bytes(b"half")
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def flush_of_tensors_failing(path):
    if path.suffix == ".safetensors":
        failing(errno.ENOSPC)()


FAULTS = {
    "tensors": ("clip_more.training.checkpoint.save_file", serialiser_failing),
    "flush": ("os.fsync", failing(errno.ENOSPC)),
    "flush of tensors": ("clip_more.training.checkpoint.to_disk", flush_of_tensors_failing),
    "hash": ("clip_more.training.checkpoint.hash_file", failing(errno.ENOSPC)),
    "document": ("pathlib.Path.write_bytes", failing(errno.ENOSPC)),
    "manifest": ("clip_more.training.checkpoint.write_manifest", failing(errno.ENOSPC)),
    "name": ("pathlib.Path.mkdir", failing(errno.ENOSPC)),
    "rename": ("pathlib.Path.rename", failing(errno.ENOSPC)),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["step_2", "step_1"], ids=["new", "replacing"])
def test_a_full_disk_at_any_moment_is_told_and_leaves_the_old_checkpoint(tmp_path, monkeypatch, fault, name):
    write(tmp_path, "step_1", 1.0)
    with monkeypatch.context() as broken:
        broken.setattr(*FAULTS[fault])
        with pytest.raises(CheckpointError) as told:
            write(tmp_path, name, 2.0)
    assert f"checkpoint {name} could not be written" in str(told.value)
    assert "No space left on device" in str(told.value)
    assert "The checkpoints before it are untouched" in str(told.value)
    assert names(tmp_path) == ["step_1"]
    assert value_of(tmp_path / "step_1") == 1.0


def test_a_rename_that_fails_half_way_puts_the_old_checkpoint_back(tmp_path, monkeypatch):
    write(tmp_path, "step_1", 1.0)
    rename = Path.rename

    def rename_of_the_new_fails(path, target):
        return failing(errno.EACCES)() if path.name == ".step_1.new" else rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_of_the_new_fails)
    with pytest.raises(CheckpointError, match="Permission denied"):
        write(tmp_path, "step_1", 2.0)
    assert names(tmp_path) == ["step_1"]
    assert value_of(tmp_path / "step_1") == 1.0


def test_an_interrupt_leaves_nothing_half_written(tmp_path, monkeypatch):
    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "step_1")
    assert names(tmp_path) == []


def usage(monkeypatch, free: int) -> None:
    found = namedtuple("usage", "total used free")(1 << 40, 0, free)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: found if Path(folder).exists() else os.stat(folder))


def test_too_little_space_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    write(tmp_path, "step_1")
    usage(monkeypatch, 5_000_000)
    large = {"model": {"weight": torch.empty(1_500_000)}}
    with pytest.raises(CheckpointError, match=r"too full for checkpoint step_2: 6\.0 MB needed, 5\.0 MB free there"):
        write_checkpoint(tmp_path, "step_2", large, {})
    assert names(tmp_path) == ["step_1"]


def test_space_is_that_of_the_disk_where_the_folder_will_be(tmp_path, monkeypatch):
    usage(monkeypatch, 3_000_000_000)
    require_space(tmp_path / "not" / "there", 3_000_000_000, "merged/")
    with pytest.raises(CheckpointError, match=r"too full for merged/: 3\.5 GB needed, 3\.0 GB free"):
        require_space(tmp_path / "not" / "there", 3_500_000_000, "merged/")


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 1 MiB, where the machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_up_while_we_write_leaves_the_old_checkpoint(small_disk, monkeypatch):
    write(small_disk, "step_1", 1.0)
    usage(monkeypatch, 1 << 40)  # Others fill it after we looked.
    with pytest.raises(CheckpointError, match=r"step_2 could not be written: .*No space left on device"):
        write_checkpoint(small_disk, "step_2", {"model": {"weight": torch.ones(1_000_000)}}, {})
    assert names(small_disk) == ["step_1"]
    assert value_of(small_disk / "step_1") == 1.0
    assert value_of(write(small_disk, "step_2", 2.0)) == 2.0


def test_a_disk_that_is_read_only_is_told(small_disk):
    write(small_disk, "step_1", 1.0)
    write(small_disk, "step_2")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(CheckpointError, match=r"step_3 could not be written: Read-only file system"):
        write(small_disk, "step_3")
    with pytest.raises(CheckpointError, match=r"step_1 could not be renamed \.step_1\.gone: Read-only file system"):
        prune(small_disk, 1)
    assert value_of(small_disk / "step_1") == 1.0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_told(tmp_path):
    write(tmp_path, "step_1", 1.0)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match="step_2 could not be written: Permission denied"):
            write(tmp_path, "step_2")
    finally:
        tmp_path.chmod(0o700)
    assert value_of(tmp_path / "step_1") == 1.0


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(CheckpointError, match="step_1 could not be written"):
        write(tmp_path / "checkpoints", "step_1")
    with pytest.raises(CheckpointError, match="checkpoints cannot be read: Not a directory"):
        list_checkpoints(tmp_path / "checkpoints")


# Order of flushing.


def test_every_file_is_on_the_disk_before_the_rename_and_the_rename_after(tmp_path, monkeypatch):
    done = []
    rename = Path.rename
    monkeypatch.setattr("os.fsync", lambda descriptor: done.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(Path, "rename", lambda path, target: (done.append("rename"), rename(path, target))[1])
    written = write(tmp_path, "step_1")
    moment = done.index("rename")
    assert {path.stat().st_ino for path in written.iterdir()} < set(done[:moment])
    assert done[moment - 1] == written.stat().st_ino
    assert done[moment + 1 :] == [tmp_path.stat().st_ino]


# Old ones go.


@pytest.mark.parametrize(("keep", "left"), [(1, [11]), (2, [9, 11]), (5, [2, 9, 11])])
def test_the_last_ones_stay(tmp_path, keep, left):
    for step in (9, 2, 11):
        write(tmp_path, f"step_{step}")
    prune(tmp_path, keep)
    assert list_checkpoints(tmp_path) == [tmp_path / f"step_{step}" for step in left]
    assert len(names(tmp_path)) == len(left)


def test_the_best_one_stays_and_former_best_ones_go(tmp_path):
    for name in ("step_9", "step_10", "best_step_1", "best_step_5", "best_step_10"):
        write(tmp_path, name)
    for name in ("damaged_step_3", "best_step_5_of_mine"):
        (tmp_path / name).mkdir()
    prune(tmp_path, 1, {"best_step_5"})
    assert names(tmp_path) == ["best_step_5", "best_step_5_of_mine", "damaged_step_3", "step_10"]


def test_leftovers_of_a_kill_go_and_other_hidden_things_stay(tmp_path):
    write(tmp_path, "step_3", 3.0)
    for name in (".step_4.new", ".step_1.gone", ".best_step_2.gone", ".step_3.old", ".cache", ".step_4.mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    clean(tmp_path)
    assert names(tmp_path) == [".cache", ".step_4.mine", "step_3"]
    assert value_of(tmp_path / "step_3") == 3.0


def test_a_checkpoint_that_a_kill_displaced_gets_its_place_back(tmp_path):
    write(tmp_path, "step_3", 3.0).rename(tmp_path / ".step_3.old")
    write(tmp_path, "step_4").rename(tmp_path / ".step_3.new")
    clean(tmp_path)
    assert names(tmp_path) == ["step_3"]
    assert value_of(tmp_path / "step_3") == 3.0


def test_cleaning_where_there_is_no_folder_does_nothing(tmp_path):
    clean(tmp_path / "none")
    assert names(tmp_path) == []


# A kill at any moment.


def killed_at(moment: int, act) -> bool:
    """Run `act` in a child that SIGKILLs itself before its `moment`-th touch of a file; False if it has no so many."""
    child = os.fork()
    if child == 0:
        left = moment

        def count(event: str, _arguments) -> None:
            nonlocal left
            if event == "open" or (event.startswith(("os.", "shutil.")) and event != "os.kill"):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            os.fsync = lambda descriptor: sys.audit("os.fsync")
            sys.addaudithook(count)
            act()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def kills(tmp_path: Path, prepare, act):
    """Yield a folder for every moment at which `act` can be killed, after the kill; the last one was not killed."""
    moment, killed = 0, True
    prepare(tmp_path / "before")
    while killed:
        folder = tmp_path / str(moment)
        shutil.copytree(tmp_path / "before", folder)
        killed = killed_at(moment, lambda folder=folder: act(folder))
        yield folder
        shutil.rmtree(folder)
        moment += 1
    assert moment > 5


def listed(folder: Path) -> dict[str, float]:
    return {path.name: value_of(path) for path in list_checkpoints(folder)}


pytest_fork = pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")


@pytest_fork
def test_a_kill_at_any_moment_of_a_write_leaves_only_whole_checkpoints(tmp_path):
    seen = []
    for folder in kills(tmp_path, lambda f: write(f, "step_1", 1.0), lambda f: write(f, "step_2", 2.0)):
        seen.append(listed(folder))
        clean(folder)
        assert names(folder) == sorted(seen[-1])
        assert value_of(write(folder, "step_2", 3.0)) == 3.0
    old, new = {"step_1": 1.0}, {"step_1": 1.0, "step_2": 2.0}
    assert seen == [old] * seen.count(old) + [new] * seen.count(new)
    assert seen.count(old) > 10


@pytest_fork
def test_a_kill_at_any_moment_of_a_replacement_loses_neither_the_old_nor_the_new(tmp_path):
    seen = []
    for folder in kills(tmp_path, lambda f: write(f, "step_1", 1.0), lambda f: write(f, "step_1", 2.0)):
        assert set(listed(folder)) <= {"step_1"}
        clean(folder)
        assert names(folder) == ["step_1"]
        seen.append(value_of(folder / "step_1"))
    assert seen == sorted(seen)
    assert set(seen) == {1.0, 2.0}


@pytest_fork
def test_a_kill_inside_the_serialiser_leaves_nothing_listed(tmp_path, monkeypatch):
    def half(tensors, path):
        Path(path).write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)

    write(tmp_path, "step_1", 1.0)
    monkeypatch.setattr(module, "save_file", half)
    assert killed_at(10**6, lambda: write(tmp_path, "step_2", 2.0))
    assert (tmp_path / ".step_2.new").is_dir()
    assert listed(tmp_path) == {"step_1": 1.0}


@pytest_fork
def test_a_kill_at_any_moment_of_pruning_leaves_only_whole_checkpoints(tmp_path):
    def prepare(folder):
        for name in ("step_2", "step_3", "best_step_1", "best_step_2"):
            write(folder, name)

    for folder in kills(tmp_path, prepare, lambda f: prune(f, 1, {"best_step_2"})):
        assert "step_3" in listed(folder)
        for best in folder.glob("best_step_*"):
            verify(best)
        clean(folder)
        prune(folder, 1, {"best_step_2"})
        assert names(folder) == ["best_step_2", "step_3"]


@pytest_fork
def test_a_kill_at_any_moment_of_setting_aside_loses_no_file(tmp_path):
    def prepare(folder):
        write(folder, "step_1", 1.0)
        flip(write(folder, "step_2", 2.0) / "model.safetensors")

    for folder in kills(tmp_path, prepare, lambda f: newest_intact(f, str)):
        assert newest_intact(folder, str) == folder / "step_1"
        assert names(folder) == ["damaged_step_2", "step_1"]
        assert names(folder / "damaged_step_2") == sorted(FILES)


@pytest_fork
def test_a_file_larger_than_the_system_allows_is_told(tmp_path):
    """A limit on file sizes (ulimit -f) is the one full disk that every machine can show."""
    write(tmp_path, "step_1", 1.0)
    large = torch.ones(1 << 16)  # before the fork: torch's threads do not live in the child

    def act():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        with pytest.raises(CheckpointError, match="File too large"):
            write_checkpoint(tmp_path, "step_2", {"model": {"weight": large}}, {})

    assert not killed_at(10**6, act)
    assert names(tmp_path) == ["step_1"]
