import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from clip_more.losses import BASE_LOSSES, BCELoss, DistributionBalancedLoss

COUNTS = torch.tensor([80, 50, 10, 2])
PHOTOS = 100
A, B, G, L, KAPPA = 0.1, 10.0, 0.3, 5.0, 0.05


@pytest.fixture
def batch():
    torch.manual_seed(0)
    logits = (2 * torch.randn(6, 4, dtype=torch.float64)).requires_grad_()
    targets = torch.tensor(
        [[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    ).double()
    known = torch.rand(6, 4) < 0.8
    return logits, targets, known


def by_hand(logits, targets, known, *, focal=False, a=A, b=B, g=G, neg=L, kappa=KAPPA, gamma=2.0):
    """The equations, one entry after the other; a photo without a known positive weighs a + 1."""
    total = 0.0
    for n in range(len(logits)):
        positives = [j for j in range(4) if targets[n, j] == 1 and known[n, j]]
        for k in range(4):
            if not known[n, k]:
                continue
            weight = a + 1
            if positives:
                r = (1 / COUNTS[k].item()) / sum(1 / COUNTS[j].item() for j in positives)
                weight = a + 1 / (1 + math.exp(-b * (r - g)))
            v = kappa * math.log(1 / (COUNTS[k].item() / PHOTOS) - 1)
            z = logits[n, k].item() - v
            term = math.log(1 + math.exp(-z)) if targets[n, k] == 1 else math.log(1 + math.exp(neg * z)) / neg
            if focal:
                p_t = 1 / (1 + math.exp(-z)) if targets[n, k] == 1 else 1 / (1 + math.exp(neg * z))
                term *= 2 * (1 - p_t) ** gamma
            total += weight * term
    return total / len(logits)


@pytest.mark.parametrize("focal", [False, True])
@pytest.mark.parametrize("some_unknown", [False, True])
def test_it_is_its_equations(batch, focal, some_unknown):
    logits, targets, known = batch
    known = known if some_unknown else torch.ones_like(known)
    loss = DistributionBalancedLoss(COUNTS, PHOTOS, focal=focal)
    assert loss(logits, targets, known).item() == pytest.approx(by_hand(logits, targets, known, focal=focal), rel=1e-5)


def test_all_options_reach_their_place(batch):
    logits, targets, known = batch
    loss = DistributionBalancedLoss(
        COUNTS,
        PHOTOS,
        focal=True,
        smoothing_alpha=0.4,
        smoothing_beta=3.0,
        smoothing_mu=0.7,
        negative_scale=2.0,
        init_bias=0.3,
        gamma=1.5,
    )
    expected = by_hand(logits, targets, known, focal=True, a=0.4, b=3.0, g=0.7, neg=2.0, kappa=0.3, gamma=1.5)
    assert loss(logits, targets, known).item() == pytest.approx(expected, rel=1e-5)


def test_shift_of_a_class_that_one_photo_in_a_hundred_has():
    loss = DistributionBalancedLoss(torch.tensor([1, 50, 99]), 100)
    torch.testing.assert_close(loss.shift, torch.tensor([0.22976, 0.0, -0.22976]), rtol=0, atol=5e-6)


def test_the_shift_does_not_depend_on_the_negative_scale():
    # The released code divides it by l; the equations do not.
    one, five = (DistributionBalancedLoss(COUNTS, PHOTOS, negative_scale=neg).shift for neg in (1.0, 5.0))
    assert torch.equal(one, five)


@pytest.mark.parametrize("a", [0.0, 0.1, 0.5])
def test_without_its_parts_it_is_a_constant_times_bce(batch, a):
    logits, targets, known = batch
    loss = DistributionBalancedLoss(
        COUNTS, PHOTOS, smoothing_alpha=a, smoothing_beta=0.0, negative_scale=1.0, init_bias=0.0
    )
    expected = (a + 0.5) * BCELoss()(logits, targets, known)
    torch.testing.assert_close(loss(logits, targets, known), expected)


def test_the_focal_form_is_each_term_times_two_and_the_focusing_factor(batch):
    logits, targets, _ = batch
    plain, focal = (DistributionBalancedLoss(COUNTS, PHOTOS, focal=f) for f in (False, True))
    unfocused = DistributionBalancedLoss(COUNTS, PHOTOS, focal=True, gamma=0.0)
    torch.testing.assert_close(unfocused(logits, targets), 2 * plain(logits, targets))
    for n in range(6):
        for k in range(4):
            only = torch.zeros(6, 4, dtype=torch.bool)
            only[n, k] = True
            # All positives stay known to the weights: the ratio of two single terms is the factor alone.
            z = logits[n, k] - plain.shift[k]
            p_t = torch.sigmoid(z) if targets[n, k] == 1 else torch.sigmoid(-L * z)
            ratio = focal(logits, targets, only) / plain(logits, targets, only)
            torch.testing.assert_close(ratio, 2 * (1 - p_t) ** 2, rtol=1e-6, atol=0)


def test_weights_by_hand():
    loss = DistributionBalancedLoss(COUNTS, PHOTOS)
    positive = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    often = 1 / 80 + 1 / 2
    r = torch.tensor([[1 / 80 / often, 1 / 50 / often, 1 / 10 / often, 1 / 2 / often], [50 / 80, 1, 5, 25]])
    expected = A + torch.sigmoid(B * (r - G))
    torch.testing.assert_close(loss.weights(positive)[:2], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.weights(positive)[2], torch.full((4,), A + 1))


def test_a_photo_without_a_positive_weighs_the_limit_in_every_precision():
    none = torch.zeros(1, 4, dtype=torch.bool)
    for dtype in (torch.float32, torch.float64):
        assert torch.allclose(
            DistributionBalancedLoss(COUNTS, PHOTOS).weights(none, dtype), torch.tensor(A + 1, dtype=dtype)
        )
        flat = DistributionBalancedLoss(COUNTS, PHOTOS, smoothing_beta=0.0)
        assert torch.allclose(flat.weights(none, dtype), torch.tensor(A + 0.5, dtype=dtype))


def test_weights_see_known_positives_alone(batch):
    logits, targets, _ = batch
    loss = DistributionBalancedLoss(COUNTS, PHOTOS)
    known = torch.ones(6, 4, dtype=torch.bool)
    known[0, 3] = False  # the rare positive of photo 0, which would hold back the weights of the others
    without = targets.clone()
    without[0, 3] = 0
    torch.testing.assert_close(loss(logits, targets, known), loss(logits, without, known), rtol=0, atol=0)
    only = torch.zeros(6, 4, dtype=torch.bool)
    only[0, :3] = True
    shared = loss.weights(targets.bool())[0, 0]
    assert loss.weights(without.bool())[0, 0] > 4 * shared


@pytest.mark.parametrize("focal", [False, True])
def test_unknown_labels_count_nowhere(batch, focal):
    logits, targets, known = batch
    loss = DistributionBalancedLoss(COUNTS, PHOTOS, focal=focal)
    flipped = torch.where(known, targets, 1 - targets)
    value = loss(logits, targets, known)
    torch.testing.assert_close(value, loss(logits, flipped, known), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient[~known] == 0).all()
    assert (gradient[known] != 0).all()


@pytest.mark.parametrize("focal", [False, True])
def test_gradcheck(batch, focal):
    logits, targets, known = batch
    loss = DistributionBalancedLoss(COUNTS, PHOTOS, focal=focal)
    assert torch.autograd.gradcheck(lambda z: loss(z, targets, known), logits)


def test_a_negative_pulls_less_than_bce_below_the_shift_and_as_much_far_above():
    loss = DistributionBalancedLoss(torch.tensor([1]), 100, smoothing_beta=0.0, smoothing_alpha=0.5)
    z = torch.tensor([[-1.0], [0.22976], [9.0]], dtype=torch.float64, requires_grad=True)
    (ours,) = torch.autograd.grad(3 * loss(z, torch.zeros(3, 1)), z)
    expected = torch.sigmoid(L * (z.detach() - 0.22976))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert ours[0] < torch.sigmoid(z[0]) / 10


def test_reductions_and_names(batch):
    logits, targets, _ = batch
    total = DistributionBalancedLoss(COUNTS, PHOTOS)(logits, targets)
    torch.testing.assert_close(DistributionBalancedLoss(COUNTS, PHOTOS, reduction="mean")(logits, targets), total / 4)
    torch.testing.assert_close(BASE_LOSSES["db"](COUNTS, PHOTOS)(logits, targets), total)
    focal = DistributionBalancedLoss(COUNTS, PHOTOS, focal=True)
    assert isinstance(BASE_LOSSES["db_focal"], partial)
    torch.testing.assert_close(BASE_LOSSES["db_focal"](COUNTS, PHOTOS)(logits, targets), focal(logits, targets))


def test_one_label_a_photo_makes_the_weight_of_its_class_that_of_r_one(batch):
    loss = DistributionBalancedLoss(COUNTS, PHOTOS)
    weights = loss.weights(F.one_hot(torch.arange(4), 4).bool())
    torch.testing.assert_close(weights.diag(), torch.full((4,), A + 1 / (1 + math.exp(-B * (1 - G)))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_stay_finite_and_fp32(dtype):
    for focal in (False, True):
        logits = torch.tensor([[300.0, -300.0, 300.0, -300.0]], dtype=dtype, requires_grad=True)
        value = DistributionBalancedLoss(COUNTS, PHOTOS, focal=focal)(logits, torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
        value.backward()
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
        assert torch.isfinite(logits.grad).all()


def test_a_class_that_all_photos_have_keeps_a_finite_shift():
    loss = DistributionBalancedLoss(torch.tensor([100, 1]), 100)
    assert loss.shift[0].item() == pytest.approx(KAPPA * math.log(1 / 0.995 - 1), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"photos": 60}, "class 0 has 80 positives, but photos is 60"),
        ({"negative_scale": 0}, "negative_scale is 0"),
        ({"smoothing_beta": -1}, "smoothing_beta must be >= 0"),
        ({"gamma": -1}, "gamma is -1"),
        ({"reduction": "none"}, "reduction is 'none'"),
        ({"counts": torch.tensor([3, 0])}, r"classes \[1\] have no positive"),
    ],
)
def test_bad_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        DistributionBalancedLoss(**({"counts": COUNTS, "photos": PHOTOS} | options))
