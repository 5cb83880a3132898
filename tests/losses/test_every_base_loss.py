import pytest
import torch

from clip_more.losses import BASE_LOSSES

COUNTS = torch.tensor([40, 9, 3, 1])
OPTIONS = {
    "cb_bce": {"counts": COUNTS},
    "db": {"counts": COUNTS, "photos": 50},
    "db_focal": {"counts": COUNTS, "photos": 50},
    "cb_ce": {"counts": COUNTS},
    "balanced_softmax": {"counts": COUNTS},
    "logit_adjusted_ce": {"counts": COUNTS},
    "ldam": {"counts": COUNTS},
}


@pytest.mark.parametrize("name", BASE_LOSSES)
def test_every_base_loss_is_a_mean_over_images_in_fp32(name):
    loss = BASE_LOSSES[name](**OPTIONS.get(name, {}))
    torch.manual_seed(1)
    logits = torch.randn(5, 4).bfloat16().requires_grad_()
    targets = torch.nn.functional.one_hot(torch.tensor([0, 3, 1, 0, 2]), 4).float()
    value = loss(logits, targets, torch.ones(5, 4, dtype=torch.bool))
    assert value.dtype == torch.float32
    assert value.shape == ()
    torch.testing.assert_close(value, loss(logits.float(), targets, None), rtol=0, atol=0)
    torch.testing.assert_close(value, loss(logits.repeat(3, 1), targets.repeat(3, 1)))
    each = torch.stack([loss(logits[n : n + 1], targets[n : n + 1]) for n in range(5)])
    torch.testing.assert_close(value, each.mean())
    value.backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.abs().max() > 0


@pytest.mark.parametrize("name", BASE_LOSSES)
def test_no_base_loss_has_state_or_parameters(name):
    loss = BASE_LOSSES[name](**OPTIONS.get(name, {}))
    assert not loss.state_dict()
    assert not list(loss.parameters())
