"""Every data set family by the keys of a recipe, in its official layout, through `clip-more stats`."""

import io
import json
import re

import numpy as np
import PIL.Image
import pytest

from clip_more.cli import main
from clip_more.config import DATASETS
from clip_more.data.voc import VOC_CLASSES
from tests.data import test_cifar as cifar
from tests.data import test_lvis as lvis
from tests.data import test_miml as miml
from tests.data import test_nus_wide as nus_wide
from tests.data import test_nus_wide_scene as scene
from tests.data import test_open_images as open_images
from tests.data import test_voc as voc


def write(root, contents):
    for name, content in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_voc(root, annotations):
    splits = {"2012/trainval": {"a": ["dog", "person"], "b": ["dog"]}, "2007/test": {"c": ["cat"]}}
    for place, photos in splits.items():
        year, split = place.split("/")
        folder = f"VOCdevkit/VOC{year}"
        contents = {f"{folder}/ImageSets/Main/{split}.txt": "".join(f"{name}\n" for name in photos)}
        for name, objects in photos.items():
            contents[f"{folder}/JPEGImages/{name}.jpg"] = "photo"
            contents[f"{folder}/Annotations/{name}.xml"] = voc.annotation([(own, 0) for own in objects])
        for own in VOC_CLASSES:
            lines = [f"{name} {1 if own in objects else -1}\n" for name, objects in photos.items()]
            contents[f"{folder}/ImageSets/Main/{own}_{split}.txt"] = "".join(lines)
        write(root, contents)
    write(root, {"img_id.txt": "b\n"})
    return ["--dataset", "voc", "--year", "2012", "--test_year", "2007", "--annotations", annotations]


def write_coco(root, year):
    for split, first, labels in ((f"train{year}", 0, [[1, 2], [2]]), (f"val{year}", 2, [[], [1]])):
        content = {
            "images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(first, first + 2)],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [
                {"id": 10 * i + c, "image_id": i, "category_id": c, "area": 4.0, "bbox": [0, 0, 2, 2], "iscrowd": 0}
                for i, classes in enumerate(labels, start=first)
                for c in classes
            ],
        }
        write(root, {f"annotations/instances_{split}.json": json.dumps(content)})
        write(root, {f"{split}/{i:012d}.jpg": "photo" for i in range(first, first + 2)})
    write(root, {"img_id.pkl": "000000000001.jpg\n"})
    return ["--dataset", "coco", "--train_split", f"train{year}", "--test_split", f"val{year}"]


def write_lists(root):
    write(
        root,
        {"train.txt": "a.jpg 0 1 \nb.jpg\n", "test.txt": "c.jpg 1\n", "classes.txt": "cat 0\r\ntraffic light 1\r\n"},
    )
    write(root, {f"{name}.jpg": "photo" for name in "abc"})
    return ["--dataset", "lists", "--train_list", "train.txt", "--test_list", "test.txt", "--class_file", "classes.txt"]


def write_single_label_lists(root):
    write(root, {"train.txt": "train/n01/a b.JPEG 0\ntrain/n02/c.JPEG 1\n", "test.txt": "val/d.JPEG 1\n"})
    write(root, {f"{name}.JPEG": "photo" for name in ("train/n01/a b", "train/n02/c", "val/d")})
    return ["--dataset", "lists", "--task", "single_label", "--train_list", "train.txt", "--test_list", "test.txt"]


def write_folder(root, name, content):
    write(root, {name: content} | {f"{n}.jpg": "photo" for n in range(4)})
    return ["--dataset", "folder"]


def write_class_folders(root):
    write(
        root, {f"{part}/{name}/{n}.jpg": "photo" for part in ("train", "test") for name in ("cat", "dog") for n in "12"}
    )
    return ["--dataset", "folder", "--task", "single_label"]


def write_nus_wide(root, form):
    nus_wide.official(root, form) if form.endswith("Labels") else nus_wide.csv_form(root)
    return ["--dataset", "nus_wide"]


def write_scene(root, form):
    form(root)
    return ["--dataset", "nus_wide_scene"]


def write_miml(root):
    miml.miml(root)
    return ["--dataset", "miml", "--test_fraction", "0.4"]


