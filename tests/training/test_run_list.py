import json
import os
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_more.data.profile import ClassProfile
from clip_more.evaluation.results import Results
from clip_more.training.run_list import RunState, list_runs, runs_table
from clip_more.training.run_lock import alone
from tests.training.killing import SERVER

CONFIG = "config:\n  dataset: voc_mlt\n"
START = {"event": "start", "total": 40}
MAP = {"total": 0.5, "head": 0.75, "medium": 0.25, "tail": None, "classes_without_ap": ["cat"]}


def train(step):
    return {"event": "train", "step": step, "loss": 1.0}


def write_run(root, name, *events, config=CONFIG, changed=1000.0):
    folder = root / name
    folder.mkdir()
    (folder / "config.yaml").write_text(config)
    if events:
        (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    for path in (*folder.iterdir(), folder):
        os.utime(path, (changed, changed))
    return folder


def write_results(folder, ap, images=4, score="logit"):
    """A report in which every one of three classes (one a group) has the AP `ap`."""
    from clip_more.evaluation.protocol import Protocol

    rows = {"zero-shot": np.full(3, 0.1), "merged": np.full(3, ap)}
    profile = ClassProfile(("a", "b", "c"), (200, 50, 3))
    evaluated = {"dataset": "voc_mlt", "split": "test", "images": images}
    Results(profile, np.array([2, 1, 1]), rows, Protocol(score=score), evaluated).save(folder / "report/results.json")


def only(root):
    (run,) = list_runs(root)
    return run


@pytest.mark.parametrize(
    ("events", "state", "step", "reason"),
    [
        ([], "not started", None, None),
        ([START], "interrupted", None, None),
        ([START, train(7)], "interrupted", 7, None),
        ([START, train(7), {"event": "stopped", "step": 8, "signal": "SIGTERM"}], "stopped", 8, "SIGTERM"),
        ([START, train(7), {"event": "failed", "step": 8, "reason": "disk full"}], "failed", 7, "disk full"),
        ([START, train(7), {"event": "failed", "step": 8, "reason": "x"}, START, train(9)], "interrupted", 9, None),
        ([START, train(40), {"event": "done"}], "interrupted", 40, None),  # without its report it is not done
    ],
)
def test_state_and_progress_are_those_of_the_last_events(tmp_path, events, state, step, reason):
    write_run(tmp_path, "a", *events)
    run = only(tmp_path)
    assert (run.state, run.step, run.reason) == (state, step, reason)
    assert run.total == (40 if events else None)


def test_finished_run_shows_the_merged_row_of_its_report(tmp_path):
    folder = write_run(tmp_path, "a", START, train(40), {"event": "eval", "step": 40, "split": "val", "map": MAP})
    write_results(folder, 0.625)
    run = only(tmp_path)
    assert (run.state, run.split, run.step, run.total) == ("finished", "test", 40, 40)
    assert run.map == pytest.approx({"total": 0.625, "head": 0.625, "medium": 0.625, "tail": 0.625})


def test_run_under_way_shows_its_last_evaluation_and_where_it_was_taken(tmp_path):
    first = {"event": "eval", "step": 10, "split": "val", "map": {**MAP, "total": 0.9}}
    write_run(
        tmp_path, "a", START, first, train(20), {"event": "eval", "step": 20, "split": "val", "map": MAP}, train(21)
    )
    run = only(tmp_path)
    assert (run.map, run.split) == ({"total": 0.5, "head": 0.75, "medium": 0.25, "tail": None}, "val")
    assert runs_table([run]).split("\n")[2].split()[2:8] == ["21/40", "50.00", "75.00", "25.00", "n/a", "val"]


def test_steps_lost_with_an_interruption_do_not_count(tmp_path):
    lost = {"event": "eval", "step": 30, "split": "val", "map": MAP}
    write_run(tmp_path, "a", START, train(10), train(30), lost, {"event": "resume", "step": 10, "offset": 80})
    run = only(tmp_path)
    assert (run.step, run.map) == (10, None)


def hold(folder, held, release):
    with alone(folder):
        held.set()
        release.wait(60)


def test_run_is_running_as_long_as_a_process_holds_it(tmp_path):
    folder = write_run(tmp_path, "a", START, train(7), {"event": "failed", "step": 8, "reason": "disk full"})
    held, release = SERVER.Event(), SERVER.Event()
    trainer = SERVER.Process(target=hold, args=(folder, held, release))
    trainer.start()
    assert held.wait(60)
    assert (only(tmp_path).state, only(tmp_path).reason) == ("running", None)
    trainer.kill()
    trainer.join(60)
    assert only(tmp_path).state == "failed"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.yaml", "config: [", r"config\.yaml cannot be read .*: the run cannot go on"),
        ("config.yaml", "lr: 1", r"config\.yaml is not the config of a run"),
        ("config.yaml", None, r"config\.yaml is missing"),
        ("metrics.jsonl", '{"event": nonsense}\n', r"metrics\.jsonl, line 1 is not JSON"),
        ("metrics.jsonl", "[1]\n", r"metrics\.jsonl, line 1 is not a JSON object"),
        ("report/results.json", "{", r"results\.json is not JSON"),
        ("report/results.json", '{"format": 2}', r"results\.json holds no results"),
    ],
)
def test_damaged_run_is_listed_with_what_is_wrong(tmp_path, file, content, said):
    write_results(write_run(tmp_path, "good", START, train(40), changed=1e9), 0.5)
    folder = write_run(tmp_path, "bad", START, train(7))
    write_results(folder, 0.5)
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    states = {run.name: run for run in list_runs(tmp_path)}
    assert states["good"].state == "finished"
    assert states["bad"].state == "damaged"
    assert re.search(said, states["bad"].reason)
    assert str(folder) in states["bad"].reason


