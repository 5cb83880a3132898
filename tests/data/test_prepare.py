import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from clip_more.config import ConfigError, TrainConfig
from clip_more.data import prepare as prepare_module
from clip_more.data import shards
from clip_more.data.form import class_names, label_pairs
from clip_more.data.load import read_data
from clip_more.data.opening import open_photo
from clip_more.data.photos import Photos, undecoded
from clip_more.data.prepare import prepare, read_prepared
from clip_more.data.transforms import train_transform

TRAIN, TEST = 7, 3


def photo(seed, width=40, height=24):
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def config(tmp_path):
    """A list data set of ten photos: PNG, so that raw copies can be compared byte for byte."""
    root = tmp_path / "data"
    root.mkdir()
    for number in range(TRAIN + TEST):
        photo(number).save(root / f"{number}.png")
    lines = [f"{number}.png {' '.join(map(str, range(number % 3)))}\n" for number in range(TRAIN + TEST)]
    (root / "train.txt").write_text("".join(lines[:TRAIN]))
    (root / "test.txt").write_text("".join(lines[TRAIN:]))
    (root / "classes.txt").write_text("cat\ntraffic light\n")
    return TrainConfig(
        dataset="lists", data_root=str(root), train_list="train.txt", test_list="test.txt", class_file="classes.txt"
    )


@pytest.fixture
def three_a_shard(monkeypatch):
    monkeypatch.setattr(shards, "PHOTOS_A_SHARD", 3)


def columns(dataset):
    rows = undecoded(dataset)
    return {name: list(rows[name]) for name in rows.column_names}


def test_a_prepared_set_has_the_rows_of_its_source(config, tmp_path, three_a_shard):
    report = prepare(config, tmp_path / "out", short_side=100)
    assert report.written == {"train": TRAIN, "test": TEST}
    source = read_data(config)
    for split, expected in (("train", source.train), ("test", source.test)):
        found = read_prepared(tmp_path / "out", split)
        assert found.features == expected.features
        for column in ("labels", "image_id", "unknown"):
            assert list(found[column]) == list(expected[column])
        for ours, theirs in zip(undecoded(found), undecoded(expected), strict=True):
            np.testing.assert_array_equal(open_photo(ours["image"], ""), open_photo(theirs["image"], ""))


def test_stock_datasets_reads_and_decodes_it(config, tmp_path, three_a_shard):
    import datasets

    prepare(config, tmp_path / "out", short_side=100)
    stock = datasets.load_from_disk(str(tmp_path / "out" / "train"))
    assert stock.features["labels"].feature.names == ["cat", "traffic light"]
    np.testing.assert_array_equal(np.asarray(stock[4]["image"]), np.asarray(photo(4)))


def test_longer_photos_are_made_smaller_and_no_photo_larger(config, tmp_path):
    photo(0, 30, 90).save(Path(config.data_root) / "0.png")
    photo(1, 10, 300).save(Path(config.data_root) / "1.png")
    prepare(config, tmp_path / "out", short_side=12)
    found = read_prepared(tmp_path / "out", "train")
    assert [image.size for image in found["image"]][:3] == [(12, 36), (10, 300), (20, 12)]
    expected = photo(2).resize((20, 12), PIL.Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(np.asarray(found[2]["image"]), np.asarray(expected))


def test_jpegs_are_decoded_smaller_and_look_the_same(config, tmp_path):
    smooth = photo(0, 8, 6).resize((800, 600), PIL.Image.Resampling.BICUBIC)
    smooth.save(Path(config.data_root) / "0.png", "JPEG", quality=95)
    prepare(config, tmp_path / "out", short_side=60)
    found = np.asarray(read_prepared(tmp_path / "out", "train")[0]["image"]).astype(int)
    assert np.abs(found - np.asarray(smooth.resize((80, 60), PIL.Image.Resampling.BICUBIC))).max() <= 8


def test_store_jpeg_keeps_jpegs_of_quality_95_without_the_sources_comments(config, tmp_path):
    photo(0).save(Path(config.data_root) / "0.png", "JPEG", comment=b"taken at home")
    prepare(config, tmp_path / "out", store="jpeg")
    content = undecoded(read_prepared(tmp_path / "out", "train"))[0]["image"]["bytes"]
    assert b"taken at home" not in content
    with PIL.Image.open(io.BytesIO(content)) as stored:
        assert stored.format == "JPEG"
        assert stored.quantization[0][0] == 2  # 16 at quality 50


def test_training_reads_the_stored_pixels_where_they_lie(config, tmp_path):
    prepare(config, tmp_path / "out", short_side=100)
    transform = train_transform(8, [0.5] * 3, [0.5] * 3)
    ours = Photos(read_prepared(tmp_path / "out", "train"), transform, seed=1)[3]
    theirs = Photos(read_data(config).train, transform, seed=1)[3]
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value)


