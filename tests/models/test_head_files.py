import json

import pytest
import torch

from clip_more.models.feature_heads import CosineHead, FixedHead, LinearHead, NearestMeanHead, NormedLinearHead
from clip_more.models.head_files import FILE, WEIGHTS, load_head, read_description, save_head

NAMES = ["cat", "dog", "eel"]
W, B, CENTRE = torch.randn(3, 5), torch.randn(3), torch.randn(5)
HEADS = {
    "linear": lambda: LinearHead(W, B),
    "unit": lambda: LinearHead(W, B, "unit"),
    "centred": lambda: LinearHead(W, B, "centred", CENTRE),
    "normed": lambda: NormedLinearHead(W, B),
    "cosine": lambda: CosineHead(W, B),
    "etf": lambda: FixedHead(W, B),
    "frame": lambda: FixedHead(W, B, "frame"),
    "mean": lambda: NearestMeanHead(W),
    "mean_cosine": lambda: NearestMeanHead(W, "centred", "cosine", CENTRE),
}


@pytest.mark.parametrize("kind", HEADS)
def test_heads_come_back_as_they_were(kind, tmp_path):
    head, h = HEADS[kind](), torch.randn(4, 5)
    save_head(tmp_path, head, {"class_names": NAMES, "thresholds": [0.1, 0.2, 0.3]})
    found, content = load_head(tmp_path)
    assert type(found) is type(head)
    assert found.kind == head.kind == content["kind"]
    assert torch.equal(found(h), head(h))
    assert read_description(tmp_path)["thresholds"] == [0.1, 0.2, 0.3]
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, WEIGHTS]


def broken(folder, **changes):
    content = json.loads((folder / FILE).read_text()) | changes
    (folder / FILE).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 9}, "is not of format 1"),
        ({"class_names": None}, "lacks class_names"),
        ({"class_names": ["a"]}, "1 class_names but 3 rows of weights"),
        ({"thresholds": [0.5]}, "3 class_names but 1 thresholds"),
        ({"geometry": "bent"}, "geometry is 'bent'"),
        ({"softmax": 1}, "softmax is neither true nor false"),
        ({"kind": "conic"}, "do not make a head of kind 'conic'"),
        ({"kind": ["linear"]}, "do not make a head of kind"),
        ({"options": {"inputs": "long"}}, "inputs is 'long'"),
        ({"options": {"colour": 1}}, "do not make a head"),
        ({"options": [1]}, "do not make a head"),
    ],
)
def test_damaged_descriptions_are_named(changes, message, tmp_path):
    save_head(tmp_path, LinearHead(W, B), {"class_names": NAMES})
    broken(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_head(tmp_path)


def test_damaged_weights_are_named(tmp_path):
    save_head(tmp_path, LinearHead(W, torch.tensor([0, torch.nan, 0])), {"class_names": NAMES})
    with pytest.raises(ValueError, match=f"{WEIGHTS}: bias holds no usable numbers"):
        load_head(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"no weights")
    with pytest.raises(ValueError, match=f"{WEIGHTS} is damaged"):
        load_head(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {WEIGHTS}"):
        load_head(tmp_path)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ValueError, match=f"{FILE} is not JSON"):
        load_head(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {FILE}"):
        load_head(tmp_path)


def test_names_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="2 class_names but 3 rows"):
        save_head(tmp_path, LinearHead(W, B), {"class_names": NAMES[:2]})
    assert not list(tmp_path.iterdir())
