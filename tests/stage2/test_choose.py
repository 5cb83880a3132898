import pytest
import torch

from clip_more.models.feature_heads import LinearHead
from clip_more.stage2.choose import Fitted, choose
from tests.stage2.gaussians import gaussian_stage, photos


def head_of(bias):
    """Class 0 alone at bias 1, class 1 alone at -1."""
    return LinearHead(torch.zeros(4, 6), torch.tensor([bias, -bias, -9.0, -9.0]))


def grid(*values):
    return [{"strength": float(value)} for value in values]


def test_of_equals_the_smallest_correction_is_chosen():
    head, selection = choose(
        "x", gaussian_stage(), grid(0, 1, 2), lambda data, values, label: Fitted(head_of(1.0 - values["strength"] * 2))
    )
    assert [candidate["scores"]["total"] for candidate in selection.candidates] == [0.25] * 3
    assert selection.chosen == {"strength": 0.0}
    assert torch.equal(head.bias, torch.tensor([1.0, -1.0, -9.0, -9.0]))


def test_a_fit_that_came_to_nothing_finite_has_no_score_and_is_not_chosen():
    heads = {0.0: head_of(float("nan")), 1.0: head_of(1.0)}
    _, selection = choose(
        "x", gaussian_stage(), grid(0, 1), lambda data, values, label: Fitted(heads[values["strength"]])
    )
    assert selection.candidates[0]["scores"] is None
    assert selection.chosen == {"strength": 1.0}
    with pytest.raises(ValueError, match="no candidate gave finite logits"):
        choose("x", gaussian_stage(), grid(0), lambda data, values, label: Fitted(heads[0.0]))


def test_without_validation_photos_what_is_given_is_taken_and_nothing_is_chosen():
    stage = gaussian_stage(val=None)
    _, selection = choose("x", stage, grid(3), lambda data, values, label: Fitted(head_of(1.0)))
    assert (selection.chosen, selection.measure, selection.photos) == ({"strength": 3.0}, None, 0)
    with pytest.raises(ValueError, match="x has --strength to choose and no validation photos"):
        choose("x", stage, grid(0, 1), lambda data, values, label: Fitted(head_of(1.0)))


def test_candidates_see_train_alone_and_a_refit_sees_all_photos_with_the_chosen_value():
    stage = gaussian_stage()
    seen = []

    def fit(data, values, label):
        seen.append((len(data), values["strength"]))
        return Fitted(head_of(1.0))

    choose("x", stage, grid(0, 1), fit)
    assert seen == [(772, 0.0), (772, 1.0)]
    seen.clear()
    _, selection = choose("x", gaussian_stage(refit=True), grid(0, 1), fit)
    assert seen == [(772, 0.0), (772, 1.0), (772 + 240, 0.0)]
    assert selection.refitted


def test_scores_are_given_by_group_too():
    _, selection = choose("x", gaussian_stage(), grid(0), lambda data, values, label: Fitted(head_of(1.0)))
    assert selection.candidates[0]["scores"] == {"total": 0.25, "head": 1.0, "medium": 0.0, "tail": 0.0}


def test_balanced_photos_make_no_difference_between_ways_of_counting():
    """On balanced validation photos the measure is plain top-1."""
    stage = gaussian_stage()
    _, selection = choose("x", stage, grid(0), lambda data, values, label: Fitted(stage.head))
    data = photos((60,) * 4, 1)
    with torch.no_grad():
        right = stage.head(data.features).argmax(1) == data.targets.int().argmax(1)
    assert selection.candidates[0]["scores"]["total"] == pytest.approx(right.double().mean().item(), abs=1e-12)
