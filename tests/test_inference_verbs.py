"""`clip-more export` and `clip-more predict` from end to end, and the code of docs/inference.md as printed."""

import contextlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest
import torch

from clip_more.cli import main
from clip_more.hub.export import export_model
from clip_more.models import class_prompts, load_clip
from clip_more.models.multilabel import make_multilabel

DOCS = Path(__file__).parents[1] / "docs" / "inference.md"
NAMES = ["dog", "person"]


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    clip = load_clip("tiny")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in clip.model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    content = make_multilabel(NAMES, class_prompts(NAMES, ["a {}."]), 20.0, [-0.5, 0.2], thresholds=[0.4, 0.6])
    return export_model(clip, tmp_path_factory.mktemp("run") / "merged", multilabel=content)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("mine"), np.random.default_rng(0)
    for name in ("a.jpg", "b.jpg", "c/d.jpg", "c/e.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 255, (50, 70, 3), dtype=np.uint8)).save(folder / name)
    (folder / "metadata.csv").write_text("file_name,labels,split\na.jpg,dog,train\nb.jpg,person,train\n"
                                         "c/d.jpg,dog;person,test\nc/e.jpg,,test\n")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def exported(merged, photos, tmp_path_factory):
    """The three forms in one folder, under the names that the documentation gives them."""
    folder = tmp_path_factory.mktemp("exported")
    for form, name in (("classifier", "classifier"), ("torch", "classifier.pt2"), ("onnx", "classifier.onnx")):
        if form == "onnx":
            pytest.importorskip("onnxruntime")
        check = [] if form == "classifier" else ["--photos", str(photos)]
        with (folder / "told").open("a") as told, contextlib.redirect_stdout(told):
            assert main(["export", str(merged), "--form", form, "--out", str(folder / name), *check]) == 0
    return folder


def predicted(*arguments, **changes):
    out = changes["out"]
    assert main(["predict", *map(str, arguments), "--out", str(out), "--workers", "0"]) == 0
    return pq.read_table(out)


def test_a_folder_a_list_and_a_split_give_the_same_rows(merged, photos, tmp_path, capsys):
    whole = predicted(merged, photos, out=tmp_path / "folder.parquet")
    assert whole.column("image_id").to_pylist() == ["a.jpg", "b.jpg", "c/d.jpg", "c/e.jpg"]
    listed = photos / "list.txt"
    listed.write_text("c/d.jpg\na.jpg\n")
    found = predicted(merged, listed, "--batch_size", 4, out=tmp_path / "list.parquet")
    expected = whole.take([2, 0]).to_pylist()
    for row, other in zip(found.to_pylist(), expected, strict=True):
        assert (row.pop("image_id"), row.pop("labels")) == (other.pop("image_id"), other.pop("labels"))
        assert row == pytest.approx(other, rel=1e-5)
    data = ["--dataset", "folder", "--data_root", photos]
    recipe = tmp_path / "bce.yaml"
    recipe.write_text("dataset: folder\n")
    test = predicted(merged, "test", recipe, *data, out=tmp_path / "test.parquet")
    assert [name.rpartition("/")[2] for name in test.column("image_id").to_pylist()] == ["d.jpg", "e.jpg"]
    np.testing.assert_allclose(test.column("dog"), whole.column("dog").take([2, 3]), rtol=1e-5)
    assert len(predicted(merged, "train", recipe, *data, out=tmp_path / "train.parquet")) == 2


def test_an_exported_classifier_predicts_the_same(merged, exported, photos, tmp_path, capsys):
    expected = predicted(merged, photos, out=tmp_path / "merged.parquet")
    capsys.readouterr()
    found = predicted(exported / "classifier", photos, "--top", 1, out=tmp_path / "exported.parquet")
    assert found.drop_columns("labels").equals(expected.drop_columns("labels"))
    assert found.column("labels").equals(expected.column("labels"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 photos to predict on cpu"
    assert re.fullmatch(r"a\.jpg: (dog|person) 0\.\d{3}", lines[1])
    assert lines[-1] == f"4 photos: {tmp_path / 'exported.parquet'}"


def test_naming_a_finished_file_again_changes_nothing(merged, photos, tmp_path, capsys):
    out = tmp_path / "p.parquet"
    predicted(merged, photos, out=out)
    before = out.stat()
    predicted(merged, photos, out=out)
    assert out.stat().st_mtime_ns == before.st_mtime_ns
    assert "is complete already" in capsys.readouterr().out
    assert main(["predict", str(merged), str(photos / "c"), "--out", str(out)]) == 1
    assert "is of other predictions: photos was 4 and is 2 now" in capsys.readouterr().err


def test_another_folder_with_the_same_names_is_refused(merged, photos, tmp_path, capsys):
    out, other = tmp_path / "p.parquet", shutil.copytree(photos, tmp_path / "other")
    predicted(merged, photos, out=out)
    assert main(["predict", str(merged), str(other), "--out", str(out)]) == 1
    assert f'photos_below was "{photos}" and is "{other}" now' in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nowhere", "{photos}"], "there is no folder nowhere"),
        (["{merged}", "nowhere"], "there is no folder or file nowhere"),
        (["{merged}", "{photos}", "--lr", "1"], "--lr is of a data set, and {photos} is none"),
        (["{merged}", "{photos}", "bce.yaml"], "bce.yaml names a data set, and so does {photos}"),
        (["{merged}", "test"], "add a recipe"),
        (["{merged}", "{photos}", "--batch_size", "0"], "batch_size"),
    ],
)
def test_what_does_not_fit_is_one_sentence(merged, photos, tmp_path, capsys, arguments, text):
    places = {"merged": merged, "photos": photos}
    out = str(tmp_path / "p.parquet")
    assert main(["predict", *(part.format(**places) for part in arguments), "--out", out]) == 1
    assert text.format(**places) in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_absent_photos_of_a_list_are_said_at_once_or_skipped(merged, photos, tmp_path, capsys):
    listed = tmp_path / "list.txt"
    listed.write_text(f"{photos / 'a.jpg'}\ngone.jpg\n")
    arguments = ["predict", str(merged), str(listed), "--out", str(tmp_path / "p.parquet"), "--workers", "0"]
    assert main(arguments) == 1
    assert f"1 of 2 photos are absent: {tmp_path / 'gone.jpg'}." in capsys.readouterr().err
    assert main([*arguments, "--broken", "skip"]) == 0
    assert "1 photos: " in capsys.readouterr().out
    assert "gone.jpg,there is no such file" in (tmp_path / "p.parquet.skipped.csv").read_text()


def test_export_says_how_far_it_is_from_torch(exported):
    told = (exported / "told").read_text()
    assert f"2 classes: {exported / 'classifier.pt2'}\n" in told
    differences = re.findall(r"largest difference of a logit from torch's, on photos: (\S+)", told)
    assert len(differences) == 2
    assert max(map(float, differences)) < 1e-4


def test_export_over_a_checkpoint_is_refused(merged, capsys):
    assert main(["export", str(merged), "--form", "classifier", "--out", str(merged)]) == 1
    assert "holds something that is no image classifier" in capsys.readouterr().err
    assert json.loads((merged / "multilabel.json").read_text())["class_names"] == NAMES


def test_code_of_the_documentation_gives_the_predictions_of_the_verb(exported, merged, photos, tmp_path, monkeypatch):
    shutil.copy(photos / "a.jpg", tmp_path / "photo.jpg")
    for path in exported.iterdir():
        (tmp_path / path.name).symlink_to(path)
    expected = predicted(merged, tmp_path, out=tmp_path / "predictions.parquet").to_pylist()[0]
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 4
    names: dict = {}
    for code in blocks[:3]:
        exec(code, names)
        found = names["probabilities"]
        assert found == pytest.approx({name: expected[name] for name in NAMES}, abs=1e-5), code
    exec(blocks[3], names)
    assert names["dogs"] == (["photo.jpg"] if expected["dog"] >= 0.4 else [])


def test_what_is_no_parquet_file_is_refused(merged, photos, tmp_path, capsys):
    assert main(["predict", str(merged), str(photos), "--out", str(tmp_path / "x.csv")]) == 1
    assert "let the name end in .parquet" in capsys.readouterr().err
