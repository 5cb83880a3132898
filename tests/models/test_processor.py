import pytest
import torch

from clip_more.models.processor import clip_image_processor, load_image_processor, open_clip_preprocess, set_image_size

SETTINGS = {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3], "interpolation": "bilinear", "resize_mode": "squash"}


def test_open_clip_settings_survive_both_ways():
    assert open_clip_preprocess(clip_image_processor(32, SETTINGS)) == SETTINGS


def test_default_is_clips_own():
    from open_clip.transform import PreprocessCfg

    default, theirs = open_clip_preprocess(clip_image_processor(32)), PreprocessCfg()
    assert default == {
        "mean": list(theirs.mean),
        "std": list(theirs.std),
        "interpolation": theirs.interpolation,
        "resize_mode": theirs.resize_mode,
    }


def test_settings_survive_saving(tmp_path):
    clip_image_processor(32, SETTINGS).save_pretrained(tmp_path)
    loaded = load_image_processor(tmp_path, 99)
    assert open_clip_preprocess(loaded) == SETTINGS
    assert dict(loaded.size)["height"] == 32


@pytest.mark.parametrize("settings", [None, SETTINGS])
def test_resized_processor_gives_the_new_size(settings):
    processor = clip_image_processor(32, settings)
    set_image_size(processor, 48)
    pixels = processor(torch.zeros(3, 50, 90), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 48, 48)


def test_settings_that_the_processor_lacks_are_refused():
    with pytest.raises(ValueError, match="interpolation 'bicubic' and resize mode 'longest'"):
        clip_image_processor(32, {"resize_mode": "longest"})
