import pytest
import torch
import torch.nn.functional as F

from clip_more.losses import BCELoss, ClassBalancedBCE, ClassBalancedCE, CrossEntropy, class_balanced_weights

# CIFAR-100-LT, imbalance 100.
CIFAR_LT = torch.tensor([int(500 * 100 ** (-k / 99)) for k in range(100)])
COUNTS = torch.tensor([700, 90, 30, 6])


@pytest.fixture
def batch():
    torch.manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    targets = (torch.rand(6, 4) < 0.4).double()
    known = torch.rand(6, 4) < 0.8
    return logits, targets, known


LABELS = torch.tensor([0, 3, 1, 0, 2, 2])
ONE_HOT = F.one_hot(LABELS, 4).double()


def test_weights_of_cifar_100_lt():
    weights = class_balanced_weights(CIFAR_LT, 0.9999)
    assert weights[0].item() == pytest.approx(0.0448757, abs=5e-8)
    assert weights[-1].item() == pytest.approx(4.3783126, abs=5e-8)
    assert weights.sum().item() == pytest.approx(100, rel=1e-12)


def test_weights_are_their_formula():
    raw = torch.tensor([(1 - 0.99) / (1 - 0.99**n) for n in COUNTS.tolist()], dtype=torch.float64)
    torch.testing.assert_close(class_balanced_weights(COUNTS, 0.99), 4 * raw / raw.sum(), rtol=1e-12, atol=0)


def test_beta_zero_weighs_all_alike_and_beta_near_one_by_inverse_counts():
    assert torch.equal(class_balanced_weights(CIFAR_LT, 0.0), torch.ones(100, dtype=torch.float64))
    inverse = 1 / COUNTS.double()
    torch.testing.assert_close(
        class_balanced_weights(COUNTS, 1 - 1e-12), 4 * inverse / inverse.sum(), rtol=1e-8, atol=0
    )


def test_bce_is_torchs_with_weights(batch):
    logits, targets, _ = batch
    weight = class_balanced_weights(COUNTS)
    expected = F.binary_cross_entropy_with_logits(logits, targets, weight.expand(6, 4), reduction="sum") / 6
    torch.testing.assert_close(ClassBalancedBCE(COUNTS)(logits, targets), expected, rtol=1e-6, atol=0)
    mean = ClassBalancedBCE(COUNTS, reduction="mean")(logits, targets)
    torch.testing.assert_close(mean, expected / 4, rtol=1e-6, atol=0)


def test_ce_is_torchs_with_weights_over_the_number_of_images(batch):
    logits, _, _ = batch
    weight = class_balanced_weights(COUNTS)
    expected = F.cross_entropy(logits, LABELS, weight, reduction="sum") / 6
    torch.testing.assert_close(ClassBalancedCE(COUNTS)(logits, ONE_HOT), expected, rtol=1e-6, atol=0)


def test_at_beta_zero_they_are_the_plain_losses(batch):
    logits, targets, known = batch
    ours = ClassBalancedBCE(COUNTS, 0.0)(logits, targets, known)
    torch.testing.assert_close(ours, BCELoss()(logits, targets, known), rtol=0, atol=0)
    torch.testing.assert_close(ClassBalancedCE(COUNTS, 0.0)(logits, ONE_HOT), CrossEntropy()(logits, ONE_HOT))


def test_gradcheck(batch):
    logits, targets, known = batch
    assert torch.autograd.gradcheck(lambda z: ClassBalancedBCE(COUNTS)(z, targets, known), logits)
    assert torch.autograd.gradcheck(lambda z: ClassBalancedCE(COUNTS)(z, ONE_HOT), logits)


def test_unknown_labels_count_nowhere(batch):
    logits, targets, known = batch
    loss = ClassBalancedBCE(COUNTS)
    flipped = torch.where(known, targets, 1 - targets)
    value = loss(logits, targets, known)
    torch.testing.assert_close(value, loss(logits, flipped, known), rtol=0, atol=0)
    assert (torch.autograd.grad(value, logits)[0][~known] == 0).all()


def test_what_has_no_weight_is_refused():
    with pytest.raises(ValueError, match=r"classes \[1\] have no positive in train"):
        class_balanced_weights(torch.tensor([3, 0, 2]))
    with pytest.raises(ValueError, match=r"beta is 1.0; it must be in \[0, 1\)"):
        ClassBalancedCE(COUNTS, 1.0)
    with pytest.raises(ValueError, match=r"one number a class, \(C,\); got shape \(1, 4\)"):
        ClassBalancedBCE(COUNTS[None])


@pytest.mark.parametrize("loss", [ClassBalancedBCE(COUNTS), ClassBalancedCE(COUNTS)])
def test_a_sample_of_the_classes_is_refused(loss):
    with pytest.raises(ValueError, match="logits have 3 classes and the loss has counts of 4"):
        loss(torch.zeros(6, 3), ONE_HOT[:, :3])
