import json
import math

import pytest
import torch
from torch import nn

from clip_more.adapters import MoreConfig, add_tail, tail_parameters
from clip_more.config import ConfigError, TrainConfig
from clip_more.losses import BCELoss, DiscrepancyLoss
from clip_more.recipe import from_dict
from clip_more.training import loop, processes
from clip_more.training.strength import MEASURED_EVERY, MEASURED_FIRST, MEMORY, SMALLEST, GradientRatio
from clip_more.training.task import LongTailTask
from tests.adapters.test_layer import randomise_tail


class Scaled(nn.Module):
    """One linear layer whose logits come times `scale`."""

    def __init__(self, scale):
        super().__init__()
        self.layer, self.scale = nn.Linear(6, 3), scale

    def forward(self, x):
        return self.scale * self.layer(x)


def linear_task(scale=1.0, tail_std=0.3, **options):
    torch.manual_seed(0)
    model = add_tail(Scaled(scale), MoreConfig(rho=0.5, target_modules="all"))
    if tail_std:
        randomise_tail(model, tail_std)
    return LongTailTask(model, BCELoss(), DiscrepancyLoss(torch.tensor([50, 9, 3]), **options))


@pytest.fixture
def batch():
    torch.manual_seed(3)
    targets = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    return {"pixel_values": torch.randn(4, 6), "targets": targets, "known": torch.ones(4, 3, dtype=torch.bool)}


def tail_gradients(task, loss):
    """A and B's, one vector."""
    task.zero_grad()
    loss.backward(retain_graph=True)
    return torch.cat([p.grad.flatten() for p in tail_parameters(task).values()])


@pytest.mark.parametrize("options", [{}, {"weighting": "sample"}, {"prior_exponent": -1.0}, {"reduction": "mean"}])
@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_the_two_gradients_on_a_and_b_are_in_the_ratio_that_was_asked_for(batch, options, scale):
    task = linear_task(scale, **options)
    strength = GradientRatio.of(task, ratio=0.3)
    losses = task(batch, alpha=0.5)
    alpha = strength.apply(losses, 0.5, step=0, first=True)
    base, more = (tail_gradients(task, losses[name]) for name in ("base", "discrepancy"))
    assert (alpha * more.norm() / base.norm()).item() == pytest.approx(0.15, rel=1e-5)
    assert strength.measured(alpha) == pytest.approx(0.15, rel=1e-12)
    torch.testing.assert_close(tail_gradients(task, losses["loss"]), base + alpha * more)


def test_measuring_leaves_no_gradient_behind(batch):
    task = linear_task()
    GradientRatio.of(task, 0.3).apply(task(batch, alpha=0.5), 0.5, step=0, first=True)
    assert all(p.grad is None for p in task.parameters())


def test_without_a_tail_to_speak_of_nothing_is_weighed(batch):
    task = linear_task(tail_std=0.0)
    strength = GradientRatio.of(task, 0.3)
    losses = task(batch, alpha=1.0)
    assert strength.apply(losses, 1.0, step=0, first=True) == 0.0
    assert strength.measured(0.0) is None
    assert losses["loss"].item() == losses["base"].item()
    torch.testing.assert_close(tail_gradients(task, losses["loss"]), tail_gradients(task, losses["base"]))
    randomise_tail(task, 0.3)
    assert strength.apply(task(batch, alpha=1.0), 1.0, step=1, first=True) > 0


def of_norms(strength, base, more, **when):
    """alpha after losses whose gradients have these norms."""
    (parameter,) = strength.parameters
    losses = {"base": base * parameter, "discrepancy": more * parameter}
    losses["loss"] = losses["base"] + losses["discrepancy"]
    return strength.apply(losses, 1.0, **({"step": 0, "first": True} | when))


@pytest.fixture
def strength():
    return GradientRatio([torch.tensor(1.0, requires_grad=True)], ratio=0.5)


def test_norms_are_averaged_each_by_itself_and_old_ones_fade(strength):
    assert of_norms(strength, 2.0, 4.0) == pytest.approx(0.5 * 2 / 4)
    assert of_norms(strength, 4.0, 2.0) == pytest.approx(0.5 * 3 / 3)
    for _ in range(20 * MEMORY):
        alpha = of_norms(strength, 8.0, 2.0)
    assert alpha == pytest.approx(0.5 * 8 / 2, rel=1e-3)


