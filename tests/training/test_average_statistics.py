import torch
from torch import nn

from clip_more.training.average import RunningAverage, batch_statistics


def test_batch_statistics_are_averaged_with_the_weights():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = RunningAverage(net, 0.5)
    expected = net[1].running_mean.clone()
    for step in range(20, 23):
        net(torch.randn(8, 3))
        expected.lerp_(net[1].running_mean, 0.5)
        average.update(net, step)
    own = net[1].running_mean.clone()
    with average.applied(net):
        torch.testing.assert_close(net[1].running_mean, expected)
    assert torch.equal(net[1].running_mean, own)
    assert [name for name, _ in batch_statistics(net)] == ["1.running_mean", "1.running_var"]