def test_every_listed_photo_is_written_or_in_skipped_csv(config, tmp_path, three_a_shard):
    root = Path(config.data_root)
    (root / "1.png").unlink()
    (root / "2.png").write_bytes(b"")
    (root / "8.png").write_text("<html>404</html>")
    report = prepare(replace(config, missing="skip"), tmp_path / "out")
    assert report.written == {"train": TRAIN - 2, "test": TEST - 1}
    assert (report.skipped, report.listed) == (3, 10)
    with (tmp_path / "out" / "skipped.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["split", "image_id", "cause"],
            ["", "1.png", "there is no such file"],
            ["train", "2.png", "the file is empty"],
            ["test", "8.png", "it holds markup (a web page, or an SVG drawing), not a photo"],
        ]
    assert "3 of 10 listed photos skipped" in report.text()
    assert list(read_prepared(tmp_path / "out", "train")["image_id"]) == ["0.png", "3.png", "4.png", "5.png", "6.png"]


def test_a_shard_without_a_readable_photo_is_empty(config, tmp_path, three_a_shard):
    for number in (3, 4, 5):
        (Path(config.data_root) / f"{number}.png").write_bytes(b"")
    prepare(config, tmp_path / "out")
    found = read_prepared(tmp_path / "out", "train")
    assert list(found["image_id"]) == ["0.png", "1.png", "2.png", "6.png"]


def test_a_split_without_a_readable_photo_is_refused(config, tmp_path):
    for number in range(TRAIN, TRAIN + TEST):
        (Path(config.data_root) / f"{number}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no photo of test can be read; the first of 3 is 7\.png: the file is empty"):
        prepare(config, tmp_path / "out")


def test_the_report_tells_what_the_disk_holds(config, tmp_path):
    report = prepare(config, tmp_path / "out", short_side=100)
    files = list((tmp_path / "out").rglob("*.arrow"))
    assert report.disk_bytes == sum(path.stat().st_size for path in files)
    sources = [path.stat().st_size for path in Path(config.data_root).glob("*.png")]
    assert report.source_bytes == sum(sources)
    ratio = report.disk_bytes / report.source_bytes
    assert f"{report.disk_bytes / 10:,.0f} bytes a photo, {ratio:.1f} times their files" in report.text()
    record = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert record["settings"]["short_side"] == 100
    assert record["settings"]["train_list"] == "train.txt"
    assert set(record["versions"]) == {"clip_more", "pillow", "datasets", "pyarrow"}


def test_how_much_is_held_in_memory_changes_no_row(config, tmp_path, monkeypatch):
    prepare(config, tmp_path / "one")
    monkeypatch.setattr(shards, "BATCH_BYTES", 5000)
    prepare(config, tmp_path / "two")
    assert read_prepared(tmp_path / "two", "train").data.column("image").num_chunks == 4  # two photos each
    assert columns(read_prepared(tmp_path / "one", "train")) == columns(read_prepared(tmp_path / "two", "train"))


def test_processes_that_decode_change_nothing(config, tmp_path, three_a_shard):
    prepare(config, tmp_path / "one")
    prepare(config, tmp_path / "two", workers=2)
    for split in ("train", "test"):
        assert columns(read_prepared(tmp_path / "one", split)) == columns(read_prepared(tmp_path / "two", split))


def test_keys_that_a_run_applies_are_left_to_it(config, tmp_path):
    later = replace(config, long_tail="exponential", missing_labels=0.5, unlabelled="drop", val_fraction=0.2)
    prepare(later, tmp_path / "out")
    whole = read_data(config)
    for split, expected in (("train", whole.train), ("test", whole.test)):
        found = read_prepared(tmp_path / "out", split)
        assert label_pairs(found)[1].tolist() == label_pairs(expected)[1].tolist()
    assert prepare(config, tmp_path / "out").was_complete


