from types import SimpleNamespace

import pytest
import torch

from clip_more.config import LOSSES, LOSSES_OF_ONE_LABEL, ConfigError, TrainConfig
from clip_more.losses import BASE_LOSSES
from clip_more.training.combinations import check_combination


def check(**keys):
    return check_combination(SimpleNamespace(**keys))


def refused(**keys):
    with pytest.raises(ConfigError) as error:
        check(**keys)
    return str(error.value)


def only(**keys):
    found = check(**keys)
    assert len(found) == 1, found
    return found[0]


SINGLE = {"task": "single_label", "discrepancy_gradient": "both"}


def test_the_defaults_are_fine():
    assert check() == []
    assert check_combination(TrainConfig(dataset="digits_mlt")) == []


def test_config_and_losses_have_the_same_names():
    assert set(LOSSES) == set(BASE_LOSSES)
    two_labels = torch.tensor([[1.0, 1.0, 0.0]])
    counts = {"counts": torch.tensor([3, 2, 1])}
    options = dict.fromkeys(("cb_bce", "cb_ce", "balanced_softmax", "logit_adjusted_ce", "ldam"), counts)
    options |= dict.fromkeys(("db", "db_focal"), counts | {"photos": 6})
    for name, loss in BASE_LOSSES.items():
        made = loss(**options.get(name, {}))
        if name in LOSSES_OF_ONE_LABEL:
            with pytest.raises(ValueError, match="has 2 positive labels"):
                made(torch.zeros(1, 3), two_labels)
        else:
            assert made(torch.zeros(1, 3), two_labels) > 0


@pytest.mark.parametrize("loss", LOSSES_OF_ONE_LABEL)
def test_losses_of_one_label_are_refused_for_several(loss):
    text = refused(task="multi_label", loss=loss, head="cosine")
    assert text.startswith(f"loss: {loss} is one softmax over the classes")
    assert "set task: single_label" in text
    assert not any("one softmax" in warning for warning in check(task="single_label", loss=loss, head="cosine"))


@pytest.mark.parametrize("loss", sorted(set(LOSSES) - {"bce", "asl", "focal"}))
def test_a_sample_of_the_classes_is_refused_where_all_are_needed(loss):
    text = refused(task="single_label", loss=loss, text_classes=500)
    assert f"loss: {loss} needs them all" in text
    assert "choose loss: bce, asl, focal, or leave text_classes out" in text


@pytest.mark.parametrize("loss", ["bce", "asl", "focal"])
def test_a_sample_of_the_classes_goes_with_plain_sums(loss):
    assert check(loss=loss, text_classes=500) == []


@pytest.mark.parametrize("head", ["prompts", "cosine"])
def test_feature_regularisation_is_refused_on_heads_that_do_not_see_lengths(head):
    text = refused(head=head, feature_regularisation=0.01)
    assert f"head: {head} divides by their length" in text
    assert "set feature_regularisation: 0, or a head that sees lengths" in text
    assert check(head=head, feature_regularisation=0.0) == []


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"tuning": "head"}, "tuning: head trains nothing that makes them"),
        ({"discrepancy_gradient": "tail"}, "discrepancy_gradient: tail sees logits alone"),
    ],
)
def test_feature_regularisation_is_refused_where_no_feature_feels_it(keys, reason):
    assert reason in refused(head="linear", feature_regularisation=0.01, **keys)
    assert check(head="linear", **keys) == []


def test_two_decays_of_the_head_are_refused():
    assert "leave one of them out" in refused(decay_all=True, weight_decay_head=0.1)
    assert check(decay_all=True) == check(weight_decay_head=0.1) == []


@pytest.mark.parametrize("tuning", ["lora", "head"])
def test_a_pull_to_the_start_is_refused_where_nothing_leaves_it(tuning):
    assert f"tuning: {tuning} trains none" in refused(tuning=tuning, weight_decay_to="start")
    assert check(tuning="full", weight_decay_to="start") == check(weight_decay_to="start") == []


@pytest.mark.parametrize("loss", ["bce", "focal"])
def test_focus_of_the_discrepancy_is_refused_where_the_loss_has_none(loss):
    assert f"loss: {loss} has none like it" in refused(loss=loss, discrepancy_focus=True)
    assert check(loss="asl", discrepancy_focus=True) == []


