import math

import pytest

from clip_more.config import TrainConfig
from clip_more.training.schedule import Plan, alpha, warmup_cosine


def test_sinusoidal_is_a_half_wave():
    for step in range(101):
        assert alpha(step, 100, 3.0) == pytest.approx(3 * math.sin(math.pi * step / 100), abs=1e-15)
    assert alpha(0, 100, 3.0) == 0


def test_cosine_falls_from_the_amplitude_to_zero():
    assert [alpha(s, 4, 2.0, "cosine") for s in (0, 2, 4)] == pytest.approx([2.0, 1.0, 0.0])


def test_constant_is_the_amplitude():
    assert {alpha(s, 9, 2.0, "constant") for s in range(10)} == {2.0}


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="alpha schedule is 'linear'; choose one of sinusoidal"):
        alpha(1, 2, 1.0, "linear")


def test_learning_rate_rises_then_falls_along_a_cosine():
    factors = [warmup_cosine(s, 100, 0.1) for s in range(101)]
    assert factors[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0, abs=1e-12)
    assert warmup_cosine(0, 100, 0.0) == 1.0


@pytest.mark.parametrize(("max_steps", "ends"), [(12, [4, 8, 12]), (9, [4, 8]), (10, [4, 8, 10]), (1, [])])
def test_a_last_epoch_counts_from_its_half_on(max_steps, ends):
    config = TrainConfig(max_steps=max_steps, batch_size=8)
    plan = Plan.of(config, photos=30, classes=2, processes=1, validates=False)
    assert [step for step in range(1, max_steps + 1) if plan.ends_epoch(step)] == ends
