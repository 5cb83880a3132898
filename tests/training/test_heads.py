import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_more.config import ConfigError
from clip_more.data.form import make_dataset
from clip_more.data.profile import ClassProfile
from clip_more.evaluation.predict import Predictions
from clip_more.models.backbones import load_backbone
from clip_more.models.clip import load_clip
from clip_more.models.feature_heads import FixedHead
from clip_more.recipe import from_dict
from clip_more.training import start
from clip_more.training.heads import feature_size, make_head, mean_directions, start_head, text_directions

PROFILE = ClassProfile(("red", "green", "blue"), (50, 9, 3), 20, 5, photos=60)
SINGLE = {"task": "single_label", "loss": "ce"}


@pytest.fixture(scope="module")
def net():
    return load_backbone("cifar_resnet32")


def config_of(**keys):
    return from_dict({"dataset": "digits_mlt", "model": "cifar_resnet32", "head": "linear", **keys}, "test")


@pytest.fixture
def features():
    """Three Gaussian classes of which each photo shows one."""
    rng = np.random.default_rng(0)
    labels = rng.choice(3, 200, p=(0.7, 0.2, 0.1))
    scores = rng.normal(size=(3, 64))[labels] * 2 + rng.normal(size=(200, 64)) + 5
    targets = np.eye(3, dtype=bool)[labels]
    return Predictions(scores.astype(np.float32), targets, np.ones_like(targets))


def test_biases_start_at_the_log_odds_of_independent_classes_and_at_0_of_a_softmax(net):
    share = torch.tensor([50, 9, 3]) / 60
    torch.testing.assert_close(make_head(config_of(), net, PROFILE).bias.data, (share / (1 - share)).log())
    assert not make_head(config_of(**SINGLE), net, PROFILE).bias.any()


def test_rows_are_drawn_by_the_seed(net):
    rows = [make_head(config_of(seed=seed), net, PROFILE).weight.data for seed in (1, 1, 2)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


@pytest.mark.parametrize("kind", ["linear", "normed_linear", "cosine", "etf", "frame"])
def test_every_head_is_made_for_every_encoder(kind, net):
    for encoder, size in ((net, 64), (load_clip("tiny"), 64)):
        head = make_head(config_of(head=kind), encoder, PROFILE)
        assert (head.kind, head.weight.shape) == (kind, (3, size))
        assert feature_size(encoder) == size
        assert torch.isfinite(head(encoder.encode_image(torch.zeros(2, 3, 32, 32)))).all()


def test_the_cosine_head_of_ldam_has_its_scale_fixed(net, features):
    head = make_head(config_of(**SINGLE | {"loss": "ldam"}, head="cosine"), net, PROFILE)
    start_head(head, mean_directions(features), features, True)
    head.clamp_scale()
    assert head.log_scale.exp().item() == pytest.approx(30)
    assert not head.log_scale.requires_grad


def test_a_frame_is_not_rotated_with_fewer_features_than_classes(net):
    narrow = ClassProfile([f"c{c}" for c in range(65)], [5] * 65, 20, 5, photos=325)
    assert make_head(config_of(head="etf"), net, narrow).weight.shape == (65, 64)
    with pytest.raises(ConfigError, match=r"head_init: class_mean rotates a head of 65 rows.* leave head_init out"):
        make_head(config_of(head="etf", head_init="class_mean"), net, narrow)


def test_a_head_start_sees_photos_of_every_class(monkeypatch):
    monkeypatch.setattr(start, "HEAD_START_PHOTOS", 50)
    monkeypatch.setattr(start, "HEAD_START_OF_A_CLASS", 4)
    labels = [0] * 300 + [1] * 30 + [2] * 3 + [3] * 4
    dataset = make_dataset([b""] * len(labels), [[c] for c in labels], ["a", "b", "c", "d"])
    fit, more = start.head_start_rows(dataset, 0)
    assert len(fit) == 50
    assert len(set(fit) | set(more)) == len(fit) + len(more)
    counts = np.bincount(np.array(labels)[np.concatenate([fit, more])], minlength=4)
    assert (counts[1:] >= [4, 3, 4]).all()
    assert len(more) < 12
    monkeypatch.undo()
    fit, more = start.head_start_rows(dataset, 0)
    assert fit.tolist() == list(range(len(labels)))
    assert not len(more)


def test_an_encoder_that_cannot_carry_a_head_is_refused(net):
    many = ClassProfile([f"c{c}" for c in range(100)], [5] * 100, 20, 5, photos=500)
    with pytest.raises(ConfigError, match="head: etf: an ETF of 100 classes needs 99 features or more"):
        make_head(config_of(head="etf"), net, many)
    with pytest.raises(ConfigError, match=r"head_init: text needs a text tower, and cifar_resnet32 .* has none"):
        make_head(config_of(head_init="text"), net, PROFILE)


@pytest.mark.parametrize("one_label", [True, False])
@pytest.mark.parametrize("kind", ["linear", "normed_linear", "cosine"])
def test_class_means_start_a_head_near_its_optimum(kind, one_label, net, features):
    keys = SINGLE if one_label else {}
    head = make_head(config_of(head=kind, **keys), net, PROFILE)
    labels = torch.from_numpy(features.targets)

    def loss():
        logits = head(torch.from_numpy(features.scores))
        if one_label:
            return F.cross_entropy(logits, labels.int().argmax(1)).item()
        return F.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum").item() / len(labels)

    start_head(head, mean_directions(features), features, one_label)
    share = labels.double().mean(0)
    entropy = -(share * share.log()).sum() if one_label else F.binary_cross_entropy(share, share, reduction="sum")
    assert loss() < 0.5 * entropy
    if one_label:
        assert not head.bias.any()


def test_mean_directions_are_those_of_the_means_without_what_is_unknown():
    scores = np.array([[3.0, 0], [0, 2], [0, 5], [1, 0]], dtype=np.float32)
    targets = np.array([[1, 0], [0, 1], [0, 1], [0, 1]], dtype=bool)
    known = np.array([[1, 1], [1, 1], [1, 1], [1, 0]], dtype=bool)
    found = mean_directions(Predictions(scores, targets, known))
    torch.testing.assert_close(found, torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / 2**0.5)


def test_fixed_heads_are_rotated_and_keep_their_biases(net, features):
    head = make_head(config_of(head="etf", **SINGLE), net, PROFILE)
    gram = head.weight @ head.weight.T
    directions = mean_directions(features)
    before = (head.weight * directions).sum()
    start_head(head, directions, features, True)
    torch.testing.assert_close(head.weight @ head.weight.T, gram, rtol=0, atol=1e-5)
    assert (head.weight * directions).sum() > before
    assert isinstance(head, FixedHead)


def test_a_cosine_head_from_texts_says_what_the_prompts_say():
    clip = load_clip("tiny")
    directions = text_directions(clip, [["a photo of red."], ["a photo of green."], ["a photo of blue."]])
    pixels = torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        raw = clip.encode_image(pixels)
    targets = np.eye(3, dtype=bool)[np.arange(8) % 3]
    head = make_head(config_of(model="tiny", head="cosine"), clip, PROFILE)
    start_head(head, directions, Predictions(raw.numpy(), targets, np.ones_like(targets)), False)
    cosines = F.normalize(raw, dim=-1) @ directions.T
    torch.testing.assert_close(head(raw), head.log_scale.exp() * cosines + head.bias, rtol=1e-5, atol=1e-5)
