import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats


@pytest.fixture(autouse=True)
def eval_folder(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "eval")


@pytest.fixture
def interval():
    from ablate_interval import interval

    return interval


@pytest.fixture
def summarise():
    from ablate_stats import summarise

    return summarise


def line(arm, seed, total, *, tail=None, values=None, rows=None, **more):
    """A line whose groups all have the mAP of `total`, but for the tail's."""
    tail = total if tail is None else tail
    found = {"total": total, "head": total, "medium": total, "tail": tail, "medium+tail": total}
    resampled = None if rows is None else [[round(1e4 * value)] * 5 for value in rows]
    return {
        "sweep": "s", "bed": "digits_mlt", "judged_on": "test", "arm": arm, "seed": seed, "values": values or {},
        "map": found, "resampled": resampled, "seconds": 10.0, **more,
    }  # fmt: skip


def test_with_resamples_equal_to_the_figure_the_interval_is_a_plain_bootstrap_over_seeds(interval):
    measured = np.random.default_rng(1).normal(1, 2, 12)
    alone = interval(measured, [], draws=20_000)
    assert interval(measured, [np.array([value]) for value in measured], draws=20_000) == alone
    plain = scipy_stats.bootstrap([measured], np.mean, n_resamples=20_000, method="percentile", rng=3)
    np.testing.assert_allclose(alone, plain.confidence_interval, atol=0.04)


def test_with_identical_seeds_the_interval_is_that_over_photos(interval):
    rows = np.random.default_rng(2).normal(3, 1, 100)
    over_photos = np.quantile(rows, (0.025, 0.975)) - (rows.mean() - 2.5)
    np.testing.assert_allclose(interval(np.array([2.5]), [rows]), over_photos)
    shared = interval(np.full(6, 2.5), [rows] * 6, shared=True, draws=40_000)
    np.testing.assert_allclose(shared, over_photos, atol=0.1)


def covered(interval, rng, *, same_photos, told):
    """How often the interval of ten seeds holds a true difference of 0; seeds and photos vary it alike."""
    seeds, resamples, hits = 10, 60, 0
    for _ in range(250):
        photos, drawn = (1, (1, resamples)) if same_photos else (seeds, (seeds, resamples))
        measured = rng.normal(size=seeds) + rng.normal(size=photos)
        low, high = interval(measured, list(measured[:, None] + rng.normal(size=drawn)), shared=told, draws=500)
        hits += low <= 0 <= high
    return hits / 250


def test_the_interval_covers_the_truth(interval):
    rng = np.random.default_rng(5)
    assert 0.91 <= covered(interval, rng, same_photos=False, told=False) <= 0.99
    assert 0.90 <= covered(interval, rng, same_photos=True, told=True) <= 0.99
    assert covered(interval, rng, same_photos=True, told=False) < 0.75  # why lines name their photos


def test_resamples_in_which_a_group_has_no_class_are_left_out(interval):
    rows = np.random.default_rng(3).normal(size=(4, 50))
    with_gaps = np.concatenate([rows, np.full((4, 25), np.nan)], axis=1)
    low, high = interval(rows.mean(axis=1), list(with_gaps), draws=20_000)
    assert low < rows.mean() < high
    np.testing.assert_allclose((low, high), interval(rows.mean(axis=1), list(rows), draws=20_000), atol=0.12)


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_needed_are_those_of_published_tables(effect, seeds):
    from ablate_interval import seeds_needed  # G*Power, difference of two dependent means, two-tailed

    assert seeds_needed(1.0, effect) == seeds_needed(3.0, -3 * effect) == seeds


def test_seeds_needed_show_the_gain_in_simulation():
    from ablate_interval import seeds_needed

    needed, rng = seeds_needed(1.4, 2.0), np.random.default_rng(0)
    for seeds, enough in ((needed, True), (needed - 1, False)):
        found = scipy_stats.ttest_1samp(rng.normal(2.0, 1.4, (40_000, seeds)), 0, axis=1).pvalue < 0.05
        assert (found.mean() > 0.8) == enough
    with pytest.raises(ValueError, match="gain not 0"):
        seeds_needed(1.0, 0.0)


