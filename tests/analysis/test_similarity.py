import numpy as np
import pytest

from clip_more.analysis.similarity import class_cosines, diagonal_and_rest


@pytest.fixture
def photos():
    random = np.random.default_rng(0)
    return random.normal(size=(30, 6)).astype(np.float32), random.random((30, 4)) < (0.7, 0.4, 0.2, 0.1)


def by_pairs(features, targets, self_pairs):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    found = np.empty((targets.shape[1],) * 2)
    for a, first in enumerate(targets.T):
        for b, second in enumerate(targets.T):
            pairs = np.outer(first, second) & (self_pairs | ~np.eye(len(features), dtype=bool))
            found[a, b] = cosines[pairs].mean()
    return found


def test_means_are_those_over_all_pairs_of_photos(photos):
    found = class_cosines(*photos)
    np.testing.assert_allclose(found.pairs, by_pairs(*photos, True), atol=1e-6)
    np.testing.assert_allclose(found.other_pairs, by_pairs(*photos, False), atol=1e-6)


def test_cosines_of_means_are_one_with_themselves_and_those_of_mean_unit_features(photos):
    features, targets = photos
    found = class_cosines(features, targets).of_means
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    a, b = unit[targets[:, 0]].mean(axis=0), unit[targets[:, 1]].mean(axis=0)
    np.testing.assert_allclose(np.diag(found), 1)
    assert found[0, 1] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)


def test_length_of_each_feature_does_not_matter(photos):
    features, targets = photos
    lengths = np.random.default_rng(1).uniform(0.01, 100, size=(30, 1))
    for name in ("pairs", "other_pairs", "of_means"):
        longer = getattr(class_cosines(features * lengths, targets), name)
        np.testing.assert_allclose(longer, getattr(class_cosines(*photos), name), atol=1e-6)


def test_collapsed_simplex_has_one_within_and_minus_one_over_c_less_one_between():
    corners = np.eye(4) - 0.25
    labels = np.repeat(np.arange(4), 3)
    found = class_cosines(corners[labels], labels[:, None] == np.arange(4))
    for matrix in (found.pairs, found.other_pairs, found.of_means):
        assert diagonal_and_rest(matrix) == pytest.approx((1, -1 / 3))


def test_class_of_one_photo_has_no_pair_of_its_own_and_empty_class_none_at_all():
    targets = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=bool)
    found = class_cosines(np.eye(3), targets)
    assert found.pairs[1, 1] == pytest.approx(1)
    assert np.isnan(found.other_pairs[1, 1])
    assert found.other_pairs[0, 1] == pytest.approx(0)  # with itself: 1/3
    assert found.pairs[0, 1] == pytest.approx(1 / 3)
    assert np.isnan(found.pairs[2]).all()
    assert diagonal_and_rest(found.other_pairs) == pytest.approx((0, 0))
