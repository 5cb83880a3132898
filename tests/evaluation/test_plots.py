import subprocess
import sys

import numpy as np
import pytest

from clip_more.data.profile import ClassProfile
from clip_more.evaluation import plot_ap_by_frequency, plots

PNG = b"\x89PNG\r\n\x1a\n"


def drawn(classes, monkeypatch, tmp_path, counts=None):
    """The figure of random AP: its axes, after it was written."""
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    counts = tuple(int(c) for c in np.geomspace(4, 900, classes)) if counts is None else counts
    profile = ClassProfile(tuple(f"long class {c}" for c in range(classes)), counts)
    before = rng.uniform(0.3, 0.9, classes)
    figures = []
    save = plots._save
    monkeypatch.setattr(plots, "_save", lambda figure, path: (figures.append(figure), save(figure, path)))
    after = np.clip(before + rng.normal(0.05, 0.1, classes), 0, 1)
    plot_ap_by_frequency(profile, before, after, tmp_path / "report" / "ap.png")
    assert (tmp_path / "report" / "ap.png").read_bytes().startswith(PNG)
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["ap.png"]
    (ax,) = figures[0].axes
    return profile, ax


def names_in(ax):
    return [text for text in ax.texts if text.get_text().startswith("long class")]


@pytest.mark.parametrize("classes", [10, 20])
def test_every_class_is_named_without_overlap(classes, monkeypatch, tmp_path):
    profile, ax = drawn(classes, monkeypatch, tmp_path)
    names = names_in(ax)
    assert sorted(text.get_text() for text in names) == sorted(profile.names)
    boxes = [text.get_window_extent() for text in names]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_eighty_classes_keep_most_names_without_overlap(monkeypatch, tmp_path):
    _, ax = drawn(80, monkeypatch, tmp_path)
    boxes = [text.get_window_extent() for text in names_in(ax)]
    assert len(boxes) > 40
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_classes_of_one_count_stand_beside_each_other_and_within_their_group(monkeypatch, tmp_path):
    _, ax = drawn(8, monkeypatch, tmp_path, counts=(19, 19, 20, 20, 99, 100, 100, 700))
    x = sorted({place for line in ax.lines if line.get_marker() in "^v" for place in line.get_xdata()})
    assert len(x) == 8
    assert x[1] < 19.5 < x[2]
    assert x[4] < 99.5 < x[5]


def test_the_figure_says_where_classes_are_spread(monkeypatch, tmp_path):
    note = "spread sideways"
    _, ax = drawn(4, monkeypatch, tmp_path, counts=(5, 5, 40, 300))
    assert any(note in text.get_text() for text in ax.figure.texts)
    _, ax = drawn(4, monkeypatch, tmp_path, counts=(5, 12, 40, 300))
    assert not any(note in text.get_text() for text in ax.figure.texts)


def test_many_classes_are_drawn_in_few_strokes(monkeypatch, tmp_path):
    _, ax = drawn(300, monkeypatch, tmp_path)
    assert len(ax.lines) + len(ax.collections) < 15
    assert sum(len(line.get_xdata()) for line in ax.lines if line.get_marker() in "^v") == 300
    assert names_in(ax)


def test_classes_without_ap_are_left_out_and_counted(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    profile = ClassProfile(("a", "b", "c"), (200, 30, 3))
    plot_ap_by_frequency(profile, np.array([0.2, np.nan, 0.4]), np.array([0.3, 0.5, 0.4]), tmp_path / "ap.png")
    texts = [text.get_text() for text in figures[0].texts]
    assert "1 class without AP not shown" in texts
    # Medium has no AP before, so no change of medium is claimed.
    assert "mAP:  total 30.0 → 40.0   |   head 20.0 → 30.0   |   tail 40.0 → 40.0" in texts
    with pytest.raises(ValueError, match="No class has an AP both before and after"):
        plot_ap_by_frequency(profile, np.full(3, np.nan), np.zeros(3), tmp_path / "ap.png")


def test_absent_matplotlib_names_the_extra(monkeypatch, tmp_path):
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    profile = ClassProfile(("a",), (3,))
    with pytest.raises(ModuleNotFoundError, match=r'pip install "clip_more\[plots\]"'):
        plot_ap_by_frequency(profile, np.array([0.1]), np.array([0.2]), tmp_path / "ap.png")


def test_importing_evaluation_loads_no_heavy_library():
    code = "import sys, clip_more.evaluation; print({'matplotlib', 'sklearn', 'datasets'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
