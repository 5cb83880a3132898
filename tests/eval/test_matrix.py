import json
import math
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from clip_more.data.profile import ClassProfile
from clip_more.data.samplers import photo_weights
from clip_more.evaluation.results import Results
from clip_more.training.combinations import check_combination
from clip_more.training.run_folder import write_recipe

PROFILE = ClassProfile(("often", "sometimes", "rarely"), (200, 50, 5))


@pytest.fixture(autouse=True)
def eval_folder(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "eval")
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))


@pytest.fixture
def matrix():
    import matrix

    return matrix


@pytest.fixture
def rows():
    import matrix_rows

    return matrix_rows


@pytest.fixture
def tables():
    import matrix_table

    return matrix_table


def results(ap, *, top1=None, row="merged"):
    """Results of three classes whose AP are given."""
    chance = {"total": 0.1, "head": 0.2, "medium": 0.1, "tail": 0.05}
    shares = {"top1": dict.fromkeys(("all", "many", "medium", "few"), top1)}
    return Results(
        PROFILE, np.array([9, 9, 9]), {"zero-shot": np.array([0.1, 0.1, 0.1]), row: np.array(ap)},
        metrics={row: shares, "zero-shot": shares} if top1 is not None else {},
        chance={"mean": chance, "q95": chance, "draws": 9, "seed": 0},
    )  # fmt: skip


def finish(job, ap, **more):
    """Leave what a run that ended leaves."""
    write_recipe(job.config, {})
    results(ap, **more).save(job.results())


@pytest.fixture
def fake(monkeypatch, matrix):
    """Training and second stages that take no time; the configs and methods that were asked for."""
    import clip_more.stage2.run
    import clip_more.training.loop
    from matrix_jobs import Job

    asked = []

    def train(config):
        asked.append(config.run_name)
        (config.run_folder / "checkpoints").mkdir(parents=True)
        if config.loss == "focal_ce":
            raise FloatingPointError("not finite at step 7\nA lower lr may help")
        finish(Job(config), [0.5, 0.4, 0.3 + 0.1 * (config.tuning == "more")], top1=0.5)
        return config.run_folder

    def stage2(folder, method):
        asked.append(f"{folder.name}/{method}")
        if method == "tau":
            raise ValueError("all rows have one norm")
        results([0.6, 0.5, 0.4], row=method).save(folder / "stage2" / method / "results.json")

    monkeypatch.setattr(clip_more.training.loop, "train", train)
    monkeypatch.setattr(clip_more.stage2.run, "stage2", stage2)
    monkeypatch.setattr(matrix, "prepare_photos", lambda *_: None)
    return asked


@pytest.fixture
def run(matrix, tmp_path, capsys):
    def call(*arguments):
        code = matrix.main(["--out", str(tmp_path / "out"), "--jobs", "1", "--seeds", "1", *arguments])
        return code, capsys.readouterr()

    return call


def test_every_row_is_a_recipe_in_which_nothing_is_refused_or_doubtful(matrix, rows):
    jobs = matrix.make_jobs(Path("out"), range(3))
    assert len(jobs) == 2 * 3 * len({(row.bed, row.run) for row in rows.ROWS})
    for job in jobs.values():
        assert check_combination(job.config.check()) == []


def test_every_loss_and_every_sampler_has_a_row(rows):
    from clip_more.config import LOSSES, TrainConfig

    samplers = TrainConfig.__dataclass_fields__["sampler"].metadata["choices"]
    labels = {bed: [row.label.split(" ")[0] for row in rows.ROWS if row.bed == bed] for bed in rows.BEDS}
    assert set(labels["digits_lt"]) == {*LOSSES, *samplers}
    assert set(labels["digits_mlt"]) == {"bce", "asl", "focal", "cb_bce", "db", "db_focal", *samplers}
    assert labels["voc2012_lt_tiny"] == ["bce", "asl", "db_focal", "cb_bce", "class_aware"]
    for row in rows.ROWS:
        config = rows.run_config(row, False, 0, Path("out"))
        if row.part.startswith("losses"):
            assert (config.loss, config.sampler) == (row.label, "instance")
        if row.part.startswith("samplers") and "the same runs" not in row.label:
            assert (config.sampler, config.loss) == (row.label, "ce" if config.task == "single_label" else "bce")


def test_with_more_nothing_but_the_tail_and_its_loss_is_another(matrix):
    jobs = matrix.make_jobs(Path("out"), [0])
    for (bed, name, kind, seed), job in jobs.items():
        if kind == "plain":
            plain, more = job.config.to_dict(), jobs[bed, name, "MORE", seed].config.to_dict()
            other = {key for key in plain if plain[key] != more[key]} - {"run", "method"}
            assert other <= {"tuning", "discrepancy_weighting", "discrepancy_gradient", "amplitude"}, other
            assert more["tuning"] == "more"


