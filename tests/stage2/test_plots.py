import PIL.Image
import pytest

from clip_more.evaluation.plots import LINES
from clip_more.stage2 import plots
from clip_more.stage2.choose import Selection


def selection(candidates, chosen, stage_one=0.5):
    """Scores of a candidate are `total`, and a group each side of it."""
    scored = [
        {"values": values, "scores": None if total is None else {"total": total, "head": total + 0.1, "tail": None}}
        for values, total in candidates
    ]
    first = {"total": stage_one, "head": 0.8, "tail": None}
    return Selection("x", "balanced top-1", 40, first, scored, chosen, {}, False, True)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a selection and returns its axes, with the file beside it."""
    figures = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: (figures.append(figure), save(figure, path)))

    def draw(chosen):
        plots.plot_selection(chosen, tmp_path / "selection.png", on="40 held-out photos", title="run: x")
        with PIL.Image.open(tmp_path / "selection.png") as image:
            assert image.size == (1290, 780)
        return figures[-1].axes[0]

    return draw


def marked(ax):
    """Where the large ring is."""
    return [line.get_xydata()[0].tolist() for line in ax.lines if line.get_markersize() == 10]


def test_a_grid_is_a_curve_over_its_values_with_the_chosen_one_marked(drawn):
    grid = [({"tau": 0.0}, 0.5), ({"tau": 0.1}, 0.7), ({"tau": 0.2}, 0.6)]
    ax = drawn(selection(grid, {"tau": 0.1}))
    assert marked(ax) == [[0.1, 70.0]]
    curves = {line.get_color(): line.get_xydata().tolist() for line in ax.lines if len(line.get_xydata()) == 3}
    assert curves[LINES["total"]] == [[0.0, 50.0], [0.1, 70.0], [0.2, 60.0]]
    assert curves[LINES["head"]] == [[0.0, 60.0], [0.1, pytest.approx(80.0)], [0.2, 70.0]]
    assert LINES["tail"] not in curves  # no class of the tail has a photo
    assert {text.get_text() for text in ax.texts} == {"total", "head", "dotted: stage 1"}


def test_values_of_uneven_steps_stand_side_by_side_and_a_fit_that_failed_is_left_out(drawn):
    ax = drawn(selection([({"lr": 0.1}, 0.5), ({"lr": 1.0}, 0.7), ({"lr": 10.0}, None)], {"lr": 1.0}))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.1", "1", "10"]
    assert marked(ax) == [[1.0, 70.0]]


def test_two_values_are_a_line_each_and_equal_lines_are_drawn_once(drawn):
    scores = {0.9: (0.5, 0.6), 0.5: (0.5, 0.6), 0.1: (0.4, 0.7)}
    grid = [({"thresh": t, "beta": b}, s) for t, pair in scores.items() for b, s in zip((0.9, 0.99), pair, strict=True)]
    ax = drawn(selection(grid, {"thresh": 0.1, "beta": 0.99}))
    assert {text.get_text() for text in ax.texts} == {"thresh 0.9 to 0.5", "thresh 0.1", "dotted: stage 1"}
    assert marked(ax) == [[1.0, 70.0]]


def test_names_have_no_order_and_so_no_line(drawn):
    grid = [({"inputs": i, "metric": m}, 0.5) for i in ("un", "l2n") for m in ("euclidean", "cosine")]
    ax = drawn(selection(grid, {"inputs": "l2n", "metric": "cosine"}))
    assert [label.get_text() for label in ax.get_xticklabels()][-1] == "l2n\ncosine"
    assert {line.get_linewidth() for line in ax.lines if len(line.get_xydata()) == 4} == {0}


def test_one_candidate_is_no_curve(tmp_path):
    with pytest.raises(ValueError, match="there is nothing to draw"):
        plots.plot_selection(selection([({"tau": 0.5}, 0.5)], {"tau": 0.5}), tmp_path / "x.png", on="", title="")
    assert not list(tmp_path.iterdir())
