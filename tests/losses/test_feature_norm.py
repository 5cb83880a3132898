import pytest
import torch

from clip_more.losses import feature_norm


def test_it_is_half_of_lambda_times_the_mean_squared_length():
    features = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert feature_norm(features, 0.01).item() == pytest.approx(0.01 / 2 * (25 + 1) / 2, rel=1e-6)
    assert feature_norm(features).item() == feature_norm(features, 0.01).item()


def test_its_gradient_is_lambda_h_over_the_batch():
    torch.manual_seed(0)
    features = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(feature_norm(features, 0.3), features)
    torch.testing.assert_close(gradient, 0.3 * features.detach() / 5, rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(lambda h: feature_norm(h, 0.3), features)


def test_half_precision_features_are_squared_in_fp32():
    value = feature_norm(torch.full((2, 8), 300.0, dtype=torch.float16), 1.0)  # 300 squared is beyond fp16
    assert value.dtype == torch.float32
    assert value.item() == 0.5 * 8 * 300**2


def test_a_negative_strength_is_refused():
    with pytest.raises(ValueError, match=r"feature regularisation is -0.1; it must be >= 0"):
        feature_norm(torch.zeros(1, 2), -0.1)
