import copy

import pytest
import torch
from torch import nn

from clip_more.training.average import RunningAverage


@pytest.fixture
def model():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()
    network[1].weight.requires_grad_(False)
    return network


def set_to(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def state(model):
    return copy.deepcopy(model.state_dict())


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize("limit", [0.3, 0.999])
def test_each_update_has_its_closed_form_and_early_ones_a_smaller_decay(model, limit):
    """Decay (1 + t) / (10 + t): 2/11, 3/12, 4/13, ... until the limit."""
    set_to(model, 1.0)
    average, expected = RunningAverage(model, limit), 1.0
    for step, value in enumerate((2.0, -3.0, 0.5, 7.0, 4.0), start=1):
        set_to(model, value)
        average.update(model, step)
        decay = min(limit, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        for name, tensor in average.tensors.items():
            torch.testing.assert_close(tensor, torch.full_like(tensor, expected), rtol=1e-12, atol=0, msg=name)
        assert all((parameter == value).all() for parameter in model.parameters())


def test_late_updates_have_the_decay_of_the_recipe(model):
    set_to(model, 0.0)
    average = RunningAverage(model, 0.9)
    set_to(model, 1.0)
    average.update(model, 1_000_000)
    for tensor in average.tensors.values():
        torch.testing.assert_close(tensor, torch.full_like(tensor, 0.1), rtol=1e-12, atol=0)


def test_weights_that_stand_still_are_their_own_average(model):
    average = RunningAverage(model, 0.999)
    before = state(model)
    for step in range(1, 4):
        average.update(model, step)
    for name, tensor in average.tensors.items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-12, atol=0)


def test_only_what_is_trained_is_averaged(model):
    assert set(RunningAverage(model, 0.9).tensors) == {"0.weight", "0.bias", "1.bias"}


def test_swap_exchanges_and_a_second_one_undoes_it(model):
    average = RunningAverage(model, 0.9)
    averages = {name: tensor.clone() for name, tensor in average.tensors.items()}
    set_to(model, 5.0)
    trained = state(model)
    average.swap(model)
    assert_equal(state(model), {**trained, **averages})
    assert all((tensor == 5.0).all() for tensor in average.tensors.values())
    average.swap(model)
    assert_equal(state(model), trained)
    assert_equal(average.tensors, averages)


def test_swap_keeps_the_parameters_that_an_optimiser_holds(model):
    average, before = RunningAverage(model, 0.9), list(model.parameters())
    set_to(model, 5.0)
    average.swap(model)
    assert all(a is b for a, b in zip(model.parameters(), before, strict=True))
    assert all(parameter.requires_grad == (n != "1.weight") for n, parameter in model.named_parameters())


def test_averages_are_applied_inside_and_trained_weights_come_back_also_after_an_error(model):
    average = RunningAverage(model, 0.9)
    averages = {name: tensor.clone() for name, tensor in average.tensors.items()}
    set_to(model, 5.0)
    trained = state(model)

    def broken_judge():
        with average.applied(model):
            assert_equal(state(model), {**trained, **averages})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken_judge()
    assert_equal(state(model), trained)
    assert_equal(average.tensors, averages)
