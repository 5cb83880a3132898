import pytest
import torch
import torch.nn.functional as F

from clip_more.losses import (
    BalancedSoftmax,
    ClassBalancedCE,
    CrossEntropy,
    FocalCrossEntropy,
    LdamLoss,
    LogitAdjustedCE,
)

COUNTS = torch.tensor([700, 90, 30, 6])
LABELS = torch.tensor([0, 3, 1, 0, 2, 2])
ONE_HOT = F.one_hot(LABELS, 4)
LOSSES = [
    CrossEntropy(),
    FocalCrossEntropy(),
    FocalCrossEntropy(0.5),
    ClassBalancedCE(COUNTS),
    LogitAdjustedCE(COUNTS),
    BalancedSoftmax(COUNTS),
    LdamLoss(COUNTS),
]


def name(loss):
    return type(loss).__name__


@pytest.fixture
def logits():
    torch.manual_seed(0)
    return torch.randn(6, 4, dtype=torch.float64, requires_grad=True)


def test_it_is_torchs(logits):
    torch.testing.assert_close(CrossEntropy()(logits, ONE_HOT), F.cross_entropy(logits, LABELS), rtol=0, atol=0)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_is_its_formula(logits, gamma):
    own = torch.softmax(logits, 1)[torch.arange(6), LABELS]
    expected = -((1 - own) ** gamma * own.log()).mean()
    torch.testing.assert_close(FocalCrossEntropy(gamma)(logits, ONE_HOT), expected)


def test_focal_without_focusing_is_the_cross_entropy(logits):
    torch.testing.assert_close(FocalCrossEntropy(0.0)(logits, ONE_HOT), CrossEntropy()(logits, ONE_HOT))


def test_balanced_softmax_is_its_formula(logits):
    shares = COUNTS * logits.exp()
    expected = -(shares[torch.arange(6), LABELS] / shares.sum(1)).log().mean()
    torch.testing.assert_close(BalancedSoftmax(COUNTS)(logits, ONE_HOT), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("tau", [0.5, 1.0, 2.0])
def test_logit_adjustment_adds_tau_times_the_log_prior(logits, tau):
    prior = COUNTS.double() / COUNTS.sum()
    expected = F.cross_entropy(logits + tau * prior.log(), LABELS)
    torch.testing.assert_close(LogitAdjustedCE(COUNTS, tau)(logits, ONE_HOT), expected, rtol=1e-6, atol=0)


def test_balanced_softmax_is_logit_adjustment_at_tau_one(logits):
    ours, other = BalancedSoftmax(COUNTS)(logits, ONE_HOT), LogitAdjustedCE(COUNTS, 1.0)(logits, ONE_HOT)
    torch.testing.assert_close(ours, other, rtol=0, atol=0)


def test_logit_adjustment_by_equal_counts_or_at_tau_zero_is_the_cross_entropy(logits):
    plain = CrossEntropy()(logits, ONE_HOT)
    torch.testing.assert_close(LogitAdjustedCE(torch.full((4,), 17))(logits, ONE_HOT), plain)
    torch.testing.assert_close(LogitAdjustedCE(COUNTS, 0.0)(logits, ONE_HOT), plain, rtol=0, atol=0)


def test_the_adjusted_losses_are_least_at_balanced_logits():
    # Photos that all look alike, classes as in train: the best plain logits are equal, not the log prior.
    logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    targets = F.one_hot(torch.repeat_interleave(torch.arange(4), COUNTS), 4)
    loss = LogitAdjustedCE(COUNTS)(logits.expand(len(targets), 4), targets)
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-7


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_gradcheck(loss, logits):
    assert torch.autograd.gradcheck(lambda z: loss(z, ONE_HOT), logits)


@pytest.mark.parametrize("loss", LOSSES, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_stay_finite_and_fp32(loss, dtype):
    logits = torch.tensor([[300.0, -300.0, 0.0, 0.0], [300.0, -300.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    value = loss(logits, ONE_HOT[:2])
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_another_number_of_labels_than_one_is_refused_and_the_row_named(loss, logits):
    two, none = ONE_HOT.clone(), ONE_HOT.clone()
    two[3, 2] = 1
    none[4] = 0
    with pytest.raises(ValueError, match="row 3 of the batch has 2 positive labels"):
        loss(logits, two)
    with pytest.raises(ValueError, match=r"row 4 of the batch has 0 positive labels.*choose a loss with one sigmoid"):
        loss(logits, none)


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_unknown_labels_are_refused_and_the_row_named(loss, logits):
    known = torch.ones(6, 4, dtype=torch.bool)
    torch.testing.assert_close(loss(logits, ONE_HOT, known), loss(logits, ONE_HOT), rtol=0, atol=0)
    known[2, :2] = False
    with pytest.raises(ValueError, match="row 2 of the batch has 2 unknown labels"):
        loss(logits, ONE_HOT, known)


def test_bad_options_are_named(logits):
    with pytest.raises(ValueError, match="tau is -1; it must be >= 0"):
        LogitAdjustedCE(COUNTS, -1)
    with pytest.raises(ValueError, match="gamma is -1; it must be >= 0"):
        FocalCrossEntropy(-1)
    with pytest.raises(ValueError, match=r"classes \[0\] have no positive"):
        BalancedSoftmax(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="logits have 4 classes and the loss has counts of 3"):
        BalancedSoftmax(COUNTS[:3])(logits, ONE_HOT)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_targets_may_be_of_any_kind(logits, dtype):
    for loss in LOSSES:
        torch.testing.assert_close(loss(logits, ONE_HOT.to(dtype)), loss(logits, ONE_HOT), rtol=0, atol=0)
