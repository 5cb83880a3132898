import math

import numpy as np
import pytest
import torch

from clip_more.evaluation.average_precision import average_precision
from clip_more.models.feature_heads import CosineHead, FixedHead, LinearHead, NormedLinearHead, simplex_etf
from clip_more.stage2.choose import Stage
from clip_more.stage2.options import Stage2Options
from clip_more.stage2.post_hoc import (
    adjusted_additively,
    adjusted_multiplicatively,
    la_additive,
    la_multiplicative,
    tau,
    tau_normalised,
)
from tests.stage2.gaussians import balanced_accuracy, gaussian_stage, photos, random_head, ranks, several_labels

HEAD = random_head(5, 8, dtype=torch.float64)
PRIOR = torch.tensor([0.5, 0.25, 0.15, 0.07, 0.03], dtype=torch.float64)


def test_tau_1_gives_unit_norms_and_tau_0_the_weights_themselves():
    assert torch.allclose(tau_normalised(HEAD, 1.0).weight.norm(dim=1), torch.ones(5).double(), atol=1e-15)
    whole = tau_normalised(HEAD, 0.0)
    assert torch.equal(whole.weight, HEAD.weight)
    assert torch.equal(whole.bias, torch.zeros(5).double())


def test_tau_divides_each_row_by_a_power_of_its_norm():
    weight = torch.tensor([[3.0, 4.0], [0.0, 16.0]])
    found = tau_normalised(LinearHead(weight, torch.ones(2)), 0.5)
    assert torch.allclose(found.weight, torch.stack([weight[0] / math.sqrt(5), weight[1] / 4]))


def test_additive_adjustment_folded_into_the_bias_is_the_formula():
    features = torch.randn(50, 8, dtype=torch.float64)
    expected = HEAD(features) - 0.7 * PRIOR.log()
    assert torch.allclose(adjusted_additively(HEAD, PRIOR, 0.7)(features), expected, rtol=0, atol=1e-12)


def test_multiplicative_adjustment_folded_into_weight_and_bias_is_the_formula():
    features = torch.randn(50, 8, dtype=torch.float64)
    expected = HEAD(features) * PRIOR**-1.3
    assert torch.allclose(adjusted_multiplicatively(HEAD, PRIOR, 1.3)(features), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "correct",
    [
        lambda head: tau_normalised(head, 1.4),
        lambda head: adjusted_additively(head, PRIOR, 1.4),
        lambda head: adjusted_multiplicatively(head, PRIOR, 0.6),
    ],
    ids=["tau", "la_additive", "la_multiplicative"],
)
@torch.no_grad()
def test_the_order_of_the_photos_of_a_class_and_its_ap_stay_and_top_1_does_not(correct):
    data = several_labels(400)
    features = data.features.double()
    before, after = HEAD(features).numpy(), correct(HEAD)(features).numpy()
    assert np.array_equal(ranks(before), ranks(after))
    ap = [average_precision(data.targets.numpy(), scores, data.known.numpy()) for scores in (before, after)]
    assert np.array_equal(*ap)
    assert (before.argmax(axis=1) != after.argmax(axis=1)).mean() > 0.1


def test_multiplicative_adjustment_demotes_the_tail_where_logits_are_negative():
    head = LinearHead(torch.zeros(3, 1).double(), torch.tensor([-1.0, -1.2, -1.1], dtype=torch.float64))
    prior = torch.tensor([0.9, 0.09, 0.01], dtype=torch.float64)
    found = adjusted_multiplicatively(head, prior, 1.0)(torch.zeros(1, 1).double())
    assert torch.allclose(found, torch.tensor([[-1 / 0.9, -1.2 / 0.09, -110.0]], dtype=torch.float64))
    assert found.argsort(descending=True).tolist() == [[0, 1, 2]]


def test_multiplicative_adjustment_is_refused_with_several_labels_a_photo():
    data = several_labels(60)
    with pytest.raises(ValueError, match=r"-110 at gamma 1\. Choose la_additive"):
        la_multiplicative(Stage(random_head(5, 8), data, data, single_label=False), Stage2Options())


@pytest.mark.parametrize("method", [tau, la_additive, la_multiplicative])
def test_each_correction_raises_balanced_accuracy_on_new_photos(method):
    stage = gaussian_stage()
    head, selection = method(stage, Stage2Options())
    test = photos((500,) * 4, 2)
    assert balanced_accuracy(head, test) > balanced_accuracy(stage.head, test) + 0.03
    totals = [candidate["scores"]["total"] for candidate in selection.candidates]
    assert selection.chosen == selection.candidates[int(np.argmax(totals))]["values"]
    assert max(totals) > selection.stage_one["total"]
    assert selection.keeps_ap
    assert selection.measure == "balanced top-1"


def test_additive_adjustment_of_a_bayes_classifier_at_tau_1_is_the_balanced_bayes_classifier():
    stage = gaussian_stage()
    means = 1.6 * torch.eye(4, 6) + 0.5
    balanced = LinearHead(means, -means.square().sum(dim=1) / 2)
    bayes = LinearHead(means.clone(), balanced.bias.detach() + stage.train.prior().log().float())
    features = photos((50,) * 4, 5).features
    corrected = adjusted_additively(bayes, stage.train.prior(), 1.0)
    assert torch.allclose(corrected(features), balanced(features), atol=1e-5)


def test_grids_are_those_of_the_papers():
    stage = gaussian_stage()
    taus = [candidate["values"]["tau"] for candidate in tau(stage, Stage2Options())[1].candidates]
    gammas = [c["values"]["gamma"] for c in la_multiplicative(stage, Stage2Options())[1].candidates]
    assert taus == [n / 10 for n in range(21)]
    assert gammas == [n / 10 for n in range(31)]


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (CosineHead(torch.randn(4, 6)), r"the head \(cosine\) divides every row"),
        (NormedLinearHead(torch.randn(4, 6)), r"the head \(normed_linear\) divides every row"),
        (FixedHead(simplex_etf(4, 6).float()), "all rows of its weight have the norm 1"),
        (
            LinearHead(30 * torch.nn.functional.normalize(torch.randn(4, 6), dim=1), inputs="unit"),
            "norm 30, as with text",
        ),
    ],
    ids=["cosine", "normed", "etf", "prompts"],
)
def test_tau_is_refused_where_all_norms_are_one(head, why):
    with pytest.raises(ValueError, match=why):
        tau(gaussian_stage(head=head), Stage2Options())


@pytest.mark.parametrize(
    "head",
    [CosineHead(torch.randn(4, 6), torch.randn(4)), NormedLinearHead(torch.randn(4, 6), torch.randn(4)),
     FixedHead(simplex_etf(4, 6).float(), torch.randn(4)),
     LinearHead(torch.randn(4, 6), torch.randn(4), inputs="centred", centre=torch.randn(6))],
    ids=["cosine", "normed", "etf", "centred"],
)  # fmt: skip
def test_logit_adjustment_folds_into_every_head(head):
    stage = gaussian_stage(head=head)
    features = stage.val.features
    added, _ = la_additive(stage, Stage2Options(tau=0.5))
    times, _ = la_multiplicative(stage, Stage2Options(gamma=0.5))
    prior = stage.train.prior().float()
    assert torch.allclose(added(features), head(features) - 0.5 * prior.log(), atol=1e-5)
    assert torch.allclose(times(features), head(features) * prior**-0.5, atol=1e-5, rtol=1e-5)
