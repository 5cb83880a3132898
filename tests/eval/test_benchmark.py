import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "eval")
    import bench_rows

    return bench_rows


def test_row_has_the_keys_of_the_speed_table_and_a_spread_around_the_ratio(rows):
    row = rows.compared("step.x", "fp32", [2.0, 9.0, 4.0], [1.0, 3.0, 4.0], goal=1.5)
    assert asdict(row) == {
        "row": "step.x",
        "dtype": "fp32",
        "unit": "s",
        "better": "lower",
        "ours": 4.0,
        "peer": 3.0,
        "ratio": 4 / 3,
        "spread": [1.0, 3.0],
        "goal": 1.5,
    }


@pytest.mark.parametrize(("unit", "goal", "met"), [("s", 2.0, True), ("s", 1.9, False), ("photos/s", 2.1, False)])
def test_goal_is_met_on_the_better_side(rows, unit, goal, met):
    assert rows.compared("a.b", "fp32", [2.0], [1.0], goal=goal, unit=unit).met is met


def test_contenders_take_turns_and_the_first_round_is_not_timed(rows):
    calls = []
    contenders = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    options = rows.Options(quick=True, dtypes=("fp32",), repetitions=2, device="cpu")
    seconds = rows.interleaved(contenders, options)
    assert "".join(calls) == "abcbcacab"
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


@pytest.fixture
def program(rows, monkeypatch):
    """The program with one section of two made-up rows, called with its options."""
    import benchmark

    def section(options):
        for dtype in options.dtypes:
            yield rows.compared("step.exact_vs_plain", dtype, [2.0, 2.2], [1.0, 1.0], goal=2.10)
        yield rows.compared("loader.jpeg", "256px", [9.0], [3.0], goal=None, unit="photos/s")

    monkeypatch.setattr(benchmark, "SECTIONS", dict.fromkeys(("step", "loader", "inference"), section))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["benchmark.py", "--section", "step", "--device", "cpu", *map(str, arguments)])
        benchmark.main()

    return run


def test_table_has_a_line_a_row_and_says_how_long_it_took(program, capsys):
    program("--dtype", "fp32", "bf16")
    lines = capsys.readouterr().out.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("row "))
    assert lines[head].split() == ["row", "dtype", "ours", "peer", "unit", "ratio", "spread", "goal"]
    table = [line.split() for line in lines[head + 1 : -2]]
    assert table == [
        ["step.exact_vs_plain", "fp32", "2.100", "1.000", "s", "2.100", "2.000..2.200", "<=", "2.10", "met"],
        ["step.exact_vs_plain", "bf16", "2.100", "1.000", "s", "2.100", "2.000..2.200", "<=", "2.10", "met"],
        ["loader.jpeg", "256px", "9.000", "3.000", "photos/s", "3.000", "3.000..3.000"],
    ]
    assert (lines[-2], lines[-1][:10]) == ("", "3 rows in ")
    assert all(len(line) <= 110 for line in lines[head:])


def test_json_is_a_list_of_rows_and_nothing_else_is_left(program, tmp_path):
    program("--quick", "--json", tmp_path / "rows.json")
    found = json.loads((tmp_path / "rows.json").read_text())
    keys = {"row", "dtype", "unit", "better", "ours", "peer", "ratio", "spread", "goal"}
    assert [(row["row"], row["dtype"], row["better"], row["goal"]) for row in found] == [
        ("step.exact_vs_plain", "fp32", "lower", 2.10),
        ("loader.jpeg", "256px", "higher", None),
    ]
    assert all(set(row) >= keys for row in found)
    assert found[0]["spread"] == [2.0, 2.2]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


@pytest.mark.parametrize("option", ["--json", "--profile"])
def test_a_file_in_no_folder_is_refused_before_anything_runs(program, tmp_path, capsys, option):
    with pytest.raises(SystemExit):
        program(option, tmp_path / "absent" / "file")
    assert f"{option}: there is no folder {tmp_path / 'absent'}" in capsys.readouterr().err
