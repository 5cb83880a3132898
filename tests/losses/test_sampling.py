import pytest
import torch

from clip_more.losses import BCELoss, DiscrepancyLoss
from clip_more.losses.sampling import (
    Share,
    draw_classes,
    draw_images,
    draw_systematically,
    inclusion_probabilities,
    positives_and_others,
)

WEIGHTS = torch.tensor([50.0, 20, 9, 5, 3, 1])


def test_inclusion_is_proportional_where_none_is_sure():
    found = inclusion_probabilities(torch.tensor([4.0, 3, 2, 1]), 2)
    torch.testing.assert_close(found, torch.tensor([0.8, 0.6, 0.4, 0.2], dtype=torch.float64))


@pytest.mark.parametrize("size", range(1, 7))
def test_inclusion_adds_up_to_the_size_and_never_passes_one(size):
    found = inclusion_probabilities(WEIGHTS, size)
    assert found.sum().item() == pytest.approx(size, abs=1e-12)
    assert (found > 0).all()
    assert (found <= 1).all()
    free = found < 1
    if free.sum() > 1:
        ratio = found[free] / WEIGHTS[free].double()
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


def test_a_class_is_drawn_as_often_as_its_probability_says():
    torch.manual_seed(0)
    probabilities, draws = inclusion_probabilities(WEIGHTS, 3), 20_000
    count = torch.zeros(6)
    for _ in range(draws):
        drawn = draw_systematically(probabilities)
        assert len(drawn) == len(set(drawn.tolist())) == 3
        count[drawn] += 1
    spread = (probabilities * (1 - probabilities) / draws).sqrt().float()
    assert ((count / draws - probabilities.float()).abs() <= 4 * spread + 1e-9).all()


def test_images_are_drawn_without_replacement_and_at_least_one():
    assert draw_images(8, 1.0, torch.device("cpu")) is None
    assert len(draw_images(8, 0.01, torch.device("cpu"))) == 1
    drawn = draw_images(8, 0.5, torch.device("cpu"))
    assert len(drawn) == 4
    assert (drawn.diff() > 0).all()


def expectation(draw, loss, draws: int = 2000) -> tuple[float, float]:
    values = torch.tensor([loss(draw()) for _ in range(draws)], dtype=torch.float64)
    return values.mean().item(), 4 * (values.std() / draws**0.5).item()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weighting": "sample", "sample_reduce": "mean"},
        {"distance": "kl"},
        {"reduction": "mean"},
        {"scale_free": True},
        {"centred": True},
        {"prior_exponent": -1.0},
    ],
)
@pytest.mark.parametrize("some_unknown", [False, True])
def test_discrepancy_on_a_share_is_unbiased(options, some_unknown):
    torch.manual_seed(1)
    full, general = torch.randn(8, 6) * 3, torch.randn(8, 6) * 3
    targets = (torch.rand(8, 6) < 0.4).float()
    known = torch.rand(8, 6) < 0.8 if some_unknown else None
    more = DiscrepancyLoss(WEIGHTS, **options)
    exact = more(full, general, targets, known).item()
    weights = more.class_weights()

    def draw() -> Share:
        drawn = (None, None) if weights is None else draw_classes(inclusion_probabilities(weights, 2), full.device)
        return Share(draw_images(8, 0.5, full.device), *drawn)

    def loss(share: Share) -> float:
        part = general[share.images] if share.classes is None else general[share.images][:, share.classes]
        return more(full, part, targets, known, share).item()

    mean, bound = expectation(draw, loss)
    assert abs(mean - exact) < bound
    assert bound < 0.3 * exact


def test_all_of_a_batch_as_a_share_is_the_whole_loss():
    torch.manual_seed(2)
    full, general = torch.randn(4, 6), torch.randn(4, 6)
    targets, more = (torch.rand(4, 6) < 0.4).float(), DiscrepancyLoss(WEIGHTS)
    share = Share(torch.arange(4), torch.arange(6), torch.ones(6))
    torch.testing.assert_close(more(full, general, targets, None, share), more(full, general, targets))


def test_centred_needs_all_classes():
    assert DiscrepancyLoss(WEIGHTS, centred=True).class_weights() is None


def test_base_loss_on_positives_and_some_others_is_unbiased():
    torch.manual_seed(3)
    logits, known = torch.randn(5, 40), torch.rand(5, 40) < 0.9
    targets = torch.zeros(5, 40)
    targets[0, 3] = targets[1, 30] = targets[4, 3] = 1
    exact = BCELoss()(logits, targets, known).item()

    def draw() -> Share:
        share = positives_and_others(targets, 10)
        assert {3, 30} <= set(share.classes.tolist())
        assert len(share.classes) == 10
        return share

    def loss(share: Share) -> float:
        return BCELoss()(share.columns(logits), share.columns(targets), share.weighted(known)).item()

    mean, bound = expectation(draw, loss)
    assert abs(mean - exact) < bound < 0.15 * exact


def test_a_sample_smaller_than_the_positives_still_has_one_other_class():
    targets = torch.zeros(2, 10)
    targets[0, :6] = 1
    share = positives_and_others(targets, 3)
    assert len(share.classes) == 7
    assert set(share.classes[:6].tolist()) == set(range(6))
    assert share.weights.tolist() == [1.0] * 6 + [4.0]
    assert positives_and_others(torch.ones(2, 10), 3).classes is None
    assert positives_and_others(targets, 10).classes is None


def test_columns_go_back_to_their_places():
    share = Share(None, torch.tensor([1, 4]), torch.ones(2))
    table = torch.arange(12.0).view(2, 6)
    back = share.spread(share.columns(table), 6)
    assert torch.equal(back[:, [1, 4]], table[:, [1, 4]])
    assert back[:, [0, 2, 3, 5]].abs().sum() == 0
