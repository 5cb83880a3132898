import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch
from accelerate import Accelerator

from clip_more.config import ConfigError
from clip_more.data.form import make_dataset
from clip_more.data.opening import PhotoError
from clip_more.evaluation import prediction_parts as prediction_parts_file
from clip_more.evaluation import predictions
from clip_more.evaluation.predict import predict_logits
from clip_more.evaluation.predictions import predict_parts, prediction_parts
from clip_more.models import class_prompts, load_clip
from clip_more.models.classifier import Classifier
from clip_more.models.heads import PromptHead
from clip_more.models.image_classifier import describe, fold

NAMES = ["cat", "dog", "labels"]
COLUMNS = ["image_id", "cat", "dog", "labels (class)", "labels"]
THRESHOLDS = [0.3, 0.5, 0.6]


@pytest.fixture(scope="module")
def classifier():
    clip = load_clip("tiny")
    generator = torch.Generator().manual_seed(1)
    head = PromptHead(clip, class_prompts(NAMES, ["a {}.", "one {}."]), scale=20.0)
    with torch.no_grad():
        for weight in clip.model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
        head.bias.copy_(torch.tensor([-0.5, 0.1, 0.2]))
    return Classifier(clip, head).eval()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    names = [f"{number}.png" for number in range(23)]
    for name in names:
        PIL.Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / name)
    return make_dataset([folder / name for name in names], [[]] * 23, ["photo"], image_ids=names)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Of four photos, so that 23 photos are six parts."""
    monkeypatch.setattr(predictions, "_PART_PHOTOS", 4)
    monkeypatch.setattr(predictions, "_LEAST_PARTS", 1)


@pytest.fixture
def write(classifier, tmp_path):
    """Writes predictions as the verb does, and reads them back."""
    module, description = fold(classifier), describe(classifier.clip, NAMES, THRESHOLDS)

    def run(dataset, name="p.parquet", accelerators=None, broken="refuse", workers=0, **changes):
        settings = {"checkpoint": {"sha256": "abc"}, "batch_size": 2} | changes
        parts = prediction_parts(tmp_path / name, description, dataset, **settings)
        with parts.alone():
            parts.claim()
            if not parts.finished():
                absent, given = parts.absent(), {"workers": workers, "broken": broken}
                for accelerator in accelerators or [Accelerator()]:
                    predict_parts(parts, absent, module, description, dataset, accelerator, **given)
                parts.join()
        return parts

    return run


def process(index, count):
    """One process of several, as far as predictions look at it."""
    return SimpleNamespace(
        process_index=index,
        num_processes=count,
        is_main_process=index == 0,
        device=torch.device("cpu"),
        autocast=nullcontext,
    )


def test_probabilities_are_those_of_the_classifiers_logits(classifier, dataset, write):
    expected = predict_logits(classifier, dataset, Accelerator(), batch_size=5, workers=0).scores
    expected = 1 / (1 + np.exp(-expected.astype(np.float64)))
    table = pq.read_table(write(dataset).out)
    assert table.schema.names == COLUMNS
    assert table.column("image_id").to_pylist() == [f"{number}.png" for number in range(23)]
    found = np.stack([table.column(name) for name in COLUMNS[1:4]], axis=1)
    assert found.dtype == np.float32
    assert found.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=2e-6)
    present = [[name for name, yes in zip(NAMES, row, strict=True) if yes] for row in expected >= THRESHOLDS]
    assert table.column("labels").to_pylist() == present
    assert 0 < sum(map(len, present)) < 69


def test_views_are_averaged_as_logits(classifier, dataset, write):
    expected = predict_logits(classifier, dataset, Accelerator(), batch_size=5, workers=0, views="flip").scores
    table = pq.read_table(write(dataset, views="flip").out)
    np.testing.assert_allclose(table.column("dog"), 1 / (1 + np.exp(-expected[:, 1])), atol=2e-6)


@pytest.mark.parametrize("done", [0, 1, 5])
def test_a_killed_call_that_goes_on_writes_what_one_go_writes(dataset, write, tmp_path, monkeypatch, done):
    expected = write(dataset, "whole.parquet").out.read_bytes()
    write_part, count = predictions.PredictionParts.write, []

    def killed(parts, part, table):
        if len(count) == done:
            (parts.folder / f".part-{part.number:06d}.123.parquet").write_bytes(b"PAR1")  # half-written
            raise KeyboardInterrupt
        count.append(write_part(parts, part, table))

    monkeypatch.setattr(predictions.PredictionParts, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        write(dataset)
    monkeypatch.setattr(predictions.PredictionParts, "write", lambda *args: count.append(write_part(*args)))
    (tmp_path / ".p.123.parquet").touch()  # as a kill leaves it while parts are joined
    parts = write(dataset)
    assert len(count) == 6
    assert parts.out.read_bytes() == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.parquet", "whole.parquet"]


def test_a_damaged_part_is_made_again(dataset, write, monkeypatch):
    expected = write(dataset, "whole.parquet").out.read_bytes()
    join = predictions.PredictionParts.join
    monkeypatch.setattr(predictions.PredictionParts, "join", lambda parts: None)
    parts = write(dataset)
    files = sorted(parts.folder.glob("part-*"))
    files[2].write_bytes(files[2].read_bytes()[:100])
    files[4].write_bytes(b"")
    assert [part.number for part in parts.absent()] == [2, 4]
    monkeypatch.setattr(predictions.PredictionParts, "join", join)
    assert write(dataset).out.read_bytes() == expected


def test_processes_share_the_parts_and_the_result_is_the_same(dataset, write):
    expected = write(dataset, "whole.parquet").out.read_bytes()
    assert write(dataset, accelerators=[process(index, 4) for index in (2, 0, 3, 1)]).out.read_bytes() == expected
    assert write(dataset, "many.parquet", [process(index, 9) for index in range(9)]).out.read_bytes() == expected


def test_workers_change_nothing(dataset, write):
    assert write(dataset, workers=2).out.read_bytes() == write(dataset, "whole.parquet").out.read_bytes()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"checkpoint": {"sha256": "abd"}}, 'checkpoint was {"sha256": "abc"} and is {"sha256": "abd"} now'),
        ({"batch_size": 4}, "batch_size was 2 and is 4 now"),
        ({"views": "flip"}, 'views was "one" and is "flip" now'),
        ({"precision": "bf16"}, 'mixed_precision was "no" and is "bf16" now'),
    ],
)
def test_another_plan_is_refused_by_parts_and_by_the_result(dataset, write, monkeypatch, changes, text):
    join = predictions.PredictionParts.join
    monkeypatch.setattr(predictions.PredictionParts, "join", lambda parts: None)
    write(dataset)
    with pytest.raises(ValueError, match=rf"p\.parquet\.parts is of other predictions: {text}"):
        write(dataset, **changes)
    monkeypatch.setattr(predictions.PredictionParts, "join", join)
    write(dataset)
    with pytest.raises(ValueError, match=rf"p\.parquet is of other predictions: {text}"):
        write(dataset, **changes)


def test_another_list_of_photos_is_refused(dataset, write):
    write(dataset)
    with pytest.raises(ValueError, match="photos was 23 and is 22 now"):
        write(dataset.select(range(22)))
    with pytest.raises(ValueError, match="photos_digest was"):
        write(dataset.select([1, 0, *range(2, 23)]))


def test_photos_of_the_same_names_elsewhere_are_refused(dataset, write, tmp_path, monkeypatch):
    def named(folder, other="1.png"):
        return make_dataset([folder / "0.png", folder / other], [[]] * 2, ["photo"], image_ids=["a", "b"])

    days = [tmp_path / "day1", tmp_path / "day2"]
    for day in days:
        day.mkdir()
        for name, colour in (("0.png", "red"), ("1.png", "blue"), ("2.png", "green")):
            PIL.Image.new("RGB", (8, 8), colour).save(day / name)
    write(named(days[0]))
    with pytest.raises(ValueError, match=rf'photos_below was "{days[0]}" and is "{days[1]}" now'):
        write(named(days[1]))
    with pytest.raises(ValueError, match="photos_digest was"):
        write(named(days[0], "2.png"))
    (tmp_path / "link").symlink_to(days[0])
    write(named(tmp_path / "link"))
    monkeypatch.chdir(days[0])
    write(named(Path()))
    selected = make_dataset([days[0] / f"{row}.png" for row in range(3)], [[]] * 3, ["photo"], image_ids=list("zab"))
    with pytest.raises(ValueError, match="photos_digest was"):
        write(selected.select([1, 2]))


def test_photos_that_lie_in_the_data_set_have_no_folder(write):
    held = make_dataset([PIL.Image.new("RGB", (8, 8), name) for name in ("red", "blue")], [[]] * 2, ["photo"])
    assert write(held).plan["photos_below"] is None


HOLD = """
import sys
from clip_more.evaluation.prediction_parts import PredictionParts
with PredictionParts(sys.argv[1], {}, []).alone():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_result_that_is_being_written_cannot_be_taken(dataset, write, tmp_path):
    out = tmp_path / "p.parquet"
    half = tmp_path / "p.parquet.parts" / ".part-000000.123.parquet"
    half.parent.mkdir()
    half.touch()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=rf"p\.parquet is being written by process {holder.pid} on "):
            write(dataset)
        assert half.is_file()
        holder.kill()  # the lock goes with the process, whatever ended it
    write(dataset)
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]


