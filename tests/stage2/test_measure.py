import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score

from clip_more.stage2.measure import BALANCED_TOP1, MACRO_MAP, MICRO_AP, logits_of, measure, measure_for
from tests.stage2.gaussians import COUNTS, logistic_head, photos, random_head, several_labels


def test_balanced_top_1_is_scikit_learns_balanced_accuracy():
    data = photos(COUNTS, 4)
    logits = logits_of(logistic_head(data), data.features)
    found = measure(BALANCED_TOP1, logits, data, {"head": [0], "rest": [1, 2, 3], "none": []})
    labels, predicted = data.targets.numpy().argmax(axis=1), logits.argmax(axis=1)
    recalls = [(predicted[labels == c] == c).mean() for c in range(4)]
    assert found["total"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
    assert found["head"] == pytest.approx(recalls[0], abs=1e-12)
    assert found["rest"] == pytest.approx(np.mean(recalls[1:]), abs=1e-12)
    assert found["none"] is None


def test_classes_without_a_photo_are_in_no_mean():
    data = photos((20, 0, 10, 0), 4)
    logits = np.zeros((30, 4))
    logits[:, 0] = 1
    found = measure(BALANCED_TOP1, logits, data, {"tail": [1, 3]})
    assert found == {"total": 0.5, "tail": None}


def test_macro_map_and_micro_ap_leave_unknown_labels_out():
    data = several_labels(300)
    logits = logits_of(random_head(5, 8), data.features)
    targets, known = data.targets.numpy(), data.known.numpy()
    by_class = [average_precision_score(targets[known[:, c], c], logits[known[:, c], c]) for c in range(5)]
    found = measure(MACRO_MAP, logits, data, {"tail": [3, 4]})
    assert found == pytest.approx({"total": np.mean(by_class), "tail": np.mean(by_class[3:])}, abs=1e-12)
    found = measure(MICRO_AP, logits, data, {"tail": [3, 4]})
    own = known[:, 3:]
    expected = {
        "total": average_precision_score(targets[known], logits[known]),
        "tail": average_precision_score(targets[:, 3:][own], logits[:, 3:][own]),
    }
    assert found == pytest.approx(expected, abs=1e-12)


def test_logits_that_are_not_finite_have_no_figure():
    data = photos((3, 3), 0)
    assert measure(BALANCED_TOP1, np.full((6, 2), np.nan), data, {}) is None


def test_what_cannot_change_an_ap_is_chosen_by_what_it_can_change():
    assert measure_for(True, monotone=True) == measure_for(True, monotone=False) == BALANCED_TOP1
    assert measure_for(False, monotone=False) == MACRO_MAP
    assert measure_for(False, monotone=True) == MICRO_AP
