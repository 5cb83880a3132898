import json
from dataclasses import asdict

import numpy as np
import PIL.Image
import pytest
import torch

from clip_more.data.opening import PhotoError
from clip_more.hub import graph_files
from clip_more.hub.graph_files import check_batch, largest_difference, write_graph
from clip_more.models import class_prompts, load_clip
from clip_more.models.classifier import Classifier
from clip_more.models.heads import PromptHead
from clip_more.models.image_classifier import describe, fold

NAMES = ["cat", "dog", "traffic light"]


@pytest.fixture(scope="module")
def made():
    clip = load_clip("tiny")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in clip.model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    head = PromptHead(clip, class_prompts(NAMES, ["a {}."]), scale=20.0)
    return fold(Classifier(clip, head).eval()), describe(clip, NAMES, [0.25, 0.5, 0.75])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    paths = [str(folder / f"{number}.png") for number in range(3)]
    for path in paths:
        PIL.Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture(scope="module")
def real(test_data):
    return sorted(map(str, (test_data / "coco_mini" / "val2017").glob("*.jpg")))[:6]


@pytest.fixture(scope="module")
def onnx_file(made, photos, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "classifier.onnx"
    assert write_graph(path, *made, "onnx", photos) < 1e-4
    return path


@pytest.fixture(scope="module")
def torch_file(made, photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("pt2") / "classifier.pt2"
    assert write_graph(path, *made, "torch", photos) < 1e-4
    return path


def test_onnxruntime_equals_torch_on_real_photos_in_any_batch(made, onnx_file, real):
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    pixels = check_batch(*made, real)
    for count in (1, 2, len(pixels)):
        (found,) = session.run(None, {"pixel_values": pixels[:count].numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(found, made[0](pixels[:count]).numpy(), atol=2e-5)


def test_torch_export_equals_torch_on_real_photos_in_any_batch(made, torch_file, real):
    run = torch.export.load(torch_file).module()
    pixels = check_batch(*made, real)
    with torch.no_grad():
        for count in (1, 2, len(pixels)):
            torch.testing.assert_close(run(pixels[:count]), made[0](pixels[:count]), atol=2e-5, rtol=0)


def test_files_hold_the_description(made, onnx_file, torch_file):
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["clip_more"]) == asdict(made[1])
    extra = {"classifier.json": ""}
    torch.export.load(torch_file, extra_files=extra)
    assert json.loads(extra["classifier.json"]) == asdict(made[1])


def test_a_file_that_differs_is_not_left(made, tmp_path, monkeypatch):
    def wrong(path, module, *arguments):
        path.write_bytes(b"graph")
        return lambda pixels: module(pixels) + (0.01 if len(pixels) == 1 else 0)

    monkeypatch.setattr(graph_files, "_write_torch", wrong)
    path = tmp_path / "classifier.pt2"
    path.write_bytes(b"of before")
    with pytest.raises(ValueError, match=r"was not written: its logits differ from torch's by up to 1\.0e-02"):
        write_graph(path, *made, "torch")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("classifier.pt2", b"of before")]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_logit_that_is_no_number_differs(made, wrong):
    assert largest_difference(made[0], lambda pixels: made[0](pixels) + wrong, check_batch(*made, [])) == float("inf")
    assert largest_difference(made[0], lambda pixels: made[0](pixels)[:, :2], check_batch(*made, [])) == float("inf")


def test_batch_is_made_of_the_photos_by_their_transform(made, photos):
    expected = torch.stack([made[1].transform()(PIL.Image.open(path)) for path in photos])
    assert torch.equal(check_batch(*made, photos), expected)
    assert len(check_batch(*made, photos * 20)) == 8
    one = check_batch(*made, photos[:1])  # a batch of one alone would be a fixed one
    assert torch.equal(one[0], expected[0])
    assert len(one) == 4


@pytest.mark.parametrize(("form", "name"), [("onnx", "a.pt2"), ("torch", "a.onnx"), ("torch", "a")])
def test_a_name_of_another_form_is_refused(made, tmp_path, form, name):
    with pytest.raises(ValueError, match="must end in"):
        write_graph(tmp_path / name, *made, form)
    assert not list(tmp_path.iterdir())


def test_a_broken_photo_is_named(made, tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(PhotoError, match=r"cannot read photo .*a\.jpg"):
        write_graph(tmp_path / "a.pt2", *made, "torch", [str(tmp_path / "a.jpg")])


def test_absent_packages_are_named(made, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeError, match=r"pip install 'clip-more\[onnx\]'"):
        write_graph(tmp_path / "a.onnx", *made, "onnx")