def test_a_kill_while_the_parts_are_taken_away_leaves_nothing_foreign(dataset, write, tmp_path, monkeypatch):
    def half_removed(folder):
        (folder / "plan.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(prediction_parts_file.shutil, "rmtree", half_removed)
    with pytest.raises(KeyboardInterrupt):
        write(dataset)
    monkeypatch.undo()
    before = (tmp_path / "p.parquet").read_bytes()
    write(dataset)
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]
    assert (tmp_path / "p.parquet").read_bytes() == before


def test_hidden_files_of_others_stay(dataset, write, tmp_path, monkeypatch):
    monkeypatch.setattr(predictions.PredictionParts, "join", lambda parts: None)
    folder = write(dataset).folder
    theirs = [folder / ".mine", folder / ".part-000000.parquet", tmp_path / ".q.123.parquet", tmp_path / ".p.parquet"]
    for path in [*theirs, folder / ".plan.123.json", folder / ".part-000000.123.parquet"]:
        path.touch()
    write(dataset)
    assert sorted([*folder.glob(".*"), *tmp_path.glob(".*")]) == sorted(theirs)


def test_foreign_files_are_left_alone(dataset, write, tmp_path):
    (tmp_path / "p.parquet").write_bytes(b"mine")
    with pytest.raises(ValueError, match="holds no predictions of ours"):
        write(dataset)
    (tmp_path / "q.parquet.parts").mkdir()
    (tmp_path / "q.parquet.parts" / "mine").touch()
    with pytest.raises(ValueError, match="is not empty and holds no parts of ours"):
        write(dataset, "q.parquet")
    assert (tmp_path / "p.parquet").read_bytes() == b"mine"