def test_after_the_first_steps_one_in_some_is_measured_and_of_it_the_first_micro_batch(strength):
    for step in range(MEASURED_FIRST):
        before = of_norms(strength, 1.0, 1.0, step=step)
    assert of_norms(strength, 9.0, 1.0, step=MEASURED_EVERY - 1) == before
    assert of_norms(strength, 9.0, 1.0, step=MEASURED_EVERY, first=False) == before
    assert of_norms(strength, 9.0, 1.0, step=MEASURED_EVERY) > before


def test_what_is_rounding_or_not_finite_is_not_measured_and_so_alpha_is_bounded(strength):
    for base, more in ((1.0, 0.0), (1.0, 0.9 * SMALLEST), (1.0, math.inf), (math.nan, 1.0), (math.inf, 1.0)):
        assert of_norms(strength, base, more) == 0.0
    assert strength.measured(0.0) is None
    assert of_norms(strength, 1.0, 1.1 * SMALLEST) == pytest.approx(0.5 / (1.1 * SMALLEST))


def test_what_was_measured_goes_on_after_a_save(strength):
    for more in (0.3, 0.7, 0.1):
        of_norms(strength, 1.1, more)
    again = GradientRatio(strength.parameters, ratio=0.5)
    again.load_state_dict(json.loads(json.dumps(strength.state_dict())))
    assert again.measured(0.2) == strength.measured(0.2)
    assert of_norms(again, 0.9, 0.2) == of_norms(strength, 0.9, 0.2)


@pytest.mark.parametrize(
    "extra",
    [
        {"gradient_checkpointing": True},
        {"discrepancy_gradient": "tail"},
        {"accumulation": 2, "batch_size": 4, "mixed_precision": "bf16"},
        {"head": "linear", "discrepancy_fraction": 0.5},
        {"text_chunk": 2, "discrepancy_weighting": "sample"},
    ],
    ids=lambda extra: "-".join(extra),
)
def test_a_run_logs_the_alpha_it_used_and_the_ratio_that_this_is(settings, events, extra):
    keys = {"amplitude_ratio": 0.2, "amplitude": 99.0, "alpha_schedule": "constant", "dropout": 0.0, "max_steps": 4}
    folder = loop.train(from_dict({**settings, **extra, **keys}, "test"))
    steps = events(folder, "train")
    assert (steps[0]["alpha"], steps[0]["gradient_ratio"]) == (0.0, None)  # B is 0
    assert steps[1]["gradient_ratio"] == pytest.approx(0.2)
    for e in steps:
        assert e["loss"] == pytest.approx(e["base"] + e["alpha"] * e["discrepancy"], rel=1e-5)
        assert (e["alpha"] > 0) == (e["gradient_ratio"] is not None) == (e["step"] > 1)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"amplitude_ratio": 0.0}, "amplitude_ratio is 0.0; it must be above 0"),
        ({"processes": 2}, "amplitude_ratio measures gradients on one process"),
        ({"distribution": "ddp"}, "amplitude_ratio measures gradients on one process"),
        ({"mixed_precision": "fp16"}, "set mixed_precision: bf16"),
        ({"text_refresh": 2}, "leave text_refresh at 1"),
        ({"accumulation": 2, "tail_towers": "text"}, "set accumulation: 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(keys, text):
    with pytest.raises(ConfigError, match=text):
        TrainConfig(**({"dataset": "digits_mlt", "amplitude_ratio": 0.1} | keys)).check()


@pytest.mark.parametrize(
    ("keys", "came_up", "text"),
    [
        ({"amplitude_ratio": 0.1}, "ddp", r"one process, and 1 came up \(ddp\)"),
        ({"weight_decay_to": "start"}, "deepspeed", "is not for DeepSpeed"),
    ],
)
def test_processes_that_came_up_unasked_are_refused_too(settings, monkeypatch, keys, came_up, text):
    monkeypatch.setattr(processes, "distribution", lambda *_: came_up)
    with pytest.raises(ConfigError, match=text):
        processes.make_accelerator(from_dict({**settings, **keys}, "test"))