def test_a_ratio_of_gradients_is_refused_where_the_discrepancy_has_none():
    assert "stop_full leaves it none" in refused(amplitude_ratio=0.1, discrepancy_gradient="stop_full")
    assert check(amplitude_ratio=0.1, discrepancy_gradient="tail") == []


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"tuning": "more"}, "set tuning: full"),
        ({"tuning": "lora"}, "tuning: lora is not all weights"),
        ({"dropout": 0.0}, "dropout is 0, so they are the same"),
        ({"discrepancy_gradient": "stop_general"}, "set discrepancy_gradient: both"),
    ],
)
def test_two_draws_of_dropout_are_refused_where_there_are_none_or_other_passes(keys, reason):
    pair = {"discrepancy_pair": "dropout", "tuning": "full", "dropout": 0.1, "discrepancy_gradient": "both"}
    assert reason in refused(**(pair | keys))
    assert check(**pair) == []


@pytest.mark.parametrize("head", ["linear", "normed_linear", "frame"])
def test_feature_regularisation_goes_with_heads_that_see_lengths(head):
    assert check(head=head, feature_regularisation=0.01) == []


BALANCED = ["square_root", "class_balanced", "progressive", "class_aware", "distribution_balanced", "weighted"]


@pytest.mark.parametrize("sampler", BALANCED)
@pytest.mark.parametrize("loss", ["cb_bce", "cb_ce", "balanced_softmax", "logit_adjusted_ce", "ldam"])
def test_balanced_sampling_and_a_balanced_loss_correct_twice(sampler, loss):
    text = only(**SINGLE, sampler=sampler, loss=loss, head="cosine")
    assert f"sampler: {sampler} and loss: {loss} both make up for rare classes" in text
    assert "set sampler: instance, or a loss without class counts" in text


@pytest.mark.parametrize("loss", ["bce", "asl", "focal", "ce", "focal_ce"])
def test_either_correction_alone_is_fine(loss):
    assert check(**SINGLE, sampler="class_balanced", loss=loss) == []
    assert check(**SINGLE, sampler="instance", loss="cb_bce") == []
    assert check(**SINGLE, sampler="weighted", sampler_exponent=1.0, loss="cb_bce") == []


@pytest.mark.parametrize("loss", ["db", "db_focal"])
def test_db_has_a_sampling_of_its_own(loss):
    for sampler in ("instance", "distribution_balanced", "class_aware"):
        assert check(loss=loss, sampler=sampler) == []
    for sampler in ("class_balanced", "square_root", "progressive", "weighted"):
        text = only(loss=loss, sampler=sampler)
        assert f"loss: {loss} takes its weights from how often a photo comes" in text
        assert "set sampler: distribution_balanced" in text


def test_an_etf_for_several_labels_is_told_of_the_frame():
    text = only(head="etf", task="multi_label")
    assert "sum to 0, whatever it shows" in text
    assert text.endswith("set head: frame")
    assert check(head="frame", task="multi_label") == []
    assert check(head="etf", **SINGLE, loss="ce") == []


@pytest.mark.parametrize("head", ["linear", "normed_linear", "etf", "frame"])
def test_ldam_on_a_head_that_is_no_cosine_is_warned_about(head):
    text = only(**SINGLE, loss="ldam", head=head)
    assert f"logits of head: {head} are none" in text
    assert text.endswith("set head: cosine")


def test_ldam_on_prompts_is_told_of_the_two_scales():
    assert "set head: cosine, whose scale then is ldam_scale alone" in only(**SINGLE, loss="ldam", head="prompts")
    assert check(**SINGLE, loss="ldam", head="cosine") == []


def test_inverse_weights_of_the_discrepancy_are_called_a_control():
    assert "keep it as a control, or set it to 1" in only(discrepancy_prior_exponent=-1.0)
    assert check(discrepancy_prior_exponent=-1.0, tuning="full") == []


def test_a_stopped_general_pass_is_doubtful_under_a_softmax():
    assert "set discrepancy_gradient: both" in only(task="single_label", loss="ce")
    assert check(task="single_label", loss="ce", tuning="full") == []
    assert check(**SINGLE, loss="ce") == []


@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_photo_weights_that_do_not_spare_the_tail_are_warned_about(reduce):
    keys = {"discrepancy_weighting": "sample", "discrepancy_sample_reduce": reduce}
    assert "set discrepancy_sample_reduce: min" in only(**keys)
    assert check(**keys, **SINGLE, loss="ce") == []
    assert check(**keys, tuning="full") == []
    assert check(discrepancy_weighting="label", discrepancy_sample_reduce=reduce) == []


def test_mean_reduction_of_the_discrepancy_beside_one_softmax_is_warned_about():
    text = only(**SINGLE, loss="ce", loss_reduction="mean")
    assert "set discrepancy_reduction: sum, or loss_reduction: sum" in text
    assert check(**SINGLE, loss="ce", loss_reduction="mean", discrepancy_reduction="mean") == []
    assert check(**SINGLE, loss="bce", loss_reduction="mean") == []
