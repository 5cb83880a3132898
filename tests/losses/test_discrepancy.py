import pytest
import torch
import torch.nn.functional as F

from clip_more.losses import AsymmetricLoss, DiscrepancyLoss
from clip_more.losses.asymmetric import Focus
from clip_more.losses.sampling import Share

COUNTS = torch.tensor([700, 90, 30, 6])
PRIOR = COUNTS.double() / COUNTS.sum()


@pytest.fixture
def batch():
    torch.manual_seed(0)
    full = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    general = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor(
        [[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1], [0, 0, 0, 1], [0, 1, 0, 0]]
    ).double()
    known = torch.rand(6, 4) < 0.8
    return full, general, targets, known


def loss64(**options):
    loss = DiscrepancyLoss(COUNTS, **options)
    loss.prior = loss.prior.double()
    return loss


def test_label_weighting_is_its_formula(batch):
    full, general, targets, _ = batch
    prior = loss64().prior
    torch.testing.assert_close(prior, PRIOR, rtol=1e-6, atol=0)
    expected = sum(prior[c] * (full[n, c] - general[n, c]) ** 2 for n in range(6) for c in range(4)) / 6
    torch.testing.assert_close(loss64()(full, general, targets), expected)


@pytest.mark.parametrize("reduce", ["min", "mean", "max"])
def test_sample_weighting_is_its_formula(batch, reduce):
    full, general, targets, _ = batch
    loss = loss64(weighting="sample", sample_reduce=reduce)
    prior = loss.prior.tolist()
    pick = {"min": min, "max": max, "mean": lambda v: sum(v) / len(v)}[reduce]
    expected = 0.0
    for n in range(6):
        weight = pick([prior[c] for c in range(4) if targets[n, c] == 1])
        expected += weight * ((full[n] - general[n]) ** 2).sum().item() / 6
    assert loss(full, general, targets).item() == pytest.approx(expected, rel=1e-12)


def test_single_label_sample_weighting_is_the_published_form(batch):
    full, general, _, _ = batch
    y = torch.tensor([0, 3, 1, 0, 2, 2])
    loss = loss64(weighting="sample")
    expected = (loss.prior[y] * (full - general).square().sum(1)).mean()
    for reduce in ("min", "mean", "max"):
        ours = loss64(weighting="sample", sample_reduce=reduce)(full, general, F.one_hot(y, 4))
        torch.testing.assert_close(ours, expected)


def test_gradient_at_one_logit_is_two_alpha_pi_delta_over_n(batch):
    full, general, targets, _ = batch
    alpha, loss = 0.7, loss64(gradient="both")
    to_full, to_general = torch.autograd.grad(alpha * loss(full, general, targets), (full, general))
    expected = 2 * alpha * loss.prior * (full - general) / 6
    torch.testing.assert_close(to_full, expected)
    torch.testing.assert_close(to_general, -expected)
    (stopped,) = torch.autograd.grad(alpha * loss64()(full, general, targets), full)
    torch.testing.assert_close(stopped, expected)


def test_uniform_prior_makes_label_and_sample_agree(batch):
    full, general, targets, _ = batch
    label = loss64(prior_exponent=0)(full, general, targets)
    for reduce in ("min", "mean", "max"):
        sample = loss64(weighting="sample", prior_exponent=0, sample_reduce=reduce)
        torch.testing.assert_close(sample(full, general, targets), label)


def test_image_without_a_positive_weighs_nothing_by_sample(batch):
    full, general, targets, _ = batch
    for reduce in ("min", "mean", "max"):
        loss = loss64(weighting="sample", sample_reduce=reduce)
        assert loss(full, general, torch.zeros_like(targets)).item() == 0


@pytest.mark.parametrize("q", [1.0, 0.5, 0.0, -1.0])
def test_prior_exponent(q):
    weights = COUNTS.double() ** q
    torch.testing.assert_close(loss64(prior_exponent=q).prior, weights / weights.sum(), rtol=1e-6, atol=0)


def test_kl_is_torch_kl_of_two_bernoullis(batch):
    full, general, targets, _ = batch
    loss = loss64(distance="kl", prior_exponent=0)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(logits=full), torch.distributions.Bernoulli(logits=general)
    )
    torch.testing.assert_close(loss(full, general, targets), kl.sum(1).mean() / 4, rtol=1e-6, atol=0)


def test_kl_beside_a_softmax_loss_is_torch_kl_of_two_categoricals(batch):
    full, general, targets, _ = batch
    loss = loss64(distance="kl", prior_exponent=0, softmax=True)
    kl = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=full), torch.distributions.Categorical(logits=general)
    )
    torch.testing.assert_close(loss(full, general, targets), kl.mean() / 4, rtol=1e-6, atol=0)
    assert loss.class_weights() is None


@pytest.mark.parametrize("distance", ["l2", "kl"])
def test_scale_free_does_not_see_the_logit_scale(batch, distance):
    full, general, targets, known = batch
    loss = loss64(scale_free=True, distance=distance)
    torch.testing.assert_close(loss(10 * full, 10 * general, targets, known), loss(full, general, targets, known))
    assert loss64(distance=distance)(10 * full, 10 * general, targets) > 5 * loss64(distance=distance)(
        full, general, targets
    )


def test_scale_free_sends_no_gradient_through_the_deviation(batch):
    full, general, targets, _ = batch
    deviation = full.detach().std(correction=0)
    (ours,) = torch.autograd.grad(loss64(scale_free=True)(full, general, targets), full)
    (plain,) = torch.autograd.grad(loss64()(full, general, targets), full)
    torch.testing.assert_close(ours, plain / deviation**2)


