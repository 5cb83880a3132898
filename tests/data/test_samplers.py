import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_more.data.form import label_pairs, make_dataset
from clip_more.data.samplers import (
    ClassAwareOrder,
    ProgressiveOrder,
    WeightedOrder,
    make_order,
    photo_weights,
)

NAMES = (
    "instance",
    "square_root",
    "class_balanced",
    "weighted",
    "progressive",
    "class_aware",
    "distribution_balanced",
)


def pairs(labels):
    """Label lists as (rows, classes)."""
    rows = np.repeat(np.arange(len(labels)), [len(row) for row in labels])
    return rows, np.array([c for row in labels for c in row], dtype=np.int64)


def cifar_lt():
    """Labels of CIFAR-100-LT, imbalance 100: 10,847 photos, class 0 the largest."""
    counts = [int(500 * 100 ** (-k / 99)) for k in range(100)]
    classes = np.repeat(np.arange(100), counts)
    return (np.arange(len(classes)), classes), len(classes)


def by_class(weights, labels):
    """Probability of each class, one label a photo."""
    return np.bincount(labels[1], weights=weights / weights.sum())


# Five classes; the last two photos have no label, class 3 has no photo.
SEVERAL = [[0], [0, 1], [0, 1, 2], [0], [2, 4], [0, 4], [], []]
COUNTS = {0: 5, 1: 2, 2: 2, 4: 2}


@pytest.mark.parametrize(
    ("exponent", "head", "tail"), [(1.0, 0.0460957, 0.00046096), (0.5, 0.0256018, 0.0025602), (0.0, 0.01, 0.01)]
)
def test_class_probabilities_are_those_of_the_paper(exponent, head, tail):
    labels, length = cifar_lt()
    assert length == 10_847
    found = by_class(photo_weights(labels, length, exponent), labels)
    assert found[0] == pytest.approx(head, abs=5e-8)
    assert found[-1] == pytest.approx(tail, abs=5e-8)
    counts = np.bincount(labels[1]).astype(float)
    np.testing.assert_allclose(found, counts**exponent / (counts**exponent).sum(), rtol=1e-12)


@pytest.mark.parametrize(("name", "exponent"), [("square_root", 0.5), ("class_balanced", 0.0), ("weighted", 0.3)])
def test_names_stand_for_exponents(name, exponent):
    labels, length = cifar_lt()
    order = make_order(name, labels, length, seed=0, exponent=0.3)
    np.testing.assert_array_equal(order.weights, photo_weights(labels, length, exponent))


def test_progressive_moves_from_instance_to_class_balanced():
    labels, length = cifar_lt()
    order = ProgressiveOrder(labels, length, seed=0, epochs=90)
    middle = by_class(order.probabilities(45), labels)
    assert middle[0] == pytest.approx(0.0278451, abs=5e-8)
    assert middle[-1] == pytest.approx(0.0052841, abs=5e-8)
    np.testing.assert_array_equal(order.probabilities(0), 1 / length)
    balanced = photo_weights(labels, length, 0.0)
    np.testing.assert_array_equal(order.probabilities(89), balanced / balanced.sum())
    np.testing.assert_array_equal(order.probabilities(95), order.probabilities(89))


@pytest.mark.parametrize(("epochs", "last"), [(1, None), (0.5, None), (1.5, 1), (3, 2)])
def test_progressive_counts_part_of_an_epoch_as_one(epochs, last):
    labels, length = cifar_lt()
    order = ProgressiveOrder(labels, length, seed=0, epochs=epochs)
    heads = [by_class(order.probabilities(epoch), labels)[0] for epoch in range(4)]
    expected = [0.0460957 if last is None else max(0.01, 0.0460957 - 0.0360957 * e / last) for e in range(4)]
    assert heads == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.5, -0.5])
def test_a_photo_of_several_classes_weighs_their_mean(exponent):
    found = photo_weights(pairs(SEVERAL), len(SEVERAL), exponent, unlabelled=0.25)
    expected = np.array([np.mean([COUNTS[c] ** (exponent - 1) for c in row]) for row in SEVERAL[:-2]])
    expected = np.append(expected, [0.25 * expected.mean()] * 2)
    np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=1e-12)


def test_distribution_balanced_weighs_a_photo_by_the_sum_of_the_inverse_counts_of_its_labels():
    order = make_order("distribution_balanced", pairs(SEVERAL), len(SEVERAL), seed=0, unlabelled=0.25)
    by_paper = np.array([sum(1 / COUNTS[c] for c in row) / len(COUNTS) for row in SEVERAL[:-2]])
    assert by_paper.sum() == pytest.approx(1, abs=1e-12)  # the probability of a draw: a class, then one of its photos
    expected = np.append(by_paper, [0.25 * by_paper.mean()] * 2)
    np.testing.assert_allclose(order.weights / order.weights[0], expected / expected[0], rtol=1e-12)
    mean = make_order("class_balanced", pairs(SEVERAL), len(SEVERAL), seed=0, unlabelled=0.25).weights
    np.testing.assert_allclose(order.weights[:6], mean[:6] * [len(row) for row in SEVERAL[:6]], rtol=1e-12)


