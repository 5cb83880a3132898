import math

import numpy as np
import PIL.Image
import pytest
import torch

from clip_more.data import transforms

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

FLAT = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


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


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(40, 50, 3), (301, 97, 3), (16, 16, 3), (20, 1, 3), (1, 1, 3)])
def test_a_part_is_resized_nearly_as_pillow_resizes_it(interpolation, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    augment = transforms.train_transform(16, *FLAT, interpolation=interpolation)
    worst = []
    for seed in range(20):
        draws = augment.draw(seed)
        left, top, width, height = augment._box(shape[1], shape[0], draws)
        part = PIL.Image.fromarray(pixels).crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize((16, 16), transforms.INTERPOLATIONS[interpolation])).astype(int)
        if draws[-1][0] < 0.5:
            expected = expected[:, ::-1]
        found = augment(pixels, draws).permute(1, 2, 0).mul(255).round().int().numpy()
        worst.append(np.abs(found - expected).mean())
    assert max(worst) < 0.2


def test_an_image_and_its_pixels_give_the_same_sample(monkeypatch):
    photo, augment = noise(50, 40), transforms.train_transform(16, MEAN, STD)
    draws = augment.draw(1)
    expected = augment(np.asarray(photo), draws)
    assert torch.equal(augment(photo, draws), expected)

    def in_pieces(photo):
        raise ValueError("Image rows are not contiguous in memory.")

    monkeypatch.setattr("pyarrow.array", in_pieces)
    assert torch.equal(augment(photo, draws), expected)


def test_a_photo_too_large_for_one_piece_of_memory_is_transformed():
    photo = PIL.Image.new("RGB", (3000, 2000), (255, 0, 0))
    pixels = transforms.train_transform(8, *FLAT)(photo)
    torch.testing.assert_close(pixels, torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 8, 8), rtol=0, atol=0)


def test_boxes_are_distributed_as_torchvisions():
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    augment, tensor = transforms.train_transform(8, *FLAT, min_scale=0.3), torch.empty(3, 60, 100)
    ours = np.array([augment._box(100, 60, augment.draw()) for _ in range(2000)])
    theirs = np.array([RandomResizedCrop.get_params(tensor, [0.3, 1.0], [3 / 4, 4 / 3]) for _ in range(2000)])
    theirs = theirs[:, [1, 0, 3, 2]]  # ours: left, top, width, height
    for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
        difference = np.quantile(ours, quantile, axis=0) - np.quantile(theirs, quantile, axis=0)
        assert np.abs(difference).max() <= 3, quantile


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (7, 3), (640, 480)])
def test_boxes_lie_in_the_photo(size):
    augment = transforms.train_transform(8, *FLAT, min_scale=0.01)
    for seed in range(200):
        left, top, width, height = augment._box(*size, augment.draw(seed))
        assert min(left, top) >= 0
        assert min(width, height) >= 1
        assert left + width <= size[0]
        assert top + height <= size[1]


def test_a_part_decoded_as_small_as_allowed_is_not_enlarged():
    augment = transforms.train_transform(64, *FLAT)
    kept = 0
    for seed in range(100):
        draws = augment.draw(seed)
        allowed = augment.reduction(1000, 800, draws)
        kept += min(augment._box(math.ceil(1000 / allowed), math.ceil(800 / allowed), draws)[2:]) >= 63
    assert kept >= 98  # rounding may make another try the first that fits


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
    photo = noise(16, 16)
    # RandomResizedCrop also draws an aspect ratio; a crop of the whole area that does not fit is the whole photo.
    torch.manual_seed(0)
    pixels = [transforms.train_transform(16, *FLAT, min_scale=1.0, flip=False)(photo) for _ in range(10)]
    whole = transforms.test_transform(16, *FLAT)(photo)
    assert sum(torch.equal(drawn, whole) for drawn in pixels) >= 8


@pytest.mark.parametrize("min_scale", [0.0, 1.5, -0.1])
def test_a_share_of_the_photo_outside_its_range_is_refused(min_scale):
    with pytest.raises(ValueError, match="min_scale must be above 0 and at most 1"):
        transforms.train_transform(16, MEAN, STD, min_scale=min_scale)


def test_padded_crops_are_torchvisions_of_81_places_alike():
    from torchvision.transforms import functional

    photo, augment = noise(32, 32), transforms.train_transform(32, MEAN, STD, crop="padded")
    padded = functional.pad(photo, [4])
    drawn = {}
    for seed in range(3240):
        draws = augment.draw(seed)
        drawn.setdefault((int(draws[0][2] * 9), int(draws[0][3] * 9), draws[-1][0] < 0.5), []).append(draws)
    for (left, top, mirrored), (draws, *_) in drawn.items():
        square = functional.crop(padded, top, left, 32, 32)
        expected = functional.to_tensor(functional.hflip(square) if mirrored else square)
        expected = functional.normalize(expected, MEAN, STD)
        torch.testing.assert_close(augment(photo, draws), expected, rtol=0, atol=1e-6)
    # 162 cells of 20 are expected, so the chi-squared of 161 degrees of freedom, which has mean 161 and deviation 18.
    assert sorted(drawn) == [(left, top, flip) for left in range(9) for top in range(9) for flip in (False, True)]
    assert sum((len(each) - 20) ** 2 / 20 for each in drawn.values()) < 161 + 4 * 18


