import json

import pytest

from clip_more.evaluation.run_events import read_events


def write(tmp_path, *events, end=b""):
    """A metrics.jsonl, and where each of its lines starts."""
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(event).encode() + b"\n" for event in events]
    path.write_bytes(b"".join(lines) + end)
    return path, [sum(map(len, lines[:n])) for n in range(len(lines) + 1)]


def train(step, **values):
    return {"event": "train", "step": step, **values}


def steps(path):
    return [(event["event"], event["step"]) for event in read_events(path)]


def test_what_was_done_after_the_checkpoint_and_before_the_resume_is_left_out(tmp_path):
    before = [train(1), {"event": "eval", "step": 2}, {"event": "checkpoint", "step": 2}]
    lost = [train(3), {"event": "eval", "step": 4}, {"event": "skipped", "step": 5}]
    _, starts = write(tmp_path, *before)
    path, _ = write(tmp_path, *before, *lost, {"event": "resume", "step": 2, "offset": starts[3]}, train(3), train(4))
    assert steps(path) == [
        ("train", 1), ("eval", 2), ("checkpoint", 2), ("skipped", 5), ("resume", 2), ("train", 3), ("train", 4),
    ]  # fmt: skip


def test_run_that_resumed_twice_keeps_what_its_weights_went_through(tmp_path):
    _, starts = write(tmp_path, train(1), train(2))
    first = [train(1), train(2), {"event": "resume", "step": 1, "offset": starts[1]}, train(2), train(3)]
    _, again = write(tmp_path, *first)
    path, _ = write(tmp_path, *first, train(4), {"event": "resume", "step": 3, "offset": again[5]}, train(4))
    assert [s for e, s in steps(path) if e == "train"] == [1, 2, 3, 4]
    # The last checkpoint was damaged, and it went on from the one before.
    path, _ = write(tmp_path, *first, train(4), {"event": "resume", "step": 1, "offset": starts[1]}, train(2))
    assert [s for e, s in steps(path) if e == "train"] == [1, 2]


def test_offset_counts_bytes_and_not_letters(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = json.dumps(train(1, note="\N{GREEK SMALL LETTER ALPHA}" * 9), ensure_ascii=False).encode() + b"\n"
    resume = json.dumps({"event": "resume", "step": 1, "offset": len(line)}).encode()
    path.write_bytes(line + json.dumps(train(2)).encode() + b"\n" + resume + b"\n")
    assert steps(path) == [("train", 1), ("resume", 1)]


def test_resume_without_an_offset_leaves_everything(tmp_path):
    path, _ = write(tmp_path, train(1), train(2), {"event": "resume", "step": 1}, train(2))
    assert steps(path) == [("train", 1), ("train", 2), ("resume", 1), ("train", 2)]


def test_line_cut_at_any_byte_is_left_out_whether_or_not_others_follow(tmp_path):
    line = json.dumps(train(2, memory={"cpu_mib": 1.5}, why="{\u00e9}"), ensure_ascii=False).encode()
    for cut in range(1, len(line)):
        path, _ = write(tmp_path, train(1), end=line[:cut])
        assert steps(path) == [("train", 1)], line[:cut]
        path, _ = write(tmp_path, train(1), end=line[:cut] + b"\n" + json.dumps(train(3)).encode() + b"\n")
        assert steps(path) == [("train", 1), ("train", 3)], line[:cut]


def test_zeros_of_a_power_cut_are_left_out(tmp_path):
    path, _ = write(tmp_path, train(1), end=b"\0" * 50 + b"\n" + b"\0" * 9 + json.dumps(train(2)).encode() + b"\n")
    assert steps(path) == [("train", 1), ("train", 2)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"event": train}', r"metrics\.jsonl, line 2 is not JSON"),
        (b'{"event": "\xff"}', r"metrics\.jsonl, line 2 is not JSON"),
        (b"[1]", r"metrics\.jsonl, line 2 is not a JSON object"),
    ],
)
def test_line_that_is_no_event_is_named(tmp_path, line, said):
    path, _ = write(tmp_path, train(1), end=line + b"\n{}\n")
    with pytest.raises(ValueError, match=said):
        read_events(path)
