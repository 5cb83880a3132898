import json
import os

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from clip_more.config import TrainConfig
from clip_more.data.digits import DIGIT_CLASSES, read_digits
from clip_more.data.form import make_dataset, multi_hot
from clip_more.data.loading import batches
from clip_more.data.photos import Photos
from clip_more.data.transforms import test_transform as plain_transform
from clip_more.evaluation.average_precision import average_precision
from clip_more.models.clip import load_clip
from clip_more.models.folders import DIGITS_FOLDER
from clip_more.models.prompts import class_prompts
from clip_more.training.pretrain import label_sentences, pretrain, pretrain_from_recipe, save_pretrained

PROMPTS = class_prompts(DIGIT_CLASSES, ["a photo of the digit {}."])


@pytest.fixture(scope="module")
def scenes():
    return read_digits("pretrain", scenes=64)


def texts(scenes, objective):
    return {"captions": label_sentences(scenes)} if objective == "contrastive" else {"prompts": PROMPTS}


@torch.no_grad()
def zero_shot_map(clip, dataset):
    photos = Photos(dataset, plain_transform(clip.image_size, clip.image_mean, clip.image_std))
    pixels = torch.stack([photos[row]["pixel_values"] for row in range(len(photos))])
    image = F.normalize(clip.encode_image(pixels), dim=-1)
    text = F.normalize(clip.encode_text(clip.tokenize([row[0] for row in PROMPTS])), dim=-1)
    return average_precision(multi_hot(dataset)[0], (image @ text.T).numpy()).mean()


@pytest.mark.parametrize("objective", ["sigmoid", "contrastive"])
def test_a_few_steps_lower_the_loss(scenes, objective):
    records = pretrain(
        load_clip("tiny"), scenes, objective=objective, steps=15, batch_size=32, log_every=5, **texts(scenes, objective)
    )
    assert [record["step"] for record in records] == [5, 10, 15]
    assert records[-1]["loss"] < 0.95 * records[0]["loss"]


def test_the_same_seed_gives_the_same_weights_and_another_does_not(scenes):
    states = []
    for seed in (0, 0, 1):
        clip = load_clip("tiny", seed=0)
        pretrain(clip, scenes, prompts=PROMPTS, steps=2, batch_size=16, seed=seed)
        states.append(clip.model.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_every_photo_is_seen_once_an_epoch_which_may_end_inside_a_step(scenes, monkeypatch):
    seen = []

    def recorded(loader, photos):
        for batch in batches(loader, photos):
            seen.extend(batch["index"].tolist())
            yield batch

    monkeypatch.setattr("clip_more.training.pretrain.batches", recorded)
    pretrain(load_clip("tiny"), scenes, prompts=PROMPTS, steps=8, batch_size=24)
    assert [sorted(seen[start : start + 64]) for start in (0, 64, 128)] == [list(range(64))] * 3
    assert seen[:64] != seen[64:128]


def test_records_reach_the_caller_as_they_are_made(scenes):
    seen = []
    records = pretrain(load_clip("tiny"), scenes, prompts=PROMPTS, steps=2, batch_size=8, log_every=1, log=seen.append)
    assert seen == records
    assert set(records[0]) == {"step", "loss", "lr", "scale"}


def test_a_loss_that_is_not_finite_stops_with_the_step(scenes):
    clip = load_clip("tiny")
    with torch.no_grad():
        clip.model.visual_projection.weight.fill_(float("nan"))
    with pytest.raises(RuntimeError, match=r"the loss is nan by step 1; lower lr, now 0\.003"):
        pretrain(clip, scenes, prompts=PROMPTS, steps=3, batch_size=8, log_every=1)
    assert len(clip.model.text_model.embeddings.token_embedding.weight) == 49408


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"objective": "siglip"}, "objective is 'siglip'; choose one of sigmoid, contrastive"),
        ({}, "the sigmoid loss needs prompts for each of 10 classes; none given"),
        ({"prompts": PROMPTS[:9]}, "needs prompts for each of 10 classes; 9 given"),
        ({"objective": "contrastive"}, "the contrastive loss needs a caption for each of 64 photos; none given"),
    ],
)
def test_texts_that_do_not_fit_are_refused_before_training(scenes, arguments, text):
    with pytest.raises(ValueError, match=text):
        pretrain(load_clip("tiny"), scenes, **arguments)


