"""Options beyond the paper, each against what its formula says."""

import json
import shutil
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from torch import nn

from clip_more.adapters import MoreConfig, add_tail, tail, tail_parameters
from clip_more.config import ConfigError
from clip_more.data.form import label_pairs
from clip_more.data.load import load_data
from clip_more.data.photos import Photos
from clip_more.data.profile import ClassProfile
from clip_more.data.transforms import test_transform
from clip_more.models.clip import load_clip
from clip_more.recipe import from_dict
from clip_more.training import loop
from clip_more.training.beyond import allocate, class_groups, layer_importance, shared_directions
from clip_more.training.build import build_classifier, build_losses, build_task, check_method
from clip_more.training.routing import RoutedGradient
from tests.adapters.test_layer import randomise_tail
from tests.training.tiny_task import ALPHA, gradients, photos, tiny_task
from tests.training.twins import differences

PROFILE = ClassProfile(("red", "green", "blue"), (10, 6, 2), head_min=10, tail_max=5, photos=12)


def config_of(**keys):
    return from_dict({"dataset": "digits_mlt", "model": "tiny", **keys}, "test")


@pytest.fixture(scope="module")
def classifier():
    return build_classifier(config_of(), load_clip("tiny"), PROFILE)


# Prior with a cap


def test_counts_above_the_cap_weigh_alike():
    prior = build_losses(config_of(discrepancy_count_cap=5), PROFILE)[1].prior
    torch.testing.assert_close(prior, torch.tensor([5.0, 5, 2]) / 12)


# Routing


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


def test_a_penalty_reaches_a_and_b_that_learn_from_rare_classes():
    found = []
    for weight in (0.0, 1000.0):
        config = config_of(rho=0.3, tail_learns="rare", orthogonality=weight)
        torch.manual_seed(0)
        task = build_task(config, build_classifier(config, load_clip("tiny"), PROFILE), PROFILE).train()
        task(photos(8))["loss"].backward()
        found.append([p.grad for p in tail_parameters(task).values()])
    assert any((a != b).any() for a, b in zip(*found, strict=True))


def test_routed_gradients_accumulate():
    weight = torch.ones(2, requires_grad=True)
    routed = RoutedGradient([weight], steps=2)
    for factor in (1.0, 3.0):
        routed.take((factor * weight).sum())
        ((7 * weight).sum() / 2).backward()
    assert weight.grad.tolist() == [2.0, 2.0]


# Groups


def test_classes_are_grouped_by_their_texts_and_head_classes_not_at_all():
    profile = ClassProfile(tuple("abcdef"), (9, 1, 2, 9, 1, 3), head_min=5, tail_max=2)
    texts = torch.tensor([[0.0, 0], [1, 0], [0, 1], [0, 0], [0.9, 0.1], [0.1, 0.9]])
    stub = SimpleNamespace(training=False, clip=None, head=SimpleNamespace(text_features=lambda clip: texts))
    stub.eval, stub.train = lambda: stub, lambda mode: stub
    groups = class_groups(stub, profile, 2, seed=0)
    assert groups[[0, 3]].tolist() == [-1, -1]
    assert groups[1] == groups[4] != groups[2] == groups[5]
    assert set(groups.tolist()) == {-1, 0, 1}


def grouped(groups, **recipe):
    """A task in float64 whose classes red, green and blue have these groups, with a tail that does something."""
    config = config_of(tail_groups=max(groups) + 1, rho=0.3, **recipe)
    task = build_task(config, build_classifier(config, load_clip("tiny"), PROFILE), PROFILE).train()
    randomise_tail(task, 0.05)
    task.groups.copy_(torch.tensor(groups))
    batch = {name: t.double() if t.is_floating_point() else t for name, t in photos(8).items()}
    return task.double(), batch


