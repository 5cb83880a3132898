import pytest
import torch

from clip_more.training.max_norm import project, threshold


def test_rows_longer_than_delta_are_brought_to_it_and_the_others_stay_bit_for_bit():
    weight = torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, 2.0], [0.0, 0.0]])
    before = weight.clone()
    assert project(weight, 2.0) == 1
    torch.testing.assert_close(weight[0], torch.tensor([1.2, 1.6]))
    assert torch.equal(weight[1:], before[1:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_the_projection_onto_the_ball(dtype):
    torch.manual_seed(0)
    weight = (torch.randn(50, 16) * torch.rand(50, 1) * 3).to(dtype)
    norms = weight.double().norm(dim=1)
    delta = norms.median().item()
    expected = weight.double() * (delta / norms).clamp_max(1)[:, None]
    assert project(weight, delta) == int((norms > delta).sum())
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 4e-3}[dtype]
    torch.testing.assert_close(weight.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_projecting_again_clips_nothing(dtype):
    torch.manual_seed(1)
    weight = torch.randn(500, 64, dtype=dtype) * 5
    assert project(weight, 1.0) == 500
    once = weight.clone()
    assert project(weight, 1.0) == 0
    assert torch.equal(weight, once)


def test_threshold_goes_from_the_shortest_row_to_the_longest():
    weight = torch.tensor([[3.0, 4.0], [0.0, 1.0], [2.0, 0.0]])
    assert threshold(weight, 0.0) == 1
    assert threshold(weight, 0.25) == 2
    assert threshold(weight, 1.0) == 5
    assert project(weight.clone(), threshold(weight, 1.0)) == 0
    assert project(weight, threshold(weight, 0.0)) == 2
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(3))


def test_it_works_on_a_parameter_and_leaves_its_gradient():
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    weight.square().sum().backward()
    gradient = weight.grad.clone()
    assert project(weight, threshold(weight, 0.5)) == 1
    torch.testing.assert_close(weight.detach()[0], torch.tensor([1.8, 2.4]))
    assert weight.requires_grad
    assert torch.equal(weight.grad, gradient)


def test_bad_numbers_are_named():
    with pytest.raises(ValueError, match=r"share of MaxNorm is 1.5; it must be in \[0, 1\]"):
        threshold(torch.ones(2, 2), 1.5)
    with pytest.raises(ValueError, match=r"delta of MaxNorm is 0.0; it must be above 0"):
        project(torch.ones(2, 2), threshold(torch.tensor([[0.0], [1.0]]), 0.0))
