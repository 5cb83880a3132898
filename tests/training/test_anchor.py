import copy
import math

import pytest
import torch
from torch import nn

from clip_more.config import ConfigError, TrainConfig
from clip_more.recipe import from_dict
from clip_more.training import loop
from clip_more.training.anchor import check_pull, pull_to_start, spread_pull
from clip_more.training.build import parameter_groups
from clip_more.training.schedule import Plan, warmup_cosine
from clip_more.training.sharding import full_weights, shard, shardable_copy
from tests.training.tiny_task import ALPHA, photos, tiny_task

LR, PULL = 0.1, 0.3


def optimiser(kind, model, pull=PULL, **options):
    made = kind([{"params": list(model.parameters()), "pull": pull, "weight_decay": 0.0}], lr=LR, **options)
    pull_to_start(made)
    return made


@pytest.mark.parametrize(("kind", "options"), [(torch.optim.AdamW, {}), (torch.optim.SGD, {"momentum": 0.9})])
def test_without_a_gradient_of_its_own_the_distance_to_the_start_shrinks_by_a_factor(kind, options):
    model = nn.Linear(4, 3)
    start = copy.deepcopy(model)
    made = optimiser(kind, model, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    away = {name: p - q for (name, p), q in zip(model.named_parameters(), start.parameters(), strict=True)}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(5):
        made.step()
    for (name, p), q in zip(model.named_parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(p - q, (1 - LR * PULL) ** 5 * away[name], msg=name)


@pytest.mark.parametrize(
    ("keys", "text"),
    [({"decay_all": True}, "decay_all decays the head"), ({"lr": 0.2}, "lr . weight_decay of the way")],
)
def test_a_head_without_a_start_and_a_pull_beyond_it_are_refused(keys, text):
    with pytest.raises(ConfigError, match=text):
        TrainConfig(dataset="digits_mlt", weight_decay_to="start", weight_decay=5.0, **keys).check()


@pytest.mark.parametrize("fused", [False, True])
def test_towards_zero_it_is_the_decay_of_adamw(fused):
    ours = nn.Linear(4, 3)
    nn.init.zeros_(ours.weight)
    nn.init.zeros_(ours.bias)
    theirs = copy.deepcopy(ours)
    optimisers = [
        (ours, optimiser(torch.optim.AdamW, ours, fused=fused)),
        (theirs, torch.optim.AdamW(theirs.parameters(), lr=LR, weight_decay=PULL, fused=fused)),
    ]
    for model, made in optimisers:
        torch.manual_seed(1)
        for _ in range(6):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            made.step()
    torch.testing.assert_close(ours.weight, theirs.weight)
    torch.testing.assert_close(ours.bias, theirs.bias)
    assert ours.weight.abs().min() > 0


def test_a_step_that_is_not_taken_pulls_nothing():
    model = nn.Linear(4, 3)
    made, scaler = optimiser(torch.optim.SGD, model), torch.amp.GradScaler("cpu")
    with torch.no_grad():
        model.weight.add_(1.0)
        model.bias.add_(1.0)
    held = copy.deepcopy(model)
    made.step()  # as after a loss that was not finite: no gradient is left
    assert torch.equal(model.weight, held.weight)
    scaler.scale(model(torch.full((1, 4), torch.inf)).sum()).backward()
    scaler.step(made)
    assert torch.equal(model.weight, held.weight)
    made.zero_grad()
    model(torch.zeros(1, 4)).sum().backward()
    model.bias.grad = None
    made.step()
    assert torch.equal(model.bias, held.bias)
    assert not torch.equal(model.weight, held.weight)


def steps(task, config, count=3):
    made = torch.optim.SGD(parameter_groups(config, task))  # AdamW makes steps of gradients that are but rounding
    pull_to_start(made)
    for _ in range(count):
        made.zero_grad()
        task(photos(2), alpha=ALPHA)["loss"].backward()
        made.step()
    return full_weights(task)


def test_shards_are_pulled_as_whole_weights_are(tmp_path):
    task, config = tiny_task(weight_decay_to="start", weight_decay=50.0)
    plain, unpulled = copy.deepcopy(task), copy.deepcopy(task)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        sharded = steps(shard(shardable_copy(task)), config)
    finally:
        torch.distributed.destroy_process_group()
    whole, free = steps(plain, config), steps(unpulled, tiny_task(weight_decay=0.0)[1])
    key = next(name for name in whole if name.endswith("fc1.base_layer.weight"))
    start = task.state_dict()
    assert (whole[key] - start[key]).norm() < 0.99 * (free[key] - start[key]).norm()
    for name in whole:
        torch.testing.assert_close(sharded[name], whole[name], rtol=1e-4, atol=1e-6, msg=name)


def test_matrices_of_the_towers_alone_are_pulled():
    task, config = tiny_task(weight_decay_to="start", weight_decay=0.4, weight_decay_tail=0.5)
    found = {g["name"]: (g.get("pull", 0.0), g["weight_decay"]) for g in parameter_groups(config, task)}
    assert found == {
        "towers": (0.4, 0.0),
        "towers_no_decay": (0.0, 0.0),
        "tail": (0.0, 0.5),
        "head": (0.0, 0.0),
    }


@pytest.mark.parametrize(("lr", "steps"), [(1e-3, 40), (3e-5, 700)])
def test_a_total_pull_is_the_same_whatever_rate_and_length(lr, steps):
    keys = {"weight_decay_to": "start", "weight_decay_total": 1.5, "lr": lr, "max_steps": steps, "warmup": 0.1}
    task, config = tiny_task(**keys)
    plan = Plan.of(config, photos=10, classes=3, processes=1, validates=False)
    made = torch.optim.SGD(parameter_groups(config, task))
    spread_pull(made, plan)
    pull_to_start(made)
    group = next(group for group in made.param_groups if group["name"] == "towers")
    weight, others = group["params"][0], copy.deepcopy(group["params"][1:])
    start = weight.detach().clone()
    weight.grad = torch.ones_like(weight)  # drifts evenly: lr a step
    free = 0.0
    for step in range(steps):
        group["lr"] = lr * warmup_cosine(step, steps, 0.1)
        free += group["lr"]
        made.step()
    share = ((start - weight) / free).mean().item()
    assert share == pytest.approx((1 - math.exp(-1.5)) / 1.5, rel=0.02)
    assert all(torch.equal(a, b) for a, b in zip(group["params"][1:], others, strict=True))  # had no gradient


def test_a_total_pull_beyond_the_start_or_to_zero_is_refused():
    config = tiny_task(weight_decay_to="start", weight_decay_total=2.0, max_steps=2, warmup=0.0)[1]
    plan = Plan.of(config, photos=10, classes=3, processes=1, validates=False)
    with pytest.raises(ConfigError, match=r"weight_decay_total is 2, and the 2 steps of this run are worth 1\.5"):
        check_pull(plan)
    with pytest.raises(ConfigError, match="weight_decay_total is about weight_decay_to: start"):
        TrainConfig(dataset="digits_mlt", weight_decay_total=2.0).check()


def test_deepspeed_is_refused():
    with pytest.raises(ConfigError, match="weight_decay_to: start is not for DeepSpeed"):
        TrainConfig(dataset="digits_mlt", weight_decay_to="start", distribution="deepspeed").check()


def test_a_total_pull_beyond_the_start_leaves_no_folder(tmp_path):
    keys = {"dataset": "digits_mlt", "model": "tiny", "max_steps": 2, "output_dir": str(tmp_path / "runs")}
    with pytest.raises(ConfigError, match="weight_decay_total is 3"):
        loop.train(from_dict({**keys, "weight_decay_to": "start", "weight_decay_total": 3.0}, "test"))
    assert not (tmp_path / "runs").exists()
