import pytest
import torch
from torch import nn

from clip_more.models.cifar_resnet import BasicBlock, cifar_resnet32, cifar_resnet34


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("make", "count", "features", "convolutions"),
    [(cifar_resnet32, 463_504, 64, 31), (cifar_resnet34, 21_276_992, 512, 33 + 3)],
)
def test_sizes_are_the_published_ones(make, count, features, convolutions):
    model = make().eval()
    assert parameters(model) == count
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convolutions
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, features)


def test_resnet34_is_torchvisions_with_the_small_stem():
    from torchvision.models import resnet34

    theirs = resnet34()
    theirs.conv1, theirs.maxpool, theirs.fc = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity(), nn.Identity()
    ours = cifar_resnet34()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)  # in training mode


def test_shortcuts_without_parameters_take_every_second_pixel_and_pad_channels_with_zeros():
    block = BasicBlock(4, 8, 2, projection=False).eval()
    nn.init.zeros_(block.bn2.weight)  # nothing but the shortcut is left
    image = torch.rand(1, 4, 5, 6)
    out = block(image)
    assert torch.equal(out[:, 2:6], image[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 6:].any()
    assert not any("downsample" in name for name in cifar_resnet32().state_dict())


def test_stages_halve_the_side_from_the_second_on():
    model = cifar_resnet32().eval()
    shapes = []
    for number in (1, 2, 3):
        model.get_submodule(f"layer{number}").register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    with torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    assert shapes == [(1, 16, 32, 32), (1, 32, 16, 16), (1, 64, 8, 8)]
