import numpy as np
import pytest
from scipy.linalg import eigh

from clip_more.analysis.moments import class_means, numerical_rank, total_scatter, within_scatter
from clip_more.analysis.separability import fisher_one_vs_rest, fisher_ratio


@pytest.fixture
def labelled():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(5), [60, 40, 20, 10, 7])
    features = 3 * random.normal(size=(5, 8))[labels] + random.normal(size=(137, 8)) @ random.normal(size=(8, 8))
    return features, labels


def scatters(features, labels):
    """S_W and S_B, photo by photo and class by class."""
    mean = features.mean(axis=0)
    within, between = np.zeros((2, features.shape[1], features.shape[1]))
    for c in np.unique(labels):
        own = features[labels == c]
        within += (own - own.mean(axis=0)).T @ (own - own.mean(axis=0))
        between += len(own) * np.outer(own.mean(axis=0) - mean, own.mean(axis=0) - mean)
    return within, between


def test_fisher_is_the_sum_of_the_generalised_eigenvalues_of_lda(labelled):
    within, between = scatters(*labelled)
    assert fisher_ratio(*labelled, 5, ridge=0).ratio == pytest.approx(eigh(between, within, eigvals_only=True).sum())


def test_fisher_has_a_closed_form_in_one_dimension():
    # Within: four times 1; between: 2 x 3^2 + 2 x 3^2.
    features, labels = np.array([[-4.0], [-2.0], [2.0], [4.0]]), np.array([0, 0, 1, 1])
    assert fisher_ratio(features, labels, 2, ridge=0).ratio == pytest.approx(36 / 4)
    assert fisher_ratio(features, labels, 2, ridge=0.5).ratio == pytest.approx(36 / (4 + 0.5 * 4))


def test_invertible_maps_and_shifts_change_nothing_without_a_ridge(labelled):
    features, labels = labelled
    moved = features @ np.random.default_rng(1).normal(size=(8, 8)) + 100
    assert fisher_ratio(moved, labels, 5, ridge=0).ratio == pytest.approx(fisher_ratio(*labelled, 5, ridge=0).ratio)


def test_lengths_change_nothing_with_a_ridge_either(labelled):
    features, labels = labelled
    assert fisher_ratio(1000 * features, labels, 5).ratio == pytest.approx(fisher_ratio(*labelled, 5).ratio)


def test_of_two_classes_both_forms_agree(labelled):
    features, labels = labelled
    features, labels = features[labels < 2], labels[labels < 2]
    for ridge in (0.0, 0.01):
        whole = fisher_ratio(features, labels, 2, ridge)
        parts = fisher_one_vs_rest(features, labels[:, None] == np.arange(2), ridge=ridge)
        np.testing.assert_allclose(parts.by_class, whole.ratio)
        assert parts.ratio == pytest.approx(whole.ratio)


def test_one_vs_rest_is_fisher_of_each_class_against_all_other_photos(labelled):
    features, _ = labelled
    targets = np.random.default_rng(2).random((137, 4)) < (0.6, 0.3, 0.1, 0.02)
    found = fisher_one_vs_rest(features, targets, ridge=0.01)
    expected = [fisher_ratio(features, column.astype(int), 2, 0.01).ratio for column in targets.T]
    np.testing.assert_allclose(found.by_class, expected)
    assert found.ratio == pytest.approx(np.mean(expected))


def test_unknown_labels_leave_photos_out_of_their_class_alone(labelled):
    features, _ = labelled
    random = np.random.default_rng(3)
    known = random.random((137, 3)) < 0.7
    known[:, 0] = True
    targets = (random.random((137, 3)) < 0.4) & known
    found = fisher_one_vs_rest(features, targets, known, ridge=0.01).by_class
    for c in range(3):
        own = known[:, c]
        assert found[c] == pytest.approx(fisher_ratio(features[own], targets[own, c].astype(int), 2, 0.01).ratio)


def test_class_without_positives_or_negatives_has_no_ratio(labelled):
    features, _ = labelled
    targets = np.stack([np.zeros(137), np.ones(137), np.arange(137) % 2], axis=1).astype(bool)
    found = fisher_one_vs_rest(features, targets)
    np.testing.assert_array_equal(np.isnan(found.by_class), [True, True, False])
    assert found.ratio == found.by_class[2]


def test_singular_scatter_needs_a_ridge_and_its_rank_is_told(labelled):
    features, labels = labelled
    flat = np.concatenate([features, features[:, :3]], axis=1)
    with pytest.raises(ValueError, match="rank 8 of 11, so it has no inverse; take a ridge"):
        fisher_ratio(flat, labels, 5, ridge=0)
    found = fisher_ratio(flat, labels, 5)
    assert (found.rank, found.size, found.ridge) == (8, 11, 1e-4)
    assert np.isfinite(found.ratio)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, y: (f, np.zeros(137, dtype=int)), "two classes at least; there are 1"),
        (lambda f, y: (f[:5], y), r"features have shape \(5, 8\)"),
        (lambda f, y: (np.where(f == f[3, 3], np.nan, f), y), "not finite"),
        (lambda f, y: (np.repeat(np.eye(8)[:5], [60, 40, 20, 10, 7], axis=0), y), "S_W is 0"),
    ],
)
def test_what_cannot_be_measured_is_said(labelled, change, message):
    with pytest.raises(ValueError, match=message):
        fisher_ratio(*change(*labelled), 5)


def test_moments_do_not_depend_on_blocks(labelled, monkeypatch):
    features, labels = labelled
    targets = labels[:, None] == np.arange(5)
    means, counts = class_means(features, targets)
    whole = total_scatter(features)[1], within_scatter(features, labels, means)
    monkeypatch.setattr("clip_more.analysis.moments.BLOCK", 10)
    np.testing.assert_allclose(class_means(features, targets)[0], means)
    np.testing.assert_allclose(total_scatter(features)[1], whole[0])
    np.testing.assert_allclose(within_scatter(features, labels, means), whole[1])
    np.testing.assert_allclose(whole[1], scatters(features, labels)[0])
    np.testing.assert_allclose(whole[0], sum(scatters(features, labels)))
    assert counts.tolist() == [60, 40, 20, 10, 7]
    assert numerical_rank(whole[0]) == 8