def naive(task, batch, group, count):
    """Gradients of two whole passes, the second with the block of one group set to zero."""
    task.zero_grad()
    task.classifier.eval()
    kept = {}
    for name, p in tail_parameters(task.classifier).items():
        blocks = torch.ones_like(p).chunk(count, dim=0 if ".lora_A." in name else 1)
        assert len({block.shape for block in blocks}) == 1
        blocks[group].zero_()
        kept[name] = p * torch.cat(blocks, dim=0 if ".lora_A." in name else 1)
    full = task.classifier(batch["pixel_values"])
    general = torch.func.functional_call(task.classifier, kept, (batch["pixel_values"],))
    prior = (torch.tensor([10, 6, 2]) / 18).double().masked_fill(task.groups == group, 0)
    delta = (full - general).square()
    loss = task.base_loss(full, batch["targets"], batch["known"]) + ALPHA * (prior * delta).sum(1).mean()
    loss.backward()
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("groups", [[-1, 0, 0], [-1, 0, 1]])
@pytest.mark.parametrize(
    "recipe",
    [{}, {"tail_depth": 0.5}, {"discrepancy_gradient": "tail"}, {"text_tower": "freeze", "tail_towers": "vision"}],
    ids=str,
)
def test_a_group_is_two_naive_passes_without_its_block_and_its_classes(groups, recipe):
    task, batch = grouped(groups, **recipe)
    count = max(groups) + 1
    torch.manual_seed(3)
    drawn = int(torch.randint(count, ()))
    torch.manual_seed(3)
    found = gradients(task, [batch])
    expected = naive(task, batch, drawn, count)
    if recipe.get("discrepancy_gradient") == "tail":
        expected = {name: expected[name] for name in tail_parameters(task)}
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= 1e-11 * largest, name


def test_micro_batches_of_a_step_share_a_group_and_steps_draw_all():
    task, batch = grouped([-1, 0, 1])
    seen, without = [], task._without
    task._without = lambda group: seen.append(group) or without(group)
    for _ in range(8):
        gradients(task, [batch, batch])
    assert seen[::2] == seen[1::2]
    assert set(seen) == {0, 1}


def test_outside_a_step_the_tail_is_switched_off_whole():
    task, batch = grouped([-1, 0, 1])
    gradients(task, [batch])
    with tail(task, enabled=False):
        off = task.classifier.eval()(batch["pixel_values"])
    for p in tail_parameters(task).values():
        nn.init.zeros_(p)
    assert torch.equal(off, task.classifier(batch["pixel_values"]))


# Orthogonality


def one_layer(weight, a, b):
    model = add_tail(nn.Sequential(nn.Linear(3, 4, bias=False)), MoreConfig(rho=0.3, target_modules="all")).double()
    layer = model[0]
    with torch.no_grad():
        for parameter, value in zip(
            (layer.base_layer.weight, layer.lora_A["default"].weight, layer.lora_B["default"].weight),
            (weight, a, b),
            strict=True,
        ):
            parameter.copy_(torch.tensor(value, dtype=torch.float64))
    return model


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([[0, 1, 2]], [[0], [3], [1], [0]], 0.0),
        ([[5, 0, 0]], [[0], [3], [1], [0]], 1.0),
        ([[5, 0, 0]], [[-2], [0], [0], [0]], 2.0),
        ([[1, 1, 0]], [[0], [0], [0], [0]], 0.5),
    ],
)
def test_shared_directions_of_a_rank_one_weight(a, b, expected):
    weight = torch.zeros(4, 3)
    weight[0, 0] = 7
    model = one_layer(weight.tolist(), a, b)
    found = shared_directions(model)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    found.backward()
    assert model[0].base_layer.weight.grad is None
    assert all(p.grad.isfinite().all() for p in tail_parameters(model).values())


def test_shared_directions_pass_gradcheck_and_are_a_mean_over_layers():
    model = add_tail(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 3)), MoreConfig(rho=0.5, target_modules="all")
    ).double()
    randomise_tail(model)
    parts = tail_parameters(model)
    assert torch.autograd.gradcheck(
        lambda *values: torch.func.functional_call(
            Penalty(model), {f"model.{n}": v for n, v in zip(parts, values, strict=True)}, ()
        ),
        tuple(p.detach().clone().requires_grad_() for p in parts.values()),
    )
    mean = (shared_directions(model[0:1]) + shared_directions(model[2:3])) / 2
    torch.testing.assert_close(shared_directions(model), mean)