def test_folder_that_is_closed_to_us_is_listed(tmp_path, monkeypatch):
    folder = write_run(tmp_path, "a", START)

    def closed(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("clip_more.training.run_list._recipe_problem", closed)
    run = only(tmp_path)
    assert (run.state, str(folder) in run.reason) == ("damaged", True)


KEYS = ["event", "step", "total", "map", "split", "config", "offset", "reason", "format"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner),
    max_leaves=6,
)
EVENTS = st.tuples(
    st.dictionaries(st.sampled_from(KEYS), VALUES), st.sampled_from(["start", "eval", "resume", "failed"])
)


@settings(max_examples=60, deadline=None)
@given(
    file=st.sampled_from(["config.yaml", "metrics.jsonl", "report/results.json"]),
    content=st.binary(max_size=60)
    | VALUES.map(lambda value: json.dumps(value).encode())
    | EVENTS.map(lambda event: json.dumps({**event[0], "event": event[1]}).encode()),
)
def test_no_content_of_a_file_keeps_the_others_from_being_listed(tmp_path_factory, file, content):
    root = tmp_path_factory.mktemp("runs")
    folder = write_run(root, "a", START, train(7))
    write_run(root, "b", START, train(7))
    (folder / "report").mkdir()
    (folder / file).write_bytes(content)
    states = list_runs(root)
    assert {run.name for run in states} == {"a", "b"}
    json.dumps([run.to_dict() for run in states])
    assert all(len(line) <= 120 for line in runs_table(states).split("\n"))


def test_runs_are_sorted_by_their_last_change(tmp_path):
    for name, changed in (("old", 1000.0), ("new", 3000.0), ("mid", 2000.0)):
        write_run(tmp_path, name, START, changed=changed)
    runs = list_runs(tmp_path)
    assert [run.name for run in runs] == ["new", "mid", "old"]
    assert [run.written for run in runs] == [3000.0, 2000.0, 1000.0]


def test_only_runs_are_listed_and_a_run_may_be_named_itself(tmp_path):
    folder = write_run(tmp_path, "a", START)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/config.yaml").write_text(CONFIG)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert only(tmp_path) == only(folder)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*absent"):
        list_runs(tmp_path / "absent")


def test_best_is_marked_among_runs_judged_on_the_same_test_photos_alike(tmp_path):
    for name, ap, options in (
        ("low", 0.50, {}),
        ("high", 0.60, {}),
        ("other-photos", 0.70, {"images": 5}),
        ("other-score", 0.80, {"score": "softmax"}),
    ):
        write_results(write_run(tmp_path, name, START), ap, **options)
    write_run(tmp_path, "val", START, {"event": "eval", "step": 1, "split": "val", "map": {**MAP, "total": 0.99}})
    lines = runs_table(list_runs(tmp_path)).split("\n")
    assert {line.split()[0]: line.count("*") for line in lines[2:7]} == {
        "low": 0, "high": 4, "other-photos": 0, "other-score": 0, "val": 0,
    }  # fmt: skip
    assert lines[-1].startswith("* the best of the finished runs")


def test_nothing_is_marked_where_there_is_nothing_to_compare(tmp_path):
    write_results(write_run(tmp_path, "a", START), 0.5)
    assert "*" not in runs_table(list_runs(tmp_path))


def test_table_fits_120_columns_and_long_names_keep_both_ends():
    maps = dict.fromkeys(("total", "head", "medium", "tail"), 1.0)
    name = "voc_mlt-bce_more-" + "x" * 200 + "-seed17"
    state = RunState(name, "f", "interrupted", 100_000, 1_000_000, maps, "test", "t", 1e9, "because " + "word " * 200)
    lines = runs_table([state, state]).split("\n")
    assert max(map(len, lines)) <= 120
    assert lines[2].split()[0].startswith("voc_mlt-")
    assert lines[2].split()[0].endswith("seed17")
    assert lines[3].startswith("    because word")
    assert lines[5].endswith("...")


def test_names_that_no_terminal_can_show_are_shown_all_the_same():
    table = runs_table([RunState("a\nb\udcff", "f", "not started")])
    assert table.encode()
    assert table.split("\n")[2].startswith("a b?")


def test_empty_folder_says_so(tmp_path):
    assert runs_table(list_runs(tmp_path)) == "no runs"
