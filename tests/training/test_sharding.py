"""Sharding on a mesh of one process; two of them are in test_processes.py."""

import copy
import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from clip_more.training.average import RunningAverage
from clip_more.training.sharding import (
    full_weights,
    is_sharded,
    load_full_weights,
    load_optimizer_tensors,
    optimizer_tensors,
    shard,
    shardable_copy,
)
from tests.training.tiny_task import adamw, photos, tiny_task, train


@pytest.fixture(scope="module")
def built():
    return tiny_task()


@pytest.fixture
def task(built):
    return copy.deepcopy(built[0])


@pytest.fixture
def config(built):
    return built[1]


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def copied(tensors):
    return {name: tensor.clone() for name, tensor in tensors.items()}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_every_parameter_is_sharded_layer_by_layer_and_weights_come_back_to_the_bit(task, process_group):
    plain = copied(full_weights(task))
    sharded = shard(copy.deepcopy(task))
    layers = [name for name, module in sharded.named_modules() if isinstance(module, FSDPModule) and name]
    encoders = (task.classifier.clip.model.vision_model.encoder, task.classifier.clip.model.text_model.encoder)
    assert len(layers) == sum(len(encoder.layers) for encoder in encoders) > 2
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    assert is_sharded(sharded)
    assert not is_sharded(task)
    gathered = full_weights(sharded)
    assert_same(gathered, plain)
    assert list(gathered) == list(plain)
    assert not any(isinstance(tensor, DTensor) for tensor in gathered.values())


def test_full_weights_go_into_a_sharded_task_and_from_it_into_a_plain_one(task, process_group):
    sharded = shard(copy.deepcopy(task))
    other = {name: torch.randn(tensor.shape).to(tensor.dtype) for name, tensor in full_weights(task).items()}
    load_full_weights(sharded, other)
    assert_same(full_weights(sharded), other)
    load_full_weights(task, full_weights(sharded))
    assert_same(task.state_dict(), other)


def test_a_wrapped_task_has_the_names_of_the_plain_one(task, config, process_group):
    wrapped = DistributedDataParallel(task)
    assert_same(full_weights(wrapped), task.state_dict())
    optimizer = adamw(task, config)
    train(wrapped.module, optimizer, 1, photos(2))
    assert "exp_avg.classifier.head.bias" in optimizer_tensors(wrapped, optimizer)[0]


def test_a_copy_keeps_keys_and_shapes_while_its_frozen_scalar_is_a_buffer(task):
    copied_task = shardable_copy(task)
    assert_same(copied_task.state_dict(), task.state_dict())
    assert "classifier.clip.model.logit_scale" in dict(copied_task.named_buffers())
    assert "classifier.clip.model.logit_scale" in dict(task.named_parameters())
    assert not any(parameter.ndim == 0 for parameter in copied_task.parameters())


def test_a_trained_scalar_is_refused(task):
    task.temperature = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"temperature is a trained scalar.*give it shape \(1,\)"):
        shardable_copy(task)


