import copy

import pytest
import torch
from torch import nn

from clip_more.adapters import MoreConfig, add_tail, tail, tail_parameters
from clip_more.losses import BCELoss, DiscrepancyLoss
from clip_more.training.randomness import RandomState
from clip_more.training.task import LongTailTask
from tests.adapters.test_layer import randomise_tail

COUNTS = torch.tensor([50, 9, 3])


@pytest.fixture
def batch():
    torch.manual_seed(3)
    targets = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    return {"pixel_values": torch.randn(4, 6), "targets": targets, "known": torch.ones(4, 3, dtype=torch.bool)}


class DropPath(nn.Module):
    """Whole samples dropped at random: masks of another shape than dropout's."""

    def forward(self, x):
        return x * (torch.rand(len(x), 1) < 0.7) if self.training else x


def network(dropout: float = 0.3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), DropPath(), nn.Linear(8, 3)
    )


def task(tail_std: float = 0.0, dropout: float = 0.3, tail_only: bool = False, **options) -> LongTailTask:
    model = add_tail(network(dropout), MoreConfig(rho=0.5, target_modules="all"))
    if tail_std:
        randomise_tail(model, tail_std)
    return LongTailTask(model, BCELoss(), DiscrepancyLoss(COUNTS, **options), tail_only).train()


@pytest.mark.parametrize("options", [{}, {"tail_only": True}, {"gradient": "stop_full"}, {"gradient": "stop_general"}])
def test_new_tail_has_no_discrepancy_in_training_mode_with_dropout_on(batch, options):
    losses = task(**options)(batch, alpha=5.0)
    assert losses["discrepancy"].item() == 0.0
    assert losses["loss"].item() == losses["base"].item()


def test_loss_is_base_plus_alpha_times_discrepancy(batch):
    losses = task(tail_std=0.3)(batch, alpha=0.4)
    assert losses["discrepancy"] > 0
    torch.testing.assert_close(losses["loss"], losses["base"] + 0.4 * losses["discrepancy"])


def test_both_passes_draw_the_same_masks(batch):
    """With masks of their own, the discrepancy of a small tail would be that of the noise."""
    small = task(tail_std=1e-3)(batch, alpha=1.0)["discrepancy"]
    assert 0 < small < 1e-4


@pytest.mark.parametrize("tail_only", [False, True])
def test_the_stream_of_random_numbers_is_that_of_one_pass(batch, tail_only):
    model = task(tail_std=0.3, tail_only=tail_only)
    drawn = []
    for alpha in (0.0, 1.0):
        torch.manual_seed(7)
        model(batch, alpha=alpha)
        drawn.append(torch.rand(3))
    assert torch.equal(*drawn)


def test_batch_statistics_move_once(batch):
    once, twice = task(tail_std=0.3), task(tail_std=0.3)
    once(batch, alpha=0.0)
    twice(batch, alpha=1.0)
    for name, buffer in once.named_buffers():
        assert torch.equal(buffer, dict(twice.named_buffers())[name]), name
    assert all(m.track_running_stats for m in twice.modules() if isinstance(m, nn.BatchNorm1d))


def test_amplitude_zero_is_the_base_loss_on_the_over_parametrised_model(batch):
    with_more, without = task(tail_std=0.3), task(tail_std=0.3)
    without.discrepancy = None
    optimizers = [torch.optim.AdamW(t.parameters(), 1e-2) for t in (with_more, without)]
    for model, optimizer, alpha in zip((with_more, without), optimizers, (0.0, 9.0), strict=True):
        torch.manual_seed(5)
        for _ in range(4):
            optimizer.zero_grad()
            model(batch, alpha=alpha)["loss"].backward()
            optimizer.step()
    for (name, p), q in zip(with_more.named_parameters(), without.parameters(), strict=True):
        assert torch.equal(p, q), name