class Penalty(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self):
        return shared_directions(self.model)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_orthogonality_is_added_to_the_loss(alpha):
    task, _ = tiny_task(orthogonality=0.3)
    losses = task(photos(4), alpha=alpha)
    of_tail = alpha * losses["discrepancy"] if alpha else 0.0
    torch.testing.assert_close(losses["loss"], losses["base"] + of_tail + 0.3 * shared_directions(task))


# Ranks

LAYERS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.floats(0.05, 1.0), st.floats(0.0, 5.0)), min_size=1, max_size=8
)


@given(LAYERS)
def test_allocated_ranks_use_the_budget_of_the_uniform_ones(layers):
    shapes = [(out, into) for out, into, _, _ in layers]
    uniform = [max(1, round(rho * min(shape))) for shape, (_, _, rho, _) in zip(shapes, layers, strict=True)]
    ranks = allocate(uniform, [importance for *_, importance in layers], shapes)
    costs = [sum(shape) for shape in shapes]
    left = sum((u - r) * cost for u, r, cost in zip(uniform, ranks, costs, strict=True))
    assert all(1 <= rank <= min(shape) for rank, shape in zip(ranks, shapes, strict=True))
    open_costs = [cost for rank, shape, cost in zip(ranks, shapes, costs, strict=True) if rank < min(shape)]
    assert 0 <= left < min(open_costs, default=1)


@given(LAYERS, st.floats(1e-6, 1e6))
def test_equal_importance_gives_uniform_ranks(layers, importance):
    shapes = [(out, into) for out, into, _, _ in layers]
    uniform = [max(1, round(rho * min(shape))) for shape, (_, _, rho, _) in zip(shapes, layers, strict=True)]
    assert allocate(uniform, [importance] * len(shapes), shapes) == uniform


def test_ranks_follow_importance():
    assert allocate([10, 10, 10], [1, 3, 2], [(100, 100)] * 3) == [5, 15, 10]


def test_importance_is_the_size_of_the_gradient_of_the_loss_on_rare_classes(settings, classifier):
    config = from_dict({**settings, "batch_size": 2, "tail_max": 12}, "test")
    data, encoder = load_data(config), classifier.encoder
    run = SimpleNamespace(config=config, classifier=classifier, data=data, accelerator=Accelerator(cpu=True))
    layers = MoreConfig().find_layers(encoder.model)
    found = layer_importance(run, list(layers.values()))
    rare = data.profile.indices("tail")
    assert 0 < len(rare) < 3
    shown = sorted({row for row, label in zip(*label_pairs(data.train), strict=True) if label in rare})
    photos = Photos(data.train.select(shown), test_transform(32, encoder.image_mean, encoder.image_std))
    pixels, targets = (torch.stack([photo[key] for photo in photos]) for key in ("pixel_values", "targets"))
    terms = nn.functional.binary_cross_entropy_with_logits(classifier(pixels), targets, reduction="none")
    loss = terms[:, rare].sum(1).mean()
    gradients = torch.autograd.grad(loss, [layer.weight for layer in layers.values()])
    expected = torch.stack([gradient.norm() / gradient.numel() ** 0.5 for gradient in gradients])
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=0)


# Runs


def without_end(folder):
    """Make a finished run of four steps one that was stopped after two."""
    for step in (3, 4):
        shutil.rmtree(folder / "checkpoints" / f"step_{step}")
    for part in ("report", "merged", "general", "tail"):
        shutil.rmtree(folder / part, ignore_errors=part in ("general", "tail"))


