import io
import os
import pickle
import struct
import warnings
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import torch
from torch._utils import ExceptionWrapper

from clip_more.data.form import make_dataset
from clip_more.data.opening import PhotoError, open_photo, raw_bytes
from clip_more.data.photos import Photos, verify_photos
from clip_more.data.transforms import test_transform, train_transform

RED, GREEN = (255, 0, 0), (0, 255, 0)


def saved(folder, photo, name="a.png", **options):
    photo.save(folder / name, **options)
    return {"path": str(folder / name), "bytes": None}


def noise(width, height):
    return PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def one(path, labels=(), unknown=()):
    return make_dataset([str(path)], [labels], ["cat", "dog", "cow"], image_ids=["one"], unknown=[unknown])


def jitter(photo):
    return torch.rand(3, 2, 2) + photo.width


def png(width, height, depth, colour, rows):
    """A PNG as bytes; depth 16 and colour types 2 (RGB) and 6 (RGBA) are more than Pillow writes."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_photos_of_any_shape_become_squares(size):
    photos = [io.BytesIO() for _ in range(2)]
    noise(*size).save(photos[0], "PNG")
    noise(*size).save(photos[1], "JPEG")
    dataset = make_dataset([photo.getvalue() for photo in photos], [[0]] * 2, ["cat"])
    for transform in (train_transform(16, [0.5] * 3, [0.5] * 3), test_transform(16, [0.5] * 3, [0.5] * 3)):
        for sample in Photos(dataset, transform, seed=0):
            assert sample["pixel_values"].shape == (3, 16, 16)
            assert sample["pixel_values"].abs().max() <= 1


def test_a_smaller_decode_gives_nearly_the_same_sample(tmp_path):
    smooth = noise(8, 6).resize((640, 480), PIL.Image.Resampling.BICUBIC)
    photos = Photos(one(saved(tmp_path, smooth, "a.jpg", quality=95)["path"]), train_transform(64, [0] * 3, [1] * 3), 0)
    differences = []
    for position in range(20):
        draws = photos.transform.draw(photos._seed_of(position))
        assert photos.transform.reduction(640, 480, draws) > 4
        differences.append((photos[position, 0]["pixel_values"] - photos.transform(smooth, draws)).abs().mean())
    assert np.median(differences) < 0.01


def test_a_cut_raw_photo_is_named():
    dataset = make_dataset([raw_bytes(noise(8, 8))[:-5]], [[0]], ["cat"], image_ids=["x7"])
    with pytest.raises(PhotoError, match=r"image_id x7\): image file is truncated"):
        Photos(dataset, train_transform(4, [0] * 3, [1] * 3))[0]


def test_rows_chosen_from_a_data_set_keep_their_photos_labels_and_ids(tmp_path):
    images = [raw_bytes(PIL.Image.new("RGB", (4, 4), (value, 0, 0))) for value in range(6)]
    dataset = make_dataset(
        images, [[row % 3] for row in range(6)], ["a", "b", "c"], unknown=[[(row + 1) % 3] for row in range(6)]
    )
    chosen = pickle.loads(
        pickle.dumps(Photos(dataset.select([5, 0, 4]).select([2, 0]), test_transform(4, [0] * 3, [1 / 255] * 3)))
    )
    assert [round(sample["pixel_values"][0, 0, 0].item()) for sample in chosen] == [4, 5]
    assert [sample["targets"].tolist() for sample in chosen] == [[0, 1, 0], [0, 0, 1]]
    assert [sample["known"].tolist() for sample in chosen] == [[True, True, False], [False, True, True]]


def test_a_truncated_photo_names_its_path_and_the_cause(tmp_path):
    path = tmp_path / "cut.jpg"
    noise(64, 64).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(PhotoError, match=r"cannot read photo .*cut\.jpg: image file is truncated"):
        Photos(one(path), jitter)[0]


def test_an_absent_photo_is_named(tmp_path):
    with pytest.raises(PhotoError, match=r"cannot read photo .*gone\.jpg: there is no such file"):
        Photos(one(tmp_path / "gone.jpg"), jitter)[0]


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "void.jpg").touch()
    with pytest.raises(PhotoError, match=r"cannot read photo .*void\.jpg: the file is empty"):
        Photos(one(tmp_path / "void.jpg"), jitter)[0]


def test_a_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "notes.jpg").write_text("see the other folder")
    with pytest.raises(PhotoError, match=r"cannot read photo .*notes\.jpg: it is not an image that Pillow knows"):
        Photos(one(tmp_path / "notes.jpg"), jitter)[0]


@pytest.mark.parametrize("text", ["<html>404</html>", "\ufeff\n <svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_a_web_page_or_a_drawing_is_called_so(tmp_path, text):
    (tmp_path / "page.jpg").write_text(text)
    with pytest.raises(PhotoError, match=r"page\.jpg: it holds markup \(a web page, or an SVG drawing\), not a photo"):
        Photos(one(tmp_path / "page.jpg"), jitter)[0]


def test_photos_beyond_pillows_own_bound_are_read_without_its_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 20)
    image = saved(tmp_path, noise(8, 8))  # more than twice the bound, where Pillow refuses
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_photo(image, "a").size == (8, 8)
        assert Photos(one(image["path"]), train_transform(4, [0.5] * 3, [0.5] * 3))[0]["pixel_values"].shape == (
            3,
            4,
            4,
        )
    assert PIL.Image.MAX_IMAGE_PIXELS == 20


def test_a_photo_in_memory_is_named_by_its_id():
    dataset = make_dataset([b"nonsense"], [[0]], ["cat"], image_ids=["x7"])
    with pytest.raises(PhotoError, match=r"cannot read photo \(in memory, image_id x7\): it is not an image"):
        Photos(dataset, jitter)[0]


def test_the_error_survives_the_way_out_of_a_worker(tmp_path):
    # A real worker that fails takes torch five seconds to join.
    try:
        Photos(one(tmp_path / "gone.jpg"), jitter)[0]
    except PhotoError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(PhotoError, match=r"cannot read photo .*gone\.jpg: there is no such file"):
        wrapped.reraise()


def test_verify_photos_lists_the_unreadable_ones_and_why(tmp_path):
    noise(8, 8).save(tmp_path / "good.png")
    (tmp_path / "void.png").touch()
    paths = [str(tmp_path / name) for name in ("good.png", "void.png", "gone.png")]
    found = verify_photos(make_dataset(paths, [[0]] * 3, ["cat"]), progress=False)
    assert found == [(paths[1], "the file is empty"), (paths[2], "there is no such file")]


def test_a_sample_holds_pixels_targets_known_and_index(tmp_path):
    noise(8, 8).save(tmp_path / "a.png")
    sample = Photos(one(tmp_path / "a.png", labels=[0, 2], unknown=[1]), jitter)[0]
    assert sample["pixel_values"].shape == (3, 2, 2)
    torch.testing.assert_close(sample["targets"], torch.tensor([1.0, 0.0, 1.0]))
    assert sample["known"].tolist() == [True, False, True]
    assert sample["index"] == 0


def test_samples_end_after_the_last(tmp_path):
    noise(8, 8).save(tmp_path / "a.png")
    with pytest.raises(IndexError):
        Photos(one(tmp_path / "a.png"), jitter)[1]


@pytest.fixture
def eight():
    encoded = io.BytesIO()
    noise(8, 8).save(encoded, "PNG")
    return make_dataset([encoded.getvalue()] * 8, [[0]] * 8, ["cat"])


def drawn(photos, workers=0, epoch=0):
    stream = [[(8 * epoch + row, row) for row in rows] for rows in ((0, 1), (2, 3), (4, 5), (6, 7))]
    loader = torch.utils.data.DataLoader(photos, batch_sampler=stream, num_workers=workers)
    return torch.cat([batch["pixel_values"] for batch in loader])


def test_augmentation_does_not_depend_on_workers(eight):
    photos = Photos(eight, jitter, seed=3)
    torch.testing.assert_close(drawn(photos, workers=0), drawn(photos, workers=2), rtol=0, atol=0)


def test_augmentation_depends_on_seed_and_position(eight):
    first = drawn(Photos(eight, jitter, seed=3))
    assert len({tuple(row.flatten().tolist()) for row in first}) == 8
    assert not torch.equal(first, drawn(Photos(eight, jitter, seed=4)))
    assert not torch.equal(first, drawn(Photos(eight, jitter, seed=3), epoch=1))


def test_a_photo_drawn_twice_is_augmented_twice(eight):
    photos = Photos(eight, jitter, seed=3)
    once, again = photos[4, 2], photos[5, 2]
    assert once["index"] == again["index"] == 2
    assert not torch.equal(once["pixel_values"], again["pixel_values"])
    assert torch.equal(once["pixel_values"], photos[4, 2]["pixel_values"])


def test_a_photo_without_a_position_is_augmented_as_at_its_own(eight):
    photos = Photos(eight, jitter, seed=3)
    assert torch.equal(photos[6]["pixel_values"], photos[6, 6]["pixel_values"])


def test_the_photo_in_hand_is_known_while_it_is_opened(tmp_path):
    noise(8, 8).save(tmp_path / "a.png")
    seen = []

    def look(photo):
        seen.append(photos.in_hand())
        return torch.zeros(3, 1, 1)

    encoded = io.BytesIO()
    noise(8, 8).save(encoded, "PNG")
    images = [str(tmp_path / "a.png"), encoded.getvalue(), str(tmp_path / "gone.png")]
    photos = Photos(make_dataset(images, [[0]] * 3, ["cat"], image_ids=["x1", "x2", "x3"]), look)
    assert photos.in_hand() == {}
    for index in (0, 1):
        photos[index]
    with pytest.raises(PhotoError):
        photos[2]
    assert seen == [{os.getpid(): images[0]}, {os.getpid(): "(in memory, image_id x2)"}]
    assert photos.in_hand() == {os.getpid(): None}


def test_the_callers_generator_is_left_alone(eight):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    Photos(eight, jitter, seed=3)[0]
    assert torch.equal(torch.rand(3), expected)


def test_without_a_seed_transforms_draw_from_the_callers_generator(eight):
    photos = Photos(eight, jitter)
    torch.manual_seed(0)
    first = photos[0]["pixel_values"]
    torch.manual_seed(0)
    assert torch.equal(photos[0]["pixel_values"], first)
    assert not torch.equal(photos[0]["pixel_values"], first)


@pytest.fixture
def eight_real(tmp_path):
    """Eight JPEGs, large enough to be decoded smaller at times."""
    paths = [saved(tmp_path, noise(9, 7).resize((90, 70)), f"{row}.jpg")["path"] for row in range(8)]
    return Photos(make_dataset(paths, [[0]] * 8, ["cat"]), train_transform(24, [0.5] * 3, [0.5] * 3), seed=3)


def test_our_augmentation_does_not_depend_on_workers(eight_real):
    torch.testing.assert_close(drawn(eight_real, workers=0), drawn(eight_real, workers=2), rtol=0, atol=0)


def test_our_augmentation_depends_on_position_and_touches_no_generator(eight_real):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = drawn(eight_real)
    assert len({tuple(row.flatten().tolist()) for row in first}) == 8
    assert not torch.equal(first, drawn(eight_real, epoch=1))
    assert torch.equal(first, drawn(eight_real))
    torch.manual_seed(0)
    eight_real[0]
    assert torch.equal(torch.rand(3), expected)
