import os

import PIL.Image
import pytest

from clip_more.data.form import make_dataset
from clip_more.data.paths import PhotoPolicy, Skipped, absent_photos, keep, photo_path


@pytest.fixture
def five(tmp_path):
    """Paths and names of five photos, of which only 1.jpg and 3.jpg are there."""
    names = [f"{n}.jpg" for n in range(5)]
    for name in ("1.jpg", "3.jpg"):
        (tmp_path / name).write_bytes(b"photo")
    return [str(tmp_path / name) for name in names], names


@pytest.mark.parametrize("name", ["../b.jpg", "x/../../b.jpg", "/etc/passwd", "."])
def test_a_photo_outside_its_folder_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"here, line 3: photo '.*' does not lie under"):
        photo_path(tmp_path, name, "here, line 3")


def test_a_folder_whose_name_begins_like_the_root_is_outside(tmp_path):
    with pytest.raises(ValueError, match="does not lie under"):
        photo_path(tmp_path / "data", str(tmp_path / "data2" / "b.jpg"), "here")


def test_an_absolute_path_under_the_folder_is_taken(tmp_path):
    assert photo_path(tmp_path, str(tmp_path / "b.jpg"), "here") == str(tmp_path / "b.jpg")


def test_a_name_with_a_zero_byte_is_refused(tmp_path):
    with pytest.raises(ValueError, match="zero byte"):
        photo_path(tmp_path, "a\0.jpg", "here")


def test_absent_photos_are_counted_and_the_first_named(five, tmp_path):
    pattern = r"list\.txt: 3 of 5 photos are absent: .*0\.jpg, .*2\.jpg, .*4\.jpg\. .*--missing skip"
    with pytest.raises(FileNotFoundError, match=pattern):
        PhotoPolicy().present(*five, tmp_path, "list.txt")


def test_skipped_photos_and_rows_read_are_the_rows_listed(five, tmp_path):
    policy = PhotoPolicy("skip")
    here = policy.present(*five, tmp_path, "list.txt")
    assert here == [1, 3]
    assert policy.skipped == [Skipped(f"{n}.jpg", "there is no such file") for n in (0, 2, 4)]
    assert keep(here, *five)[1] == ["1.jpg", "3.jpg"]


def test_nothing_left_to_read_is_refused_even_where_absent_photos_are_skipped(tmp_path):
    with pytest.raises(FileNotFoundError, match="2 of 2 photos are absent"):
        PhotoPolicy("skip").present([str(tmp_path / "a"), str(tmp_path / "b")], ["a", "b"], tmp_path, "list.txt")


def test_a_folder_in_the_place_of_a_photo_is_absent(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(FileNotFoundError, match="1 of 1 photos"):
        PhotoPolicy().present([str(tmp_path / "a.jpg")], ["a"], tmp_path, "list.txt")


@pytest.mark.parametrize("kind", ["photo", "folder"])
def test_a_link_that_leaves_the_data_set_is_refused_unless_allowed(tmp_path, kind):
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    elsewhere.mkdir(), root.mkdir()
    (elsewhere / "a.jpg").write_bytes(b"photo")
    if kind == "photo":
        photo = root / "a.jpg"
        photo.symlink_to(elsewhere / "a.jpg")
    else:
        (root / "photos").symlink_to(elsewhere)
        photo = root / "photos" / "a.jpg"
    with pytest.raises(ValueError, match=r"list.txt: photo 'a' is reached by a symbolic link .* --follow_links true"):
        PhotoPolicy().present([str(photo)], ["a"], root, "list.txt")
    assert PhotoPolicy(follow_links=True).present([str(photo)], ["a"], root, "list.txt") == [0]


def test_links_within_the_data_set_and_a_linked_root_are_fine(tmp_path):
    root, link = tmp_path / "root", tmp_path / "link"
    root.mkdir()
    (root / "a.jpg").write_bytes(b"photo")
    (root / "b.jpg").symlink_to("a.jpg")
    link.symlink_to(root)
    photos = [os.fspath(link / "a.jpg"), os.fspath(link / "b.jpg")]
    assert PhotoPolicy().present(photos, ["a", "b"], link, "list.txt") == [0, 1]


def test_a_broken_link_is_an_absent_photo(tmp_path):
    (tmp_path / "a.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(FileNotFoundError, match="1 of 1 photos"):
        PhotoPolicy().present([str(tmp_path / "a.jpg")], ["a"], tmp_path, "list.txt")


def test_labels_alone_need_no_photo(five, tmp_path):
    assert PhotoPolicy("allow").present(*five, tmp_path, "list.txt") == [0, 1, 2, 3, 4]


def test_photos_that_are_no_files_are_found_in_a_selection_too(tmp_path):

    PIL.Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    images = [str(tmp_path / "a.png"), str(tmp_path / "b.png"), str(tmp_path / "c.png")]
    dataset = make_dataset(images, [[0]] * 3, ["x"])
    assert absent_photos(dataset) == images[1:]
    assert absent_photos(dataset.select([2, 0])) == [images[2]]
    assert absent_photos(make_dataset([PIL.Image.new("RGB", (2, 2))], [[0]], ["x"])) == []
