import numpy as np
import pytest
import torch

from clip_more.evaluation.predict import Predictions
from clip_more.stage2.cache import cached_features

OF = {"weights": "a", "train photos": "b"}


@pytest.fixture
def taken():
    """Calls of `take`, and what it gives for parts that are numbers of photos."""
    calls = []

    def take(photos, label):
        calls.append(label)
        rng = np.random.default_rng(photos)
        targets = rng.random((photos, 11)) < 0.3
        return Predictions(rng.standard_normal((photos, 5)).astype(np.float32), targets, rng.random((photos, 11)) < 0.8)

    return calls, take


def test_features_are_taken_once_and_come_back_as_they_were(tmp_path, taken):
    calls, take = taken
    parts = {"train": 7, "test": 4}
    first, why = cached_features(tmp_path / "x" / "features.safetensors", parts, OF, take)
    assert why == "there were none yet"
    again, why = cached_features(tmp_path / "x" / "features.safetensors", parts, OF, take)
    assert why is None
    assert calls == ["features of train", "features of test"]
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["features.safetensors"]
    for name, count in parts.items():
        expected = take(count, "")
        for found in (first[name], again[name]):
            assert torch.equal(found.features, torch.from_numpy(expected.scores))
            assert torch.equal(found.targets, torch.from_numpy(expected.targets))
            assert torch.equal(found.known, torch.from_numpy(expected.known))


@pytest.mark.parametrize(
    ("of", "why"),
    [
        ({**OF, "weights": "other"}, "other weights than those in features.safetensors"),
        ({**OF, "val photos": "c"}, "other val photos than those"),
    ],
)
def test_other_weights_or_photos_are_taken_again_and_named(tmp_path, taken, of, why):
    calls, take = taken
    path = tmp_path / "features.safetensors"
    cached_features(path, {"train": 3}, OF, take)
    _, found = cached_features(path, {"train": 3}, of, take)
    assert why in found
    assert len(calls) == 2
    assert cached_features(path, {"train": 3}, of, take)[1] is None


def test_a_damaged_file_is_taken_again(tmp_path, taken):
    path = tmp_path / "features.safetensors"
    path.write_bytes(b"\x08\0\0\0")
    found, why = cached_features(path, {"train": 3}, OF, taken[1])
    assert "features.safetensors is damaged" in why
    assert len(found["train"]) == 3