def test_differences_are_paired_by_seed(summarise):
    base, gain = {0: 0.5, 1: 0.7, 2: 0.6}, {0: 0.01, 1: 0.02, 2: -0.01}
    lines = [line("bce", seed, value) for seed, value in base.items()]
    lines += [line("more", s, base[s] + gain[s], seconds=15.0 + s, rows=None) for s in (2, 0, 1)]
    found = summarise(lines, "bce").arms["more"]
    difference = found.differences["total"]
    assert dict(difference.by_seed) == pytest.approx(gain)
    assert difference.mean == pytest.approx(0.02 / 3)
    assert difference.sd == pytest.approx(np.std(list(gain.values()), ddof=1))
    assert difference.above == pytest.approx(2 / 3)
    assert difference.spread_by == "seeds"
    expected = scipy_stats.ttest_1samp(list(gain.values()), 0).confidence_interval(0.95)
    assert difference.t_interval == pytest.approx(tuple(expected))
    assert found.cost == pytest.approx(48 / 30)


def test_only_common_seeds_count_and_the_table_says_how_many(summarise):
    lines = [line("bce", seed, 0.5) for seed in range(4)]
    lines += [line("more", seed, 0.6 + 0.3 * (seed == 7)) for seed in (1, 2, 7)] + [line("lost", 9, 0.4)]
    summary = summarise(lines, "bce")
    assert summary.arms["more"].seeds == (1, 2)
    assert summary.arms["more"].mean("total") == pytest.approx(0.6)
    table = summary.table()
    assert "| more (2 of 4 seeds) | 60.00 ± 0.00 |" in table
    assert "| lost (no seed in common with its base) | 40.00 |" in table


def test_one_seed_has_an_interval_over_photos_which_is_never_bold(summarise):
    rows = 0.5 + np.linspace(-0.01, 0.01, 101)
    summary = summarise([line("bce", 0, 0.5, rows=rows), line("more", 0, 0.9, rows=0.4 + rows[::-1])], "bce")
    difference = summary.arms["more"].differences["tail"]
    assert difference.low == pytest.approx(0.4 - 0.019)
    assert difference.high == pytest.approx(0.4 + 0.019)
    assert not difference.clear
    assert "interval over test photos; what another seed would change is not in it" in summary.table()
    assert "**" not in summary.table()


def test_bold_needs_both_intervals(summarise):
    gains = {"sure": (0.030, 0.031, 0.029), "few": (0.002, 0.03, 0.01), "down": (-0.03, -0.031, -0.029)}
    lines = [line("bce", seed, 0.5) for seed in range(3)]
    lines += [line(arm, seed, 0.5 + gain) for arm, own in gains.items() for seed, gain in enumerate(own)]
    summary = summarise(lines, "bce")
    clear = {arm: summary.arms[arm].differences["total"].clear for arm in gains}
    assert clear == {"sure": True, "few": False, "down": True}
    assert summary.arms["few"].differences["total"].low > 0  # percentiles of three seeds are too narrow
    rows = {row.split(" | ")[0].strip("| "): row for row in summary.table().splitlines()}
    assert "| **+3.00 [+2.90, +3.10]** |" in rows["sure"]
    assert "| +1.40 [+0.20, +3.00] |" in rows["few"]
    assert rows["bce"].endswith("|  |  |  | 1 |")


def test_seeds_of_the_same_photos_are_resampled_together(summarise):
    rng = np.random.default_rng(0)
    moved = rng.normal(0, 0.01, 100)  # what the photos of a resample do to the arm, in every seed

    def width(**names):
        lines = [line("bce", seed, 0.5, rows=np.full(100, 0.5), **names) for seed in range(8)]
        lines += [line("more", seed, 0.55, rows=0.55 + moved, **names) for seed in range(8)]
        difference = summarise(lines, "bce").arms["more"].differences["total"]
        return difference.high - difference.low

    assert width(test_photos="one set") == pytest.approx(np.ptp(np.quantile(moved, (0.025, 0.975))), rel=0.1)
    assert width() == pytest.approx(2 * 1.96 * moved.std() / math.sqrt(8), rel=0.1)


