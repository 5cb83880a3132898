import hashlib
import json

import numpy as np
import pytest

from clip_more.data.profile import ClassProfile
from clip_more.evaluation import Protocol, Results, average_precision, chance_map, identify, split_map

PROFILE = ClassProfile(("aeroplane", "traffic light", "café"), (120, 30, 4), head_min=90, tail_max=10)


@pytest.fixture
def evaluated():
    rng = np.random.default_rng(0)
    targets = rng.random((60, 3)) < 0.3
    targets[:, 2] = False
    scores = {row: rng.normal(size=(60, 3)).astype(np.float32) for row in ("zero-shot", "merged")}
    return targets, scores


@pytest.fixture
def results(evaluated):
    targets, scores = evaluated
    return Results.from_scores(
        targets,
        scores,
        PROFILE,
        protocol=Protocol(geometry="squash"),
        evaluated={"name": "toy", "split": "test", "images": 60},
        chance=chance_map(targets, PROFILE, draws=20),
        checkpoint={"path": "merged", "sha256": None},
    )


def test_file_is_strict_json_with_null_for_no_ap(results, tmp_path):
    results.save(tmp_path / "report" / "results.json")

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    values = json.loads((tmp_path / "report" / "results.json").read_text("utf-8"), parse_constant=refuse)
    assert values["classes"][2] == {
        "name": "café",
        "train": 4,
        "test": 0,
        "group": "tail",
        "ap": {"zero-shot": None, "merged": None},
    }
    assert values["map"]["merged"]["tail"] is None
    assert values["map"]["merged"]["classes_without_ap"] == ["café"]
    assert values["protocol"] == {
        "score": "logit",
        "ap": "step",
        "difficult": "positive",
        "unlabelled": "keep",
        "geometry": "squash",
        "bounds": {"head_min": 90, "tail_max": 10},
    }
    assert {"python", "torch", "scikit-learn"} <= set(values["versions"])
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["results.json"]


def test_reading_gives_what_was_written(results, evaluated, tmp_path):
    path = tmp_path / "results.json"
    results.save(path)
    read = Results.load(path)
    assert read.to_dict() == results.to_dict()
    assert list(read.ap) == ["zero-shot", "merged"]
    targets, scores = evaluated
    ap = average_precision(targets, scores["merged"])
    np.testing.assert_array_equal(read.ap["merged"], ap)
    assert read.maps["merged"] == split_map(ap, PROFILE)


def test_unknown_positives_are_not_counted(evaluated):
    targets, scores = evaluated
    known = np.ones_like(targets)
    known[:30] = False
    results = Results.from_scores(targets, scores, PROFILE, known=known)
    np.testing.assert_array_equal(results.test_positives, targets[30:].sum(axis=0))


def test_table_compares_with_the_first_row_and_shows_chance_plainly(results):
    lines = results.table().split("\n")
    assert [line.split("   ")[0].strip() for line in lines[2:]] == [
        "chance, mean",
        "chance, 95 % quantile",
        "zero-shot",
        "merged",
        "no AP, for want of a test positive: café",
    ]
    assert ["(" in line for line in lines[2:]] == [False, False, False, True, False]


def test_failed_write_leaves_the_old_file(results, tmp_path):
    path = tmp_path / "results.json"
    results.save(path)
    old = path.read_bytes()
    results.evaluated["loss"] = float("nan")
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.save(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_checkpoint_is_named_by_the_hash_of_its_weights(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    assert identify(tmp_path) == {"path": str(tmp_path), "sha256": digest}
    assert identify(tmp_path / "model.safetensors")["sha256"] == digest
    assert identify("openai/clip-vit-base-patch32") == {"path": "openai/clip-vit-base-patch32", "sha256": None}


def test_bad_files_are_named(results, tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(FileNotFoundError, match=r"no results at .*results\.json"):
        Results.load(path)
    results.save(path)
    values = json.loads(path.read_text("utf-8"))
    path.write_text(path.read_text("utf-8")[:200], "utf-8")
    with pytest.raises(ValueError, match=r"results\.json is not JSON"):
        Results.load(path)
    path.write_text(json.dumps(values | {"format": 99}))
    with pytest.raises(ValueError, match=r"results\.json is not a results file of format 1"):
        Results.load(path)
    del values["profile"]["counts"]
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"results\.json lacks a field or holds a wrong one \(class profile: counts"):
        Results.load(path)
    del values["classes"][1]["test"]
    values["profile"] = PROFILE.to_dict()
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=r"results\.json lacks a field or holds a wrong one \('test'\)"):
        Results.load(path)
