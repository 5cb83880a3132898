import copy
from dataclasses import replace

import pytest
import torch

from clip_more.adapters import tail, tail_parameters
from clip_more.data.profile import ClassProfile
from clip_more.losses import AsymmetricLoss, BCELoss, DiscrepancyLoss
from clip_more.losses.asymmetric import Focus
from clip_more.models.clip import load_clip
from clip_more.recipe import from_dict
from clip_more.training.build import build_classifier, build_losses, build_task, check_method, parameter_groups
from clip_more.training.vocabulary import compact_vocabulary
from tests.adapters.test_layer import randomise_tail

COUNTS = (50, 9, 3)
PROFILE = ClassProfile(("red", "green", "blue"), COUNTS, head_min=20, tail_max=5)
RATES = {"lr": 1.0, "lr_tail": 2.0, "lr_head": 3.0, "weight_decay": 0.4, "weight_decay_tail": 0.5}
FROZEN_TEXT = {"text_tower": "freeze", "tail_towers": "vision"}


@pytest.fixture(scope="module")
def untouched():
    """A tiny CLIP with the few token rows that the prompts use: 49,000 others would only cost time."""
    clip = load_clip("tiny")
    classifier = build_classifier(config_of(), clip, PROFILE)
    with compact_vocabulary(clip.model, classifier.head.input_ids):
        yield classifier


@pytest.fixture
def classifier(untouched):
    tokenizer = untouched.clip.tokenizer
    return copy.deepcopy(untouched, {id(tokenizer): tokenizer})


@pytest.fixture
def batch():
    """Unknown: class 1 of photo 0, class 2 of photo 1, everything of photo 3."""
    torch.manual_seed(3)
    known = torch.tensor([[1, 0, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0]]).bool()
    targets = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    return {"pixel_values": torch.randn(4, 3, 32, 32), "targets": targets, "known": known}


def config_of(**keys):
    return from_dict({"dataset": "digits_mlt", "method": "x", "model": "tiny", **keys}, "test")


def task_of(classifier, **keys):
    """As built, with a tail that does something where there is one."""
    task = build_task(config_of(**keys), classifier, PROFILE)
    if tail_parameters(task):
        torch.manual_seed(1)
        randomise_tail(task, 0.3)
    return task


def gradients(task):
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


# What is trained, at which rate


def group_by_the_rules(name, tuning, text_tower):
    """The group that a parameter of this name belongs to, or None where it is frozen."""
    if name.startswith("classifier.head."):
        return "head"
    if tuning == "head":
        return "head" if "visual_projection" in name else None
    if ".lora_" in name:
        return "tail"
    if tuning == "lora" or name.endswith("logit_scale"):
        return None
    if text_tower == "freeze" and ("text_model" in name or "text_projection" in name):
        return None
    table = "token_embedding" in name or "position_embedding" in name or "class_embedding" in name
    return "towers_no_decay" if table or name.endswith("bias") or "norm" in name else "towers"


@pytest.mark.parametrize(
    "keys",
    [
        {"tuning": "full"},
        {"tuning": "more"},
        {"tuning": "lora"},
        {"tuning": "head"},
        {"tuning": "full", "text_tower": "freeze"},
        {"tuning": "more", **FROZEN_TEXT},
        {"tuning": "lora", **FROZEN_TEXT},
    ],
    ids=lambda keys: "-".join(keys.values()),
)
def test_every_trained_parameter_is_in_the_one_group_of_its_kind_and_no_frozen_one_is(classifier, keys):
    config = config_of(**keys, **RATES)
    task = build_task(config, classifier, PROFILE)
    names = {id(p): name for name, p in task.named_parameters()}
    found = [(names[id(p)], group["name"]) for group in parameter_groups(config, task) for p in group["params"]]
    wanted = {name: group_by_the_rules(name, config.tuning, config.text_tower) for name in names.values()}
    assert len(found) == len(dict(found))
    assert dict(found) == {name: group for name, group in wanted.items() if group is not None}
    assert {name for name, p in task.named_parameters() if p.requires_grad} == set(dict(found))


def test_rules_find_every_kind_of_parameter(classifier):
    """So that the test above is not empty where transformers renames a layer."""
    names = [name for name, _ in build_task(config_of(), classifier, PROFILE).named_parameters()]
    for part in ("token_embedding", "position_embedding", "class_embedding", "lora_A", "lora_B", "norm", ".bias",
                 "patch_embedding.base_layer.weight", "text_projection.base_layer", "head.log_scale"):  # fmt: skip
        assert any(part in name for name in names), part