def write_cifar(root, classes, form):
    cifar.write(root, cifar.files_of(classes, form))
    return ["--dataset", f"cifar{classes}", "--task", "single_label"]


def write_open_images(root, unlisted):
    for split, start in (("train", "000"), ("test", "001")):
        write(root, {f"{split}/{start}{letter}.jpg": "photo" for letter in "abc"})
        labels = open_images.LABELS.replace("000", start)
        write(root, {f"{split}-annotations-human-imagelabels.csv": labels})
    write(root, {"class-descriptions.csv": open_images.CLASSES})
    return ["--dataset", "open_images", "--unlisted", unlisted]


def write_lvis(root, unlisted):
    content = {
        "images": [lvis.image(30, absent=[9]), lvis.image(20)],
        "categories": [{"id": 9, "name": "zebra"}, {"id": 2, "name": "aerosol_can"}],
        "annotations": [lvis.instance(1, 30, 2), lvis.instance(2, 20, 9)],
    }
    other = content | {"images": [lvis.image(40, "val2017")], "annotations": [lvis.instance(1, 40, 2)]}
    for split, values in (("lvis_v1_train", content), ("lvis_v1_val", other)):
        write(root, {f"annotations/{split}.json": json.dumps(values)})
    write(
        root,
        {
            f"{name}.jpg": "photo"
            for name in ("train2017/000000000030", "train2017/000000000020", "val2017/000000000040")
        },
    )
    return [
        "--dataset",
        "lvis",
        "--train_split",
        "lvis_v1_train",
        "--test_split",
        "lvis_v1_val",
        "--unlisted",
        unlisted,
    ]


def write_hub(root, streaming):
    import datasets

    buffer = io.BytesIO()
    PIL.Image.new("RGB", (2, 2)).save(buffer, "PNG")
    features = datasets.Features(
        {"photo": datasets.Image(), "tags": datasets.List(datasets.ClassLabel(names=["a", "b"]))}
    )
    columns = {"photo": [buffer.getvalue()] * 4, "tags": [[0, 1], [1], [], [0]]}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(root / "train.parquet")
    return ["--dataset", "hub", "--hub_dataset", str(root / "train.parquet"), "--streaming", streaming]


METADATA = "file_name,labels\n0.jpg,cat;dog\n1.jpg,dog\n2.jpg,\n3.jpg,cat\n"
JSONL = "".join(
    f'{{"file_name": "{n}.jpg", "labels": {labels}}}\n'
    for n, labels in enumerate(('["cat", "dog"]', "[]", '["dog"]', '["cat"]'))
)