@pytest.mark.parametrize(
    "extra",
    [
        {"rank_allocation": "importance", "rho": 0.2},
        {"tail_groups": 2, "orthogonality": 0.1},
        {"tail_learns": "rare", "weight_decay_to": "start", "weight_decay": 10.0, "group_weights": {"tail": 3.0}},
        {"discrepancy_pair": "dropout", "tuning": "full", "dropout": 0.2},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_a_resumed_run_ends_bit_for_bit_as_one_that_was_not_stopped(settings, tmp_path, extra):
    recipe = {**settings, **extra, "max_steps": 4, "checkpoint_every": 1, "keep_checkpoints": 4, "bootstrap": 0}
    folder = loop.train(from_dict(recipe, "test"))
    shutil.copytree(folder, tmp_path / "twin")
    without_end(folder)
    assert loop.train(from_dict(recipe, "test")) == folder
    assert differences(folder, tmp_path / "twin") == []
    if "rank_allocation" in extra:
        ranks = json.loads((folder / "ranks.json").read_text())["ranks"]
        saved = json.loads((folder / "tail/adapter_config.json").read_text())
        patterns = {name.removeprefix("^").replace("\\", ""): rank for name, rank in saved["rank_pattern"].items()}
        assert {name: patterns.get(name, saved["r"]) for name in saved["target_modules"]} == ranks
        assert len(set(ranks.values())) > 3
        without_end(folder)
        (folder / "ranks.json").unlink()
        with pytest.raises(ConfigError, match=r"ranks\.json is absent or damaged"):
            loop.train(from_dict(recipe, "test"))


# Refusals


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"tuning": "full", "orthogonality": 0.1}, "orthogonality is about a tail, and tuning: full has none"),
        ({"discrepancy_count_cap": 0}, "discrepancy_count_cap is 0; it must be 1 or more"),
        ({"discrepancy_count_cap": 3, "discrepancy_prior_exponent": 0.0}, "discrepancy_count_cap changes nothing"),
        ({"orthogonality": -1.0}, "orthogonality is -1; it must be 0 or more"),
        ({"tail_learns": "tail", "group_weights": {"tail": 0.0}}, "tail_learns: tail leaves no class to learn from"),
        ({"tail_learns": "rare", "loss": "ce", "task": "single_label"}, "tail_learns does not go with loss: ce"),
        ({"tail_learns": "rare", "amplitude_ratio": 0.3}, "tail_learns does not go with amplitude_ratio"),
        ({"tail_learns": "rare", "gradient_checkpointing": True}, "does not go with gradient_checkpointing"),
        ({"tail_learns": "rare", "accumulation": 2}, "does not go with accumulation"),
        ({"tail_learns": "rare", "loss_reduction": "mean"}, "does not go with loss_reduction: mean"),
        ({"tail_learns": "rare", "distribution": "fsdp2"}, "does not go with distribution: fsdp2"),
        ({"tail_groups": 3}, "tail_groups is 3, and 2 of 3 classes are not head"),
        ({"tail_groups": 1, "rank_allocation": "importance"}, "tail_groups does not go with rank_allocation"),
        ({"tail_groups": 1, "discrepancy_weighting": "sample"}, "does not go with discrepancy_weighting: sample"),
        ({"tail_groups": 1, "discrepancy_centred": True}, "does not go with discrepancy_centred"),
        ({"tail_groups": 1, "gradient_checkpointing": True}, "does not go with gradient_checkpointing"),
        ({"tail_groups": 1, "text_chunk": 2}, "does not go with text_chunk"),
        ({"tail_groups": 1, "text_refresh": 2}, "does not go with text_refresh"),
    ],
)
def test_what_cannot_help_is_refused(classifier, keys, text):
    with pytest.raises(ConfigError, match=text):
        check_method(config_of(**keys), classifier, PROFILE)


def test_heads_without_prompts_and_several_processes_are_refused(classifier, monkeypatch):
    linear = build_classifier(config_of(head="linear"), load_clip("tiny"), PROFILE)
    with pytest.raises(ConfigError, match="rank_allocation is made for both towers of a CLIP"):
        check_method(config_of(head="linear", rank_allocation="importance"), linear, PROFILE)
    monkeypatch.setattr("clip_more.training.beyond.PartialState", lambda: SimpleNamespace(num_processes=2))
    with pytest.raises(ConfigError, match="orthogonality is made for one process"):
        check_method(config_of(orthogonality=0.1), classifier, PROFILE)
    check_method(config_of(discrepancy_count_cap=3), classifier, PROFILE)
