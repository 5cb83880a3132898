import pytest
import torch

from clip_more.data.samplers import make_order
from clip_more.losses.class_balanced import ClassBalancedCE
from clip_more.models.feature_heads import CosineHead, LinearHead
from clip_more.stage2.choose import Stage
from clip_more.stage2.max_norm import maxnorm_cb
from clip_more.stage2.options import Stage2Options
from tests.stage2.gaussians import balanced_accuracy, gaussian_stage, photos, random_head, several_labels


@pytest.mark.parametrize("thresh", [0.1, 0.5])
def test_no_row_is_longer_than_delta_after_training(thresh):
    stage = gaussian_stage(head=random_head(4, 6))
    head, selection = maxnorm_cb(stage, Stage2Options(thresh=thresh, beta=0.99, weight_decay=0.0))
    norms = stage.head.weight.detach().norm(dim=1)
    delta = norms.min() + thresh * (norms.max() - norms.min())
    assert selection.log["delta"] == pytest.approx(float(delta), rel=1e-6)
    assert (head.weight.norm(dim=1) <= delta * (1 + 1e-6)).all()
    assert len(selection.log["rows_cut_by_epoch"]) == 10
    assert 0 < selection.log["rows_cut_by_epoch"][0] <= 4


def test_two_steps_are_sgd_with_decay_and_then_a_cut_each():
    stage = gaussian_stage(head=random_head(4, 6), train=photos((3, 3, 2, 2), 0))
    head, _ = maxnorm_cb(stage, Stage2Options(thresh=0.3, beta=0.9, epochs=1, batch_size=5, lr=2.0))
    own = LinearHead(stage.head.weight.detach().clone(), stage.head.bias.detach().clone())
    data = stage.train
    norms = own.weight.detach().norm(dim=1)
    delta = norms.min() + 0.3 * (norms.max() - norms.min())
    loss = ClassBalancedCE(torch.tensor([3, 3, 2, 2]), 0.9)
    rate = 2.0 / (float((data.features**2).sum(1).mean()) + 1)
    optimiser = torch.optim.SGD(own.parameters(), lr=rate, momentum=0.9, weight_decay=0.1)
    order = torch.from_numpy(make_order("instance", data.pairs(), 10, seed=0).order(0))
    for step, rows in enumerate(order.split(5)):
        optimiser.param_groups[0]["lr"] = rate * (1, 0.5)[step]
        optimiser.zero_grad()
        loss(own(data.features[rows]), data.targets[rows].float(), data.known[rows]).backward()
        optimiser.step()
        with torch.no_grad():
            own.weight *= (delta / own.weight.norm(dim=1, keepdim=True)).clamp(max=1)
    assert torch.allclose(head.weight, own.weight, atol=1e-6)
    assert torch.allclose(head.bias, own.bias, atol=1e-6)


def test_it_raises_balanced_accuracy_and_chooses_both_values_on_validation():
    stage = gaussian_stage()
    head, selection = maxnorm_cb(stage, Stage2Options(epochs=5))
    test = photos((500,) * 4, 2)
    assert balanced_accuracy(head, test) > balanced_accuracy(stage.head, test) + 0.02
    assert len(selection.candidates) == 20
    assert selection.candidates[0]["values"] == {"thresh": 0.9, "beta": 0.9}
    assert set(selection.chosen) == {"thresh", "beta"}


def test_several_labels_are_trained_on_the_class_balanced_bce():
    train = several_labels(200)
    stage = Stage(random_head(5, 8), train, several_labels(100, seed=1), single_label=False)
    _, selection = maxnorm_cb(stage, Stage2Options(thresh=0.5, epochs=1))
    assert selection.measure == "macro mAP"


def test_it_is_refused_where_all_norms_are_one():
    with pytest.raises(ValueError, match=r"maxnorm_cb works on the norms .* are equal: the head .cosine. divides"):
        maxnorm_cb(gaussian_stage(head=CosineHead(torch.randn(4, 6))), Stage2Options())