# Name: (writes the files and returns the keys, train photos, test photos, classes, labels a train photo).
FAMILIES = {
    "voc, xml": (lambda root: write_voc(root, "xml"), 2, 1, 20, 1.5),
    "voc, image sets": (lambda root: write_voc(root, "imagesets"), 2, 1, 20, 1.5),
    "voc, ids of VOC-MLT": (lambda root: [*write_voc(root, "xml"), "--img_ids", "img_id.txt"], 1, 1, 20, 1.0),
    "coco 2017": (lambda root: write_coco(root, 2017), 2, 2, 2, 1.5),
    "coco 2014": (lambda root: write_coco(root, 2014), 2, 2, 2, 1.5),
    "coco, labelled": (lambda root: [*write_coco(root, 2014), "--unlabelled", "drop"], 2, 1, 2, 1.5),
    "coco, ids of COCO-MLT": (lambda root: [*write_coco(root, 2017), "--img_ids", "img_id.pkl"], 1, 2, 2, 1.0),
    "lists": (write_lists, 2, 1, 2, 1.0),
    "lists, ImageNet-LT": (write_single_label_lists, 2, 1, 2, 1.0),
    "folder, csv": (lambda root: write_folder(root, "metadata.csv", METADATA), 3, 1, 2, None),
    "folder, jsonl": (lambda root: write_folder(root, "metadata.jsonl", JSONL), 3, 1, 2, None),
    "folder, a folder a class": (write_class_folders, 4, 4, 2, 1.0),
    "hub": (lambda root: write_hub(root, "false"), 3, 1, 2, None),
    "hub, streamed": (lambda root: write_hub(root, "true"), 3, 1, 2, None),
    "nus_wide, official": (lambda root: write_nus_wide(root, "TrainTestLabels"), 3, 2, 3, None),
    "nus_wide, all labels": (lambda root: write_nus_wide(root, "AllLabels"), 3, 2, 3, None),
    "nus_wide, csv": (lambda root: write_nus_wide(root, "csv"), 2, 2, 4, 1.5),
    "nus_wide_scene, official": (lambda root: write_scene(root, scene.official), 3, 2, 3, 1.0),
    "nus_wide_scene, packed": (lambda root: write_scene(root, scene.packed), 3, 2, 3, 1.0),
    "miml": (write_miml, 3, 2, 5, None),
    "cifar10, python": (lambda root: write_cifar(root, 10, "python"), 5, 2, 10, 1.0),
    "cifar10, binary": (lambda root: write_cifar(root, 10, "binary"), 5, 2, 10, 1.0),
    "cifar100, python": (lambda root: write_cifar(root, 100, "python"), 5, 2, 100, 1.0),
    "cifar100, binary": (lambda root: write_cifar(root, 100, "binary"), 5, 2, 100, 1.0),
    "open_images": (lambda root: write_open_images(root, "ignore"), 3, 3, 5, 1.0),
    "open_images, negative": (lambda root: write_open_images(root, "negative"), 3, 3, 5, 1.0),
    "lvis": (lambda root: write_lvis(root, "ignore"), 2, 1, 2, 1.0),
    "digits_mlt": (lambda root: ["--dataset", "digits_mlt"], 990, 1000, 10, None),
    "digits_lt": (lambda root: ["--dataset", "digits_lt", "--task", "single_label"], 1737, 1000, 10, None),
}  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore:.* photos, where CIFAR:UserWarning")
def test_a_family_is_read_by_the_keys_of_a_recipe(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    make, train, test, classes, labels = FAMILIES[name]
    root = tmp_path / "data"
    root.mkdir()
    arguments = ["stats", *make(root), "--data_root", str(root), "--missing", "refuse"]
    assert main(arguments) == 0, capsys.readouterr().err
    table = capsys.readouterr().out
    assert re.search(rf"^photos +{train:,} +{test:,}$", table, re.M), table
    assert re.search(rf"^classes +{classes}: ", table, re.M), table
    if labels is not None:
        assert re.search(rf"^labels a photo +{labels:.3f} ", table, re.M), table


def test_no_family_is_forgotten(tmp_path):
    told = set()
    for name, (make, *_) in FAMILIES.items():
        (tmp_path / name).mkdir()
        arguments = make(tmp_path / name)
        told.add(arguments[arguments.index("--dataset") + 1])
    # What `prepare` wrote is read in test_prepare.py.
    assert told == set(DATASETS) - {"prepared"}


def test_the_photos_of_an_id_file_are_the_only_ones_that_must_be_there(tmp_path, capsys):
    arguments = ["stats", *write_voc(tmp_path, "xml"), "--data_root", str(tmp_path), "--missing", "refuse"]
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages/a.jpg").unlink()
    assert main(arguments) == 1
    assert "1 of 2 photos are absent" in capsys.readouterr().err
    assert main([*arguments, "--img_ids", "img_id.txt"]) == 0
    (tmp_path / "VOCdevkit/VOC2012/JPEGImages/b.jpg").unlink()
    assert main([*arguments, "--img_ids", "img_id.txt"]) == 1
    assert "1 of 1 photos are absent" in capsys.readouterr().err


def test_published_frequencies_are_checked(tmp_path, capsys):
    import pickle

    arguments = ["stats", *write_coco(tmp_path, 2017), "--data_root", str(tmp_path), "--class_freq", "class_freq.pkl"]
    for counts, code in (([1, 2], 0), ([1, 3], 1)):
        content = pickle.dumps({"class_freq": np.array(counts)}, protocol=2)
        (tmp_path / "class_freq.pkl").write_bytes(content)
        assert main(arguments) == code
    error = capsys.readouterr().err
    assert "class_freq.pkl" in error
    assert "dog" in error
