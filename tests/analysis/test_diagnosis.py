import pytest

from clip_more.analysis.course import Spike, read_course
from clip_more.analysis.diagnosis import Change, diagnose

CONFIG = {"tuning": "more", "discrepancy_prior_exponent": 1.0, "alpha_schedule": "sinusoidal"}


def row(step, **values):
    middle = 1 - abs(step - 50) / 50
    return {
        "event": "train", "step": step, "loss": 2.0, "base": 1.9, "gradient_norm": 1.0, "alpha": middle,
        "discrepancy": 0.2, "gradient_norms": {"general": 4.0, "tail": 1.0}, "tail_share": {"vision.mlp": 0.05},
        "skipped": 0,
    } | values  # fmt: skip


def course(changed=None, **everywhere):
    rows = [row(step, **everywhere) | (changed or {}).get(step, {}) for step in range(1, 101)]
    return read_course([{"event": "start", "total": 100}, *rows])


def gains(head=0.01, tail=0.02):
    return [Change("general", {"head": head, "tail": tail}, {})]


def signs(findings):
    return [finding.sign for finding in findings]


def test_course_is_read_from_the_log():
    found = course()
    assert (found.steps, found.peak, found.tail_gradient) == (100, 0.5, 0.25)
    assert found.strength == pytest.approx(0.2 / 1.9)
    assert found.strength_at == 0.5
    assert found.tail_share == {"vision.mlp": 0.05}
    assert found.spikes == []


def test_run_that_is_well_has_nothing_wrong_and_says_on_which_figures():
    (found,) = diagnose(CONFIG, gains(), course(), 0.3)
    assert found.sign == "nothing_wrong"
    assert found.text == (
        "Nothing wrong was seen: head +1.00 points against general; tail +2.00 points against general; no spike of "
        "loss or gradient in 100 steps."
    )
    assert found.keys == ()


def test_head_that_falls_under_an_inverted_weighting_names_the_exponent():
    (found,) = diagnose(CONFIG | {"discrepancy_prior_exponent": -1.0}, gains(head=-0.02), course(), 0.3)
    assert found.sign == "head_falls"
    assert "-2.00 points against general" in found.text
    assert "discrepancy_prior_exponent is -1" in found.text
    assert found.keys == ("discrepancy_prior_exponent",)


def test_head_that_falls_while_alpha_is_high_early_names_schedule_and_amplitude():
    early = course({1: {"alpha": 9.0, "discrepancy": 0.2}})
    (found,) = diagnose(CONFIG | {"alpha_schedule": "cosine"}, gains(head=-0.02), early, 0.3)
    assert "highest after 1 % of the steps (alpha_schedule: cosine)" in found.text
    assert "up to 95 % of the base loss, after 1 %" in found.text
    assert found.keys == ("alpha_schedule", "amplitude")


def test_head_that_falls_without_either_reason_asks_for_the_control():
    (found,) = diagnose(CONFIG, gains(head=-0.02), course(), 0.3)
    assert "amplitude: 0" in found.text


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"relative": 0.001}, ("rho", "lr_tail")),
        ({"tail_share": {"vision.mlp": 1e-4, "projection": 1e-3}}, ("rho", "lr_tail")),
        ({"discrepancy": 1e-4}, ("amplitude",)),
        ({"relative": 0.001, "alpha": 8.0}, ("amplitude", "rho", "lr_tail")),
        ({}, ("discrepancy_weighting",)),
    ],
)
def test_no_tail_gain_names_the_key_of_the_figure_that_is_too_low(changes, expected):
    relative = changes.pop("relative", 0.3)
    (found,) = diagnose(CONFIG, gains(tail=0.001), course(**changes), relative)
    assert found.sign == "no_tail_gain"
    assert found.keys == expected


def test_no_tail_gain_under_an_inverted_weighting_names_the_exponent_first():
    (found,) = diagnose(CONFIG | {"discrepancy_prior_exponent": -0.5}, gains(tail=0.0), course(), 0.001)
    assert found.keys == ("discrepancy_prior_exponent", "rho", "lr_tail")
    assert "keeps B A from rare classes" in found.text


def test_gain_over_the_untouched_model_is_no_gain_of_the_tail():
    changes = [*gains(tail=0.001), Change("zero-shot", {"head": 0.3, "tail": 0.3}, {})]
    (found,) = diagnose(CONFIG, changes, course(), 0.3)
    assert found.sign == "no_tail_gain"
    assert "zero-shot" not in found.text


