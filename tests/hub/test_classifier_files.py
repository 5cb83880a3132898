import json
import shutil

import numpy as np
import PIL.Image
import pytest
import torch

from clip_more.evaluation.results import identify
from clip_more.hub.classifier_files import load_image_classifier, open_checkpoint, save_image_classifier
from clip_more.hub.export import export_model
from clip_more.models import class_prompts, load_clip
from clip_more.models.classifier import load_classifier
from clip_more.models.multilabel import make_multilabel

NAMES = ["cat", "dog", "traffic light"]


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    clip = load_clip("tiny", geometry="squash")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in clip.model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    prompts = class_prompts(NAMES, ["a {}.", "one {}."])
    content = make_multilabel(NAMES, prompts, 20.0, [-1.0, 0.5, 3.0], thresholds=[0.3, 0.5, 0.7], geometry="squash")
    return export_model(clip, tmp_path_factory.mktemp("run") / "merged", multilabel=content)


@pytest.fixture(scope="module")
def saved(merged, tmp_path_factory):
    module, description, _ = open_checkpoint(merged)
    return save_image_classifier(tmp_path_factory.mktemp("out") / "classifier", module, description)


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "classifier")


def test_what_is_read_back_is_what_was_saved(merged, saved):
    before, described, _ = open_checkpoint(merged)
    after, read, _ = open_checkpoint(saved)
    assert read == described
    assert read.thresholds == [0.3, 0.5, 0.7]
    assert (read.class_names, read.geometry, read.image_size) == (NAMES, "squash", 32)
    assert "torch" in read.versions
    assert before.state_dict().keys() == after.state_dict().keys()
    assert all(torch.equal(value, after.state_dict()[key]) for key, value in before.state_dict().items())


def test_stock_transformers_and_two_lines_of_numpy_give_the_classifiers_logits(merged, saved, tmp_path):
    from safetensors.numpy import load_file
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    photo = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8))
    pixels = CLIPImageProcessorPil.from_pretrained(saved)(photo, return_tensors="pt")["pixel_values"]
    stock = CLIPVisionModelWithProjection.from_pretrained(saved)
    matrix = load_file(saved / "classifier.safetensors")
    with torch.no_grad():
        features = stock(pixel_values=pixels).image_embeds.numpy()
        expected = load_classifier(merged)[0](open_checkpoint(saved)[1].transform()(photo)[None]).numpy()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    np.testing.assert_allclose(unit @ matrix["weight"].T + matrix["bias"], expected, atol=1e-5)


def test_there_are_only_safetensors_and_json(saved):
    assert {path.name for path in saved.iterdir()} == {
        "config.json", "model.safetensors", "preprocessor_config.json", "classifier.safetensors", "classifier.json"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["model.safetensors", "classifier.safetensors", "config.json"])
def test_an_absent_file_is_named(copied, name):
    (copied / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"is incomplete: it has no {name}"):
        load_image_classifier(copied)


