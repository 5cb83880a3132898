from itertools import combinations

import numpy as np
import pytest
import torch

from clip_more.analysis.mechanism import ap_lost, class_accuracy, contrast, discrepancy_by_class, mechanism, verdict
from clip_more.data.profile import ClassProfile
from clip_more.evaluation.average_precision import average_precision
from clip_more.losses.discrepancy import DiscrepancyLoss

PROFILE = ClassProfile(("a", "b", "c", "d", "e"), (300, 200, 50, 9, 4))


@pytest.fixture
def logits():
    random = np.random.default_rng(0)
    targets = random.random((60, 5)) < (0.6, 0.5, 0.3, 0.2, 0.15)
    full = (random.normal(size=(60, 5)) + 2 * targets).astype(np.float32)
    return full, (full - random.normal(size=(60, 5)) * (0.1, 0.2, 0.3, 1, 2)).astype(np.float32), targets


def test_discrepancy_is_the_mean_squared_difference_on_positives_and_on_all(logits):
    full, general, targets = logits
    found = discrepancy_by_class(full, general, targets)
    delta = (full.astype(float) - general) ** 2
    np.testing.assert_allclose(found.on_all, delta.mean(axis=0))
    np.testing.assert_allclose(found.on_positives, [delta[targets[:, c], c].mean() for c in range(5)])
    assert found.relative == pytest.approx(np.sqrt(delta.mean()) / full.astype(float).std())


def test_discrepancy_on_all_photos_weighted_by_the_prior_is_the_training_loss(logits):
    full, general, targets = logits
    loss = DiscrepancyLoss(torch.tensor(PROFILE.counts))
    expected = loss(*(torch.from_numpy(array) for array in (full, general, targets.astype(np.float32)))).item()
    assert PROFILE.prior @ discrepancy_by_class(full, general, targets).on_all == pytest.approx(expected, rel=1e-5)


def test_unknown_labels_count_nowhere_and_equal_logits_have_none(logits):
    full, general, targets = logits
    known = np.random.default_rng(1).random(full.shape) < 0.7
    found = discrepancy_by_class(full, np.where(known, general, 1e6).astype(np.float32), targets, known)
    delta = (full.astype(float) - general) ** 2
    np.testing.assert_allclose(found.on_all, [delta[known[:, c], c].mean() for c in range(5)])
    np.testing.assert_allclose(found.on_positives, [delta[known[:, c] & targets[:, c], c].mean() for c in range(5)])
    same = discrepancy_by_class(full, full, targets)
    assert same.relative == 0
    assert not same.on_all.any()


def test_removing_nothing_loses_nothing_and_ap_is_scikit_learns(logits):
    from sklearn.metrics import average_precision_score

    full, general, targets = logits
    _, contrasts = mechanism(full, general, targets, PROFILE, draws=0)
    both = [[average_precision_score(targets[:, c], z[:, c]) for c in range(5)] for z in (full, general)]
    np.testing.assert_allclose(contrasts["lost"].by_class, np.subtract(*both))
    assert not ap_lost(*(average_precision(targets, full) for _ in range(2))).any()


def test_contrast_is_between_means_of_groups():
    found = contrast(np.array([1.0, 2.0, 9.0, np.nan, 5.0]), PROFILE)
    assert found.by_group == {"head": 1.5, "medium": 9.0, "tail": 5.0}
    assert found.difference == 3.5
    assert found.larger
    assert found.interval is None
    assert found.p == pytest.approx(1 / 3)  # of three values, one is tail: 5 is the largest


def test_permutation_counts_every_regrouping_of_few_classes():
    values = np.array([0.3, 0.1, 7.0, 0.4, 0.2])
    tail = [sum(values[[0, 1, 3, 4]][list(pair)]) for pair in combinations(range(4), 2)]
    expected = np.mean([one >= 0.4 + 0.2 - 1e-9 for one in tail])
    assert contrast(values, PROFILE).p == pytest.approx(expected)
    assert contrast(np.ones(5), PROFILE).p == 1


def test_permutation_of_many_classes_is_drawn_and_uniform_without_a_difference():
    profile = ClassProfile(tuple(map(str, range(60))), (200,) * 30 + (3,) * 30)
    random = np.random.default_rng(0)
    values = random.normal(size=60)
    assert contrast(values, profile).p == contrast(values, profile).p
    far = contrast(values + 10 * (np.arange(60) >= 30), profile)
    assert far.p == pytest.approx(1 / 20_000)
    assert 0.05 < np.mean([contrast(random.normal(size=60), profile).p for _ in range(5)]) < 0.95


def test_groups_without_classes_leave_nothing_to_test():
    profile = ClassProfile(("a", "b"), (300, 50))
    found = contrast(np.array([1.0, 2.0]), profile)
    assert (found.difference, found.p, found.larger) == (None, None, None)
    assert verdict({"discrepancy_on_positives": found, "lost": found}) is None


def test_intervals_hold_the_figure_and_shrink_to_it_where_all_photos_are_alike(logits):
    _, contrasts = mechanism(*logits, PROFILE, draws=200)
    for found in contrasts.values():
        assert found.interval[0] < found.interval[1]
    wanted = contrasts["discrepancy_on_positives"]
    assert wanted.interval[0] < wanted.difference < wanted.interval[1]
    full, _, targets = logits
    moved = full + np.array([0.1, 0.1, 0.1, 0.5, 0.5], dtype=np.float32)
    _, alike = mechanism(moved, full, targets, PROFILE, draws=50)
    assert alike["discrepancy_on_positives"].interval == pytest.approx([0.24, 0.24], abs=1e-5)
    assert alike["discrepancy_on_positives"].larger
    assert alike["lost"].interval == pytest.approx([0, 0])  # a constant a class moves no AP
    assert verdict(alike) == "half seen"


def test_single_label_takes_the_accuracy_of_each_class():
    labels = np.array([0, 0, 1, 1, 3, 3, 3, 3])
    targets = labels[:, None] == np.arange(5)
    full = targets.astype(np.float32)
    general = full.copy()
    general[[2, 4, 5, 6]] = 0.0  # then class 0 wins
    np.testing.assert_array_equal(class_accuracy(general, targets), [1, 0.5, np.nan, 0.25, np.nan])
    _, contrasts = mechanism(full, general, targets, PROFILE, single_label=True, draws=20)
    np.testing.assert_array_equal(contrasts["lost"].by_class, [0, 0.5, np.nan, 0.75, np.nan])
    assert contrasts["lost"].difference == pytest.approx(0.75 - 0.25)


def test_shapes_that_differ_are_refused(logits):
    full, general, targets = logits
    with pytest.raises(ValueError, match=r"all \(N, C\)"):
        discrepancy_by_class(full, general[:5], targets)
