"""Residual networks for photos of 32 x 32 pixels, without a classifier: photo in, pooled features out."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut.

    Where the shape changes, the shortcut is a strided 1x1 convolution with batch norm (`projection`), or without
    parameters: every second pixel, and zeros for the new channels, half of them before and half behind the old ones
    (option A of He et al. 2016).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.new = stride, outputs - inputs
        self.downsample: nn.Module | None = None
        if projection and (stride > 1 or self.new):
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H / stride, W / stride), rounded up."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.stride > 1 or self.new:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """A 3x3 stem of stride 1, stages of basic blocks that halve the side from the second on, and the mean over pixels.

    Args:
        blocks: Blocks of each stage.
        channels: Channels of each stage; the last are the features.
        projection: Shortcuts with a convolution where the shape changes, or without parameters.
    """

    def __init__(self, blocks: Sequence[int], channels: Sequence[int], *, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        inputs = channels[0]
        stages = []
        for stage, (count, width) in enumerate(zip(blocks, channels, strict=True)):
            first = BasicBlock(inputs, width, 1 if stage == 0 else 2, projection)
            stages.append(nn.Sequential(first, *(BasicBlock(width, width, 1, projection) for _ in range(count - 1))))
            inputs = width
        for number, layers in enumerate(stages, start=1):
            self.add_module(f"layer{number}", layers)
        self.stages = len(stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, channels[-1])."""
        x = F.relu(self.bn1(self.conv1(pixel_values)))
        for number in range(1, self.stages + 1):
            x = self.get_submodule(f"layer{number}")(x)
        return x.mean(dim=(2, 3))


def cifar_resnet32() -> CifarResNet:
    """The ResNet-32 of He et al. 2016 (6 n + 2 layers, n = 5) that CIFAR-LT is mostly judged on.

    Three stages of five blocks with 16, 32 and 64 channels, shortcuts without parameters: 463,504 parameters (464,154
    with a linear classifier of 10 classes) and 64 features, too few for an ETF of 100 classes.
    """
    return CifarResNet((5, 5, 5), (16, 32, 64), projection=False)


def cifar_resnet34() -> CifarResNet:
    """The "ResNet-34" of the weight-balancing papers (Alshammari et al. 2022, Hasegawa and Sato 2024) for CIFAR-LT.

    It is ImageNet's ResNet-34 (3, 4, 6 and 3 blocks with 64 to 512 channels, projection shortcuts; parameters are
    named as torchvision names them), not a member of He's CIFAR family, with a 3x3 stem of stride 1 and no max-pool:
    21,276,992 parameters and 512 features. A photo of 32 x 32 takes 1.16 billion multiplications, 17 times as many as
    `cifar_resnet32`.
    """
    return CifarResNet((3, 4, 6, 3), (64, 128, 256, 512), projection=True)
