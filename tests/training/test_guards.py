import math
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from clip_more.recipe import from_dict
from clip_more.training import loop
from clip_more.training.guards import TrainingError, not_finite, on_main, require_scale, shared_failure, step_losses
from clip_more.training.signals import Stopped, StopRequest
from clip_more.training.task import LongTailTask

ONE = SimpleNamespace(num_processes=1, is_main_process=True, process_index=0)


def losses(loss, base, discrepancy=None):
    return {"loss": torch.tensor(loss), "base": torch.tensor(base), "discrepancy": discrepancy}


def test_losses_of_a_step_are_means_over_its_micro_batches():
    values, stop = step_losses(ONE, [losses(1.0, 2.0), losses(3.0, 6.0)], 0.5, False)
    assert values == {"loss": 2.0, "base": 4.0, "gradient_norm": 0.5}
    assert not stop


def test_means_are_taken_in_full_precision():
    halves = [losses(value, value) for value in (1.0, 1.0078125)]
    for one in halves:
        one.update({name: one[name].bfloat16() for name in ("loss", "base")})
    assert step_losses(ONE, halves, 0.5, False)[0]["loss"] == 1.00390625  # no number of bf16


def test_the_wish_of_one_of_many_processes_stops_all():
    def mean(values, reduction):
        assert reduction == "mean"
        return values / 4  # the others have zeros

    many = SimpleNamespace(num_processes=4, reduce=mean)
    values, stop = step_losses(many, [losses(4.0, 8.0, torch.tensor(2.0))], 0.5, True)
    assert (values["loss"], values["base"], values["discrepancy"]) == (1.0, 2.0, 0.5)
    assert stop


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "base", "gradient_norm"])
def test_whatever_is_not_finite_is_named(name, value):
    values = {"loss": 1.0, "base": 1.0, "gradient_norm": 1.0} | {name: value}
    assert f"{name} {value:g}" in not_finite(values, scaled=False)
    assert (not_finite(values, scaled=True) is None) == (name == "gradient_norm")  # the scaler's business under fp16


def test_a_loss_that_is_not_finite_counts_under_fp16_whatever_the_gradient_is():
    assert not_finite({"loss": math.nan, "gradient_norm": math.inf}, scaled=True) == "loss nan, gradient_norm inf"


def test_finite_values_are_no_reason_to_stop():
    assert not_finite({"loss": 1e30, "gradient_norm": 0.0}, scaled=False) is None


def test_failure_of_the_main_process_is_its_own_there():
    def fail():
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        on_main(ONE, fail)


def test_one_process_keeps_its_own_error():
    with pytest.raises(ValueError, match="mine"), shared_failure(ONE):
        raise ValueError("mine")


def test_deferred_signals_are_noted_and_then_as_before():
    before = signal.getsignal(signal.SIGTERM)
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        with StopRequest() as stop, stop.deferred():
            assert stop.name is None
            os.kill(os.getpid(), getattr(signal, name))
            assert stop.name == name
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("name", "raised"), [("SIGTERM", Stopped), ("SIGUSR1", Stopped), ("SIGINT", KeyboardInterrupt)]
)
def test_outside_the_steps_a_signal_ends_the_run_at_once(name, raised):
    with StopRequest(), pytest.raises(raised):
        signal.raise_signal(getattr(signal, name))


def test_second_interrupt_stops_at_once():
    with StopRequest() as stop, stop.deferred():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def not_finite_at(monkeypatch, *calls):
    """Make the loss of these forward passes in training NaN."""
    forward, seen = LongTailTask.forward, []

    def broken(self, batch, alpha=0.0, **when):
        seen.append(1)
        found = forward(self, batch, alpha, **when)
        return {**found, "loss": found["loss"] * math.nan} if len(seen) in calls else found

    monkeypatch.setattr(LongTailTask, "forward", broken)


def test_steps_that_are_not_finite_are_skipped_and_counted(settings, events, monkeypatch):
    not_finite_at(monkeypatch, 2, 4)
    settings = {**settings, "tuning": "full", "not_finite": "skip", "max_skipped": 2, "checkpoint_every": 1}
    folder = loop.train(from_dict(settings, "test"))
    assert [event["step"] for event in events(folder, "skipped")] == [2, 4]
    assert [event["skipped"] for event in events(folder, "train")] == [0, 1, 1, 2, 2, 2]
    assert [event["loss"] is None for event in events(folder, "train")] == [False, True, False, True, False, False]


