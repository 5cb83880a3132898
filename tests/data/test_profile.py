import json

import numpy as np
import pytest

from clip_more.data.form import make_dataset
from clip_more.data.profile import ClassProfile


@pytest.fixture
def bounds() -> ClassProfile:
    """Classes on either side of both default bounds."""
    return ClassProfile(("a", "b", "c", "d", "e"), (100, 99, 20, 19, 775))


def test_head_begins_at_its_bound_and_tail_ends_below_its_own(bounds):
    assert bounds.groups == ("head", "medium", "medium", "tail", "head")


def test_indices_are_those_of_one_group(bounds):
    assert [bounds.indices(group) for group in ("head", "medium", "tail")] == [[0, 4], [1, 2], [3]]


def test_an_unheard_of_group_is_refused(bounds):
    with pytest.raises(ValueError, match="group 'many' is none of head, medium, tail"):
        bounds.indices("many")


def test_declared_bounds_move_the_groups():
    assert ClassProfile(("a", "b", "c"), (5, 4, 1), head_min=5, tail_max=2).groups == ("head", "medium", "tail")


def test_prior_is_the_share_of_all_positives():
    np.testing.assert_allclose(ClassProfile(("a", "b"), (3, 1)).prior, [0.75, 0.25])
    assert ClassProfile(("a",), (3,)).prior.dtype == np.float64


def test_prior_without_any_positive_is_refused():
    with pytest.raises(ValueError, match="no class has a train positive"):
        _ = ClassProfile(("a",), (0,)).prior


def test_counts_are_of_positives_and_unknown_labels_count_in_nothing():
    dataset = make_dataset(["x", "y", "z"], [[0, 2], [0], []], ["a", "b", "c"], unknown=[[1], [1, 2], [0]])
    assert ClassProfile.from_dataset(dataset, head_min=2, tail_max=1).counts == (2, 0, 1)


def test_counts_follow_a_selection_of_rows():
    dataset = make_dataset(["x", "y", "z"], [[0, 1], [0], [1]], ["a", "b"])
    assert ClassProfile.from_dataset(dataset.select([1])).counts == (1, 0)


def test_classes_without_a_train_positive_are_named_with_the_key_that_drops_them():
    profile = ClassProfile(("cat", "dog", "cow"), (3, 0, 0))
    with pytest.raises(ValueError, match=r"2 of 3 classes have no positive in train: 'dog', 'cow'\. .*`classes:` key"):
        profile.check_positives()


def test_a_profile_with_positives_everywhere_passes(bounds):
    bounds.check_positives()


def test_a_saved_profile_is_read_back(bounds, tmp_path):
    bounds.save(tmp_path / "profile.json")
    assert ClassProfile.load(tmp_path / "profile.json") == bounds
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]


def test_names_and_counts_must_be_equally_many():
    with pytest.raises(ValueError, match="2 names but 1 counts"):
        ClassProfile(("a", "b"), (1,))


def test_repeated_names_are_refused():
    with pytest.raises(ValueError, match="class names must differ"):
        ClassProfile(("a", "a"), (1, 1))


def test_overlapping_bounds_are_refused():
    with pytest.raises(ValueError, match="tail_max 30 and head_min 20"):
        ClassProfile(("a",), (1,), head_min=20, tail_max=30)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"counts": [1, 2.5]}, "counts and bounds must be whole numbers"),
        ({"counts": [1, -2]}, "class 'b' has a negative count"),
        ({"groups": ["head", "head"]}, "groups do not follow from counts and bounds"),
        ({"names": None}, "'NoneType' object is not iterable"),
    ],
)
def test_a_damaged_profile_is_refused_by_name(tmp_path, change, text):
    values = ClassProfile(("a", "b"), (1, 2)).to_dict() | change
    (tmp_path / "p.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match=rf"p\.json: not a class profile that can be read: .*{text}"):
        ClassProfile.load(tmp_path / "p.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"names": []}'])
def test_a_file_that_is_no_profile_is_refused_by_name(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=r"p\.json: not a class profile"):
        ClassProfile.load(tmp_path / "p.json")


def test_an_absent_profile_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"p\.json: there is no class profile here"):
        ClassProfile.load(tmp_path / "p.json")


def test_voc_mlt_groups_are_the_published_ones():
    counts = (6, 34, 8, 14, 154, 17, 249, 29, 479, 4, 240, 48, 11, 20, 775, 100, 5, 82, 7, 64)
    profile = ClassProfile(tuple(f"class {index}" for index in range(20)), counts)
    assert profile.indices("head") == [4, 6, 8, 10, 14, 15]
    assert profile.indices("medium") == [1, 7, 11, 13, 17, 19]
    assert profile.indices("tail") == [0, 2, 3, 5, 9, 12, 16, 18]