def test_each_group_has_the_rate_and_the_decay_of_the_recipe(classifier):
    config = config_of(**RATES)
    groups = parameter_groups(config, build_task(config, classifier, PROFILE))
    found = {group["name"]: (group["peak_lr"], group["lr"], group["weight_decay"]) for group in groups}
    assert found == {
        "towers": (1.0, 1.0, 0.4),
        "towers_no_decay": (1.0, 1.0, 0.0),
        "tail": (2.0, 2.0, 0.5),
        "head": (3.0, 3.0, 0.0),
    }


def test_tail_has_the_rate_of_the_towers_where_the_recipe_gives_none_and_may_stand_still(classifier):
    task = build_task(config_of(), classifier, PROFILE)
    for given, wanted in ((None, 1.0), (0.0, 0.0)):
        groups = parameter_groups(config_of(**{**RATES, "lr_tail": given}), task)
        assert [group["peak_lr"] for group in groups if group["name"] == "tail"] == [wanted]


@pytest.mark.parametrize(
    ("keys", "part"),
    [
        ({"tail_towers": "vision"}, "vision"),
        ({"tail_towers": "text"}, "text"),
        ({"tail_targets": ["fc1"]}, ".fc1."),
        ({"tail_targets": ["fc1"], "tuning": "lora"}, ".fc1."),
    ],
)
def test_tail_sits_where_the_recipe_says(classifier, keys, part):
    names = tail_parameters(build_task(config_of(**keys), classifier, PROFILE))
    assert names
    assert all(part in name.replace("visual", "vision") for name in names)


def test_rank_is_the_ratio_of_the_recipe(classifier):
    tails = tail_parameters(build_task(config_of(rho=0.25, tail_targets=["q_proj"]), classifier, PROFILE))
    assert {p.shape[0] for name, p in tails.items() if ".lora_A." in name} == {24, 8}  # of widths 96 and 32


# Losses


def losses_and_gradients(loss, *logits):
    """Value and gradients of a loss on fixed labels; kinds differ in one or the other."""
    torch.manual_seed(2)
    targets = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]])
    inputs = [(3 * torch.randn(5, 3)).requires_grad_() for _ in logits]
    value = loss(*inputs, targets, torch.rand(5, 3) < 0.9)
    grads = torch.autograd.grad(value, inputs, allow_unused=True)
    return torch.cat([value.detach().view(1), *(g.flatten() if g is not None else torch.zeros(15) for g in grads)])


@pytest.mark.parametrize(
    ("keys", "wanted", "plain"),
    [
        ({"loss": "bce"}, BCELoss(), AsymmetricLoss()),
        ({"loss": "bce", "loss_reduction": "mean"}, BCELoss("mean"), BCELoss()),
        ({"loss": "asl"}, AsymmetricLoss(), BCELoss()),
        ({"loss": "asl", "loss_reduction": "mean"}, AsymmetricLoss(reduction="mean"), AsymmetricLoss()),
        ({"loss": "asl", "asl_gamma_positive": 1.0}, AsymmetricLoss(gamma_positive=1.0), AsymmetricLoss()),
        ({"loss": "asl", "asl_gamma_negative": 2.0}, AsymmetricLoss(gamma_negative=2.0), AsymmetricLoss()),
        ({"loss": "asl", "asl_margin": 0.2}, AsymmetricLoss(margin=0.2), AsymmetricLoss()),
        ({"loss": "asl", "asl_focal_gradient": True}, AsymmetricLoss(focal_gradient=True), AsymmetricLoss()),
    ],
    ids=lambda keys: "-".join(map(str, keys.values())) if isinstance(keys, dict) else "",
)
def test_every_key_of_the_base_loss_reaches_it(keys, wanted, plain):
    base, _ = build_losses(config_of(**keys), PROFILE)
    found = losses_and_gradients(base, "logits")
    assert torch.equal(found, losses_and_gradients(wanted, "logits"))
    assert not torch.equal(found, losses_and_gradients(plain, "logits"))


SAMPLE = {"weighting": "sample"}


