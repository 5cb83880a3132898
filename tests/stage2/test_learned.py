import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from clip_more.data.samplers import InstanceOrder
from clip_more.evaluation.average_precision import average_precision
from clip_more.models.feature_heads import CosineHead, LinearHead
from clip_more.stage2.choose import Stage
from clip_more.stage2.fitting import Course, fit, mean_square
from clip_more.stage2.learned import ScaledHead, StandardHead, crt, lws
from clip_more.stage2.options import Stage2Options
from tests.stage2.gaussians import (
    balanced_accuracy,
    gaussian_stage,
    logistic_head,
    photos,
    random_head,
    ranks,
    several_labels,
    several_labels_head,
)


def test_lws_without_a_step_is_stage_1_exactly():
    stage = gaussian_stage()
    head, selection = lws(stage, Stage2Options(epochs=0, lr=1.0))
    assert torch.equal(head(stage.val.features), stage.head(stage.val.features))
    assert (selection.log["smallest_factor"], selection.log["largest_factor"]) == (1.0, 1.0)


def test_folded_factors_are_the_formula():
    head = random_head(4, 6, dtype=torch.float64)
    scaled = ScaledHead(head)
    with torch.no_grad():
        scaled.factors.copy_(torch.tensor([0.5, 2.0, -1.0, 3.0]))
    features = torch.randn(20, 6, dtype=torch.float64)
    expected = scaled.factors * (features @ head.weight.T + head.bias)
    assert torch.allclose(scaled.folded()(features), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("inputs", ["raw", "unit"])
def test_mean_and_size_folded_into_weight_and_bias_are_the_formula(inputs):
    stage = gaussian_stage()
    own = random_head(4, 6, inputs=inputs)
    centred = StandardHead(own, stage.train)
    x = stage.train.features if inputs == "raw" else F.normalize(stage.train.features, dim=1)
    x = x - x.mean(dim=0)
    expected = x / x.square().sum(dim=1).mean().sqrt() @ own.weight.T + own.bias
    assert torch.allclose(centred(stage.train.features), expected, atol=1e-5)
    assert torch.allclose(centred.folded()(stage.train.features), expected, atol=1e-5)


def test_lws_trains_the_factors_alone_and_positive_ones_leave_every_ap():
    train, val = several_labels(400), several_labels(300, seed=1)
    first = several_labels_head()
    stage = Stage(first, train, val, single_label=False)
    head, selection = lws(stage, Stage2Options(lr=1.0))
    ratio = head.weight / first.weight
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4)
    assert torch.allclose(head.bias / first.bias, ratio[:, 0], rtol=1e-4)
    assert (ratio > 0).all()
    assert selection.keeps_ap
    assert selection.measure == "micro-AP"
    with torch.no_grad():
        before, after = (own.double()(val.features.double()).numpy() for own in (first, head))
    assert np.array_equal(ranks(before), ranks(after))
    ap = [average_precision(val.targets.numpy(), scores, val.known.numpy()) for scores in (before, after)]
    assert np.array_equal(*ap)


def test_a_factor_that_turned_negative_is_said_to_change_ap():
    stage = gaussian_stage(head=LinearHead(-5 * logistic_head(photos((50,) * 4, 0)).weight.detach()))
    _, selection = lws(stage, Stage2Options(lr=10.0, epochs=20))
    assert selection.log["negative_factors"] > 0
    assert not selection.keeps_ap


@pytest.mark.parametrize("method", [crt, lws])
def test_learning_on_balanced_draws_raises_balanced_accuracy_on_new_photos(method):
    stage = gaussian_stage()
    features = stage.train.features.clone()
    weight = stage.head.weight.detach().clone()
    head, selection = method(stage, Stage2Options())
    test = photos((500,) * 4, 2)
    assert balanced_accuracy(head, test) > balanced_accuracy(stage.head, test) + 0.02
    assert selection.chosen["lr"] in (0.1, 1.0, 10.0)
    assert len(selection.candidates) == 3
    assert torch.equal(stage.train.features, features)
    assert torch.equal(stage.head.weight, weight)


def test_crt_comes_to_the_balanced_logistic_regression():
    stage = gaussian_stage()
    head, _ = crt(stage, Stage2Options(epochs=100, lr=1.0, weight_decay=0.0))
    labels = stage.train.targets.numpy().argmax(axis=1)
    peer = LogisticRegression(C=1e3, class_weight="balanced", max_iter=2000).fit(stage.train.features.numpy(), labels)
    test = photos((500,) * 4, 2)
    same = head(test.features).argmax(dim=1).numpy() == peer.predict(test.features.numpy())
    assert same.mean() > 0.97