def test_centred_does_not_see_a_shift_common_to_all_classes(batch):
    full, general, targets, known = batch
    loss = loss64(centred=True)
    shifted = full + torch.randn(6, 1, dtype=torch.float64)
    torch.testing.assert_close(loss(shifted, general, targets, known), loss(full, general, targets, known))


@pytest.mark.parametrize("options", [{}, {"distance": "kl"}, {"weighting": "sample"}, {"centred": True}])
def test_gradcheck(batch, options):
    full, general, targets, known = batch
    loss = loss64(gradient="both", **options)
    assert torch.autograd.gradcheck(lambda f, g: loss(f, g, targets, known), (full, general))


def test_focus_is_its_formula_and_sends_no_gradient(batch):
    full, general, targets, known = batch
    loss = loss64(focus=Focus(1.5, 3.0, 0.1), gradient="both")
    p = torch.sigmoid(full.detach())
    focus = torch.where(targets == 1, (1 - p) ** 1.5, (p - 0.1).clamp_min(0) ** 3)
    value = loss(full, general, targets, known)
    torch.testing.assert_close(value, (focus * loss.prior * (full - general) ** 2 * known).sum() / 6)
    (gradient,) = torch.autograd.grad(value, full)
    torch.testing.assert_close(gradient, 2 * focus * loss.prior * (full - general).detach() * known / 6)
    assert torch.autograd.gradcheck(lambda g: loss(full.detach(), g, targets, known), general)


def test_focus_is_that_of_the_base_loss(batch):
    """Of one entry ASL without its focus inside the gradient is `-focus log likelihood`."""
    full, _, _, _ = batch
    for target in (0.0, 1.0):
        one = torch.tensor([[target]], dtype=torch.float64)
        for logit in full.detach().flatten()[:6].view(-1, 1, 1):
            p_m = max(torch.sigmoid(logit).item() - 0.05, 0)
            log = F.logsigmoid(logit) if target else torch.log(torch.tensor(1 - p_m))
            loss = DiscrepancyLoss(COUNTS[:1], focus=Focus(2.0, 4.0, 0.05))
            focus = loss(logit, logit - 1, one)  # Delta is 1, and so is the one class's prior
            torch.testing.assert_close(AsymmetricLoss(2.0)(logit, one), -(focus * log).squeeze(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"weighting": "sample"}, {"scale_free": True}, {"distance": "kl"}])
def test_no_focusing_leaves_the_discrepancy_as_it_is(batch, options):
    full, general, targets, known = batch
    plain = loss64(**options)(full, general, targets, known)
    assert torch.equal(loss64(focus=Focus(0.0, 0.0, 0.0), **options)(full, general, targets, known), plain)
    assert not torch.allclose(loss64(focus=Focus(), **options)(full, general, targets, known), plain)


def test_focus_follows_a_share_of_photos_and_classes(batch):
    full, general, targets, known = batch
    rows, classes = torch.tensor([1, 4]), torch.tensor([0, 3])
    loss = loss64(focus=Focus())
    found = loss(full, general[rows][:, classes], targets, known, Share(rows, classes, torch.ones(2)))
    kept = torch.zeros_like(known)
    kept[rows[:, None], classes] = known[rows[:, None], classes]
    torch.testing.assert_close(found, loss(full, general, targets, kept) * 6 / 2)


@pytest.mark.parametrize(("gradient", "stopped"), [("stop_full", 0), ("stop_general", 1)])
def test_stopped_pass_gets_no_gradient(batch, gradient, stopped):
    full, general, targets, _ = batch
    gradients = torch.autograd.grad(
        loss64(gradient=gradient)(full, general, targets), (full, general), allow_unused=True
    )
    assert gradients[stopped] is None
    assert gradients[1 - stopped].abs().max() > 0


@pytest.mark.parametrize("options", [{}, {"weighting": "sample"}, {"scale_free": True}, {"reduction": "mean"}])
def test_unknown_labels_count_nowhere(batch, options):
    full, general, targets, known = batch
    loss = loss64(**options)
    value = loss(full, general, targets, known)
    far = torch.where(known, full, full + 50)
    flipped = torch.where(known, targets, 1 - targets)
    torch.testing.assert_close(loss(far, general, flipped, known), value, rtol=0, atol=0)


def test_batch_without_a_known_label_has_no_loss_and_no_gradient(batch):
    full, general, targets, known = batch
    value = loss64(scale_free=True)(full, general, targets, torch.zeros_like(known))
    (gradient,) = torch.autograd.grad(value, full)
    assert value == 0
    assert (gradient == 0).all()


def test_mean_reduction_divides_by_the_classes(batch):
    full, general, targets, _ = batch
    for weighting in ("label", "sample"):
        total = loss64(weighting=weighting)(full, general, targets)
        torch.testing.assert_close(loss64(weighting=weighting, reduction="mean")(full, general, targets), total / 4)


def test_half_precision_logits_are_compared_in_fp32():
    full, general = torch.full((1, 4), 20.0), torch.full((1, 4), 19.875)
    value = DiscrepancyLoss(COUNTS)(full.bfloat16(), general.bfloat16(), torch.ones(1, 4))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(0.125**2, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weighting": "image"}, "weighting is 'image'; choose one of label, sample"),
        ({"distance": "l1"}, "distance is 'l1'"),
        ({"gradient": "none"}, "gradient is 'none'"),
        ({"centred": True, "distance": "kl"}, "centred subtracts"),
        ({"softmax": True, "distance": "kl"}, "weighted by class they would reward a distance"),
    ],
)
def test_bad_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        DiscrepancyLoss(COUNTS, **options)


def test_class_without_a_positive_is_refused():
    with pytest.raises(ValueError, match=r"classes \[1\] have no positive"):
        DiscrepancyLoss(torch.tensor([3, 0, 2]))
