"""Against a local server with small archives of the official form; the makers' own servers are never asked."""

import errno
import hashlib
import io
import json
import os
import re
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from torchvision.datasets import CIFAR10, voc

from clip_more.config import ConfigError, TrainConfig
from clip_more.data import download as download_file
from clip_more.data import fetch as fetch_file
from clip_more.data.download import BY_HAND, download
from clip_more.data.voc import read_voc


class Files(BaseHTTPRequestHandler):
    """Serves `server.files`, ranges included, notes what was asked, and sends `server.cut` bytes at most."""

    def do_GET(self):
        self.server.asked.append((self.path.rsplit("/", 1)[-1], self.headers.get("Range")))
        body = self.server.files.get(self.path.rsplit("/", 1)[-1])
        if body is None:
            return self.send_error(404)
        start = int(re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:][: self.server.cut])
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.files, server.asked, server.cut = {}, [], None
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def tar(files, mode="w"):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def zipped(files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def voc_files(split, photo):
    base = "VOCdevkit/VOC2007"
    xml = b"<annotation><object><name>dog</name><difficult>0</difficult></object></annotation>"
    return {
        f"{base}/ImageSets/Main/{split}.txt": f"{photo}\n".encode(),
        f"{base}/ImageSets/Main/dog_{split}.txt": f"{photo}  1\n".encode(),
        f"{base}/JPEGImages/{photo}.jpg": b"photo",
        f"{base}/Annotations/{photo}.xml": xml,
    }


@pytest.fixture
def voc_server(server, monkeypatch):
    """VOC2007's two archives, with their true md5 in torchvision's table."""
    for key, name, content in (
        ("2007", "trainval.tar", voc_files("trainval", "000005")),
        ("2007-test", "test.tar", voc_files("test", "000001")),
    ):
        server.files[name] = tar(content)
        entry = {
            "url": f"{server.url}/{name}",
            "filename": name,
            "md5": hashlib.md5(server.files[name]).hexdigest(),
            "base_dir": os.path.join("VOCdevkit", "VOC2007"),
        }
        monkeypatch.setitem(voc.DATASET_YEAR_DICT, key, entry)
    return server


@pytest.fixture
def coco_server(server, monkeypatch):
    """COCO 2017 with two train photos and one of val."""
    monkeypatch.setattr(download_file, "COCO", server.url)
    monkeypatch.setattr(download_file, "COCO_PHOTOS", {"train2017": 2, "val2017": 1})
    server.files["train2017.zip"] = zipped({"train2017/1.jpg": b"one" * 50, "train2017/2.jpg": b"two" * 50})
    server.files["val2017.zip"] = zipped({"val2017/3.jpg": b"three"})
    parts = {f"annotations/instances_{split}.json": json.dumps(split) for split in ("train2017", "val2017")}
    server.files["annotations_trainval2017.zip"] = zipped(parts)
    return server


def coco():
    return TrainConfig(dataset="coco", train_split="train2017", test_split="val2017")


def left(root):
    """Every file below root but the lock."""
    names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} if root.exists() else set()
    return names - {".download.lock"}


def test_voc_is_fetched_merged_and_read(voc_server, tmp_path):
    root = tmp_path / "data"
    download(TrainConfig(dataset="voc"), root)
    assert left(root) == {*voc_files("trainval", "000005"), *voc_files("test", "000001")}
    assert list(read_voc(root, "trainval", year=2007)["labels"]) == [[11]]
    assert list(read_voc(root, "test", year=2007)["image_id"]) == ["000001"]
    assert not (root / ".download").exists()


def test_what_is_there_is_not_fetched_again(voc_server, tmp_path):
    download(TrainConfig(dataset="voc"), tmp_path)
    voc_server.asked.clear()
    download(TrainConfig(dataset="voc"), tmp_path)
    download(TrainConfig(dataset="voc"), tmp_path / "VOCdevkit")
    download(TrainConfig(dataset="voc"), tmp_path / "VOCdevkit" / "VOC2007")
    assert voc_server.asked == []


def test_only_the_part_that_lacks_is_fetched_and_own_files_stay(voc_server, tmp_path):
    main = tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "trainval.txt").write_text("000005\n")
    (main / "dog_test.txt").write_text("mine")
    download(TrainConfig(dataset="voc"), tmp_path)
    assert {name for name, _ in voc_server.asked} == {"test.tar"}
    assert (main / "dog_test.txt").read_text() == "mine"
    assert (main / "test.txt").read_text() == "000001\n"


