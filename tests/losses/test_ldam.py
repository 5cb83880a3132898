import pytest
import torch
import torch.nn.functional as F

from clip_more.losses import ClassBalancedCE, CrossEntropy, LdamLoss, class_balanced_weights

COUNTS = torch.tensor([1296, 256, 81, 16])
LABELS = torch.tensor([0, 3, 1, 0, 2, 2])
ONE_HOT = F.one_hot(LABELS, 4).double()


@pytest.fixture
def cosines():
    torch.manual_seed(0)
    return (2 * torch.rand(6, 4, dtype=torch.float64) - 1).requires_grad_()


def test_margins_go_by_the_fourth_root_of_the_counts():
    # 16, 81, 256, 1296 are 2, 3, 4, 6 to the fourth: margins 0.5 times 2/2, 2/3, 2/4, 2/6.
    expected = torch.tensor([1 / 6, 1 / 4, 1 / 3, 1 / 2])
    torch.testing.assert_close(LdamLoss(COUNTS).margin, expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(LdamLoss(COUNTS, max_margin=0.2).margin, 0.4 * expected, rtol=1e-6, atol=0)


def test_it_is_its_formula(cosines):
    margin = 0.5 * (COUNTS.double() / 16) ** -0.25
    rows = torch.arange(6)
    own = 30 * (cosines[rows, LABELS] - margin[LABELS])
    others = torch.stack([30 * cosines[n][torch.arange(4) != LABELS[n]] for n in range(6)])
    expected = -(own.exp() / (own.exp() + others.exp().sum(1))).log().mean()
    torch.testing.assert_close(LdamLoss(COUNTS)(cosines, ONE_HOT), expected, rtol=1e-6, atol=0)


def test_without_a_margin_it_is_the_cross_entropy_at_its_scale(cosines):
    for scale in (1.0, 30.0):
        ours = LdamLoss(COUNTS, max_margin=0.0, scale=scale)(cosines, ONE_HOT)
        torch.testing.assert_close(ours, CrossEntropy()(scale * cosines, ONE_HOT))


def test_equal_counts_have_equal_margins(cosines):
    assert torch.equal(LdamLoss(torch.full((4,), 9)).margin, torch.full((4,), 0.5))


def test_a_head_with_a_scale_of_its_own_takes_scale_one_and_the_margin_times_it(cosines):
    outside = LdamLoss(COUNTS, max_margin=0.5, scale=30)(cosines, ONE_HOT)
    inside = LdamLoss(COUNTS, max_margin=0.5 * 30, scale=1)(30 * cosines, ONE_HOT)
    torch.testing.assert_close(inside, outside, rtol=1e-6, atol=0)


def test_deferred_weights_set_in_at_their_share_of_the_steps(cosines):
    loss = LdamLoss(COUNTS, defer=0.8)
    plain = LdamLoss(COUNTS)(cosines, ONE_HOT)
    for progress in (0.0, 0.5, 0.7999):
        loss.at(progress)
        torch.testing.assert_close(loss(cosines, ONE_HOT), plain, rtol=0, atol=0)
    margins = LdamLoss(COUNTS).margin.double() * ONE_HOT
    terms = F.cross_entropy(30 * (cosines - margins), LABELS, reduction="none")
    expected = (class_balanced_weights(COUNTS, 0.9999)[LABELS] * terms).mean()
    for progress in (0.8, 1.0):
        loss.at(progress)
        torch.testing.assert_close(loss(cosines, ONE_HOT), expected, rtol=1e-6, atol=0)
    loss.at(0.2)
    torch.testing.assert_close(loss(cosines, ONE_HOT), plain, rtol=0, atol=0)


def test_without_defer_no_weights_ever_set_in(cosines):
    loss = LdamLoss(COUNTS)
    before = loss(cosines, ONE_HOT)
    loss.at(1.0)
    torch.testing.assert_close(loss(cosines, ONE_HOT), before, rtol=0, atol=0)


def test_deferred_from_the_start_without_a_margin_it_is_class_balanced(cosines):
    loss = LdamLoss(COUNTS, max_margin=0.0, scale=1.0, defer=0.0, beta=0.99)
    torch.testing.assert_close(loss(cosines, ONE_HOT), ClassBalancedCE(COUNTS, 0.99)(cosines, ONE_HOT))


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_gradcheck(cosines, progress):
    loss = LdamLoss(COUNTS, scale=5.0, defer=0.5)
    loss.at(progress)
    assert torch.autograd.gradcheck(lambda z: loss(z, ONE_HOT), cosines)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"max_margin": -0.1}, "max_margin >= 0 and a scale > 0; got -0.1"),
        ({"scale": 0}, "got 0.5 and 0"),
        ({"defer": 1.5}, "defer is 1.5"),
        ({"beta": 1.0}, "beta is 1.0"),
    ],
)
def test_bad_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        LdamLoss(COUNTS, **options)