@pytest.mark.parametrize("method", [crt, lws])
def test_a_seed_decides_a_fit_bit_for_bit(method):
    def weights(seed):
        return method(gaussian_stage(seed=seed), Stage2Options(lr=1.0, epochs=2))[0].weight

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_the_scale_and_the_mean_of_raw_features_change_nothing_in_crt():
    stage = gaussian_stage()
    moved = [type(data)(50 * data.features + 700, data.targets, data.known) for data in (stage.train, stage.val)]
    head, _ = crt(stage, Stage2Options(lr=1.0, epochs=2))
    other, _ = crt(gaussian_stage(train=moved[0], val=moved[1]), Stage2Options(lr=1.0, epochs=2))
    assert torch.allclose(head(stage.val.features), other(moved[1].features), atol=0.01)


def test_crt_reads_features_as_the_head_of_stage_1_did():
    stage = gaussian_stage(head=CosineHead(torch.randn(4, 6)))
    head, _ = crt(stage, Stage2Options(lr=1.0, epochs=1))
    assert (head.kind, head.inputs) == ("linear", "unit")
    assert torch.allclose(head(stage.val.features), head(7 * stage.val.features), atol=1e-5)


def test_a_fresh_classifier_of_several_labels_starts_at_the_log_odds_of_what_is_drawn():
    targets = torch.tensor([[1, 0], [1, 0], [1, 1], [0, 0]]).bool()
    features, known = torch.randn(4, 3), torch.ones(4, 2, dtype=torch.bool)
    data = several_labels(8)
    data = type(data)(features, targets, known)
    head, _ = crt(Stage(random_head(2, 3), data, None, single_label=False), Stage2Options(lr=1.0, epochs=0))
    # Weights of the photos: 1/3, 1/3, (1/3 + 1) / 2 = 2/3, and their mean 4/9 without a label.
    drawn = torch.tensor([1 / 3, 1 / 3, 2 / 3, 4 / 9])
    share = torch.stack([drawn[:3].sum(), drawn[2]]) / drawn.sum()
    at_mean = head(features.mean(dim=0, keepdim=True))[0]
    assert torch.allclose(at_mean, torch.logit(share), atol=1e-5)
    size = (features - features.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    assert (size * head.weight).abs().max() <= 3**-0.5


def test_a_step_is_sgd_on_the_rows_of_its_order():
    data = photos((2, 1, 1), 0)
    head = random_head(3, 6, dtype=torch.float64)
    data = type(data)(data.features.double(), data.targets, data.known)
    p = F.softmax(head(data.features), dim=1).detach()
    residual = p - data.targets.double()
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()

    def loss(logits, targets, known):
        return F.cross_entropy(logits, targets.int().argmax(1).long())

    fit(head, data, loss, InstanceOrder(4, 0), Course(1, 4, lr=0.5, weight_decay=0.1))
    assert torch.allclose(head.weight, weight - 0.5 * (residual.T @ data.features / 4 + 0.1 * weight), atol=1e-12)
    assert torch.allclose(head.bias, bias - 0.5 * (residual.mean(dim=0) + 0.1 * bias), atol=1e-12)


def test_rates_fall_as_a_cosine_over_all_epochs():
    head = LinearHead(torch.zeros(2, 6))
    biases = [0.0]

    def loss(logits, targets, known):  # whose gradient is 1 for each bias
        return head.bias.sum()

    def after():
        biases.append(head.bias[0].item())

    fit(head, photos((4, 4), 0), loss, InstanceOrder(8, 0), Course(2, 4, lr=1.0), after_step=after)
    momentum, expected = 0.0, []
    for step in range(4):
        momentum = 0.9 * momentum + 1.0
        expected.append((1 + np.cos(np.pi * step / 4)) / 2 * momentum)
    assert -np.diff(biases) == pytest.approx(expected, abs=1e-5)


def test_mean_square_is_over_photos():
    features = torch.randn(5000, 3)
    assert mean_square(lambda part: 2 * part, features) == pytest.approx(
        4 * float((features**2).sum(1).mean()), rel=1e-5
    )
