"""LongTailTask on heads that read features: of a CLIP's vision tower, and of a plain backbone with batch statistics."""

import pytest
import torch

from clip_more.adapters import tail, tail_parameters
from clip_more.config import ConfigError
from clip_more.data.profile import ClassProfile
from clip_more.losses import LdamLoss
from clip_more.models.classifier import FeatureClassifier, load_encoder
from clip_more.recipe import from_dict
from clip_more.training.build import build_classifier, build_task, check_method, make_optimiser, parameter_groups

PROFILE = ClassProfile(("red", "green", "blue"), (50, 9, 3), 20, 5, photos=60)
NET = {"model": "cifar_resnet32", "head": "linear"}
CLIP = {"model": "tiny", "head": "linear"}
ONE = {"task": "single_label", "loss": "ce"}


def config_of(**keys):
    return from_dict({"dataset": "digits_mlt", "method": "x", **keys}, "test")


def classifier_of(config):
    return build_classifier(config, load_encoder(config.model), PROFILE)


def task_of(**keys):
    """As built, with a tail that does something where there is one."""
    config = config_of(**keys)
    task = build_task(config, classifier_of(config), PROFILE)
    torch.manual_seed(1)
    for parameter in tail_parameters(task).values():
        torch.nn.init.normal_(parameter, std=0.05)
    return task.train()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(5)
    return {
        "pixel_values": torch.randn(6, 3, 32, 32, generator=generator),
        "targets": torch.eye(3)[[0, 0, 1, 2, 0, 1]],
        "known": torch.ones(6, 3, dtype=torch.bool),
    }


def gradients(task):
    found = {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}
    task.zero_grad()
    return found