def test_label_sentences_list_the_classes_in_words():
    labels = [[3], [5, 9], [0, 1, 7], []]
    dataset = make_dataset(["a", "b", "c", "d"], labels, [*DIGIT_CLASSES[:9], "traffic_light"])
    assert label_sentences(dataset, "a photo of {}.") == [
        "a photo of three.",
        "a photo of five and traffic light.",
        "a photo of zero, one and seven.",
        "a photo of nothing.",
    ]


def test_a_saved_clip_loads_again_and_gives_the_same_features(tmp_path):
    clip = load_clip("tiny", seed=5)
    save_pretrained(clip, tmp_path / "made" / "clip")
    again = load_clip(str(tmp_path / "made" / "clip"))
    ids, pixels = clip.tokenize(["zero", "one and nine"]), torch.randn(2, 3, 32, 32)
    assert torch.equal(again.tokenize(["zero", "one and nine"]), ids)
    torch.testing.assert_close(again.encode_text(ids), clip.encode_text(ids), rtol=0, atol=0)
    torch.testing.assert_close(again.encode_image(pixels), clip.encode_image(pixels), rtol=0, atol=0)
    assert os.listdir(tmp_path / "made") == ["clip"]


def test_saved_in_half_precision_without_a_tokenizer_it_is_small_and_still_loads(tmp_path):
    clip = load_clip("tiny")
    folder = save_pretrained(clip, tmp_path / "half", half=True, tokenizer=False)
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.float16}
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert clip.model.logit_scale.dtype == torch.float32
    assert load_clip(str(folder)).model.dtype == torch.float32


@pytest.mark.parametrize("objective", ["sigmoid", "contrastive"])
def test_the_verb_saves_a_clip_that_loads_and_prints_its_zero_shot(tmp_path, capsys, monkeypatch, objective):
    monkeypatch.setattr("clip_more.data.digits._BALANCED_SCENES", {"pretrain": 128, "test": 40})
    config = TrainConfig(
        dataset="digits_mlt", method="pretrain", model="tiny", templates=["the digit {}"], flip=False, workers=0
    )
    folder = pretrain_from_recipe(config, tmp_path / "clip", objective=objective, steps=2, half=True)
    assert "zero-shot" in capsys.readouterr().out
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 2
    assert load_clip(str(folder)).tokenize(["zero"]).shape == (1, 3)


def test_the_verb_refuses_a_folder_in_use_before_training(tmp_path):
    (tmp_path / "theirs.txt").write_text("x")
    with pytest.raises(FileExistsError, match="is there already"):
        pretrain_from_recipe(TrainConfig(dataset="digits_mlt", method="pretrain", model="nonsense"), tmp_path)


def test_a_folder_in_use_is_not_overwritten(tmp_path):
    (tmp_path / "theirs.txt").write_text("x")
    with pytest.raises(FileExistsError, match="is there already; name another folder"):
        save_pretrained(load_clip("tiny"), tmp_path)
    assert os.listdir(tmp_path) == ["theirs.txt"]


def test_the_shipped_clip_fits_in_four_megabytes_and_is_the_tiny_preset():
    sizes = [path.stat().st_size for path in DIGITS_FOLDER.iterdir()]
    assert sum(sizes) <= 4_000_000
    shapes = {name: value.shape for name, value in load_clip("tiny").model.state_dict().items()}
    assert {name: value.shape for name, value in load_clip("digits").model.state_dict().items()} == shapes
    assert json.loads((DIGITS_FOLDER / "preprocessor_config.json").read_text())["crop_size"]["height"] == 32


def test_zero_shot_of_the_shipped_clip_is_far_above_chance():
    test = read_digits("test")
    assert zero_shot_map(load_clip("digits"), test) >= 0.6
    assert zero_shot_map(load_clip("tiny"), test.select(range(300))) < 0.4
