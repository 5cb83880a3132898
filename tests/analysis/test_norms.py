import numpy as np
import pytest
from scipy.stats import rankdata

from clip_more.analysis.norms import class_ranks, norm_trend, rank_trend


def test_ranks_begin_with_the_most_common_class_and_keep_the_order_of_equals():
    assert class_ranks(np.array([5, 9, 5, 100])).tolist() == [2, 1, 3, 0]


def test_norms_that_follow_counts_correlate_fully_either_way():
    counts, rows = np.array([100, 30, 7, 2]), np.diag([4.0, 3.0, 2.0, 1.0])
    assert norm_trend(rows, counts).spearman == pytest.approx(1)
    assert norm_trend(rows[::-1], counts).spearman == pytest.approx(-1)
    np.testing.assert_allclose(norm_trend(rows, counts).values, [4, 3, 2, 1])


def test_correlation_is_that_of_ranks_with_ties():
    random = np.random.default_rng(0)
    counts, values = random.integers(1, 9, size=40), random.normal(size=40)
    expected = np.corrcoef(rankdata(counts), rankdata(values))[0, 1]
    assert rank_trend(values, counts).spearman == pytest.approx(expected)


def test_classes_without_a_value_are_left_out():
    values = np.array([3.0, np.nan, 2.0, 1.0])
    assert rank_trend(values, np.array([9, 1, 8, 7])).spearman == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "counts"),
    [([1.0, 2.0], [3, 4]), ([1.0, 1.0 + 1e-9, 1.0], [1, 2, 3]), ([1.0, 2.0, 3.0], [5, 5, 5])],
)
def test_no_correlation_of_two_classes_or_of_what_does_not_differ(values, counts):
    found = rank_trend(np.array(values), np.array(counts))
    assert (found.spearman, found.p) == (None, None)


def test_other_numbers_of_values_and_counts_are_refused():
    with pytest.raises(ValueError, match=r"both are \(C,\)"):
        rank_trend(np.ones(3), np.ones(4))