def test_distribution_balanced_draws_are_a_class_and_then_one_of_its_photos():
    labelled = SEVERAL[:-2]
    order = make_order("distribution_balanced", pairs(labelled), len(labelled), seed=5)
    drawn = np.concatenate([order.order(epoch) for epoch in range(4000)])
    rng = np.random.default_rng(0)
    members = {c: [photo for photo, row in enumerate(labelled) if c in row] for c in COUNTS}
    twice = [rng.choice(members[c]) for c in rng.choice(list(COUNTS), size=len(drawn))]
    table = np.stack([np.bincount(drawn, minlength=6), np.bincount(twice, minlength=6)])
    assert scipy.stats.chi2_contingency(table).pvalue > 1e-4


def test_with_one_label_a_photo_distribution_balanced_is_class_balanced():
    labels, length = cifar_lt()
    found, balanced = (make_order(name, labels, length, seed=2) for name in ("distribution_balanced", "class_balanced"))
    np.testing.assert_array_equal(found.weights, balanced.weights)
    np.testing.assert_array_equal(found.order(3), balanced.order(3))


def test_at_exponent_one_every_photo_weighs_exactly_the_same():
    assert set(photo_weights(pairs(SEVERAL), len(SEVERAL), 1.0)) == {1.0}
    order = ProgressiveOrder(pairs(SEVERAL), len(SEVERAL), seed=0, epochs=4)
    assert set(order.probabilities(0)) == {1 / 8}


@pytest.mark.parametrize("exponent", [-60.0, 80.0])
def test_extreme_exponents_leave_finite_weights(exponent):
    classes = np.repeat([0, 1], [1_000_000, 1])
    weights = photo_weights((np.arange(len(classes)), classes), len(classes), exponent)
    assert np.isfinite(weights).all()
    assert weights.max() == 1.0


@pytest.mark.parametrize("name", ["class_balanced", "progressive", "distribution_balanced"])
def test_unlabelled_photos_of_weight_nothing_are_never_drawn(name):
    labels = [[], *SEVERAL]
    order = make_order(name, pairs(labels), len(labels), seed=0, unlabelled=0.0, epochs=3)
    drawn = np.concatenate([order.order(epoch) for epoch in range(300)])
    assert set(drawn) == set(range(1, 7))


def fits(drawn, probabilities):
    """Pearson's chi-square of draws, between its 0.01% and 99.99% quantiles."""
    expected = probabilities * len(drawn)
    statistic = (((np.bincount(drawn, minlength=len(expected)) - expected) ** 2) / expected).sum()
    return scipy.stats.chi2.ppf(1e-4, len(expected) - 1) < statistic < scipy.stats.chi2.ppf(1 - 1e-4, len(expected) - 1)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_draws_follow_the_weights_at_every_place_of_an_epoch(exponent):
    order = WeightedOrder(pairs(SEVERAL), len(SEVERAL), seed=4, exponent=exponent)
    epochs = np.stack([order.order(epoch) for epoch in range(2000)])
    for place in range(len(SEVERAL)):
        assert fits(epochs[:, place], order.weights / order.weights.sum())


def test_draws_of_one_large_epoch_follow_the_weights():
    rng = np.random.default_rng(0)
    classes = rng.choice(5, size=20_000, p=[0.6, 0.2, 0.1, 0.07, 0.03])
    order = WeightedOrder((np.arange(20_000), classes), 20_000, seed=0, exponent=0.0)
    drawn = order.order(0)
    for part in (drawn, drawn[:5000], drawn[1::2]):
        assert fits(classes[part], np.full(5, 0.2))
    assert len(set(drawn)) < 20_000 * 0.64  # with replacement: no more than 1 - 1/e of them come


def test_progressive_draws_follow_its_epoch():
    labels, length = cifar_lt()
    order = ProgressiveOrder(labels, length, seed=1, epochs=90)
    for epoch in (0, 45, 89):
        assert fits(labels[1][order.order(epoch)], by_class(order.probabilities(epoch), labels))