def test_with_one_label_distribution_balanced_draws_as_class_balanced():
    labels = np.arange(12), np.array([0] * 7 + [1] * 3 + [2] * 2)
    assert np.array_equal(photo_weights(labels, 12, 0.0), photo_weights(labels, 12, 0.0, summed=True))


def test_mean_spread_and_paired_difference_are_those_of_the_seeds(matrix, tables, rows, tmp_path):
    jobs = matrix.make_jobs(tmp_path, range(3))
    for seed, (before, after) in enumerate([(0.2, 0.23), (0.3, 0.34), (0.4, 0.42)]):
        finish(jobs["digits_mlt", "bce", "plain", seed], [0.9, np.nan, before])
        finish(jobs["digits_mlt", "bce", "MORE", seed], [0.9, np.nan, after])
    own = {key[1:]: job for key, job in jobs.items() if key[0] == "digits_mlt"}
    row = next(row for row in rows.ROWS if row.bed == "digits_mlt" and row.label == "bce")
    lines = tables.read_lines([row], own, [])
    assert [line.label for line in lines] == ["chance", "zero-shot", "bce"]
    text = tables.bed_tables(lines)
    # Tail: 20, 30, 40; differences 3, 4, 2. Total: the mean of head and tail. No class of medium has an AP.
    assert "| bce | 60.00 ± 5.00 | 90.00 ± 0.00 | n/a | 30.00 ± 10.00 |" in text
    assert "| bce + MORE | 61.50 ± 4.77 | 90.00 ± 0.00 | n/a | 33.00 ± 9.54 |" in text
    assert "| bce | +1.50 ± 0.50 | +0.00 ± 0.00 | n/a | +3.00 ± 1.00 |" in text
    assert "| chance | 10.00 | 20.00 | 10.00 | 5.00 |" in text
    assert math.isclose(lines[-1].differences("mAP tail")[1], 4)


def test_a_difference_is_of_seeds_that_have_both(tables):
    line = tables.Line("losses", "bce", 3)
    line.figures["plain"] = {0: {"mAP total": 50.0}, 1: {"mAP total": 60.0}}
    line.figures["MORE"] = {1: {"mAP total": 61.0}, 2: {"mAP total": 90.0}}
    line.failures["MORE"] = {0: "out | of memory"}
    text = tables.bed_tables([line])
    assert "| bce (1 of 3 seeds) | +1.00 |" in text
    assert "| bce + MORE (2 of 3 seeds) | 75.50 ± 20.51 |" in text
    assert "- bce + MORE, seed 0, failed: out | of memory" in text


def test_rows_without_results_are_shown_as_such(matrix, tables, rows, tmp_path):
    jobs = {key[1:]: job for key, job in matrix.make_jobs(tmp_path, [0]).items() if key[0] == "voc2012_lt_tiny"}
    failed = {"run": "voc2012_lt_tiny/bce-s0", "failures": {"training": "OSError: disk full"}}
    text = tables.bed_tables(tables.read_lines([r for r in rows.ROWS if r.bed == "voc2012_lt_tiny"], jobs, [failed]))
    assert "| bce | failed |" in text
    assert "| bce + MORE | not run |" in text
    assert "- bce, seed 0, failed: OSError: disk full" in text


def test_finished_runs_are_not_run_again_and_a_failed_one_is(fake, run, tmp_path):
    code, printed = run("--bed", "digits_lt", "--rows", "ce", "focal_ce")
    assert code == 1
    assert fake == ["ce-s0", "ce-more-s0", "focal_ce-s0", "focal_ce-more-s0"]
    assert "failed: digits_lt/focal_ce-s0: training: FloatingPointError: not finite at step 7 A lower" in printed.out
    assert "| focal_ce | failed |" in printed.out
    assert "| ce | 40.00 | 50.00 | 40.00 | 30.00 | 50.00 | 50.00 | 50.00 | 50.00 |" in printed.out
    assert not (tmp_path / "out" / "digits_lt" / "ce-s0" / "checkpoints").exists()
    fake.clear()
    run("--bed", "digits_lt", "--rows", "ce", "focal_ce")
    assert fake == ["focal_ce-s0", "focal_ce-more-s0"]
    log = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert [record["state"] for record in log] == ["done", "done", "failed", "failed", "failed", "failed"]


def test_table_alone_runs_nothing(fake, run):
    code, printed = run("--bed", "digits_mlt", "--table")
    assert (code, fake) == (0, [])
    assert "| bce | not run |" in printed.out
    assert "0 of 24 runs" in printed.out


