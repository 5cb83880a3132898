import numpy as np
import pytest

from clip_more.analysis.collapse import collapse
from clip_more.models.feature_heads import simplex_etf

LABELS = np.repeat(np.arange(5), [30, 12, 6, 3, 2])
TARGETS = LABELS[:, None] == np.arange(5)


@pytest.fixture
def etf():
    return simplex_etf(5, 8).numpy()


def test_collapsed_features_on_a_simplex_give_zero_and_full_agreement(etf):
    shift = np.arange(8.0)  # the global mean is taken off
    found = collapse(3 * etf[LABELS] + shift, TARGETS, 0.5 * etf, -0.5 * etf @ shift)
    figures = found.nc1, found.nc2_norms, found.nc2_angles, found.nc3, found.nc3_centred
    assert figures == pytest.approx((0,) * 5, abs=1e-12)
    assert found.nc4 == 1
    assert found.photos == len(LABELS)


def test_nc1_is_papyans_formula_on_balanced_classes(etf):
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), 20)
    features = etf[labels] + 0.3 * random.normal(size=(100, 8))
    means = np.stack([features[labels == c].mean(axis=0) for c in range(5)])
    within = np.mean([np.outer(x - means[y], x - means[y]) for x, y in zip(features, labels, strict=True)], axis=0)
    between = np.mean([np.outer(m - means.mean(axis=0), m - means.mean(axis=0)) for m in means], axis=0)
    found = collapse(features, labels[:, None] == np.arange(5), etf)
    assert found.nc1 == pytest.approx(np.trace(within @ np.linalg.pinv(between, rcond=1e-9)) / 5)


def test_nc1_does_not_depend_on_how_many_photos_a_class_has(etf):
    """Class c lies at +-0.1 (c + 1) along every axis around its mean, whatever its count."""
    cross = 0.1 * np.concatenate([np.eye(8), -np.eye(8)])
    found = []
    for counts in ((1, 1, 1, 1, 1), (9, 4, 2, 1, 1)):
        labels = np.repeat(np.arange(5), 16 * np.array(counts))
        features = etf[labels] + (labels + 1)[:, None] * np.concatenate([cross] * sum(counts))
        found.append(collapse(features, labels[:, None] == np.arange(5), etf).nc1)
    assert found[0] == pytest.approx(found[1])
    # S_W is 0.02 / 16 (1 + 4 + 9 + 16 + 25) / 5 times the identity, and S_B has the eigenvalue 1/4 four times.
    assert found[0] == pytest.approx(4 * (11 * 0.02 / 16) / (1 / 4) / 5)


def test_longer_and_opposite_classifiers_move_nc3_as_they_must(etf):
    features = etf[LABELS]
    assert collapse(features, TARGETS, 100 * etf).nc3 == pytest.approx(0, abs=1e-12)
    assert collapse(features, TARGETS, -etf).nc3 == pytest.approx(4)
    common = collapse(features, TARGETS, etf + 2 * np.ones(8))
    assert common.nc3 > 0.1
    assert common.nc3_centred == pytest.approx(0, abs=1e-12)


def test_nc2_sees_lengths_and_angles_apart(etf):
    lengths = np.array([1, 2, 3, 4, 5.0])
    orthogonal = np.eye(8)[:5]
    centred = orthogonal - orthogonal.mean(axis=0)
    found = collapse(orthogonal[LABELS], TARGETS, orthogonal)
    assert (found.nc2_norms, found.nc2_angles) == pytest.approx((0, 0), abs=1e-12)  # centred, a simplex
    stretched = lengths[:, None] * orthogonal
    centred = stretched - stretched.mean(axis=0)
    norms = np.linalg.norm(centred, axis=1)
    cosines = (centred / norms[:, None]) @ (centred / norms[:, None]).T
    found = collapse(stretched[LABELS], TARGETS, orthogonal)
    assert found.nc2_norms == pytest.approx(norms.std() / norms.mean())
    assert found.nc2_angles == pytest.approx(np.abs(cosines[~np.eye(5, dtype=bool)] + 0.25).mean())


def test_nc4_is_the_share_of_equal_decisions(etf):
    features = etf[LABELS]
    swapped = etf[[1, 0, 2, 3, 4]]
    assert collapse(features, TARGETS, swapped).nc4 == pytest.approx(11 / 53)
    assert collapse(features, TARGETS, 0 * etf, np.array([0, 0, 9, 0, 0.0])).nc4 == pytest.approx(6 / 53)


def test_photos_with_several_labels_and_classes_without_single_ones_take_no_part(etf):
    targets = TARGETS.copy()
    targets[LABELS == 1, 2] = True  # class 1 has photos with two labels alone
    several = np.where(targets.sum(axis=1, keepdims=True) > 1, 1e3, etf[LABELS])
    found = collapse(several, targets, etf)
    assert found.classes.tolist() == [0, 2, 3, 4]
    assert found.photos == 41
    assert found.nc1 == pytest.approx(0, abs=1e-12)
    assert collapse(etf[LABELS], np.ones_like(TARGETS), etf) is None
    assert collapse(np.ones((53, 8)), TARGETS, etf) is None


def test_classifier_of_another_shape_is_refused(etf):
    with pytest.raises(ValueError, match=r"\(C, D\) is \(5, 8\)"):
        collapse(etf[LABELS], TARGETS, etf[:4])
