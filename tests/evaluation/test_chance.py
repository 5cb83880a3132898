import numpy as np
import pytest
from scipy.stats import chisquare
from sklearn.metrics import average_precision_score

from clip_more.data.profile import ClassProfile
from clip_more.evaluation import chance_map
from clip_more.evaluation.chance import random_ap, random_ranks

PROFILE = ClassProfile(("a", "b", "c", "d"), (300, 50, 40, 3))


def expected_ap(positives: int, images: int) -> float:
    """Closed form of the mean AP of a random ranking."""
    harmonic = (1 / np.arange(1, images + 1)).sum()
    return (harmonic + (positives - 1) / (images - 1) * (images - harmonic)) / images


def columns(positives, images=500):
    targets = np.zeros((images, len(positives)), dtype=bool)
    for c, m in enumerate(positives):
        targets[:m, c] = True
    return targets


@pytest.mark.parametrize(("positives", "images"), [(1, 40), (7, 40), (20, 40), (21, 40), (39, 40), (40, 40)])
def test_ap_of_each_draw_equals_scikit_learn(positives, images):
    ranks = random_ranks(positives, images, 20, np.random.default_rng(3))
    ap = random_ap(positives, images, 20, np.random.default_rng(3))
    for row, value in zip(ranks, ap, strict=True):
        targets = np.zeros(images)
        targets[row] = 1
        assert value == pytest.approx(average_precision_score(targets, -np.arange(images)))


@pytest.mark.parametrize(("positives", "images"), [(2, 5), (3, 5)])
def test_every_subset_of_ranks_is_equally_likely(positives, images):
    ranks = random_ranks(positives, images, 20_000, np.random.default_rng(0))
    assert (np.diff(ranks, axis=1) > 0).all()
    _, counts = np.unique(ranks, axis=0, return_counts=True)
    assert len(counts) == 10
    assert chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("positives", "images"), [(1, 300), (20, 300), (149, 300), (200, 300)])
def test_mean_follows_the_closed_form(positives, images):
    ap = random_ap(positives, images, 4000, np.random.default_rng(0))
    assert abs(ap.mean() - expected_ap(positives, images)) < 4 * ap.std() / np.sqrt(len(ap))


def test_mean_lies_a_little_above_the_share_of_positives():
    chance = chance_map(columns([250, 60, 40, 20]), PROFILE)["mean"]
    assert 0.5 < chance["head"] < 0.52
    assert 0.1 < chance["medium"] < 0.125
    assert 0.04 < chance["tail"] < 0.065


def test_total_is_the_mean_over_classes_and_its_quantile_is_tighter_than_one_classes():
    chance = chance_map(columns([60, 60, 60, 60]), PROFILE)
    mean, q95 = chance["mean"], chance["q95"]
    assert mean["total"] == pytest.approx((mean["head"] + 2 * mean["medium"] + mean["tail"]) / 4)
    assert mean["total"] < q95["total"] < min(q95["head"], q95["tail"])
    single = random_ap(60, 500, 4000, np.random.default_rng(1))
    assert q95["tail"] == pytest.approx(np.quantile(single, 0.95), abs=0.005)


def test_unknown_pairs_shrink_the_ranking():
    targets = columns([250, 50, 50, 5])
    known = np.ones_like(targets)
    known[250:, 3] = False
    known[:, 0] = ~targets[:, 0]
    chance = chance_map(targets, PROFILE, known=known, draws=4000)["mean"]
    assert chance["head"] is None
    assert chance["tail"] == pytest.approx(expected_ap(5, 250), rel=0.05)


def test_group_without_positives_is_none_and_left_out_of_total():
    chance = chance_map(columns([100, 50, 50, 0]), PROFILE)
    assert chance["mean"]["tail"] is None
    assert chance["q95"]["tail"] is None
    mean = chance["mean"]
    assert mean["total"] == pytest.approx((mean["head"] + 2 * mean["medium"]) / 3)


def test_same_seed_same_figures_and_blocks_do_not_matter(monkeypatch):
    targets = columns([200, 50, 50, 5])
    first = chance_map(targets, PROFILE, draws=50, seed=1)
    assert first == chance_map(targets, PROFILE, draws=50, seed=1)
    assert first["mean"] != chance_map(targets, PROFILE, draws=50, seed=2)["mean"]
    monkeypatch.setattr("clip_more.evaluation.chance.BLOCK", 100)
    assert chance_map(targets, PROFILE, seed=1)["mean"]["total"] == pytest.approx(first["mean"]["total"], rel=0.02)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="draws is 0: chance needs at least one random ranking"):
        chance_map(columns([1, 1, 1, 1]), PROFILE, draws=0)
    with pytest.raises(ValueError, match="4 class names were given for targets of 3 classes"):
        chance_map(columns([1, 1, 1]), PROFILE)