def test_lists_of_whole_splits_are_put_in_place_last(voc_server, tmp_path, monkeypatch):
    main = tmp_path / "VOCdevkit" / "VOC2007" / "ImageSets" / "Main"
    main.mkdir(parents=True)
    (main / "trainval.txt").touch()
    placed = []
    rename = os.replace

    def noted(source, target):
        placed.append(Path(target).name)
        if placed[-1] == "test.txt":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", noted)
    with pytest.raises(KeyboardInterrupt):
        download(TrainConfig(dataset="voc"), tmp_path)
    assert set(placed[:-2]) == {"000001.jpg", "000001.xml"}
    assert placed[-2:] == ["dog_test.txt", "test.txt"]
    monkeypatch.undo()
    assert not (main / "test.txt").exists()


def test_a_wrong_md5_is_refused_and_nothing_is_left(voc_server, tmp_path):
    voc_server.files["trainval.tar"] += b"more"
    with pytest.raises(
        ValueError, match=r"/trainval\.tar: what came is not the archive of its makers .* fetch it by hand"
    ):
        download(TrainConfig(dataset="voc"), tmp_path)
    assert left(tmp_path) == set()


def test_a_transfer_that_breaks_off_is_refused_and_nothing_is_left(voc_server, tmp_path):
    voc_server.cut = 700
    with pytest.raises((ValueError, OSError), match=r"/trainval\.tar: .*Try again, or fetch it by hand"):
        download(TrainConfig(dataset="voc"), tmp_path)
    assert left(tmp_path) == set()


def test_an_archive_that_is_gone_is_named(voc_server, tmp_path):
    del voc_server.files["trainval.tar"]
    with pytest.raises(OSError, match=r"/trainval\.tar: could not be fetched \(HTTP Error 404"):
        download(TrainConfig(dataset="voc"), tmp_path)
    assert left(tmp_path) == set()


def test_no_network_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download_file, "COCO", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"127\.0\.0\.1:9/zips/train2017\.zip: could not be fetched .*refused.* by hand"):
        download(coco(), tmp_path)
    assert left(tmp_path) == set()


