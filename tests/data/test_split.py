import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_more.data.split import stratified_split


def long_tailed(rows=2000, classes=20, seed=0):
    return np.random.default_rng(seed).random((rows, classes)) < np.geomspace(0.2, 0.001, classes)


def test_every_row_is_on_one_side_once():
    train, val = stratified_split(long_tailed(), 0.2, 0)
    assert sorted([*train, *val]) == list(range(2000))
    assert list(train) == sorted(train)
    assert list(val) == sorted(val)


def test_every_class_has_its_share_in_validation_within_one_photo():
    targets = long_tailed()
    _, val = stratified_split(targets, 0.2, 0)
    np.testing.assert_array_less(np.abs(targets[val].sum(0) - 0.2 * targets.sum(0)), 1.0)


def test_validation_is_about_the_share_asked_for():
    _, val = stratified_split(long_tailed(), 0.2, 0)
    assert len(val) == pytest.approx(400, abs=20)


def test_the_same_seed_gives_the_same_split_and_another_seed_another():
    targets = long_tailed()
    first, again, other = (stratified_split(targets, 0.2, seed)[1].tolist() for seed in (5, 5, 6))
    assert first == again
    assert first != other


@pytest.mark.parametrize("seed", range(5))
def test_a_class_of_one_positive_stays_in_train(seed):
    targets = np.zeros((10, 3), dtype=bool)
    targets[4, 1] = True
    assert 4 in stratified_split(targets, 0.5, seed)[0]


def test_one_class_alone_can_be_split():
    targets = np.arange(100)[:, None] < 40
    _, val = stratified_split(targets, 0.25, 0)
    assert targets[val].sum() == 10
    assert len(val) == 25


def test_photos_without_labels_can_be_split():
    train, val = stratified_split(np.zeros((10, 2), dtype=bool), 0.2, 0)
    assert (len(train), len(val)) == (8, 2)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_class_loses_its_last_train_positive(data):
    rows, classes = data.draw(st.integers(4, 12)), data.draw(st.integers(1, 5))
    bits = data.draw(st.lists(st.booleans(), min_size=rows * classes, max_size=rows * classes))
    targets = np.array(bits).reshape(rows, classes)
    train, val = stratified_split(targets, data.draw(st.sampled_from([0.25, 0.5, 0.7])), data.draw(st.integers(0, 9)))
    assert sorted([*train, *val]) == list(range(rows))
    np.testing.assert_array_equal(targets[train].any(0), targets.any(0))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.2, 1.5])
def test_a_share_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match="val_fraction must be between 0 and 1"):
        stratified_split(long_tailed(), fraction, 0)


def test_too_few_photos_for_a_validation_split_are_refused():
    with pytest.raises(ValueError, match=r"val_fraction 0\.1 of 5 photos leaves no photo on one side"):
        stratified_split(np.ones((5, 2), dtype=bool), 0.1, 0)
