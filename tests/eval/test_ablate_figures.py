import itertools
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

COUNTS = (300, 120, 60, 25, 12, 4)
GROUPS = {"total": slice(None), "head": slice(2), "medium": slice(2, 4), "tail": slice(4, None)}


@pytest.fixture(autouse=True)
def eval_folder(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "eval")


@pytest.fixture
def draw():
    from ablate_figures import draw

    return draw


@pytest.fixture
def curves():
    """Curves of lines by key: what each is called, and its arms by number."""
    from ablate_curves import find_curves
    from ablate_stats import summarise

    def find(lines, base="bce"):
        found = find_curves(summarise(lines, base))
        return {key: {curve.label: dict(curve.points) for curve in own} for key, own in found.items()}

    return find


def columns(ap):
    return {name: float(ap[own].mean()) for name, own in GROUPS.items()} | {"medium+tail": float(ap[2:].mean())}


def lines_of(arm, values=None, gain=0.0, *, seeds=2, general=False, **more):
    found = []
    for seed in range(seeds):
        ap = np.array([0.8, 0.7, 0.7, 0.6, 0.5, 0.4]) + 0.05 * seed + gain
        rows = [list(columns(ap + shift).values()) for shift in (-0.01, 0.0, 0.02)]
        own = ap - [0.0, 0.0, 0.01, 0.02, 0.05, 0.05] if general else None
        found.append({
            "sweep": "s", "bed": "digits_mlt", "judged_on": "validation", "arm": arm, "seed": seed,
            "values": values or {}, "map": columns(ap), "general": columns(own) if general else None,
            "ap": ap.tolist(), "ap_general": own.tolist() if general else None, "counts": list(COUNTS),
            "resampled": [[round(1e4 * value) for value in row] for row in rows], "seconds": 5.0, **more,
        })  # fmt: skip
    return found


BASE = lines_of("bce")
MORE = {"tuning": "more"}


