import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestCentroid

from clip_more.models.feature_heads import (
    CosineHead,
    FixedHead,
    LinearHead,
    NearestMeanHead,
    NormedLinearHead,
    orthonormal_frame,
    rotated_towards,
    simplex_etf,
)


@pytest.fixture
def h():
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def weight():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


BIAS = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)


@pytest.mark.parametrize(("classes", "features"), [(2, 1), (2, 5), (7, 6), (7, 7), (10, 32), (100, 512)])
def test_etf_has_its_gram_matrix_and_rows_that_sum_to_zero(classes, features):
    etf = simplex_etf(classes, features, torch.Generator().manual_seed(3))
    assert (etf.shape, etf.dtype) == ((classes, features), torch.float64)
    expected = classes / (classes - 1) * (torch.eye(classes, dtype=torch.float64) - 1 / classes)
    torch.testing.assert_close(etf @ etf.T, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(etf.sum(0), torch.zeros(features, dtype=torch.float64), rtol=0, atol=1e-12)


def test_etf_and_frame_are_drawn_by_their_generator():
    drawn = [simplex_etf(4, 6, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])


def test_frame_is_orthonormal():
    frame = orthonormal_frame(5, 9, torch.Generator().manual_seed(0))
    torch.testing.assert_close(frame @ frame.T, torch.eye(5, dtype=torch.float64), rtol=0, atol=1e-12)


def test_too_few_features_are_refused():
    with pytest.raises(ValueError, match="an ETF of 100 classes needs 99 features or more, and this encoder gives 64"):
        simplex_etf(100, 64)
    with pytest.raises(ValueError, match="a frame of 7 orthonormal rows needs 7 features, and this encoder gives 6"):
        orthonormal_frame(7, 6)
    with pytest.raises(ValueError, match="two classes or more"):
        simplex_etf(1, 6)


@pytest.mark.parametrize("kind", ["etf", "frame"])
def test_rotation_finds_the_frame_that_a_text_is(kind):
    make = simplex_etf if kind == "etf" else orthonormal_frame
    text = make(5, 8, torch.Generator().manual_seed(2))
    torch.testing.assert_close(rotated_towards(F.normalize(text), kind), text, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["etf", "frame"])
def test_no_random_rotation_comes_closer_to_the_text(kind):
    text = F.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(4)).double())
    found = rotated_towards(text, kind)
    make = simplex_etf if kind == "etf" else orthonormal_frame
    one = make(5, 8)
    torch.testing.assert_close(found @ found.T, one @ one.T, rtol=0, atol=1e-12)
    best = (found * text).sum()
    others = [(make(5, 8, torch.Generator().manual_seed(seed)) * text).sum() for seed in range(50)]
    # Small rotations of what was found, too.
    for seed in range(50):
        skew = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)).double() * 0.1
        others.append((found @ torch.matrix_exp(skew - skew.T) * text).sum())
    assert best >= max(others)


def test_logits_of_an_etf_sum_to_those_of_the_biases(h):
    head = FixedHead(simplex_etf(4, 6), BIAS)
    torch.testing.assert_close(head(h).sum(1), BIAS.sum().expand(20), rtol=0, atol=1e-12)
    framed = FixedHead(orthonormal_frame(4, 6), BIAS, "frame")
    assert framed(h).sum(1).std() > 0.1


def test_a_fixed_head_trains_its_biases_alone():
    assert [name for name, _ in FixedHead(simplex_etf(4, 6)).named_parameters()] == ["bias"]


def test_linear_and_normed_linear_are_their_formulas(h, weight):
    torch.testing.assert_close(LinearHead(weight, BIAS)(h), h @ weight.T + BIAS)
    rows = weight / weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(NormedLinearHead(weight, BIAS)(h), h @ rows.T + BIAS)
    unit = h / h.norm(dim=1, keepdim=True)
    torch.testing.assert_close(LinearHead(weight, BIAS, "unit")(h), unit @ weight.T + BIAS)
    centre = h.mean(0)
    centred = (h - centre) / (h - centre).norm(dim=1, keepdim=True)
    torch.testing.assert_close(LinearHead(weight, BIAS, "centred", centre)(h), centred @ weight.T + BIAS)


def test_cosine_head_is_torchs_cosine_and_its_scale_is_bounded(h, weight):
    head = CosineHead(weight, BIAS).double()
    cosines = F.cosine_similarity(h[:, None], weight[None], dim=-1)
    torch.testing.assert_close(head(h), 16 * cosines + BIAS, rtol=1e-6, atol=0)
    with torch.no_grad():
        head.log_scale.fill_(9.0)
    head.clamp_scale()
    assert head.log_scale.exp().item() == pytest.approx(100, rel=1e-6)


@pytest.mark.parametrize("head", ["linear", "normed_linear", "cosine", "mean_cosine"])
def test_lengths_that_a_head_says_it_ignores_change_nothing(h, weight, head):
    made = {
        "linear": lambda w: LinearHead(w, BIAS, "unit"),
        "normed_linear": lambda w: NormedLinearHead(w, BIAS),
        "cosine": lambda w: CosineHead(w, BIAS).double(),
        "mean_cosine": lambda w: NearestMeanHead(w, metric="cosine"),
    }[head]
    rows = torch.tensor([2.0, 0.1, 30.0, 1.0], dtype=torch.float64)[:, None]
    same_rows = torch.allclose(made(weight)(h), made(weight * rows)(h))
    same_features = torch.allclose(made(weight)(h), made(weight)(h * 5))
    assert (same_rows, same_features) == (made(weight).ignores_norms, made(weight).ignores_lengths)


def test_nearest_mean_says_what_sklearn_says(h):
    labels = np.arange(20) % 4
    means = torch.stack([h[labels == c].mean(0) for c in range(4)])
    expected = NearestCentroid().fit(h.numpy(), labels).predict(h.numpy())
    logits = NearestMeanHead(means)(h)
    assert logits.argmax(1).tolist() == expected.tolist()
    torch.testing.assert_close(logits, -torch.cdist(h, means).square())


def test_heads_compute_in_fp32_under_autocast():
    head = LinearHead(torch.randn(3, 8))
    h = torch.randn(5, 8)
    expected = head(h)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(head(h), expected)
        assert head(h.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda w: LinearHead(w, inputs="long"), "inputs is 'long'; choose one of raw, unit, centred"),
        (lambda w: LinearHead(w, inputs="centred"), "a centre goes with inputs: centred"),
        (lambda w: LinearHead(w, centre=w[0]), "a centre goes with inputs: centred"),
        (lambda w: FixedHead(w, frame="square"), "frame is 'square'; choose etf or frame"),
        (lambda w: NearestMeanHead(w, metric="l1"), "metric is 'l1'; choose euclidean or cosine"),
    ],
)
def test_unknown_options_are_refused(make, message, weight):
    with pytest.raises(ValueError, match=message):
        make(weight)
