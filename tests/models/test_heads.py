import numpy as np
import pytest
import torch

from clip_more.models.heads import fit_scale_and_bias


def priors_loss(targets: np.ndarray) -> float:
    p = targets.mean(axis=0).clip(0.5 / len(targets), 1 - 0.5 / len(targets))
    return float(-(targets * np.log(p) + (1 - targets) * np.log(1 - p)).sum(axis=1).mean())


def bce(logits: np.ndarray, targets: np.ndarray) -> float:
    z, y = torch.from_numpy(logits), torch.from_numpy(targets).to(torch.float64)
    return torch.nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum").item() / len(logits)


@pytest.fixture
def shared_offset():
    """Cosines as a pretrained CLIP has them: 0.2 for every class, a spread of 0.03, positives a little higher."""
    rng = np.random.default_rng(0)
    targets = rng.random((800, 20)) < np.geomspace(0.4, 0.005, 20)
    targets[0] = True
    cosines = 0.2 + 0.03 * rng.standard_normal((800, 20)) + 0.04 * targets
    return cosines, targets


def test_head_start_at_scale_100_is_no_worse_than_the_priors(shared_offset):
    cosines, targets = shared_offset
    scale, bias, loss = fit_scale_and_bias(cosines, targets, bounds=(100.0, 100.0))
    assert scale == pytest.approx(100)
    assert loss == pytest.approx(bce(scale * cosines + bias, targets), rel=1e-9)
    at_prior = np.log(targets.mean(0) / (1 - targets.mean(0)))
    assert bce(100 * cosines + at_prior, targets) > 50 * priors_loss(targets)  # what the fit is there for
    fitted = fit_scale_and_bias(cosines, targets)
    assert fitted[2] <= priors_loss(targets) + 0.01


def test_head_start_beats_the_priors_where_cosines_tell_something(shared_offset):
    cosines, targets = shared_offset
    assert fit_scale_and_bias(cosines, targets)[2] < 0.95 * priors_loss(targets)


def test_fit_is_at_the_minimum(shared_offset):
    cosines, targets = shared_offset
    scale, bias, loss = fit_scale_and_bias(cosines, targets, bounds=(1.0, 1000.0))
    for factor in (0.98, 1.02):
        shift = (1 - factor) * scale * cosines.mean(axis=0)
        assert bce(factor * scale * cosines + bias + shift, targets) > loss
    for step in (-0.05, 0.05):
        assert bce(scale * cosines + bias + step, targets) > loss


def test_unknown_entries_change_nothing(shared_offset):
    cosines, targets = shared_offset
    known = np.random.default_rng(1).random(targets.shape) < 0.7
    one = fit_scale_and_bias(cosines, targets, known)
    other = fit_scale_and_bias(np.where(known, cosines, 0.9), np.where(known, targets, ~targets), known)
    np.testing.assert_allclose(one[1], other[1], rtol=0, atol=1e-12)
    assert one[0] == other[0]


def test_class_without_a_positive_keeps_a_finite_bias():
    rng = np.random.default_rng(0)
    targets = np.zeros((50, 2), dtype=bool)
    targets[:20, 0] = True
    scale, bias, loss = fit_scale_and_bias(0.2 + 0.03 * rng.standard_normal((50, 2)), targets)
    assert np.isfinite([scale, loss, *bias]).all()