def test_class_aware_takes_classes_in_turn_each_once_a_round():
    labels, length = cifar_lt()
    turns = labels[1][ClassAwareOrder(labels, length, seed=0, per_class=4).order(0)]
    turns = turns[: length // 4 * 4].reshape(-1, 4)
    assert (turns == turns[:, :1]).all()
    rounds = turns[: len(turns) // 100 * 100, 0].reshape(-1, 100)
    assert (np.sort(rounds, axis=1) == np.arange(100)).all()
    assert not (rounds[0] == rounds[1]).all()


def test_class_aware_shows_all_photos_of_a_class_before_one_comes_again():
    labels, length = cifar_lt()
    drawn = ClassAwareOrder(labels, length, seed=0, per_class=3).order(0)
    for k in (0, 50, 99):
        mine = drawn[labels[1][drawn] == k]
        members = np.flatnonzero(labels[1] == k)
        first = mine[: len(members)]
        assert len(set(first)) == len(first)
        times = np.bincount(mine, minlength=length)[members]
        assert times.max() - times.min() <= 1


def test_class_aware_in_several_labels_skips_absent_classes_and_unlabelled_photos():
    order = ClassAwareOrder(pairs(SEVERAL), len(SEVERAL), seed=0, per_class=1)
    epochs = [order.order(epoch) for epoch in range(50)]
    assert set(np.concatenate(epochs)) == set(range(6))
    for photos in epochs:  # eight turns are two rounds of the four classes
        for four in (photos[:4], photos[4:]):
            assert {0, 1, 2, 4} == set().union(*(SEVERAL[photo] for photo in four))


@pytest.mark.parametrize(("per_class", "single", "run"), [(None, True, 4), (None, False, 3), (2, True, 2)])
def test_class_aware_takes_four_photos_of_a_single_label_and_three_of_several(per_class, single, run):
    labels, length = cifar_lt()
    order = make_order("class_aware", labels, length, seed=0, per_class=per_class, single_label=single)
    assert order.per_class == run
    assert len(set(labels[1][order.order(0)][:run])) == 1


def test_instance_draws_every_photo_once():
    order = make_order("instance", pairs([[]] * 50), 50, seed=0)
    for epoch in range(3):
        assert sorted(order.order(epoch)) == list(range(50))


@pytest.mark.parametrize("name", NAMES)
def test_an_epoch_depends_on_seed_and_epoch_alone(name):
    def order(seed):
        return make_order(name, pairs(SEVERAL * 20), 160, seed=seed, exponent=0.2, epochs=5)

    first = order(3)
    epochs = [first.order(epoch) for epoch in range(4)]
    again = order(3)
    for epoch in (2, 0, 3, 1, 2):
        np.testing.assert_array_equal(again.order(epoch), epochs[epoch])
    assert len({tuple(epoch) for epoch in [*epochs, order(4).order(0)]}) == 5


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.lists(st.integers(0, 6), max_size=4, unique=True), min_size=1, max_size=30).filter(any),
    name=st.sampled_from(NAMES),
    epoch=st.integers(0, 5),
    per_class=st.integers(1, 40),
)
def test_an_epoch_is_as_long_as_the_data(labels, name, epoch, per_class):
    order = make_order(name, pairs(labels), len(labels), seed=1, per_class=per_class, epochs=4)
    drawn = order.order(epoch)
    assert order.length == len(labels) == len(drawn)
    assert drawn.dtype == np.int64
    assert 0 <= drawn.min() <= drawn.max() < len(labels)


def test_labels_come_from_the_common_form():
    dataset = make_dataset([f"{row}.png" for row in range(8)], SEVERAL, list("abcde"))
    found = make_order("class_balanced", label_pairs(dataset), 8, seed=0).order(2)
    np.testing.assert_array_equal(found, make_order("class_balanced", pairs(SEVERAL), 8, seed=0).order(2))


@pytest.mark.parametrize("name", NAMES[1:])
def test_without_a_label_only_instance_draws(name):
    with pytest.raises(ValueError, match=f"sampler: {name} goes by labels, but none of 2 photos has one"):
        make_order(name, pairs([[], []]), 2, seed=0)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="there is no photo to draw"):
        make_order("instance", pairs([]), 0, seed=0)
    with pytest.raises(ValueError, match="sampler is 'root'; choose instance, square_root, class_balanced"):
        make_order("root", pairs(SEVERAL), 8, seed=0)


@pytest.mark.parametrize("name", ["class_balanced", "progressive", "class_aware", "distribution_balanced"])
def test_memory_grows_with_photos_and_labels_not_with_classes_times_photos(name):
    photos, classes = 100_000, 10_000
    labels = (np.arange(photos), np.arange(photos) % classes)
    tracemalloc.start()
    make_order(name, labels, photos, seed=0, epochs=3).order(1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200 * photos  # 2 GB in an (N, C) float64 would be 80,000
