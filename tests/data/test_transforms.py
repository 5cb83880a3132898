import numpy as np
import PIL.Image
import pytest
import torch

from clip_more.data import transforms

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def noise(width, height):
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [224, 96])
# Where 3 pixels are left over, as in 227 x 224, rounding half to even would cut out another square.
@pytest.mark.parametrize(("width", "height"), [(500, 333), (60, 81), (224, 224), (227, 224), (224, 227), (96, 99)])
def test_test_transform_is_transformers_pillow_clip_processor(size, width, height):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    photo = noise(width, height)
    processor = CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    expected = processor(photo, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(transforms.test_transform(size, MEAN, STD)(photo), expected, rtol=0, atol=1e-6)


def test_train_transform_gives_the_declared_size_in_float32():
    pixels = transforms.train_transform(32, MEAN, STD)(noise(50, 40))
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.float32


def test_train_transform_draws_from_torchs_generator():
    transform = transforms.train_transform(16, MEAN, STD)
    torch.manual_seed(0)
    first = transform(noise(50, 40))
    torch.manual_seed(0)
    assert torch.equal(transform(noise(50, 40)), first)
    assert not torch.equal(transform(noise(50, 40)), first)


def left_to_right(transform):
    """Whether red still rises from left to right after the transform, in 20 draws."""
    ramp = PIL.Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3)))
    return {bool((pixels[0, 0, -1] > pixels[0, 0, 0]).item()) for pixels in (transform(ramp) for _ in range(20))}


def test_flip_mirrors_some_photos_and_can_be_turned_off():
    torch.manual_seed(0)
    assert left_to_right(transforms.train_transform(16, MEAN, STD)) == {True, False}
    assert left_to_right(transforms.train_transform(16, MEAN, STD, flip=False)) == {True}


def test_min_scale_one_and_a_square_photo_leave_nothing_out():
    flat = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    photo = noise(16, 16)
    # RandomResizedCrop also draws an aspect ratio; a crop of the whole area that does not fit is the whole photo.
    torch.manual_seed(0)
    pixels = [transforms.train_transform(16, *flat, min_scale=1.0, flip=False)(photo) for _ in range(10)]
    whole = transforms.test_transform(16, *flat)(photo)
    assert sum(torch.equal(drawn, whole) for drawn in pixels) >= 8


@pytest.mark.parametrize("min_scale", [0.0, 1.5, -0.1])
def test_a_share_of_the_photo_outside_its_range_is_refused(min_scale):
    with pytest.raises(ValueError, match="min_scale must be above 0 and at most 1"):
        transforms.train_transform(16, MEAN, STD, min_scale=min_scale)