def test_a_gradient_for_the_tail_alone_is_refused(task):
    task.tail_only = True
    with pytest.raises(ValueError, match="choose another discrepancy_gradient, or distribution: ddp"):
        shard(task)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("classifier.head.bias"), "the weights lack classifier.head.bias$"),
        (lambda w: w.update(odd=torch.zeros(2)), "the weights hold odd besides"),
        (
            lambda w: w.update({"classifier.head.bias": torch.zeros(4)}),
            r"classifier.head.bias has shape \(4,\), and the model's is \(3,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_loaded(task, change, said):
    before = copied(task.state_dict())
    weights = {name: tensor + 1 for name, tensor in full_weights(task).items()}
    change(weights)
    with pytest.raises(ValueError, match=said):
        load_full_weights(task, weights)
    assert_same(task.state_dict(), before)


def test_many_names_that_differ_are_counted(task):
    with pytest.raises(ValueError, match=r"the weights lack .*, .*, .* and \d+ more$"):
        load_full_weights(task, {})


@pytest.mark.parametrize(
    "make",
    [
        adamw,
        lambda task, _: torch.optim.AdamW(task.parameters(), amsgrad=True, lr=1e-3),
        lambda task, _: torch.optim.SGD(task.parameters(), lr=1e-3, momentum=0.9),
        lambda task, _: torch.optim.SGD(task.parameters(), lr=1e-3),
    ],
    ids=["AdamW in groups", "AMSGrad", "SGD with momentum", "SGD"],
)
def test_training_goes_on_bit_for_bit_from_weights_and_optimiser_state(task, config, make):
    optimizer, batch = make(task, config), photos(4)
    train(task, optimizer, 2, batch)
    weights, tensors = copied(full_weights(task)), copied(optimizer_tensors(task, optimizer)[0])
    train(task, optimizer, 2, batch)

    again = tiny_task()[0]
    load_full_weights(again, weights)
    other = make(again, config)
    load_optimizer_tensors(again, other, tensors)
    train(again, other, 2, batch)
    assert_same(again.state_dict(), task.state_dict())
    assert_same(optimizer_tensors(again, other)[0], optimizer_tensors(task, optimizer)[0])


def test_state_moves_between_a_plain_and_a_sharded_run_to_the_bit(task, config, process_group):
    optimizer, batch = adamw(task, config), photos(4)
    train(task, optimizer, 2, batch)
    weights, tensors = copied(full_weights(task)), copied(optimizer_tensors(task, optimizer)[0])

    sharded = shard(shardable_copy(tiny_task()[0]))
    other = adamw(sharded, config)
    load_full_weights(sharded, weights)
    load_optimizer_tensors(sharded, other, tensors)
    held = other.state[sharded.classifier.head.bias]
    assert isinstance(held["exp_avg"], DTensor)
    assert held["step"] == 2
    assert_same(optimizer_tensors(sharded, other)[0], tensors)

    train(task, optimizer, 1, batch)
    train(sharded, other, 1, batch)
    moved = full_weights(sharded)
    for name, tensor in task.state_dict().items():
        torch.testing.assert_close(moved[name], tensor, rtol=1e-5, atol=1e-7, msg=name)


def test_the_state_is_named_by_parameter_and_groups_are_plain_values(task, config):
    optimizer = adamw(task, config)
    train(task, optimizer, 1, photos(2))
    tensors, groups = optimizer_tensors(task, optimizer)
    trained = {name for name, parameter in task.named_parameters() if parameter.requires_grad}
    assert set(tensors) == {f"{slot}.{name}" for slot in ("step", "exp_avg", "exp_avg_sq") for name in trained}
    assert groups["head"]["weight_decay"] == 0.0
    assert groups["towers"]["lr"] == config.lr
    assert "params" not in groups["tail"]


def test_an_optimiser_that_accelerate_prepared_is_read_and_written_like_its_own(task, config, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    prepared = Accelerator(cpu=True).prepare(adamw(task, config))
    train(task, prepared, 1, photos(2))
    tensors, _ = optimizer_tensors(task, prepared)
    fresh = adamw(task, config)
    load_optimizer_tensors(task, fresh, tensors)
    assert_same(optimizer_tensors(task, fresh)[0], tensors)
    load_optimizer_tensors(task, prepared, {name: tensor + 1 for name, tensor in tensors.items()})
    assert prepared.optimizer.state[task.classifier.head.bias]["step"] == 2
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"exp_avg.classifier.head.gone": torch.zeros(3)}, "is of classifier.head.gone, which this recipe does not"),
        ({"exp_avg.classifier.head.bias": torch.zeros(4)}, r"exp_avg of classifier.head.bias has shape \(4,\)"),
    ],
)
def test_optimiser_state_of_another_model_is_named_and_nothing_is_loaded(task, config, tensors, said):
    optimizer = adamw(task, config)
    train(task, optimizer, 1, photos(2))
    before = copied(optimizer_tensors(task, optimizer)[0])
    with pytest.raises(ValueError, match=said):
        load_optimizer_tensors(task, optimizer, tensors)
    assert_same(optimizer_tensors(task, optimizer)[0], before)


def test_what_was_loaded_is_no_part_of_what_it_was_loaded_from(task, config):
    optimizer = adamw(task, config)
    train(task, optimizer, 1, photos(2))
    tensors = copied(optimizer_tensors(task, optimizer)[0])
    before = copied(tensors)
    load_optimizer_tensors(task, optimizer, tensors)
    train(task, optimizer, 1, photos(2))
    assert_same(tensors, before)


def test_average_and_scale_bound_work_on_shards(task, process_group):
    """The running average's closed form after one update, its way out and in, and the bound of 100."""
    sharded = shard(shardable_copy(task))
    average = RunningAverage(sharded, 0.999)
    start = copied(average.full())
    with torch.no_grad():
        for parameter in sharded.parameters():
            parameter.add_(1.0)
    average.update(sharded, 1)
    for name, tensor in average.full().items():
        torch.testing.assert_close(tensor, start[name] + 9 / 11, msg=name)
    average.load(start)
    assert_same(average.full(), start)
    average.swap(sharded)
    assert_same({name: full_weights(sharded)[name] for name in start}, start)
    with torch.no_grad():
        sharded.classifier.head.log_scale.fill_(9.0)
    sharded.classifier.head.clamp_scale()
    assert full_weights(sharded)["classifier.head.log_scale"].item() == pytest.approx(math.log(100))
