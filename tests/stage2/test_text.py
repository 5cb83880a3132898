from clip_more.stage2 import text

GRID = [{"values": {"tau": 0.0}, "scores": {"total": 0.5}}, {"values": {"tau": 0.1}, "scores": None}]
RECORD = {
    "method": "tau", "measure": "micro-AP", "photos": 1200, "stage_one": {"total": 0.6}, "candidates": GRID,
    "chosen": {"tau": 0.0}, "log": {"rows_cut_by_epoch": [1.5, 0.0], "delta": 0.123456}, "refitted": True,
    "keeps_ap": True, "selection": "held_out", "fewest_of_a_class": 2, "seconds": {"features": 1.0, "method": 0.04},
}  # fmt: skip


class FakeResults:
    def __init__(self):
        self.evaluated = {"stage2": {"map_difference": dict.fromkeys(("total", "head", "medium", "tail"))}}

    @classmethod
    def load(cls, path):
        return cls()

    def table(self):
        return "the table"


def shown(monkeypatch, tmp_path, **changes):
    monkeypatch.setattr(text, "Results", FakeResults)
    monkeypatch.setattr(text, "read_selection", lambda folder: {**RECORD, **changes})
    return text.method_text(tmp_path).splitlines()


def test_it_says_what_was_chosen_on_what_and_what_cannot_change(monkeypatch, tmp_path):
    lines = shown(monkeypatch, tmp_path)
    assert lines[0] == "the table"
    assert "chosen: tau 0, by micro-AP on 1,200 held-out photos, 2 of the rarest class" in lines
    assert "note: by that, stage 1 itself is better (60.0, 50.0)" in lines
    assert "made again with these values on all photos of train" in lines
    assert "delta: 0.1235" in lines
    assert any("the order of the photos of a class, its AP and macro mAP stay as they are" in line for line in lines)
    assert "seconds: features 1.0, method 0.0" in lines
    assert not any(line.startswith("validation curve") for line in lines)
    (tmp_path / "selection.png").touch()
    assert shown(monkeypatch, tmp_path)[-1] == f"validation curve: {tmp_path / 'selection.png'}"


def test_a_value_that_was_given_is_not_called_chosen(monkeypatch, tmp_path):
    lines = shown(monkeypatch, tmp_path, selection="given", candidates=GRID[:1], keeps_ap=False, stage_one=None)
    assert "given: tau 0" in lines
    assert not any("chosen" in line or "stay as they are" in line for line in lines)
