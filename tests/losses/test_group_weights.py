"""Weights of groups against the loss of each group alone."""

import pytest
import torch

from clip_more.config import ConfigError
from clip_more.data.profile import ClassProfile
from clip_more.recipe import from_dict
from clip_more.training.build import build_losses
from clip_more.training.combinations import check_combination

PROFILE = ClassProfile(("red", "green", "blue"), (10, 6, 2), head_min=10, tail_max=5, photos=12)


def config_of(**keys):
    return from_dict({"dataset": "digits_mlt", "tuning": "full", **keys}, "test")


@pytest.mark.parametrize("loss", ["bce", "asl", "focal", "cb_bce"])
def test_each_group_counts_by_its_weight(loss):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(8, 3, dtype=torch.float64, generator=generator)
    targets = (torch.rand(8, 3, generator=generator) < 0.4).double()
    known = torch.rand(8, 3, generator=generator) < 0.8
    plain = build_losses(config_of(loss=loss), PROFILE)[0]
    weighted = build_losses(config_of(loss=loss, group_weights={"head": 0, "tail": 3}), PROFILE)[0]
    alone = [plain(logits, targets, known & (torch.arange(3) == c)) for c in range(3)]
    torch.testing.assert_close(weighted(logits, targets, known), alone[1] + 3 * alone[2])


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"group_weights": {"tails": 2}}, "names 'tails', which is no group; groups: head, medium, tail"),
        ({"group_weights": {"tail": 2}, "loss_reduction": "mean"}, "needs the sum over all classes"),
        ({"group_weights": {"tail": 2}, "loss": "db"}, "weighs labels by each other already"),
        ({"group_weights": {"tail": 2}, "loss": "ce", "task": "single_label"}, "one softmax over all of them"),
    ],
)
def test_what_cannot_be_weighed_is_refused(keys, text):
    with pytest.raises(ConfigError, match=text):
        check_combination(config_of(**keys))


def test_weights_are_numbers():
    with pytest.raises(ConfigError, match=r"group_weights is .*, but it must be a mapping to numbers"):
        config_of(group_weights={"tail": "x"})


@pytest.mark.parametrize("weights", [{"tail": -1.0}, {"tail": float("nan")}, {"head": 0, "medium": 0, "tail": 0}])
def test_weights_that_say_nothing_are_refused(weights):
    with pytest.raises(ConfigError, match="weights are 0 or more, and not all 0"):
        check_combination(config_of(group_weights=weights))


def test_a_tail_made_heavier_twice_is_noted():
    (note,) = check_combination(config_of(group_weights={"tail": 3}, loss="cb_bce"))
    assert "and so does loss: cb_bce, which corrects twice" in note