def test_a_finished_run_of_other_settings_is_refused(fake, run):
    assert run("--bed", "digits_mlt", "--rows", "bce", "--epochs", "3")[0] == 0
    fake.clear()
    code, printed = run("--bed", "digits_mlt", "--rows", "bce")
    assert (code, fake) == (2, [])
    assert "epochs  3.0 there, 8.0 now" in printed.err


def test_second_stages_follow_their_run_and_one_that_fails_stops_no_other(fake, run):
    pytest.importorskip("matplotlib")
    code, printed = run("--bed", "stage2")
    assert code == 1
    methods = ["crt", "ncm", "tau", "lws", "maxnorm_cb", "la_additive", "la_multiplicative"]
    assert fake[:8] == ["digits_lt-ce-s0", *(f"digits_lt-ce-s0/{method}" for method in methods)]
    assert "| tau | failed |" in printed.out
    assert "- tau, seed 0, failed: ValueError: all rows have one norm" in printed.out
    assert "| lws | 50.00 | 60.00 | 50.00 | 40.00 |" in printed.out
    fake.clear()
    run("--bed", "stage2")  # those whose methods are not all there
    assert {name.split("/")[0] for name in fake} == {"digits_lt-ce-s0", "digits_lt-ce-more-s0"}


def test_a_signal_ends_the_list_and_what_is_left_is_done_next_time(fake, run, monkeypatch):
    import clip_more.training.loop
    from clip_more.training.signals import Stopped

    train = clip_more.training.loop.train

    def stopped(config):
        if config.tuning == "more":
            os.kill(os.getpid(), signal.SIGTERM)
            raise Stopped("SIGTERM: saved at step 3 of 9")
        return train(config)

    monkeypatch.setattr(clip_more.training.loop, "train", stopped)
    code, printed = run("--bed", "digits_mlt", "--rows", "bce", "asl")
    assert (code, fake) == (75, ["bce-s0"])
    assert "the same command goes on" in printed.out
    monkeypatch.setattr(clip_more.training.loop, "train", train)
    assert run("--bed", "digits_mlt", "--rows", "bce", "asl")[0] == 0
    assert fake == ["bce-s0", "bce-more-s0", "asl-s0", "asl-more-s0"]


def test_a_document_gets_the_tables_of_its_beds(fake, run, tmp_path):
    document = tmp_path / "matrix.md"
    parts = "".join(f"<!-- table: {name} -->\nold {name}\n<!-- end -->\n" for name in ("digits_mlt", "stage2"))
    document.write_text(f"before\n{parts}after\n")
    assert run("--bed", "digits_mlt", "--rows", "bce", "--write", str(document))[0] == 0
    text = document.read_text()
    assert "| bce + MORE | 43.33 |" in text
    assert "old digits_mlt" not in text
    assert "old stage2" in text
    assert (text[:7], text[-6:]) == ("before\n", "after\n")
    code, printed = run("--bed", "digits_lt", "--table", "--write", str(document))
    assert code == 2
    assert "<!-- table: digits_lt -->" in printed.err


def test_time_by_the_clock_counts_runs_beside_each_other_once():
    from matrix_jobs import spent

    spans = [(0, 10), (5, 12), (20, 21)]
    assert spent({"ended": end, "seconds": end - start} for start, end in spans) == (18, 13)


def test_a_line_that_a_kill_cut_spoils_no_other(tmp_path):
    from matrix_jobs import append_record, read_records

    path = tmp_path / "runs.jsonl"
    append_record(path, {"run": "a"})
    with path.open("a") as file:
        file.write('{"run": "b", "sta')
    append_record(path, {"run": "c"})
    assert [record["run"] for record in read_records(path)] == ["a", "c"]


def test_two_rows_from_photos_to_table(run, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    import clip_more.data.digits
    import clip_more.training.report as report

    few = partial(clip_more.data.digits.read_digits, largest=100, scenes=40)
    monkeypatch.setattr(clip_more.data.digits, "read_digits", few)
    for name in ("plot_ap_by_frequency", "plot_training"):
        monkeypatch.setattr(report, name, lambda *_: None)
    arguments = ("--bed", "digits_lt", "--rows", "ce", "ldam", "--max_steps", "2")
    code, printed = run(*arguments)
    assert code == 0, printed.out
    out = tmp_path / "out"
    for name in ("ce-s0", "ce-more-s0", "ldam-s0", "ldam-more-s0"):
        found = Results.load(out / "digits_lt" / name / "report" / "results.json")
        mean = 100 * found.maps["merged"]["total"]
        label = name.removesuffix("-s0").replace("-more", " + MORE")
        assert f"| {label} | {mean:.2f} |" in printed.out
        assert "2 of 2" in (out / "digits_lt" / "logs" / f"{name}.txt").read_text()
    assert (out / "digits_lt.png").read_bytes().startswith(b"\x89PNG")
    assert "4 of 34 runs" in printed.out
