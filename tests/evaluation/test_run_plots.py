import json

import pytest

from clip_more.evaluation import plot_training, run_plots

PNG = b"\x89PNG\r\n\x1a\n"


def lines(tmp_path, events, end="\n"):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join(json.dumps(event) for event in events) + end)
    return path


def step(n, **values):
    return {
        "event": "train",
        "step": n,
        "loss": 1.0,
        "base": 0.8,
        "discrepancy": 0.1,
        "alpha": 2.0,
        "lr": 1e-5,
    } | values


def test_training_figure_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    maps = {"total": 0.5, "head": 0.6, "medium": 0.4, "tail": None}
    evals = [{"event": "eval", "step": 4, "split": split, "map": maps} for split in ("val", "test")]
    path = lines(tmp_path, [{"event": "start"}, *(step(n) for n in range(1, 6)), *evals])
    plot_training(path, tmp_path / "training.png")
    assert (tmp_path / "training.png").read_bytes().startswith(PNG)
    plot_training(lines(tmp_path, [step(1, discrepancy=None)]), tmp_path / "training.png")


def test_resumed_step_counts_as_last_written(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(run_plots, "_save", lambda figure, path: figures.append(figure))
    plot_training(lines(tmp_path, [step(1), step(2, loss=9.0), step(2, loss=3.0), step(3)]), tmp_path / "t.png")
    (loss,) = (line for ax in figures[0].axes for line in ax.lines if line.get_label() == "loss")
    assert loss.get_ydata().tolist() == [1.0, 3.0, 1.0]


def watched(n, **values):
    share = {"vision.attention": 0.01 * n, "projection": 0.02 * n}
    return step(n, gradient_norms={"general": 4.0, "tail": 0.5 / n, "head": 0.1}, tail_share=share) | values


def panels(monkeypatch, tmp_path, events):
    """Title to axes of the training figure."""
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(run_plots, "_save", lambda figure, path: figures.append(figure))
    plot_training(lines(tmp_path, events), tmp_path / "t.png")
    return {ax.get_title(loc="left"): ax for ax in figures[0].axes}


def test_gradient_norms_and_tail_share_have_a_panel_with_a_line_a_part(monkeypatch, tmp_path):
    axes = panels(monkeypatch, tmp_path, [watched(1), watched(2), watched(4)])
    norms = {line.get_label(): line.get_ydata().tolist() for line in axes["Gradient norm"].lines}
    assert norms == {"general": [4.0] * 3, "tail": [0.5, 0.25, 0.125], "head": [0.1] * 3}
    share = {line.get_label(): line.get_ydata().tolist() for line in axes[run_plots.TAIL_SHARE].lines}
    assert share == {"vision.attention": [0.01, 0.02, 0.04], "projection": [0.02, 0.04, 0.08]}


def test_a_part_that_a_step_lacks_leaves_a_gap_and_not_the_line(monkeypatch, tmp_path):
    axes = panels(monkeypatch, tmp_path, [watched(1), watched(2, gradient_norms={"head": 0.1}), watched(4)])
    (tail,) = (line for line in axes["Gradient norm"].lines if line.get_label() == "tail")
    assert tail.get_xdata().tolist() == [1, 4]


@pytest.mark.parametrize("norm", [0.0, 3.0, 1e-12])
def test_the_log_axis_of_gradient_norms_has_labels_whatever_they_are(norm, monkeypatch, tmp_path):
    parts = {"general": norm, "head": norm}
    ax = panels(monkeypatch, tmp_path, [watched(1, gradient_norms=parts), watched(2, gradient_norms=parts)])[
        "Gradient norm"
    ]
    low, high = ax.get_ylim()
    assert sum(low <= tick <= high for tick in ax.get_yticks()) >= 2


SMALL = ["Loss", "Learning rate", "Gradient norm", "Discrepancy", "Discrepancy weight alpha", run_plots.TAIL_SHARE]


@pytest.mark.parametrize(
    ("events", "titles"),
    [
        ([step(1, discrepancy=None)], ["Loss", "Learning rate"]),
        ([step(1)], ["Loss", "Learning rate", "Discrepancy", "Discrepancy weight alpha"]),
        ([watched(1, discrepancy=None, tail_share={})], ["Loss", "Learning rate", "Gradient norm"]),
        ([watched(1, discrepancy=None)], ["Loss", "Learning rate", "Gradient norm", run_plots.TAIL_SHARE]),
        (
            [watched(1), {"event": "eval", "step": 1, "split": "val", "map": {"total": 0.5}}],
            [
                "Loss",
                "Learning rate",
                "Gradient norm",
                "Discrepancy",
                "Discrepancy weight alpha",
                run_plots.TAIL_SHARE,
                "mAP x 100",
            ],
        ),
    ],
    ids=["full-old", "more-old", "full", "lora", "more"],
)
def test_what_a_run_has_is_drawn_side_by_side_and_nothing_else(events, titles, monkeypatch, tmp_path):
    axes = panels(monkeypatch, tmp_path, events)
    assert list(axes) == titles
    places = [ax.get_tightbbox() for ax in axes.values()]
    assert not any(a.overlaps(b) for n, a in enumerate(places) for b in places[:n])
    columns = {ax.get_subplotspec().colspan.start for ax in axes.values()}
    tall = "mAP x 100" in axes
    rows = axes["Loss"].get_gridspec().nrows
    assert rows * (len(columns) - tall) == len(axes) - tall  # no empty place
    assert sum(bool(ax.get_xlabel()) for ax in axes.values()) == len(columns)


def test_bad_metrics_files_are_named(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(FileNotFoundError, match=r"no metrics file at .*absent\.jsonl"):
        plot_training(tmp_path / "absent.jsonl", tmp_path / "t.png")
    with pytest.raises(ValueError, match="holds no 'train' or 'eval' event yet"):
        plot_training(lines(tmp_path, [{"event": "start"}]), tmp_path / "t.png")