def names(folder, paths):
    assert all(path.parent == folder and path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert sorted(folder.iterdir()) == sorted(paths)
    return [path.name for path in paths]


def test_a_grid_has_a_curve_of_each_number_for_each_value_of_the_other(curves):
    lines = list(BASE)
    for amplitude, rho in itertools.product((0.1, 1.0, 3.0), (0.05, 0.1)):  # what is as the recipe is not in values
        values = MORE | ({} if amplitude == 1 else {"amplitude": amplitude}) | ({} if rho == 0.1 else {"rho": rho})
        lines += lines_of(f"more amplitude={amplitude:g} rho={rho:g}", values)
    found = curves(lines)
    assert found.keys() == {"amplitude", "rho"}
    assert found["amplitude"]["more rho=0.1"] == {x: f"more amplitude={x:g} rho=0.1" for x in (0.1, 1.0, 3.0)}
    assert list(found["rho"]) == ["more amplitude=0.1", "more amplitude=1", "more amplitude=3"]


def test_an_arm_with_the_default_of_a_number_is_on_its_curve(curves):
    lines = [*BASE, *lines_of("more", MORE), *lines_of("weak", MORE | {"amplitude": 0.1})]
    assert curves(lines) == {}  # two arms that happen to differ in a number
    lines += lines_of("strong", MORE | {"amplitude": 3})
    assert curves(lines) == {"amplitude": {"tuning more": {0.1: "weak", 0.5: "more", 3.0: "strong"}}}


def test_numbers_that_move_together_are_one_curve(curves):
    lines = list(BASE)
    for rho in (0.01, 0.2, 0.5):
        lines += lines_of(f"r{rho}", MORE | {"lr_tail": 1e-3 * rho**-0.5, "rho": rho})
    assert curves(lines) == {"rho": {"tuning more": {rho: f"r{rho}" for rho in (0.01, 0.2, 0.5)}}}


def test_a_trained_arm_is_at_one_among_its_mixtures(curves):
    lines = [*BASE, *lines_of("more", MORE), *lines_of("more alpha=0", MORE, of="more", alpha=0.0)]
    assert curves(lines) == {"alpha": {"more": {0.0: "more alpha=0", 1.0: "more"}}}


def test_words_and_switches_are_no_curve(curves):
    lines = [*BASE, *lines_of("kl", {"discrepancy_distance": "kl"}), *lines_of("on", {"discrepancy_centred": True})]
    assert curves(lines) == {}


def test_points_lie_on_the_base_they_are_compared_with():
    from ablate_curves import _on_base
    from ablate_stats import summarise

    mean, dots, bounds = _on_base(summarise([*BASE, *lines_of("more", MORE, 0.1)], "bce"), "more", "head")
    assert mean == pytest.approx(77.5 + 10)
    assert dots == pytest.approx([87.5, 87.5])  # though the seeds themselves are 5 apart
    assert bounds[0] <= mean <= bounds[1]


def test_each_sweep_gets_the_figures_that_fit_it(draw, tmp_path):
    numbers = [*BASE, *(one for a in (0.0, 0.1, 1, 30) for one in lines_of(f"more amplitude={a:g}", MORE, a / 50))]
    assert names(tmp_path / "a", draw("s", numbers, "bce", tmp_path / "a")) == ["s_amplitude.png"]
    words = [*BASE, *lines_of("asl", {"loss": "asl"}, 0.01), *lines_of("far off", {"loss": "db"}, -0.3)]
    words += lines_of("more", MORE, 0.02, general=True)
    found = names(tmp_path / "b", draw("s", words, "bce", tmp_path / "b"))
    assert found == ["s_arms.png", "s_general.png", "s_classes.png"]
    assert draw("s", BASE, "bce", tmp_path / "c") == []


def test_one_seed_and_a_missing_group_can_be_drawn(draw, tmp_path):
    lines = [*lines_of("bce", seeds=1), *lines_of("more", MORE, 0.01, seeds=1, general=True, bed="digits_mlt")]
    for one in lines:
        one["map"]["head"], one["ap"][0] = None, None
    assert len(names(tmp_path, draw("s", lines, "bce", tmp_path))) == 3


def test_arms_of_one_sweep_differ_in_what_their_lines_hold(draw, tmp_path):
    groups = ["head"] * 2 + ["medium"] * 2 + ["tail"] * 2
    risk = {"groups": groups, "risk": [0.2, 0.2, 0.1, 0.1, 0.04, None]}
    old = [*BASE, *lines_of("more", MORE, 0.01)]
    arms = [lines_of("bce", **risk), lines_of("more", MORE, 0.01, delta=[0.1, 0.2, 0.3, 0.4, None, 0.5], **risk)]
    new = list(itertools.chain(*arms))
    assert names(tmp_path / "old", draw("s", old, "bce", tmp_path / "old")) == ["s_arms.png"]
    found = names(tmp_path / "new", draw("s", new, "bce", tmp_path / "new"))
    assert found == ["s_arms.png", "s_delta.png", "s_risk.png"]
    mixed = [*BASE, *lines_of("more", MORE, 0.01, **risk)]  # a base without the key is nothing to compare with
    assert names(tmp_path / "mixed", draw("s", mixed, "bce", tmp_path / "mixed")) == ["s_arms.png"]
    many = [*new, *(line for number in range(11) for line in lines_of(f"a{number}", {"loss": str(number)}, **risk))]
    assert "s_risk.png" not in names(tmp_path / "many", draw("s", many, "bce", tmp_path / "many"))


def test_risk_is_paired_by_seed_with_the_base_on_the_same_data_and_meant_by_group():
    from ablate_class_figures import group_risk, risk_pairs
    from ablate_stats import summarise

    groups = ["head", "tail", "tail", "medium", "tail", "head"]
    risk = {"groups": groups, "risk": [0.1, 0.01, 0.03, None, None, 0.3]}
    lines = [*lines_of("bce", **risk), *lines_of("bce 20", {"imbalance": 20}, **risk)]
    lines += lines_of("asl", {"loss": "asl"}, seeds=3, **risk)[1:]
    lines += lines_of("asl 20", {"loss": "asl", "imbalance": 20}, **risk)
    lines += lines_of("asl alpha=0", {"loss": "asl"}, of="asl", alpha=0.0, **risk)
    found = risk_pairs(summarise(lines, "bce"), lines)
    pairs = {arm: [(a["arm"], a["seed"], b["arm"], b["seed"]) for a, b in own] for arm, own in found.items()}
    assert pairs == {
        "asl": [("bce", 1, "asl", 1)],
        "asl 20": [("bce 20", seed, "asl 20", seed) for seed in range(2)],
    }
    assert group_risk(lines[0]) == pytest.approx({"head": 0.2, "tail": 0.02})  # no class of medium has one


def test_marks_of_delta_lie_at_train_count_and_value_from_zero(monkeypatch, tmp_path):
    import ablate_class_figures

    kept = []
    monkeypatch.setattr(ablate_class_figures, "_save", lambda figure, path: kept.append(figure))
    delta = [0.1, 0.2, 0.3, 0.4, None, 0.5]
    ablate_class_figures.draw_delta({"more": lines_of("more", seeds=1, delta=delta)}, tmp_path / "a.png", "title")
    (ax,) = kept[0].axes
    (marks,) = ax.lines
    assert set(map(tuple, marks.get_xydata())) == {(300, 0.1), (120, 0.2), (60, 0.3), (25, 0.4), (4, 0.5)}
    assert (ax.get_xscale(), ax.get_ylim()[0]) == ("log", 0)


def test_risk_rows_show_the_means_and_the_paired_difference(monkeypatch, tmp_path):
    import ablate_class_figures

    kept = []
    monkeypatch.setattr(ablate_class_figures, "_save", lambda figure, path: kept.append(figure))
    groups = ["head"] * 2 + ["medium"] * 2 + ["tail"] * 2
    pairs = [
        [{"arm": arm, "groups": groups, "risk": [0.1 * seed + shift] * 4 + [None] * 2} for arm, shift in own]
        for seed, own in ((1, [("bce", 0.0), ("more", 0.02)]), (2, [("bce", 0.0), ("more", 0.04)]))
    ]
    ablate_class_figures.draw_risk({"more": pairs}, tmp_path / "a.png", "title")
    head, _, tail = kept[0].axes
    assert head.lines[0].get_xdata() == pytest.approx([150, 180])
    assert [text.get_text() for text in head.texts] == ["+30.0 ± 14.1"]
    assert [text.get_text() for text in tail.texts] == ["n/a"]


def test_arms_on_other_data_are_drawn_below_their_own_base(draw, tmp_path):
    from ablate_figures import _places
    from ablate_stats import summarise

    lines = [*BASE, *lines_of("bce 20", {"imbalance": 20}), *lines_of("asl", {"loss": "asl"}, 0.01)]
    lines += lines_of("asl 20", {"loss": "asl", "imbalance": 20}, 0.02)
    places, heads = _places(summarise(lines, "bce"), ["asl", "asl 20"])
    assert heads["less bce"] < places["asl"] < heads["less bce 20"] < places["asl 20"]
    assert draw("s", lines, "bce", tmp_path)


def test_curves_are_named_by_the_words_that_their_arms_share():
    from ablate_curves import Curve, _shared_words

    assert _shared_words(Curve("", {0.1: "x5 A 0.1, tail x3", 2.0: "x5 A 2, tail x3"}, "amplitude")) == "x5 A tail x3"
    assert _shared_words(Curve("", {0.1: "more rho=0.1", 2.0: "more rho=2"}, "rho")) == "more"
    assert _shared_words(Curve("", {0.1: "weak", 2.0: "strong"}, "rho")) == ""
