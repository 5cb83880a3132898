import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_more.config import TrainConfig
from clip_more.data import prepare as prepare_module
from clip_more.data.opening import PhotoError, open_photo
from clip_more.data.photos import undecoded
from clip_more.data.prepare import prepare, read_prepared
from tests.fuzz.harness import damaged, files, fuzz, outcome

LISTED = {"train": 3, "test": 1}
TOKENS = (b'"rows": 2', b"null", b"[]", b"{}", b'"train"', b'"file"', b"true")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    root = tmp_path_factory.mktemp("source")
    for number in range(4):
        pixels = np.full((4, 6, 3), number, dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(root / f"{number}.png")
    (root / "train.txt").write_text("0.png 0\n1.png\n2.png 0 1\n")
    (root / "test.txt").write_text("3.png 1\n")
    (root / "classes.txt").write_text("cat\ndog\n")
    files = {"train_list": "train.txt", "test_list": "test.txt", "class_file": "classes.txt"}
    return TrainConfig(dataset="lists", data_root=str(root), **files)


@pytest.fixture(scope="module")
def folder(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared") / "out"
    prepare(config, folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def begun(config, tmp_path_factory):
    """The record of a folder that was only begun."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch, suppress(InterruptedError):
        patch.setattr(prepare_module, "_check_disk", interrupt)
        prepare(config, folder, progress=False)
    return Path(folder, ".progress", "begun.json").read_bytes()


def interrupt(*_):
    raise InterruptedError


NAMES = ("prepared.json", "train/state.json", "train/dataset_info.json", "train/data-00000-of-00001.arrow")


def restore(folder, whole):
    for name in NAMES:
        (folder / name).write_bytes(whole[name])


@fuzz
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_prepared(folder, whole, data, name):
    """The file that is damaged keeps its length now and then, so that more than its size must be looked at."""
    content = data.draw(damaged(whole[name], TOKENS))
    if name.endswith(".arrow") and data.draw(st.booleans()):
        content = (content + bytes(len(whole[name])))[: len(whole[name])]
    with files(folder, {name: content}):
        dataset = outcome("prepared", lambda: read_prepared(folder, "train"), str(folder))
        if dataset is not None:
            assert len(dataset) == LISTED["train"]
            for row in undecoded(dataset):
                with suppress(PhotoError):  # a byte of the photo itself
                    open_photo(row["image"], row["image_id"])
        del dataset
    restore(folder, whole)


@fuzz
@given(data=st.data(), name=st.sampled_from([".progress/begun.json", ".progress/train-00000.json", "prepared.json"]))
def test_going_on(config, folder, whole, begun, data, name):
    """A damaged record is refused, or done again: what is there in the end is what was listed."""
    record = json.loads(whole["prepared.json"])
    notes = json.dumps({**record["shards"]["train"][0], "rows": 2, "skipped": [["0.png", "why"]]}).encode()
    valid = {
        ".progress/begun.json": begun,
        ".progress/train-00000.json": notes,
        "prepared.json": whole["prepared.json"],
    }
    content = data.draw(damaged(valid[name], TOKENS))
    contents = {name: content} if name == "prepared.json" else {"prepared.json": None, ".progress/begun.json": begun}
    with files(folder, {**contents, name: content}):
        report = outcome("prepare, continued", lambda: prepare(config, folder, progress=False), str(folder))
        if report is not None:
            assert sum(report.written.values()) + report.skipped == report.listed
    restore(folder, whole)
