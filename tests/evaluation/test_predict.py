import os

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator

from clip_more.data.form import make_dataset
from clip_more.evaluation.predict import predict_logits
from clip_more.models import class_prompts, load_clip
from clip_more.models.classifier import Classifier
from clip_more.models.heads import PromptHead

NAMES = ["cat", "dog", "traffic light"]


@pytest.fixture(scope="module")
def classifier():
    clip = load_clip("tiny")
    for name, module in clip.model.named_modules():
        if name.endswith("self_attn"):
            module.dropout = 0.5
    return Classifier(clip, PromptHead(clip, class_prompts(NAMES, ["a {}.", "one {}."]), scale=20.0))


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    images = [PIL.Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for _ in range(7)]
    return make_dataset(images, [[0], [1], [2], [], [0, 1], [1], [2]], NAMES, unknown=[[], [], [], [1], [], [], []])


def test_logits_are_those_of_the_classifier_in_eval_mode_whatever_mode_it_is_in(classifier, photos):
    from clip_more.data.photos import Photos
    from clip_more.data.transforms import test_transform as transform

    clip = classifier.clip
    pixels = Photos(photos, transform(clip.image_size, clip.image_mean, clip.image_std))
    classifier.eval()
    with torch.no_grad():
        expected = classifier(torch.stack([pixels[i]["pixel_values"] for i in range(7)])).numpy()
    classifier.train()
    found = predict_logits(classifier, photos, Accelerator(), batch_size=3, workers=0)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-5)
    assert classifier.training
    assert classifier.head.frozen_features is None
    assert found.targets.tolist()[4] == [True, True, False]
    assert found.known.tolist()[3] == [True, False, True]


@pytest.mark.parametrize(("views", "count"), [("flip", 2), ("five_crop", 5), ("ten_crop", 10)])
def test_logits_of_several_views_are_averaged(classifier, photos, views, count):
    from clip_more.data.photos import Photos
    from clip_more.data.transforms import test_transform as transform

    clip = classifier.clip
    pixels = Photos(photos, transform(clip.image_size, clip.image_mean, clip.image_std, views=views))[2]["pixel_values"]
    assert pixels.shape[0] == count
    classifier.eval()
    with torch.no_grad():
        expected = classifier(pixels).numpy().mean(axis=0)
    found = predict_logits(classifier, photos, Accelerator(), batch_size=3, workers=0, views=views)
    assert found.scores.shape == (7, 3)
    np.testing.assert_allclose(found.scores[2], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("geometry", ["squash", "pad"])
def test_the_clips_own_geometry_and_interpolation_are_used(geometry):
    from clip_more.data.photos import Photos
    from clip_more.data.transforms import test_transform as transform
    from clip_more.evaluation.predict import image_features

    rng = np.random.default_rng(0)
    wide = make_dataset([PIL.Image.fromarray(rng.integers(0, 255, (40, 90, 3), dtype=np.uint8))], [[0]], NAMES)
    clip = load_clip("tiny", geometry=geometry)
    clip.image_processor.resample = 2
    size, mean, std = clip.image_size, clip.image_mean, clip.image_std
    pixels = Photos(wide, transform(size, mean, std, geometry=geometry, interpolation="bilinear"))[0]["pixel_values"]
    with torch.no_grad():
        expected = clip.eval().encode_image(pixels[None]).numpy()
    expected /= np.linalg.norm(expected)
    found = image_features(clip, wide, Accelerator(), batch_size=1, workers=0, label="")
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("views", ["flip", "five_crop"])
def test_features_of_several_views_are_the_mean_of_unit_vectors(classifier, photos, views):
    from clip_more.data.photos import Photos
    from clip_more.data.transforms import test_transform as transform
    from clip_more.evaluation.predict import image_features

    clip = classifier.clip
    pixels = Photos(photos, transform(clip.image_size, clip.image_mean, clip.image_std, views=views))[4]["pixel_values"]
    clip.eval()
    with torch.no_grad():
        rows = [clip.encode_image(view[None])[0].double().numpy() for view in pixels]
    expected = np.mean([row / np.linalg.norm(row) for row in rows], axis=0)
    found = image_features(clip, photos, Accelerator(), batch_size=3, workers=0, label="", views=views)
    assert found.scores.dtype == np.float32
    np.testing.assert_allclose(found.scores[4], expected, atol=1e-6)
    assert np.linalg.norm(found.scores[4]) < 1 - 1e-6  # not brought to unit length again


def test_preprocessing_is_the_clips_own():
    from clip_more.evaluation.predict import preprocessing

    clip = load_clip("tiny", image_size=64, geometry="pad")
    clip.image_processor.resample = 2
    clip.image_processor.image_mean = [0.5, 0.25, 0.125]
    found = preprocessing(clip)
    assert (found["geometry"], found["interpolation"], found["image_size"]) == ("pad", "bilinear", 64)
    assert found["image_mean"] == [0.5, 0.25, 0.125]
    assert found["image_std"] == pytest.approx([0.2686, 0.2613, 0.2758], abs=1e-4)


def test_a_photo_that_a_worker_is_stuck_at_is_named(classifier, tmp_path):
    from clip_more.data.opening import PhotoError
    from clip_more.evaluation.predict import image_features

    stuck = str(tmp_path / "stuck.png")
    os.mkfifo(stuck)  # nobody writes
    photos = make_dataset([stuck], [[0]], NAMES)
    options = {"batch_size": 2, "workers": 1, "worker_timeout": 0.5}
    with pytest.raises(PhotoError, match=rf"no batch came for 0\.5 s; the data workers are stuck at {stuck}"):
        predict_logits(classifier, photos, Accelerator(), **options)
    with pytest.raises(PhotoError, match=stuck):
        image_features(classifier.clip, photos, Accelerator(), label="", **options)