def test_a_finished_folder_says_so_and_is_not_touched(config, tmp_path):
    first = prepare(config, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    shutil.rmtree(config.data_root)
    second = prepare(config, tmp_path / "out")
    assert second == replace(first, was_complete=True)
    assert "was complete already; nothing was done" in second.text()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_in_the_same_folder_are_refused(config, tmp_path, finished, monkeypatch):
    if not finished:
        monkeypatch.setattr(prepare_module, "_check_disk", stop)
    try:
        prepare(config, tmp_path / "out")
    except InterruptedError:
        assert not finished
    what = "finished" if finished else "begun"
    with pytest.raises(
        ConfigError, match=rf"{what} with other settings: short_side is 128 and was 256; store is 'jpeg'"
    ):
        prepare(config, tmp_path / "out", short_side=128, store="jpeg")
    with pytest.raises(ConfigError, match="classes is \\['cat'\\] and was None"):
        prepare(replace(config, classes=["cat"]), tmp_path / "out")


def stop(*_):
    raise InterruptedError


def test_lists_that_changed_since_are_refused(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_check_disk", stop)
        with pytest.raises(InterruptedError):
            prepare(config, tmp_path / "out")
    (Path(config.data_root) / "test.txt").write_text("7.png 0\n")
    with pytest.raises(ValueError, match=r"was begun with other photos or labels than .*data has now"):
        prepare(config, tmp_path / "out")


def test_a_folder_with_something_else_is_refused(config, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="out holds something else already; name a new or an empty folder"):
        prepare(config, tmp_path / "out")


def test_a_disk_too_small_is_known_before_anything_is_written(config, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=20_000))
    with pytest.raises(ValueError, match=r"out needs about 0\.0 MiB more, and 0\.0 MiB are free; make room"):
        prepare(config, tmp_path / "out")
    assert not list(tmp_path.rglob("*.arrow"))


@pytest.mark.parametrize(("key", "value"), [("store", "png"), ("short_side", 0)])
def test_settings_out_of_bounds_are_refused(config, tmp_path, key, value):
    with pytest.raises(ConfigError, match=f"{key} is {value!r}"):
        prepare(config, tmp_path / "out", **{key: value})


def test_finished_shards_are_not_done_again(config, tmp_path, three_a_shard, monkeypatch):
    calls = []
    encode = shards.Encoder.__getitem__

    def counting(self, row):
        calls.append(row)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return encode(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(shards.Encoder, "__getitem__", counting)
        patch.setattr(prepare_module, "_check_disk", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, tmp_path / "out")
        with pytest.raises(FileNotFoundError, match="was not finished; give the same clip-more prepare command again"):
            read_prepared(tmp_path / "out", "train")
        calls.append(None)
        prepare(config, tmp_path / "out")
    assert calls == [0, 1, 2, 3, 4, None, 3, 4, 5, 6, 0, 1, 2]
    assert not list((tmp_path / "out").rglob(".*"))
    prepare(config, tmp_path / "whole")
    for split in ("train", "test"):
        assert columns(read_prepared(tmp_path / "out", split)) == columns(read_prepared(tmp_path / "whole", split))


KILLED = """
import sys, time
from clip_more.config import TrainConfig
from clip_more.data import prepare, shards

shards.PHOTOS_A_SHARD = 3
encode = shards.Encoder.__getitem__
def slow(self, row):
    print(row, flush=True)
    time.sleep(0.05)
    return encode(self, row)
shards.Encoder.__getitem__ = slow
prepare._check_disk = lambda *_: None
prepare.prepare(TrainConfig(**eval(sys.argv[1])), sys.argv[2])
"""


def test_a_killed_run_goes_on_and_ends_as_an_uninterrupted_one(config, tmp_path, three_a_shard):
    keys = {key: getattr(config, key) for key in ("dataset", "data_root", "train_list", "test_list", "class_file")}
    environment = {**os.environ, "PYTHONPATH": str(Path(prepare_module.__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, repr(keys), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stdout:
            if line.strip() == "4":  # the first shard is finished, the second is being written
                time.sleep(0.02)
                process.send_signal(signal.SIGKILL)
                break
        assert process.wait() == -signal.SIGKILL
    assert list((tmp_path / "out").rglob("data-00000-of-00003.arrow"))
    assert list((tmp_path / "out").rglob(".data-00001-*.arrow"))
    report = prepare(config, tmp_path / "out")
    assert prepare(config, tmp_path / "whole").written == report.written
    for split in ("train", "test"):
        assert columns(read_prepared(tmp_path / "out", split)) == columns(read_prepared(tmp_path / "whole", split))
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_folder_that_is_not_prepared_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no prepared data \(there is no prepared\.json\)"):
        read_prepared(tmp_path, "train")


def test_a_shard_cut_short_is_named(config, tmp_path):
    prepare(config, tmp_path / "out")
    shard = next((tmp_path / "out" / "train").glob("*.arrow"))
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(
        ValueError, match=r"the prepared train cannot be read .*has \d+ bytes, not \d+.* prepare it again"
    ):
        read_prepared(tmp_path / "out", "train")


def test_a_prepared_recipe_is_read_by_its_key(config, tmp_path):
    prepare(config, tmp_path / "out")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = read_data(TrainConfig(dataset="prepared", data_root=str(tmp_path / "out")))
    assert (len(data.train), len(data.test)) == (TRAIN, TEST)
    assert class_names(data.train) == ["cat", "traffic light"]


def test_real_photos_come_through(test_data, tmp_path):
    root = test_data / "voc2012_lt_tiny"
    files = {"train_list": "train_lt.txt", "test_list": "test_balanced.txt", "class_file": "voc_labels.txt"}
    config = TrainConfig(dataset="lists", data_root=str(root), **files)
    report = prepare(config, tmp_path / "out", short_side=64)
    assert report.written == {"train": 852, "test": 462}
    assert report.skipped == 0
    profile = read_data(config).profile
    assert read_data(TrainConfig(dataset="prepared", data_root=str(tmp_path / "out"))).profile == profile