@pytest.mark.parametrize("name", ["model.safetensors", "classifier.safetensors", "config.json"])
def test_a_byte_that_changed_is_noticed(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[-1] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged, or of another export"):
        load_image_classifier(copied)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": 2}, "classifier.json is not of format 1"),
        ({"sha256": None}, "lacks sha256"),
        ({"class_names": ["cat"]}, "1 class_names but 3 rows"),
        ({"class_names": "cat"}, "class_names is no list of texts"),
        ({"thresholds": [0.5]}, "3 class_names but 1 thresholds"),
        ({"thresholds": ["high"] * 3}, "thresholds is no list of finite numbers"),
        ({"thresholds": [0.5, float("nan"), 0.5]}, "thresholds is no list of finite numbers"),
        ({"thresholds": [0.5, True, 0.5]}, "thresholds is no list of finite numbers"),
        ({"class_names": ["cat", "dog", "cat"]}, "class_names has 'cat' more than once"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std is .*; each must be above 0"),
        ({"versions": ["torch"]}, "versions is no object"),
        ({"image_size": "32"}, "image_size is no number"),
        ({"image_size": 224}, "image_size is 224, but the vision tower reads 32"),
        ({"geometry": "stretch"}, "geometry is 'stretch'"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'"),
        ({"image_mean": [0.5]}, "image_mean has 1 values"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(copied, changes, text):
    path = copied / "classifier.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=text):
        load_image_classifier(copied)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"num_hidden_layers": 1}, "model.safetensors has more than what config.json describes: vision_model"),
        ({"num_hidden_layers": 9}, "model.safetensors lacks what config.json describes: vision_model"),
        ({"intermediate_size": 8}, "config.json and model.safetensors make no CLIP vision tower"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "config.json describes .*: it has a quantization"),
        ({"hidden_size": "wide"}, "config.json describes no CLIP vision tower"),
        ({"hidden_act": "none"}, "config.json and model.safetensors make no CLIP vision tower"),
        (["clip_vision_model"], "config.json describes .*: its model_type is not clip_vision_model"),
        ("{", "config.json describes no CLIP vision tower"),
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused_by_name(copied, changes, text):
    config, about = copied / "config.json", copied / "classifier.json"
    if isinstance(changes, dict):
        changes = json.loads(config.read_text()) | changes
    config.write_text(changes if isinstance(changes, str) else json.dumps(changes))
    content = json.loads(about.read_text())
    content["sha256"]["config.json"] = identify(config)["sha256"]
    about.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=text):
        load_image_classifier(copied)


def test_digests_of_a_checkpoint_are_of_its_config_too(merged, saved):
    for folder in (merged, saved):
        assert open_checkpoint(folder)[2]["config.json"] == identify(folder / "config.json")["sha256"]


def test_a_description_that_lacks_a_field_or_was_cut_is_refused(copied):
    path = copied / "classifier.json"
    text = path.read_text()
    content = json.loads(text)
    del content["geometry"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="lacks geometry"):
        load_image_classifier(copied)
    path.write_text(text[:40])
    with pytest.raises(ValueError, match=r"classifier\.json is not JSON"):
        load_image_classifier(copied)


def test_a_folder_of_something_else_is_not_replaced_and_an_earlier_export_is(merged, copied):
    module, description, _ = open_checkpoint(merged)
    before = sorted(path.name for path in merged.iterdir())
    with pytest.raises(ValueError, match="holds something that is no image classifier"):
        save_image_classifier(merged, module, description)
    assert sorted(path.name for path in merged.iterdir()) == before
    (copied / "model.safetensors").unlink()
    save_image_classifier(copied, module, description)
    load_image_classifier(copied)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("holiday.jpg", "mine", "holiday.jpg"),
        ("notes/config.json", "mine", "notes"),
        ("classifier.json", "{}", r"classifier\.json is not of format 1"),
        ("classifier.json", '{"format": 1, "sha256": {}}', r"classifier\.json lacks class_names"),
        ("classifier.json", None, r"has no classifier\.json"),
    ],
)
def test_what_is_not_ours_is_not_replaced(merged, copied, name, content, text):
    module, description, _ = open_checkpoint(merged)
    path = copied / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)
    before = sorted(copied.rglob("*"))
    with pytest.raises(ValueError, match=rf"holds something that is no image classifier: .*{text}"):
        save_image_classifier(copied, module, description)
    assert sorted(copied.rglob("*")) == before
    assert content is None or path.read_text() == content


def test_a_run_is_its_merged_checkpoint(merged):
    run = merged.parent
    (run / "config.yaml").touch()
    try:
        module, description, digests = open_checkpoint(run)
        own, _, own_digests = open_checkpoint(merged)
        assert torch.equal(module.weight, own.weight)
        assert digests == own_digests
        assert description.class_names == NAMES
    finally:
        (run / "config.yaml").unlink()


def test_what_is_no_checkpoint_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="is neither a run nor a classifier"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.yaml").touch()
    with pytest.raises(FileNotFoundError, match="is not finished: it has no merged checkpoint yet"):
        open_checkpoint(tmp_path)