@pytest.fixture
def damaged(dataset, tmp_path):
    """The same photos, two of them broken."""
    broken, absent = tmp_path / "5.png", tmp_path / "absent.png"
    broken.write_bytes(b"<html>")
    from clip_more.data.photos import undecoded

    paths = [image["path"] for image in undecoded(dataset)["image"]]
    paths[5], paths[22] = str(broken), str(absent)
    return make_dataset(paths, [[]] * 23, ["photo"], image_ids=list(dataset["image_id"]))


def test_a_broken_photo_is_refused_by_name_and_what_is_done_stays(damaged, write, tmp_path):
    with pytest.raises(PhotoError, match=r"cannot read photo .*5\.png: it holds markup"):
        write(damaged)
    assert len(list((tmp_path / "p.parquet.parts").glob("part-*"))) == 1


def test_skipped_photos_are_listed_and_the_others_are_as_ever(dataset, damaged, write, tmp_path):
    whole = pq.read_table(write(dataset, "whole.parquet").out)
    with pytest.raises(PhotoError):
        write(damaged)
    parts = write(damaged, broken="skip")  # goes on from where it was refused
    expected = whole.filter(np.array([row not in (5, 22) for row in range(23)]))
    assert pq.read_table(parts.out).equals(expected)
    assert parts.skipped.read_text().splitlines() == [
        "image_id,cause",
        '5.png,"it holds markup (a web page, or an SVG drawing), not a photo"',
        "22.png,there is no such file",
    ]
    assert parts.summary().startswith(f"21 photos: {tmp_path / 'p.parquet'}; 2 could not be read: ")


def test_the_result_says_what_it_was_made_of(dataset, write):
    plan = json.loads(pq.read_schema(write(dataset).out).metadata[b"clip_more"])
    assert plan["checkpoint"] == {"sha256": "abc"}
    assert (plan["class_names"], plan["thresholds"], plan["photos"]) == (NAMES, THRESHOLDS, 23)


def test_a_part_is_a_row_group_of_whole_batches_within_bounds(dataset, classifier, monkeypatch):
    description = describe(classifier.clip, NAMES)

    def sizes(batch_size, photos=4, values=2**22, least=1):
        monkeypatch.setattr(predictions, "_LEAST_PARTS", least)
        monkeypatch.setattr(predictions, "_PART_PHOTOS", photos)
        monkeypatch.setattr(predictions, "_PART_VALUES", values)
        parts = prediction_parts("x", description, dataset, checkpoint={}, batch_size=batch_size).parts
        assert [row for part in parts for row in part.photos] == list(range(23))
        return [len(part.photos) for part in parts]

    assert sizes(2, photos=5) == [4] * 5 + [3]
    assert sizes(7, photos=4) == [7, 7, 7, 2]
    assert sizes(2, photos=100, values=3 * 6) == [6, 6, 6, 5]
    assert sizes(2, photos=100, least=4) == [4] * 5 + [3]
    assert sizes(2, photos=100, least=100) == [2] * 11 + [1]
