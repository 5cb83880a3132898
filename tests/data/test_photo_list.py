import pytest

from clip_more.data.photo_list import list_photos


def test_photos_of_a_folder_come_by_name_from_any_depth(tmp_path):
    for name in ("b/2.JPG", "a.png", "b/.hidden.jpg", "b/notes.txt", ".thumbs/x.jpg", "b/c/1.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    paths, names = list_photos(tmp_path)
    assert names == ["a.png", "b/2.JPG", "b/c/1.webp"]
    assert paths == [str(tmp_path / name) for name in names]


def test_a_list_has_one_path_a_line_relative_to_itself(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_bytes("\ufeffb.jpg\r\n\r\nwith space.jpg \r\n/elsewhere/ä.png\nsub/a\u2028b.jpg".encode())
    paths, names = list_photos(listed)
    assert names == ["b.jpg", "with space.jpg", "/elsewhere/ä.png", "sub/a\u2028b.jpg"]
    assert paths[:3] == [str(tmp_path / "b.jpg"), str(tmp_path / "with space.jpg"), "/elsewhere/ä.png"]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("list.txt", b"\n \n", "lists no photo; write one path a line"),
        ("list.txt", b"\xff\xd8\xff", "is not UTF-8 text"),
        ("list.txt", b"a\0b.jpg", "holds a zero byte"),
        ("one.jpg", b"\xff\xd8\xff", "is a photo; give its folder"),
    ],
)
def test_what_is_no_list_is_said(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=text):
        list_photos(tmp_path / name)


def test_a_name_that_no_table_can_hold_is_said(tmp_path):
    import os

    try:
        open(os.fsencode(tmp_path) + b"/\xff.jpg", "w").close()
    except OSError:
        pytest.skip("this file system wants UTF-8 itself")
    with pytest.raises(ValueError, match="is not UTF-8; rename it"):
        list_photos(tmp_path)


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(ValueError, match="there are no photos below"):
        list_photos(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder or file .*nowhere"):
        list_photos(tmp_path / "nowhere")
