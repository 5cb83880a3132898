import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_more.losses import AsymmetricLoss, BCELoss


@pytest.fixture
def batch():
    torch.manual_seed(0)
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    targets = (torch.rand(5, 4) < 0.4).double()
    known = torch.rand(5, 4) < 0.8
    known[0] = False
    return logits, targets, known


def test_bce_is_torch_bce_summed_over_classes(batch):
    logits, targets, _ = batch
    expected = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / 5
    torch.testing.assert_close(BCELoss()(logits, targets), expected)


def test_mean_reduction_divides_by_the_classes(batch):
    logits, targets, _ = batch
    for loss in (BCELoss, AsymmetricLoss):
        torch.testing.assert_close(loss(reduction="mean")(logits, targets), loss()(logits, targets) / 4)


def asl_closed_form(z, y, gp, gn, m):
    p = 1 / (1 + np.exp(-z))
    pm = np.maximum(p - m, 0)
    return -(y * (1 - p) ** gp * np.log(p) + (1 - y) * pm**gn * np.log(1 - pm)).sum(1).mean()


@pytest.mark.parametrize(("gp", "gn", "m"), [(0, 4, 0.05), (1, 2, 0.0), (2, 3, 0.2)])
def test_asl_is_its_equation(batch, gp, gn, m):
    logits, targets, _ = batch
    ours = AsymmetricLoss(gp, gn, m)(logits, targets).item()
    assert ours == pytest.approx(asl_closed_form(logits.detach().numpy(), targets.numpy(), gp, gn, m), rel=1e-12)


def test_asl_without_focusing_or_margin_is_bce(batch):
    logits, targets, known = batch
    torch.testing.assert_close(AsymmetricLoss(0, 0, 0)(logits, targets, known), BCELoss()(logits, targets, known))


@pytest.mark.parametrize("loss", [BCELoss(), AsymmetricLoss(1, 3, 0.05, focal_gradient=True)])
def test_gradcheck(batch, loss):
    logits, targets, known = batch
    assert torch.autograd.gradcheck(lambda z: loss(z, targets, known), logits)


def test_asl_keeps_the_focusing_factor_out_of_the_gradient_by_default(batch):
    logits, targets, _ = batch
    (ours,) = torch.autograd.grad(AsymmetricLoss(1, 2, 0.0)(logits, targets), logits)
    p = torch.sigmoid(logits).detach()
    factor = torch.where(targets == 1, (1 - p) ** 1, p**2)
    torch.testing.assert_close(ours, factor * (p - targets) / 5)
    (inside,) = torch.autograd.grad(AsymmetricLoss(1, 2, 0.0, focal_gradient=True)(logits, targets), logits)
    assert (inside - ours).abs().max() > 1e-3


@pytest.mark.parametrize("loss", [BCELoss(), BCELoss("mean"), AsymmetricLoss()])
def test_unknown_labels_count_nowhere(batch, loss):
    logits, targets, known = batch
    flipped = torch.where(known, targets, 1 - targets)
    torch.testing.assert_close(loss(logits, targets, known), loss(logits, flipped, known), rtol=0, atol=0)
    (gradient,) = torch.autograd.grad(loss(logits, targets, known), logits)
    assert (gradient[~known] == 0).all()
    assert (gradient[known] != 0).any()


@pytest.mark.parametrize("loss", [BCELoss(), AsymmetricLoss(), AsymmetricLoss(1, 4, 0.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_stay_finite_and_fp32(loss, dtype):
    logits = torch.tensor([[60.0, -60.0, 60.0, -60.0]], dtype=dtype, requires_grad=True)
    value = loss(logits, torch.tensor([[1.0, 0.0, 0.0, 1.0]]))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


def test_loss_does_not_grow_with_the_batch(batch):
    logits, targets, _ = batch
    for loss in (BCELoss(), AsymmetricLoss()):
        torch.testing.assert_close(loss(logits.repeat(3, 1), targets.repeat(3, 1)), loss(logits, targets))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"reduction": "max"}, "reduction is 'max'"),
        ({"margin": 1.0}, "margin is 1.0"),
        ({"gamma_negative": -1}, "must be >= 0"),
    ],
)
def test_bad_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        AsymmetricLoss(**options)