def gradients(model: LongTailTask, batch, alpha: float) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(11)
    model(batch, alpha=alpha)["loss"].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_tail_only_gradient_leaves_w_g_to_the_base_loss(batch):
    both, only = task(tail_std=0.3), task(tail_std=0.3, tail_only=True)
    base, full, tail_only = gradients(both, batch, 0.0), gradients(both, batch, 2.0), gradients(only, batch, 2.0)
    low_rank = tail_parameters(both)
    for name in base:
        if name in low_rank:
            torch.testing.assert_close(tail_only[name], full[name], msg=name)
            assert not torch.allclose(tail_only[name], base[name]), name
        else:
            torch.testing.assert_close(tail_only[name], base[name], msg=name)
    assert any(not torch.allclose(full[n], base[n]) for n in base if n not in low_rank)


def test_stopping_the_full_pass_gives_the_tail_no_gradient_from_the_discrepancy(batch):
    stopped = task(tail_std=0.3, gradient="stop_full")
    base, both = gradients(stopped, batch, 0.0), gradients(stopped, batch, 2.0)
    for name in tail_parameters(stopped):
        torch.testing.assert_close(both[name], base[name], msg=name)


def test_one_linear_layer_gives_w_g_no_gradient_from_the_discrepancy(batch):
    """Delta = B A x there, so the plain reading only shrinks B A (METHODS 1)."""
    torch.manual_seed(0)
    model = add_tail(nn.Sequential(nn.Linear(6, 3)), MoreConfig(rho=0.5, target_modules="all"))
    randomise_tail(model)
    linear = LongTailTask(model, BCELoss(), DiscrepancyLoss(COUNTS, gradient="both"))
    base, both = gradients(linear, batch, 0.0), gradients(linear, batch, 2.0)
    torch.testing.assert_close(both["classifier.0.base_layer.weight"], base["classifier.0.base_layer.weight"])


def test_one_linear_layer_gives_w_g_the_gradient_of_the_full_pass_where_the_general_one_has_none(batch):
    """`dL/dW_g = 2 alpha / N sum_x pi Delta x^T`: against what B A adds, and for a common class the most."""
    torch.manual_seed(0)
    model = add_tail(nn.Sequential(nn.Linear(6, 3)), MoreConfig(rho=0.5, target_modules="all"))
    randomise_tail(model)
    linear = LongTailTask(model, BCELoss(), DiscrepancyLoss(COUNTS))
    base, stopped = gradients(linear, batch, 0.0), gradients(linear, batch, 2.0)
    with torch.no_grad():
        full = model(batch["pixel_values"])
        with tail(model, enabled=False):
            delta = full - model(batch["pixel_values"])
    expected = 2 * 2.0 * (COUNTS / COUNTS.sum() * delta).T @ batch["pixel_values"] / len(delta)
    name = "classifier.0.base_layer.weight"
    torch.testing.assert_close(stopped[name] - base[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("gradient", ["stop_general", "both"])
def test_gradients_equal_those_of_two_naive_passes(batch, gradient):
    ours = task(tail_std=0.3, dropout=0.0, gradient=gradient)
    ours.classifier[4] = nn.Identity()
    ours.eval()  # no masks, running statistics: the passes can be written down
    got = gradients(ours, batch, 1.5)
    naive = copy.deepcopy(ours)
    general = copy.deepcopy(naive.classifier)
    weights = {n: p for n, p in naive.classifier.named_parameters() if n not in tail_parameters(naive.classifier)}
    zeros = {n: torch.zeros_like(p) for n, p in tail_parameters(naive.classifier).items()}
    naive.zero_grad()
    z_full = naive.classifier(batch["pixel_values"])
    z_general = torch.func.functional_call(general, {**weights, **zeros}, (batch["pixel_values"],))
    prior = COUNTS / COUNTS.sum()
    if gradient == "stop_general":
        z_general = z_general.detach()
    loss = BCELoss()(z_full, batch["targets"]) + 1.5 * (prior * (z_full - z_general).square()).sum(1).mean()
    loss.backward()
    for name, p in naive.named_parameters():
        torch.testing.assert_close(got[name], p.grad, rtol=1e-5, atol=1e-7, msg=name)


def test_replayed_randomness_repeats_and_then_goes_on():
    torch.manual_seed(1)
    state = RandomState(torch.device("cpu"))
    first = torch.rand(4)
    with state.replayed():
        assert torch.equal(torch.rand(4), first)
        torch.rand(100)
    second = torch.rand(4)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(8), torch.cat([first, second]))