def test_a_group_without_ap_is_not_applicable(summarise):
    lines = [line("bce", seed, 0.5, rows=[0.5]) for seed in range(2)]
    lines += [line("more", seed, 0.6, rows=[0.6]) for seed in range(2)]
    for one in lines:
        one["map"]["tail"] = None
        one["resampled"][0][3] = None
    summary = summarise(lines, "bce")
    assert summary.arms["more"].differences["tail"] is None
    assert "| more | 60.00 ± 0.00 | 60.00 ± 0.00 | 60.00 ± 0.00 | n/a |" in summary.table()
    found = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert found["arms"]["more"]["columns"]["tail"] == {"seeds": 0, "mean": None, "sd": None, "difference": None}
    assert found["arms"]["more"]["columns"]["total"]["difference"]["by_seed"] == pytest.approx({"0": 0.1, "1": 0.1})


def test_an_arm_is_compared_with_the_base_on_its_own_data(summarise):
    lines = []
    for seed in range(2):
        for name, harm, data in (("", 0.0, {}), (" 20", 0.1, {"imbalance": 20})):
            lines.append(line(f"more{name}", seed, 0.6 - harm, values={"tuning": "more", **data}))
            lines.append(line(f"bce{name}", seed, 0.5 - harm, values=data))
    lines.append(line("more 50", 0, 0.7, values={"tuning": "more", "imbalance": 50}))
    arms = summarise(lines, "bce").arms
    against = {name: arm.against for name, arm in arms.items()}
    assert against == {"bce": None, "more": "bce", "bce 20": None, "more 20": "bce 20", "more 50": "bce"}
    assert arms["more 20"].differences["total"].mean == pytest.approx(0.1)
    assert "| more 20 (against bce 20) |" in summarise(lines, "bce").table()


def test_contrasts_are_paired_as_differences_to_the_base_are(summarise):
    from ablate_contrasts import contrast_table, contrasts

    rng = np.random.default_rng(4)
    lines = [
        line(arm, seed, rng.random(), rows=rng.random(50), seconds=seconds, values={"loss": arm})
        for arm, seconds in (("bce", 10.0), ("a", 20.0), ("b", 13.0))
        for seed in range(4)
        if (arm, seed) != ("b", 0)
    ]
    summary, found = summarise(lines, "bce"), contrasts(lines, [("a", "b"), ("a", "bce"), ("a", "not run")])
    assert [(one.arm, one.other, one.seeds) for one in found] == [("a", "b", (1, 2, 3)), ("a", "bce", (0, 1, 2, 3))]
    assert found[0].differences == summarise(lines, "b").arms["a"].differences
    assert found[1].differences == summary.arms["a"].differences
    head, _, first, second, *_ = contrast_table(found, summary).splitlines()
    assert head == "| arm less another | Δ total | Δ tail | Δ medium | Δ head | cost |"
    assert first.startswith("| a less b (3 of 4 seeds) | ")
    assert first.endswith(" | 1.5 |")
    assert second.endswith(" | 2.0 |")
    assert contrast_table([], summary) == ""


def test_photos_are_judged_by_medium_and_tail_together_too(summarise):
    lines = [line(arm, 0, 0.5, bed="voc2012_lt_tiny") for arm in ("bce", "more")]
    assert "Δ total | Δ medium+tail | Δ tail | Δ head | cost" in summarise(lines, "bce").table()


def test_lines_that_cannot_be_compared_are_refused(summarise):
    lines = [line("bce", 0, 0.5), line("more", 0, 0.5)]
    with pytest.raises(ValueError, match="no finished run of the base 'asl'; finished arms: bce, more"):
        summarise(lines, "asl")
    with pytest.raises(ValueError, match="lines of s digits_mlt test and of t digits_mlt test"):
        summarise([*lines, line("more", 1, 0.5, sweep="t")], "bce")
    with pytest.raises(ValueError, match="s: arm 'more' has two lines of seed 0"):
        summarise([*lines, line("more", 0, 0.5, values={"rho": 0.3})], "bce")