def two_naive_passes(task, batch, alpha):
    """Losses by two whole passes of the classifier, batch statistics standing still in the second."""
    full = task.classifier(batch["pixel_values"])
    norms = [m for m in task.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
    with tail(task.classifier, enabled=False):
        general = task.classifier(batch["pixel_values"])
    for norm in norms:
        norm.track_running_stats = True
    base = task.base_loss(full, batch["targets"], batch["known"])
    return base + alpha * task.discrepancy(full, general, batch["targets"], batch["known"])


@pytest.mark.parametrize("encoder", [NET, CLIP, CLIP | {"tail_depth": 0.5}], ids=["net", "clip", "half"])
@pytest.mark.parametrize("method", [{}, ONE], ids=["bce", "ce"])
def test_loss_and_gradients_are_those_of_two_naive_passes(encoder, method, batch):
    task = task_of(**encoder, **method).double()
    batch = {**batch, "pixel_values": batch["pixel_values"].double()}
    expected = two_naive_passes(task, batch, 1.5)
    expected.backward()
    wanted = gradients(task)
    found = task(batch, alpha=1.5)
    found["loss"].backward()
    torch.testing.assert_close(found["loss"], expected, rtol=1e-10, atol=0)
    for name, gradient in gradients(task).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("encoder", [NET, CLIP], ids=["net", "clip"])
def test_a_new_tail_has_no_discrepancy_while_training(encoder, batch):
    config = config_of(**encoder, **ONE)
    task = build_task(config, classifier_of(config), PROFILE).train()
    assert task(batch, alpha=1.0)["discrepancy"].item() == 0.0


def test_running_statistics_move_once_a_step(batch):
    found = []
    for alpha in (0.0, 1.0):
        task = task_of(**NET, **ONE)
        task(batch, alpha=alpha)
        found.append(task.classifier.encoder.model.bn1.running_mean.clone())
    assert torch.equal(*found)
    assert found[0].any()


@pytest.mark.parametrize("encoder", [NET, CLIP], ids=["net", "clip"])
def test_feature_regularisation_has_its_gradient(encoder, batch):
    lam = 0.3
    with_it = task_of(**encoder, tuning="full", feature_regularisation=lam)
    without = task_of(**encoder, tuning="full")
    features = with_it.classifier.eval().encoder.encode_image(batch["pixel_values"])
    losses = with_it.eval()(batch)["loss"], without.eval()(batch)["loss"]
    torch.testing.assert_close(losses[0] - losses[1], lam / 2 * features.square().sum(1).mean())
    assert with_it(batch)["base"].item() == losses[1].item()


def test_an_encoder_that_is_frozen_keeps_its_batch_statistics(batch):
    task = task_of(**NET, tuning="head", lr=0.1)
    before = {name: value.clone() for name, value in task.classifier.encoder.state_dict().items()}
    optimizer = make_optimiser(config_of(**NET, tuning="head"), task, fused=False)
    for _ in range(3):
        task(batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.equal(value, before[name]) for name, value in task.classifier.encoder.state_dict().items())
    assert [group["name"] for group in optimizer.param_groups] == ["head"]


def test_a_clip_under_a_feature_head_leaves_its_text_tower_alone(batch):
    task = task_of(**CLIP)
    assert isinstance(task.classifier, FeatureClassifier)
    task(batch, alpha=1.0)["loss"].backward()
    assert not [name for name in gradients(task) if "text_" in name or "logit_scale" in name]
    assert all("vision_model" in name or "visual_projection" in name for name in tail_parameters(task))


@pytest.mark.parametrize("fraction", [0.5])
def test_economical_mode_takes_some_photos(fraction, batch):
    task = task_of(**CLIP, discrepancy_fraction=fraction)
    torch.manual_seed(0)
    drawn = torch.stack([task(batch, alpha=1.0)["discrepancy"].detach() for _ in range(60)])
    whole = task_of(**CLIP)(batch, alpha=1.0)["discrepancy"].item()
    assert drawn.std() > 0
    assert abs(drawn.mean().item() - whole) < 3 * drawn.std().item() / 60**0.5


def test_fixed_rows_have_no_gradient_and_travel_with_the_weights(batch):
    task = task_of(**NET | {"head": "etf"}, **ONE)
    task(batch)["loss"].backward()
    assert "classifier.head.weight" not in gradients(task)
    assert "classifier.head.weight" in task.state_dict()


@pytest.mark.parametrize(
    ("keys", "decay"),
    [
        ({}, {"towers": 0.4, "towers_no_decay": 0.0, "tail": 0.5, "head": 0.0}),
        ({"weight_decay_head": 0.2}, {"towers": 0.4, "towers_no_decay": 0.0, "tail": 0.5, "head": 0.2}),
        ({"decay_all": True}, {"towers": 0.4, "towers_no_decay": 0.4, "tail": 0.5, "head": 0.4}),
    ],
)
def test_weight_decay_by_group(keys, decay):
    config = config_of(**NET, weight_decay=0.4, weight_decay_tail=0.5, **keys)
    groups = parameter_groups(config, build_task(config, classifier_of(config), PROFILE))
    assert {group["name"]: group["weight_decay"] for group in groups} == decay


def test_sgd_steps_are_torchs(batch):
    config = config_of(**NET, tuning="full", optimizer="sgd", momentum=0.8, nesterov=True, lr=0.1, lr_head=0.2)
    task = build_task(config, classifier_of(config), PROFILE)
    optimizer = make_optimiser(config, task, fused=False)
    assert isinstance(optimizer, torch.optim.SGD)
    assert {(g["momentum"], g["nesterov"]) for g in optimizer.param_groups} == {(0.8, True)}
    assert {g["name"]: g["lr"] for g in optimizer.param_groups} == {"towers": 0.1, "towers_no_decay": 0.1, "head": 0.2}


def test_loss_options_reach_the_loss():
    config = config_of(**NET | {"head": "cosine"}, **ONE | {"loss": "ldam"}, ldam_margin=0.4, ldam_defer=0.8)
    loss = build_task(config, classifier_of(config), PROFILE).base_loss
    assert isinstance(loss, LdamLoss)
    assert (loss.margin.max().item(), loss.scale, loss.defer) == (pytest.approx(12), 1, 0.8)
    config = config_of(**NET, **ONE | {"loss": "ldam"}, ldam_margin=0.4)
    loss = build_task(config, classifier_of(config), PROFILE).base_loss
    assert (loss.margin.max().item(), loss.scale, loss.defer) == (pytest.approx(0.4), 30, None)


def test_ldam_on_a_cosine_head_is_its_formula(batch):
    task = task_of(**NET | {"head": "cosine"}, **ONE | {"loss": "ldam"}, tuning="full").double()
    head, classes = task.classifier.head, batch["targets"].argmax(1)
    h = task.classifier.encoder.encode_image(batch["pixel_values"].double())
    cosines = torch.nn.functional.cosine_similarity(h[:, None], head.weight[None], dim=-1)
    margins = 0.5 * (torch.tensor([50.0, 9, 3]) / 3) ** -0.25
    expected = torch.nn.functional.cross_entropy(30 * (cosines - margins * batch["targets"]), classes)
    found = task({**batch, "pixel_values": batch["pixel_values"].double()})["base"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_lora_on_a_net_leaves_the_statistics_of_the_frozen_base(batch):
    task = task_of(**NET, tuning="lora")
    before = task.classifier.encoder.model.bn1.running_mean.clone()
    task(batch)
    assert torch.equal(task.classifier.encoder.model.bn1.running_mean, before)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({**NET, "dropout": 0.1}, "dropout is about the towers of a CLIP, and cifar_resnet32"),
        ({**NET, "discrepancy_fraction": 0.5}, "discrepancy_fraction is about the towers of a CLIP"),
        ({**NET, "tail_targets": ["q_proj"]}, "no layer matches target_modules"),
        ({**NET, "loss": "ce"}, "loss: ce is one softmax"),
        ({**CLIP, "head": "cosine", "feature_regularisation": 0.1}, "feature_regularisation makes features shorter"),
    ],
)
def test_what_an_encoder_or_head_cannot_follow_is_refused(keys, message):
    config = config_of(**keys)
    with pytest.raises(ValueError, match=message):
        check_method(config, classifier_of(config), PROFILE)


def test_prompts_need_a_text_tower():
    config = config_of(model="cifar_resnet32")
    with pytest.raises(ConfigError, match=r"head: prompts needs a text tower.* set head: linear"):
        classifier_of(config)
