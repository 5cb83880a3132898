import math

import pytest
import torch
import torch.nn.functional as F

from clip_more.training.pretrain_task import contrastive_loss, sigmoid_loss

DISTINCT = torch.arange(4)[:, None]


def unit(*shape):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1)


def test_contrastive_loss_of_orthogonal_matching_pairs_has_its_closed_form():
    features = torch.eye(4, dtype=torch.float64)
    scale = torch.tensor(2.0, dtype=torch.float64)
    loss = contrastive_loss(features, features, scale, DISTINCT)
    assert loss.item() == pytest.approx(math.log(1 + 3 * math.exp(-2)), abs=1e-12)


def test_contrastive_loss_is_log_n_where_all_texts_are_alike():
    text = unit(1, 8).expand(4, 8)
    assert contrastive_loss(unit(4, 8), text, torch.tensor(0.0), DISTINCT).item() == pytest.approx(math.log(4))


def test_contrastive_loss_is_the_same_with_images_and_texts_exchanged():
    image, text = unit(4, 8), unit(8, 8)[4:]
    scale = torch.tensor(5.0, dtype=torch.float64)
    there, back = contrastive_loss(image, text, scale, DISTINCT), contrastive_loss(text, image, scale, DISTINCT)
    assert there.item() == pytest.approx(back.item(), abs=1e-12)


def test_images_of_one_caption_are_no_negatives_of_each_other():
    """Two pairs with the caption of each other leave two-way choices only among the rest."""
    features = torch.eye(4, dtype=torch.float64)
    captions = torch.tensor([[7, 1], [7, 1], [7, 2], [7, 3]])
    scale = torch.tensor(2.0, dtype=torch.float64)
    loss = contrastive_loss(features, features, scale, captions)
    twins, single = math.log(1 + 2 * math.exp(-2)), math.log(1 + 3 * math.exp(-2))
    assert loss.item() == pytest.approx((twins + single) / 2, abs=1e-12)


def test_sigmoid_loss_is_the_binary_cross_entropy_of_scaled_cosines():
    image, text = unit(5, 8), unit(8, 8)[5:]
    targets = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1]], dtype=torch.float64)
    known = torch.ones(5, 3, dtype=torch.bool)
    loss = sigmoid_loss(image, text, torch.tensor(10.0), torch.tensor(-3.0), targets, known)
    logits = 10 * image @ text.T - 3
    wanted = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / 5
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)


def test_sigmoid_loss_without_any_signal_is_that_of_the_bias():
    known = torch.ones(2, 3, dtype=torch.bool)
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    loss = sigmoid_loss(torch.zeros(2, 4), torch.zeros(3, 4), torch.tensor(10.0), torch.tensor(-2.0), targets, known)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(2)) + 2 * math.log(1 + math.exp(-2)), rel=1e-6)


def test_unknown_pairs_change_nothing_in_the_sigmoid_loss():
    image, text = unit(2, 8), unit(5, 8)[2:]
    known = torch.tensor([[True, True, False], [True, True, True]])
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    flipped = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    arguments = image, text, torch.tensor(10.0), torch.tensor(-2.0)
    assert sigmoid_loss(*arguments, targets, known) == sigmoid_loss(*arguments, flipped, known)
    assert sigmoid_loss(*arguments, targets, known) != sigmoid_loss(*arguments, targets, known | True)
