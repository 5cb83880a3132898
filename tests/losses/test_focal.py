import pytest
import torch
from torchvision.ops import sigmoid_focal_loss

from clip_more.losses import BCELoss, FocalLoss


@pytest.fixture
def batch():
    torch.manual_seed(0)
    logits = (3 * torch.randn(6, 5, dtype=torch.float64)).requires_grad_()
    targets = (torch.rand(6, 5) < 0.4).double()
    known = torch.rand(6, 5) < 0.8
    known[2] = False
    return logits, targets, known


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, 0.25, 1.0])
def test_it_is_torchvisions(batch, gamma, alpha):
    logits, targets, _ = batch
    ours = FocalLoss(gamma, alpha)(logits, targets)
    other = sigmoid_focal_loss(logits, targets, -1 if alpha is None else alpha, gamma, reduction="sum") / 6
    torch.testing.assert_close(ours, other)
    (gradient,) = torch.autograd.grad(ours, logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(other, logits)[0])


def test_without_focusing_it_is_bce(batch):
    logits, targets, known = batch
    torch.testing.assert_close(FocalLoss(0.0)(logits, targets, known), BCELoss()(logits, targets, known))
    torch.testing.assert_close(FocalLoss(0.0, 0.5)(logits, targets, known), BCELoss()(logits, targets, known) / 2)


def test_mean_reduction_divides_by_the_known_classes(batch):
    logits, targets, known = batch
    torch.testing.assert_close(FocalLoss(reduction="mean")(logits, targets), FocalLoss()(logits, targets) / 5)
    each = torch.stack([FocalLoss()(logits[n : n + 1], targets[n : n + 1], known[n : n + 1]) for n in range(6)])
    expected = (each / known.sum(1).clamp_min(1)).mean()
    torch.testing.assert_close(FocalLoss(reduction="mean")(logits, targets, known), expected)


@pytest.mark.parametrize("options", [{"gamma": 0.5}, {"gamma": 2.0, "alpha": 0.25}])
def test_gradcheck(batch, options):
    logits, targets, known = batch
    assert torch.autograd.gradcheck(lambda z: FocalLoss(**options)(z, targets, known), logits)


def test_unknown_labels_count_nowhere(batch):
    logits, targets, known = batch
    flipped = torch.where(known, targets, 1 - targets)
    value = FocalLoss()(logits, targets, known)
    torch.testing.assert_close(value, FocalLoss()(logits, flipped, known), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(value, logits)
    assert (gradient[~known] == 0).all()
    assert (gradient[known] != 0).any()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_stay_finite_and_fp32(gamma, dtype):
    logits = torch.tensor([[300.0, -300.0, 300.0, -300.0]], dtype=dtype, requires_grad=True)
    value = FocalLoss(gamma)(logits, torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(600, rel=1e-6)
    assert torch.isfinite(logits.grad).all()


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="focal gamma is -1; it must be >= 0"):
        FocalLoss(-1)
    with pytest.raises(ValueError, match=r"focal alpha is 1.5"):
        FocalLoss(alpha=1.5)
    with pytest.raises(ValueError, match="reduction is 'max'"):
        FocalLoss(reduction="max")