def test_padded_crops_resize_the_middle_of_other_photos():
    photo, augment = noise(60, 40), transforms.train_transform(16, *FLAT, crop="padded", interpolation="bilinear")
    whole = transforms.test_transform(16, *FLAT, interpolation="bilinear")(photo)
    draws = [(0.9, 0.0, 0.5, 0.5)] * 11  # no shift, not mirrored
    # Cut before it is resized, where the other is cut after: the filter reads nothing beyond the left and right edge.
    torch.testing.assert_close(augment(photo, draws)[:, :, 1:-1], whole[:, :, 1:-1], rtol=0, atol=1.5 / 255)
    assert augment.reduction(60, 40, draws) == 40 / 16
    pixels = np.asarray(photo)
    assert torch.equal(augment(pixels, draws), augment(photo, draws))


def test_padded_crops_mirror_some_photos_and_can_be_told_not_to():
    torch.manual_seed(0)
    assert left_to_right(transforms.train_transform(64, *FLAT, crop="padded")) == {True, False}


def to_tensor(photo):
    return torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_squash_resizes_both_sides(interpolation):
    photo = noise(50, 31)
    expected = to_tensor(photo.resize((16, 16), transforms.INTERPOLATIONS[interpolation]))
    found = transforms.test_transform(16, *FLAT, geometry="squash", interpolation=interpolation)(photo)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "inner"), [((48, 24), (0, 4, 16, 12)), ((24, 48), (4, 0, 12, 16)), ((9, 9), (0, 0, 16, 16))]
)
def test_pad_keeps_the_whole_photo_amid_zeros(size, inner):
    photo, (left, top, right, bottom) = noise(*size), inner
    found = transforms.test_transform(16, MEAN, STD, geometry="pad")(photo)
    resized = to_tensor(photo.resize((right - left, bottom - top), PIL.Image.Resampling.BICUBIC))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    torch.testing.assert_close(found[:, top:bottom, left:right], (resized - mean) / std, rtol=0, atol=1e-5)
    found[:, top:bottom, left:right] = 0
    assert not found.any()


def test_flip_gives_the_square_and_its_mirror_image():
    photo = noise(50, 31)
    one, two = (transforms.test_transform(16, MEAN, STD, views=views)(photo) for views in ("one", "flip"))
    assert torch.equal(two, torch.stack([one, one.flip(-1)]))


@pytest.mark.parametrize("geometry", ["crop", "squash", "pad"])
def test_five_and_ten_crops_are_torchvisions_of_the_larger_photo(geometry):
    from torchvision.transforms.functional import five_crop

    photo = noise(60, 40)
    side = 32  # 28 * 256 / 224
    if geometry == "pad":
        larger = transforms.test_transform(side, *FLAT, geometry="pad")(photo)
    else:
        larger = to_tensor(
            photo.resize((48, side) if geometry == "crop" else (side, side), PIL.Image.Resampling.BICUBIC)
        )
    expected = torch.stack(five_crop(larger, [28, 28]))
    found = transforms.test_transform(28, *FLAT, geometry=geometry, views="five_crop")(photo)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    ten = transforms.test_transform(28, *FLAT, geometry=geometry, views="ten_crop")(photo)
    torch.testing.assert_close(ten, torch.cat([expected, expected.flip(-1)]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("width", "height"), [(1, 40), (40, 1), (3, 100)])
@pytest.mark.parametrize("views", ["one", "five_crop"])
def test_long_strips_are_cut_as_if_resized_whole(width, height, views, monkeypatch):
    photo = noise(width, height)
    cut = transforms.test_transform(16, *FLAT, views=views)(photo)
    monkeypatch.setattr(transforms, "LONGEST", 1000)
    whole = transforms.test_transform(16, *FLAT, views=views)(photo)
    assert (cut - whole).abs().mean() < 0.5 / 255
    torch.testing.assert_close(cut, whole, rtol=0, atol=16 / 255)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("geometry", ["crop", "squash", "pad"])
@pytest.mark.parametrize(("views", "shape"), [("one", (3, 8, 8)), ("ten_crop", (10, 3, 8, 8))])
def test_photos_of_any_shape_have_every_view(size, geometry, views, shape):
    assert transforms.test_transform(8, MEAN, STD, geometry=geometry, views=views)(noise(*size)).shape == shape


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("geometry", "geometry is 'x'; choose one of crop, squash, pad"),
        ("views", "views is 'x'; choose one of one, flip, five_crop, ten_crop"),
        ("interpolation", "interpolation is 'x'; choose one of bicubic, bilinear"),
    ],
)
def test_unknown_choices_are_refused(key, message):
    with pytest.raises(ValueError, match=message):
        transforms.test_transform(8, MEAN, STD, **{key: "x"})


def test_an_unknown_crop_is_refused():
    with pytest.raises(ValueError, match="crop is 'x'; choose one of resized, padded"):
        transforms.train_transform(8, MEAN, STD, crop="x")
