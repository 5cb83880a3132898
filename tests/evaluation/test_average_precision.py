import time
import warnings

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from clip_more.evaluation import average_precision


def drawn(n=400, classes=9, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, classes)).round(1).astype(np.float32)  # rounded: many ties
    targets = rng.random((n, classes)) < rng.uniform(0.02, 0.6, classes)
    targets[0] = True
    return targets, scores


def test_equals_scikit_learn_class_by_class_with_ties():
    targets, scores = drawn()
    assert len(np.unique(scores)) < scores.size / 10
    expected = [average_precision_score(targets[:, c], scores[:, c]) for c in range(targets.shape[1])]
    np.testing.assert_array_equal(average_precision(targets, scores), expected)


def test_more_classes_than_one_block_keep_their_places():
    targets, scores = drawn(n=50, classes=130)
    ap = average_precision(targets, scores)
    for c in (0, 63, 64, 129):
        assert ap[c] == average_precision_score(targets[:, c], scores[:, c])


def test_ranks_by_hand():
    targets = np.array([[1], [0], [1], [0]])
    scores = np.array([[4.0], [3.0], [2.0], [1.0]])
    assert average_precision(targets, scores)[0] == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_unknown_pairs_count_nowhere():
    targets, scores = drawn()
    known = np.random.default_rng(1).random(targets.shape) < 0.7
    expected = [
        average_precision_score(targets[known[:, c], c], scores[known[:, c], c]) for c in range(targets.shape[1])
    ]
    np.testing.assert_array_equal(average_precision(targets, scores, known), expected)


def test_class_without_a_known_positive_is_nan_and_silent():
    targets, scores = drawn(classes=3)
    targets[:, 0] = False
    known = np.ones_like(targets)
    known[targets[:, 1], 1] = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ap = average_precision(targets, scores, known)
    assert np.isnan(ap).tolist() == [True, True, False]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, bool])
def test_targets_of_any_dtype(dtype):
    targets, scores = drawn()
    np.testing.assert_array_equal(average_precision(targets.astype(dtype), scores), average_precision(targets, scores))


def test_reads_a_memory_map(tmp_path):
    targets, scores = drawn()
    np.save(tmp_path / "scores.npy", scores)
    mapped = np.load(tmp_path / "scores.npy", mmap_mode="r")
    np.testing.assert_array_equal(average_precision(targets, mapped), average_precision(targets, scores))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_name_class_and_rows(value):
    targets, scores = drawn(n=20, classes=2)
    scores[[3, 7], 1] = value
    with pytest.raises(ValueError, match=r"class 'cat' \(index 1\) are not finite in 2 of 20 rows"):
        average_precision(targets, scores, names=["dog", "cat"])


def test_shapes_that_disagree_are_named():
    targets, scores = drawn(n=20, classes=4)
    with pytest.raises(ValueError, match=r"scores have shape \(20, 3\), but targets have shape \(20, 4\)"):
        average_precision(targets, scores[:, :3])
    with pytest.raises(ValueError, match=r"known has shape \(19, 4\), but targets have shape \(20, 4\)"):
        average_precision(targets, scores, np.ones((19, 4), dtype=bool))
    with pytest.raises(ValueError, match=r"targets have shape \(20,\): \(N, C\) is needed"):
        average_precision(targets[:, 0], scores[:, 0])
    with pytest.raises(ValueError, match="3 class names were given for targets of 4 classes"):
        average_precision(targets, scores, names=list("abc"))


def test_targets_other_than_0_and_1_are_refused():
    targets = np.zeros((5, 3))
    targets[2, 1] = -1
    with pytest.raises(ValueError, match="targets of class 1 hold values other than 0 and 1"):
        average_precision(targets, np.zeros((5, 3)))


def test_coco_sized_evaluation_takes_seconds_at_most():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40_504, 80)).astype(np.float32)
    targets = rng.random(scores.shape) < 0.04
    start = time.process_time()
    average_precision(targets, scores)
    assert time.process_time() - start < 3  # 0.8 s on an idle core