def test_a_skipped_step_leaves_weights_moments_and_average_alone(settings, monkeypatch):
    from safetensors.torch import load_file

    not_finite_at(monkeypatch, 2, 6)
    settings = {**settings, "tuning": "full", "not_finite": "skip", "checkpoint_every": 1, "keep": "ema"}
    settings |= {"keep_checkpoints": 9}
    folder = loop.train(from_dict(settings, "test")) / "checkpoints"
    # Older ones need not make room for one that brings nothing; the last is there whatever happened.
    assert sorted(path.name for path in folder.iterdir()) == ["step_1", "step_3", "step_4", "step_5", "step_6"]
    for kind in ("model", "optimizer", "average"):
        fourth, fifth, sixth = (load_file(folder / f"step_{step}" / f"{kind}.safetensors") for step in (4, 5, 6))
        assert all(torch.equal(fifth[name], sixth[name]) for name in fifth), kind
        assert any(not torch.equal(fourth[name], fifth[name]) for name in fifth), kind


def test_more_skipped_steps_than_allowed_stop_the_run(settings, events, monkeypatch):
    not_finite_at(monkeypatch, 2, 3, 4)
    settings = {**settings, "tuning": "full", "not_finite": "skip", "max_skipped": 2}
    with pytest.raises(TrainingError, match="not finite at step 4, after 2 skipped steps: loss nan"):
        loop.train(from_dict(settings, "test"))
    (event,) = events(from_dict(settings, "test").run_folder, "failed")
    assert "not finite at step 4" in event["reason"]


def test_signal_while_a_photo_is_opened_is_no_fault_of_the_photo(settings, monkeypatch):
    import PIL.Image

    def interrupted(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(PIL.Image, "open", interrupted)
    with pytest.raises(Stopped, match="SIGTERM, with no step to save"):
        loop.train(from_dict(settings, "test"))


def signal_in_step(monkeypatch, step, number):
    """Send this process a signal in the forward pass of a step; the list returned grows with every pass."""
    forward, seen = LongTailTask.forward, []

    def interrupted(self, batch, alpha=0.0, **when):
        seen.append(1)
        if len(seen) == step:
            signal.raise_signal(number)
        return forward(self, batch, alpha, **when)

    monkeypatch.setattr(LongTailTask, "forward", interrupted)
    return seen


def test_signal_in_the_last_step_stops_before_the_report(settings, monkeypatch):
    seen = signal_in_step(monkeypatch, 6, signal.SIGUSR1)
    with pytest.raises(Stopped, match="SIGUSR1: saved at step 6 of 6"):
        loop.train(from_dict(settings, "test"))
    assert (loop.train(from_dict(settings, "test")) / "report/results.json").exists()
    assert len(seen) == 6


def test_a_scale_of_fp16_that_falls_below_one_stops_the_run():
    def under(scale, skipped):
        return SimpleNamespace(optimizer_step_was_skipped=skipped, scaler=SimpleNamespace(get_scale=lambda: scale))

    with pytest.raises(TrainingError, match="gradients are not finite at step 7, at any scale"):
        require_scale(under(0.5, skipped=True), 7)
    require_scale(under(1.0, skipped=True), 7)
    require_scale(under(0.5, skipped=False), 7)
    require_scale(SimpleNamespace(optimizer_step_was_skipped=False, scaler=None), 7)


def test_signal_saves_after_the_step_and_naming_the_run_again_goes_on(settings, events, monkeypatch):
    from safetensors.torch import load_file

    whole = loop.train(from_dict({**settings, "run": "whole"}, "test"))
    signal_in_step(monkeypatch, 2, signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM: saved at step 2 of 6"):
        loop.train(from_dict(settings, "test"))
    folder = loop.train(from_dict(settings, "test"))
    assert [(event["step"], event["signal"]) for event in events(folder, "stopped")] == [(2, "SIGTERM")]
    assert [(event["step"], event["exact"]) for event in events(folder, "resume")] == [(2, True)]
    one, two = (load_file(run / "merged/model.safetensors") for run in (whole, folder))
    assert all(torch.equal(one[key], two[key]) for key in one)