@pytest.mark.parametrize(
    ("keys", "wanted", "plain"),
    [
        ({}, {}, {"prior_exponent": 0.0}),
        ({"discrepancy_weighting": "sample"}, SAMPLE, {}),
        ({"discrepancy_weighting": "sample", "discrepancy_sample_reduce": "max"},
         {**SAMPLE, "sample_reduce": "max"}, SAMPLE),
        ({"discrepancy_weighting": "sample", "discrepancy_sample_reduce": "mean"},
         {**SAMPLE, "sample_reduce": "mean"}, SAMPLE),
        ({"discrepancy_prior_exponent": -0.5}, {"prior_exponent": -0.5}, {}),
        ({"discrepancy_distance": "kl"}, {"distance": "kl"}, {}),
        ({"discrepancy_scale_free": True}, {"scale_free": True}, {}),
        ({"discrepancy_centred": True}, {"centred": True}, {}),
        ({"discrepancy_gradient": "stop_full"}, {"gradient": "stop_full"}, {}),
        ({"discrepancy_gradient": "both"}, {"gradient": "both"}, {}),
        ({"loss_reduction": "mean"}, {"reduction": "mean"}, {}),
        ({"discrepancy_reduction": "mean"}, {"reduction": "mean"}, {}),
        ({"loss": "asl", "discrepancy_focus": True, "asl_gamma_positive": 1.0, "asl_gamma_negative": 2.0,
          "asl_margin": 0.1}, {"focus": Focus(1.0, 2.0, 0.1)}, {"focus": Focus()}),
        ({"loss_reduction": "mean", "discrepancy_reduction": "sum"}, {"reduction": "sum"}, {"reduction": "mean"}),
    ],
    ids=lambda keys: "-".join(map(str, keys.values())),
)  # fmt: skip
def test_every_key_of_the_discrepancy_reaches_it(keys, wanted, plain):
    _, discrepancy = build_losses(config_of(**keys), PROFILE)
    logits = "full", "general"
    found = losses_and_gradients(discrepancy, *logits)
    assert torch.equal(found, losses_and_gradients(DiscrepancyLoss(torch.tensor(COUNTS), **wanted), *logits))
    assert not torch.equal(found, losses_and_gradients(DiscrepancyLoss(torch.tensor(COUNTS), **plain), *logits))


@pytest.mark.parametrize("tuning", ["full", "lora", "head"])
def test_only_more_has_a_discrepancy(classifier, tuning):
    config = config_of(tuning=tuning)
    assert build_losses(config, PROFILE)[1] is None
    assert build_task(config, classifier, PROFILE).discrepancy is None


def test_the_task_has_the_losses_of_the_recipe(classifier):
    keys = {"loss": "asl", "asl_margin": 0.2, "discrepancy_weighting": "sample", "loss_reduction": "mean"}
    task = build_task(config_of(**keys), classifier, PROFILE)
    for built, (loss, logits) in zip(
        build_losses(config_of(**keys), PROFILE),
        ((task.base_loss, ["logits"]), (task.discrepancy, ["full", "general"])),
        strict=True,
    ):
        assert torch.equal(losses_and_gradients(built, *logits), losses_and_gradients(loss, *logits))


@pytest.mark.parametrize("gradient", ["both", "tail"])
def test_recipe_says_whether_the_discrepancy_moves_w_g(classifier, batch, gradient):
    task = task_of(classifier, discrepancy_gradient=gradient, **FROZEN_TEXT)
    found = []
    for alpha in (0.0, 5.0):
        task.zero_grad()
        task(batch, alpha=alpha)["loss"].backward()
        found.append(gradients(task))
    without, with_more = found
    low_rank = tail_parameters(task)
    name = "classifier.clip.model.vision_model.encoder.layers.0.mlp.fc1.base_layer.weight"
    assert torch.allclose(without[name], with_more[name], rtol=1e-4, atol=1e-7) == (gradient == "tail")
    assert not any(torch.allclose(without[n], with_more[n]) for n in low_rank)