@pytest.mark.parametrize("options", [{"year": 2012}, {"year": 2006}, {"train_split": "mine"}])
def test_a_split_that_voc_does_not_offer_is_named(tmp_path, options):
    config = TrainConfig(dataset="voc", test_split="test", **options)
    with pytest.raises(ConfigError, match=r"VOC\d{4} \w+ is not offered with labels"):
        download(config, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_cifar_is_fetched_once(server, monkeypatch, tmp_path):
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list] + [CIFAR10.meta["filename"]]
    server.files["cifar.tar.gz"] = tar({f"{CIFAR10.base_folder}/{name}": b"batch" for name in names}, "w:gz")
    monkeypatch.setattr(CIFAR10, "url", f"{server.url}/cifar.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(server.files["cifar.tar.gz"]).hexdigest())
    download(TrainConfig(dataset="cifar10"), tmp_path)
    assert left(tmp_path) == {f"{CIFAR10.base_folder}/{name}" for name in names}
    server.asked.clear()
    download(TrainConfig(dataset="cifar10"), tmp_path)
    assert server.asked == []
    (tmp_path / CIFAR10.base_folder / "test_batch").unlink()
    download(TrainConfig(dataset="cifar10"), tmp_path)
    assert left(tmp_path) == {f"{CIFAR10.base_folder}/{name}" for name in names}


def test_binary_cifar_that_is_there_is_not_fetched(server, monkeypatch, tmp_path):
    monkeypatch.setattr(CIFAR10, "url", f"{server.url}/cifar.tar.gz")
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (tmp_path / "cifar-10-batches-bin").mkdir(exist_ok=True)
        (tmp_path / "cifar-10-batches-bin" / f"{name}.bin").touch()
    download(TrainConfig(dataset="cifar10"), tmp_path)
    assert server.asked == []


def test_coco_is_fetched_once(coco_server, tmp_path):
    download(coco(), tmp_path)
    assert left(tmp_path) == {
        "train2017/1.jpg", "train2017/2.jpg", "val2017/3.jpg",
        "annotations/instances_train2017.json", "annotations/instances_val2017.json",
    }  # fmt: skip
    assert len(coco_server.asked) == 3
    download(coco(), tmp_path)
    assert len(coco_server.asked) == 3


def test_a_transfer_that_broke_off_goes_on_where_it_stopped(coco_server, tmp_path):
    coco_server.cut = 100
    size = len(coco_server.files["train2017.zip"])
    with pytest.raises(OSError, match=rf"broke off after 100 of {size} bytes\)\. What came is kept in .*\.download"):
        download(coco(), tmp_path)
    assert left(tmp_path) == {".download/train2017.zip.part"}
    coco_server.cut = None
    coco_server.asked.clear()
    download(coco(), tmp_path)
    assert coco_server.asked[0] == ("train2017.zip", "bytes=100-")
    assert (tmp_path / "train2017" / "2.jpg").read_bytes() == b"two" * 50
    assert not (tmp_path / ".download").exists()


def test_a_part_that_is_all_of_the_archive_is_taken(coco_server, tmp_path):
    (tmp_path / ".download").mkdir()
    (tmp_path / ".download" / "train2017.zip.part").write_bytes(coco_server.files["train2017.zip"])
    download(coco(), tmp_path)
    assert (tmp_path / "train2017" / "1.jpg").read_bytes() == b"one" * 50


def test_a_part_of_something_else_is_found_out(coco_server, tmp_path):
    (tmp_path / ".download").mkdir()
    (tmp_path / ".download" / "train2017.zip.part").write_bytes(b"x" * 10_000)
    with pytest.raises(OSError, match=r"not a part of train2017\.zip, and is deleted\)\. Try again"):
        download(coco(), tmp_path)
    assert left(tmp_path) == set()


@pytest.mark.parametrize("damage", ["crc", "count", "folder", "html", "outside", "absolute", "link", "twice", "nested"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_is_not_cocos_is_refused_and_nothing_is_left(coco_server, tmp_path, damage):
    good = coco_server.files["train2017.zip"]
    link = zipfile.ZipInfo("train2017/2.jpg")
    link.external_attr = 0o120777 << 16
    coco_server.files["train2017.zip"] = {
        "crc": good.replace(b"oneone", b"oneonx", 1),
        "count": zipped({"train2017/1.jpg": b"one"}),
        "folder": zipped({"photos/1.jpg": b"one"}),
        "html": b"<html>moved</html>",
        "outside": zipped({"train2017/1.jpg": b"one", "train2017/../../2.jpg": b"two"}),
        "absolute": zipped({"train2017/1.jpg": b"one", "/train2017/2.jpg": b"two"}),
        "link": zipped({"train2017/1.jpg": b"one", link: b"/etc/passwd"}),
        "twice": zipped({"train2017/1.jpg": b"one", zipfile.ZipInfo("train2017/1.jpg"): b"two"}),
        "nested": zipped({"train2017/1.jpg": b"one", "train2017/1.jpg/2.jpg": b"two"}),
    }[damage]
    cause = {"crc": "Bad CRC-32", "count": "1 photos, not 2", "folder": "no folder train2017", "html": "not a zip"}
    cause |= dict.fromkeys(("outside", "absolute", "link"), "has no place in it")
    cause |= {"twice": "'train2017/1.jpg' twice", "nested": "'train2017/1.jpg/2.jpg' cannot be unpacked"}
    with pytest.raises(ValueError, match=rf"train2017\.zip: .* makers \(.*{cause[damage]}.*\) and is deleted"):
        download(coco(), tmp_path)
    assert left(tmp_path) == set()


def test_a_full_disk_is_a_sentence(coco_server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(fetch_file, "_unzip", full)
    with pytest.raises(OSError, match=r"the disk of .* is full\. What came is kept .* Make room and try again"):
        download(coco(), tmp_path)
    monkeypatch.undo()
    assert left(tmp_path) == {".download/train2017.zip"}


def test_coco_splits_that_are_not_offered_are_named(tmp_path):
    with pytest.raises(ConfigError, match="train_split is 'not set'; of coco we fetch train2014, val2014, train2017"):
        download(TrainConfig(dataset="coco"), tmp_path)


@pytest.mark.parametrize("dataset", sorted(BY_HAND))
def test_other_sets_are_refused_with_what_to_do(tmp_path, dataset):
    with pytest.raises(ConfigError, match=rf"download: {dataset} is not fetched, .+; then leave download out") as error:
        download(TrainConfig(dataset=dataset), tmp_path)
    assert "{root}" not in str(error.value)


def test_of_several_that_start_together_one_fetches(voc_server, tmp_path):
    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(download, TrainConfig(dataset="voc"), tmp_path) for _ in range(3)]:
            done.result()
    # torchvision asks for each archive twice: for where it is, and for itself.
    assert sorted(name for name, _ in voc_server.asked) == ["test.tar"] * 2 + ["trainval.tar"] * 2
    assert left(tmp_path) == {*voc_files("trainval", "000005"), *voc_files("test", "000001")}