def test_intervals_decide_where_they_are_there():
    wide = Change("base", {"head": -0.02, "tail": 0.02}, {"head": (-0.05, 0.01), "tail": (-0.01, 0.05)})
    narrow = Change("base", {"head": -0.002, "tail": 0.002}, {"head": (-0.003, -0.001), "tail": (0.001, 0.003)})
    assert signs(diagnose(CONFIG, [wide], course(), 0.3)) == ["no_tail_gain"]
    (found,) = diagnose(CONFIG, [narrow], course(), 0.3)
    assert found.sign == "head_falls"
    assert "-0.20 points against base (95 %: -0.30 to -0.10)" in found.text


def test_spikes_around_the_peak_are_told_from_others():
    at_peak = course({48: {"loss": 20.0}, 49: {"loss": 30.0}})
    assert at_peak.spikes == [Spike(49, "loss", 15.0, True)]
    (found,) = diagnose(CONFIG, gains(), at_peak, 0.3)
    assert (found.sign, found.keys) == ("instability", ("amplitude", "clip_norm"))
    assert "step 49 (loss 15.0 times" in found.text
    (found,) = diagnose(CONFIG, gains(), course({5: {"gradient_norm": 50.0}}), 0.3)
    assert found.keys == ("lr", "warmup", "clip_norm")
    early = course({4: {"loss": 20.0}}, alpha=1.0)
    (found,) = diagnose(CONFIG | {"alpha_schedule": "constant"}, gains(), early, 0.3)
    assert found.keys == ("alpha_schedule", "amplitude")


def test_high_first_step_and_a_falling_loss_are_no_spikes():
    assert course({1: {"loss": 99.0, "gradient_norm": 99.0}}).spikes == []
    falling = read_course([row(step, loss=100 * 0.95**step) for step in range(1, 101)])
    assert falling.spikes == []


def test_noise_of_batches_and_a_steep_start_are_no_spikes():
    noisy = [0.89, 0.62, *[0.15] * 5, 0.17, 0.32, 0.37, 0.12, 0.46, 0.15, 0.37, 0.11, 0.3, 0.1, 0.46, *[0.15] * 5]
    assert read_course([row(step, loss=loss) for step, loss in enumerate(noisy, start=1)]).spikes == []
    steep = [30.0, 20.0, 9.0, *[1.0] * 20]
    assert read_course([row(step, loss=loss) for step, loss in enumerate(steep, start=1)]).spikes == []


def test_skipped_steps_are_instability():
    (found,) = diagnose(CONFIG, gains(), course({100: {"skipped": 3}}), 0.3)
    assert "3 steps were left out" in found.text


def test_what_cannot_be_told_is_said():
    assert signs(diagnose(CONFIG, [Change("general", {"head": 0.1}, {})], course(), 0.3)) == ["cannot_tell"]
    assert signs(diagnose(CONFIG, gains(), None, 0.3)) == ["cannot_tell"]
    assert signs(diagnose({"tuning": "full"}, [], course(), None)) == ["cannot_tell"]
    assert read_course([{"event": "start", "total": 9}]) is None


def test_run_without_l_more_has_a_course_too():
    found = course(discrepancy=None, alpha=0.0)
    assert (found.peak, found.strength, found.strength_at) == (None, None, None)


STOPPED = CONFIG | {"discrepancy_gradient": "stop_general"}


@pytest.mark.parametrize("gradient", ["stop_general", "stop_full"])
def test_general_part_that_l_more_moves_is_no_comparison(gradient):
    config = CONFIG | {"discrepancy_gradient": gradient}
    (found,) = diagnose(config, gains(head=-0.05, tail=-0.05), course(), 0.001)
    assert found.sign == "cannot_tell"
    assert f"(discrepancy_gradient: {gradient})" in found.text
    assert "under tuning: full with --baseline" in found.text


def test_tail_that_gains_nothing_where_l_more_moves_the_general_part_names_amplitude_or_exponent():
    changes = [*gains(), Change("runs/bce", {"head": 0.01, "tail": -0.02}, {})]
    (found,) = diagnose(STOPPED, changes, course(), 0.001)
    assert (found.sign, found.keys) == ("no_tail_gain", ("amplitude",))
    assert "against general" not in found.text
    (found,) = diagnose(STOPPED | {"discrepancy_prior_exponent": -1.0}, changes, course(), 0.001)
    assert found.keys == ("discrepancy_prior_exponent",)
    (found,) = diagnose(STOPPED | {"amplitude_ratio": 0.3}, changes, course(), 0.001)
    assert found.keys == ("amplitude_ratio",)


def test_without_l_more_the_general_part_is_compared_with():
    (found,) = diagnose(STOPPED | {"amplitude": 0.0}, gains(tail=-0.05), course(), 0.3)
    assert found.sign == "no_tail_gain"
    assert "against general" in found.text