@pytest.mark.parametrize("head", ["prompts", "linear"])
def test_two_draws_of_dropout_differ_in_training_alone_and_the_base_loss_is_of_the_first(untouched, batch, head):
    keys = {
        "tuning": "full",
        "discrepancy_pair": "dropout",
        "discrepancy_gradient": "both",
        "dropout": 0.3,
        "head": head,
    }
    classifier = copy.deepcopy(untouched, {id(untouched.clip.tokenizer): untouched.clip.tokenizer})
    if head == "linear":
        classifier = build_classifier(config_of(head=head), classifier.clip, replace(PROFILE, photos=60))
    task = build_task(config_of(**keys), classifier, PROFILE).train()
    assert not tail_parameters(task)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        pair = task(batch, alpha=2.0)
        torch.manual_seed(7)
        alone = task(batch, alpha=0.0)
        torch.manual_seed(7)
        first, second = (task.classifier(batch["pixel_values"]) for _ in range(2))
    assert torch.equal(pair["base"], alone["base"])
    torch.testing.assert_close(pair["discrepancy"], task.discrepancy(first, second, batch["targets"], batch["known"]))
    assert pair["discrepancy"] > 0
    torch.testing.assert_close(pair["loss"], pair["base"] + 2 * pair["discrepancy"])
    assert task.eval()(batch, alpha=2.0)["discrepancy"].item() == 0.0


# Unknown labels


@pytest.mark.parametrize("gradient", ["both", "tail"])
@pytest.mark.parametrize("loss", ["bce", "asl"])
def test_unknown_labels_change_neither_losses_nor_gradients(classifier, batch, loss, gradient):
    task = task_of(classifier, loss=loss, discrepancy_weighting="sample", discrepancy_gradient=gradient, **FROZEN_TEXT)
    flipped = {**batch, "targets": torch.where(batch["known"], batch["targets"], 1 - batch["targets"])}
    found = []
    for labels in (batch, flipped):
        task.zero_grad()
        losses = task(labels, alpha=2.0)
        losses["loss"].backward()
        found.append((losses["base"], losses["discrepancy"], gradients(task)))
    (base, discrepancy, grads), (other_base, other_discrepancy, other_grads) = found
    assert discrepancy > 0
    assert (base.item(), discrepancy.item()) == (other_base.item(), other_discrepancy.item())
    assert grads.keys() == other_grads.keys()
    for name in grads:
        assert torch.equal(grads[name], other_grads[name]), name


@pytest.mark.parametrize("gradient", ["both", "tail"])
def test_unknown_labels_are_left_out_of_both_losses(classifier, batch, gradient):
    """Written down by hand: sums over the known classes of an image, means over images."""
    task = task_of(classifier, discrepancy_gradient=gradient, **FROZEN_TEXT).eval()
    losses = task(batch, alpha=2.0)
    with torch.no_grad():
        full = task.classifier(batch["pixel_values"])
        with tail(task, enabled=False):
            general = task.classifier(batch["pixel_values"])
    p, y, known = full.sigmoid(), batch["targets"], batch["known"]
    prior = torch.tensor(COUNTS) / sum(COUNTS)
    base = -((y * p.log() + (1 - y) * (1 - p).log()) * known).sum(1).mean()
    discrepancy = (prior * (full - general) ** 2 * known).sum(1).mean()
    torch.testing.assert_close(losses["base"], base, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["discrepancy"], discrepancy, rtol=1e-4, atol=1e-6)


# Dropout


def test_dropout_is_in_every_attention_of_the_vision_tower_and_nowhere_else(classifier, batch):
    clip = build_task(config_of(dropout=0.2), classifier, PROFILE).classifier.clip.train()
    rates = {name: m.dropout for name, m in clip.model.named_modules() if name.endswith("self_attn")}
    assert len(rates) == 5
    assert all(rate == (0.2 if "vision" in name else 0.0) for name, rate in rates.items()), rates
    torch.manual_seed(0)
    assert not torch.equal(clip.encode_image(batch["pixel_values"]), clip.encode_image(batch["pixel_values"]))
    assert torch.equal(clip.encode_text(classifier.head.input_ids), clip.encode_text(classifier.head.input_ids))
    clip.eval()
    assert torch.equal(clip.encode_image(batch["pixel_values"]), clip.encode_image(batch["pixel_values"]))


def test_dropout_is_not_in_the_configuration_that_is_exported(classifier):
    before = copy.deepcopy(classifier.clip.model.config.to_dict())
    assert build_task(config_of(dropout=0.2), classifier, PROFILE).classifier.clip.model.config.to_dict() == before


def test_weights_of_a_group_without_classes_are_noted():
    profile = ClassProfile(PROFILE.names, PROFILE.counts, head_min=10, tail_max=2, photos=12)
    config = config_of(group_weights={"tail": 3.0, "head": 2.0})
    notes = check_method(config, build_classifier(config, load_clip("tiny"), profile), profile)
    assert notes == ["group_weights weighs tail, and no class is that: see head_min and tail_max"]
