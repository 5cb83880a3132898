"""A tail that learns from the base loss of rare classes alone."""

import shutil

import pytest
import torch

from clip_more.adapters import tail_parameters
from clip_more.config import ConfigError
from clip_more.data.profile import ClassProfile
from clip_more.evaluation.run_events import read_events
from clip_more.models.clip import load_clip
from clip_more.recipe import from_dict
from clip_more.training import loop
from clip_more.training.build import build_classifier, build_task, check_method
from clip_more.training.routing import RoutedGradient, check_routing
from tests.adapters.test_layer import randomise_tail
from tests.training.tiny_task import ALPHA, photos
from tests.training.twins import differences

PROFILE = ClassProfile(("red", "green", "blue"), (10, 6, 2), head_min=10, tail_max=5, photos=12)


def config_of(**keys):
    return from_dict({"dataset": "digits_mlt", "model": "tiny", **keys}, "test")


@pytest.mark.parametrize("recipe", [{"loss": "asl"}, {"loss": "db_focal", "amplitude": 0.0}, {"tail_towers": "text"}])
def test_a_and_b_learn_from_rare_classes_and_w_g_from_all(recipe):
    tasks = []
    for extra in ({"tail_learns": "rare"}, {}):
        config = config_of(rho=0.3, **recipe, **extra)
        task = build_task(config, build_classifier(config, load_clip("tiny"), PROFILE), PROFILE).train()
        torch.manual_seed(0)
        randomise_tail(task, 0.05)
        tasks.append(task.double())
    routed, plain = tasks
    batch = {name: t.double() if t.is_floating_point() else t for name, t in photos(8).items()}
    rare = batch | {"known": batch["known"] & torch.tensor([False, True, True])}
    alpha = recipe.get("amplitude", ALPHA)

    def gradients_of(task, part, alpha):
        task.zero_grad()
        task(part, alpha=alpha)["loss"].backward()
        return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}

    ours, everything = gradients_of(routed, batch, alpha), gradients_of(plain, batch, alpha)
    base, of_rare = gradients_of(plain, batch, 0.0), gradients_of(plain, rare, 0.0)
    tails = tail_parameters(plain)
    for name, gradient in ours.items():
        expected = everything[name]
        if name in tails:  # the base loss of rare classes, and all of L_MORE
            expected = of_rare[name] + everything[name] - base[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11)


def test_routed_gradients_accumulate():
    weight = torch.ones(2, requires_grad=True)
    routed = RoutedGradient([weight], steps=2)
    for factor in (1.0, 3.0):
        routed.take((factor * weight).sum())
        ((7 * weight).sum() / 2).backward()
    assert weight.grad.tolist() == [2.0, 2.0]


def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_not_stopped(settings, tmp_path):
    keys = {"tail_learns": "rare", "weight_decay_to": "start", "weight_decay": 10.0, "group_weights": {"tail": 3.0}}
    recipe = {**settings, **keys, "max_steps": 4, "checkpoint_every": 1, "keep_checkpoints": 4, "bootstrap": 0}
    folder = loop.train(from_dict(recipe, "test"))
    shutil.copytree(folder, tmp_path / "twin")
    for part in ("checkpoints/step_3", "checkpoints/step_4", "report", "merged", "general", "tail"):
        shutil.rmtree(folder / part)  # as if it was stopped after two steps
    assert loop.train(from_dict(recipe, "test")) == folder
    assert differences(folder, tmp_path / "twin") == []
    assert [event["step"] for event in read_events(folder / "metrics.jsonl") if event["event"] == "resume"] == [2]


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"tuning": "full"}, "tail_learns is about a tail, and tuning: full has none"),
        ({"tail_learns": "tail", "group_weights": {"tail": 0.0}}, "group_weights is 0 for all that it learns from"),
        ({"loss": "ce", "task": "single_label"}, "tail_learns does not go with loss: ce"),
        ({"head": "linear"}, "does not go with head: anything but prompts"),
        ({"amplitude_ratio": 0.3}, "does not go with amplitude_ratio"),
        ({"gradient_checkpointing": True}, "does not go with gradient_checkpointing"),
        ({"accumulation": 2}, "does not go with accumulation"),
        ({"text_classes": 2}, "does not go with text_classes"),
        ({"text_refresh": 2}, "does not go with text_refresh"),
        ({"loss_reduction": "mean"}, "does not go with loss_reduction: mean"),
        ({"distribution": "fsdp2"}, "does not go with distribution: fsdp2"),
    ],
)
def test_what_cannot_help_is_refused(keys, text):
    config = config_of(**{"tail_learns": "rare"} | keys)
    with pytest.raises(ConfigError, match=text):
        check_method(config, build_classifier(config, load_clip("tiny"), PROFILE), PROFILE)


def test_a_tail_without_classes_says_what_to_raise():
    profile = ClassProfile(PROFILE.names, PROFILE.counts, head_min=10, tail_max=2, photos=12)
    with pytest.raises(ConfigError, match=r"no class has fewer than tail_max: 2 train positives; raise tail_max"):
        check_routing(config_of(tail_learns="tail"), build_classifier(config_of(), load_clip("tiny"), profile), profile)


def test_weights_of_a_group_without_classes_are_noted():
    profile = ClassProfile(PROFILE.names, PROFILE.counts, head_min=10, tail_max=2, photos=12)
    config = config_of(group_weights={"tail": 3.0, "head": 2.0})
    notes = check_method(config, build_classifier(config, load_clip("tiny"), profile), profile)
    assert notes == ["group_weights weighs tail, and no class is that: see head_min and tail_max"]
