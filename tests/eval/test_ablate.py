import dataclasses
import json
import math
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from clip_more.config import ConfigError, TrainConfig
from clip_more.data.profile import ClassProfile
from clip_more.evaluation.average_precision import average_precision
from clip_more.evaluation.bootstrap import group_means, resampled_ap
from clip_more.evaluation.groups import split_map

SWEEP = {
    "name": "s", "bed": "digits_mlt", "recipe": "digits_mlt/bce.yaml", "judged_on": "validation", "seeds": 2,
    "set": {"epochs": 4}, "base": "bce", "arms": {"bce": {}, "more": {"tuning": "more", "rho": 0.2}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def eval_folder(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "eval")
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))


@pytest.fixture
def write(tmp_path):
    def call(**changes):
        path = tmp_path / "s.yaml"
        path.write_text(yaml.safe_dump({**SWEEP, **changes}, sort_keys=False))
        return path

    return call


@pytest.fixture
def read(write):
    def call(**changes):
        from ablate_sweep import read_sweep

        return read_sweep(write(**changes))

    return call


@pytest.fixture
def arm(tmp_path):
    def call(sweep, name, seed=0):
        from ablate_beds import make_arm

        return make_arm(sweep, name, seed, tmp_path / "out")

    return call


def test_arms_come_from_others_and_a_grid_is_every_combination(read):
    arms = {"bce": {}, "inverse": {"from": "more", "rho": 0.3}, "more": {"tuning": "more"}}
    sweep = read(arms=arms, grid={"from": "inverse", "amplitude": [0.5, 1], "lr": 0.001, "flip": [True]})
    assert sweep.arms == {
        "bce": {"epochs": 4},
        "inverse": {"epochs": 4, "tuning": "more", "rho": 0.3},
        "more": {"epochs": 4, "tuning": "more"},
        "inverse amplitude=0.5 flip=true": {
            "epochs": 4, "tuning": "more", "rho": 0.3, "amplitude": 0.5, "lr": 0.001, "flip": True,
        },
        "inverse amplitude=1 flip=true": {
            "epochs": 4, "tuning": "more", "rho": 0.3, "amplitude": 1, "lr": 0.001, "flip": True,
        },
    }  # fmt: skip
    assert sweep.seeds == (0, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"nmae": 1}, r"s\.yaml: unknown key 'nmae'; did you mean name\?"),
        ({"name": "t"}, "name is 't'; it must be the file's name, s"),
        ({"base": "ce"}, "base is 'ce', which is no arm; arms: bce, more"),
        ({"seeds": 0}, "seeds is 0; give how many"),
        ({"arms": {"bce": {"from": "a"}, "a": {"from": "bce"}}}, "from: bce leads back to itself"),
        ({"arms": {"bce": {"from": "x"}}}, "arm 'bce': from: x is no arm"),
        ({"arms": {"bce": {"seed": 3}}}, "arm 'bce': seed is set by the bed and the seed"),
        ({"wise": {"bce": [1.5]}}, "wise of 'bce' lies between 0"),
        ({"wise": {"asl": [1]}}, "wise: 'asl' is no arm"),
        ({"steps_times": {"bce": 0}}, "steps_times: of 'bce' a number above 0 is needed"),
        ({"arms": {"bce": {}, "a b": {}, "a_b": {}}}, "arms 'a b' and 'a_b' would share a folder"),
        ({"contrasts": {"asl": ["bce"]}}, "contrasts: 'asl' is no arm; arms: bce, more"),
        ({"contrasts": {"more": ["bce", "bce alpha=0.5"]}}, "contrasts: 'bce alpha=0.5' is no arm; arms: bce, more"),
        ({"contrasts": {"more": "bce"}}, "contrasts: of 'more' a list of arms is needed, not 'bce'"),
        ({"contrasts": {"more": ["more"]}}, "contrasts: 'more' is compared with itself"),
    ],
)
def test_what_a_sweep_may_not_say(read, changes, reason):
    with pytest.raises(ConfigError, match=reason):
        read(**changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"arms": {"bce": {"amplitud": 1}}}, r"s\.yaml, arm 'bce': unknown key 'amplitud'; did you mean amplitude\?"),
        ({"arms": {"bce": {"lr": "fast"}}}, r"s\.yaml, arm 'bce': lr is 'fast', but it must be a number"),
        ({"arms": {"bce": {"rho": 2}}}, r"s\.yaml, arm 'bce': rho is 2.0; it must be in"),
        ({"bed": "digits_lt"}, r"digits_mlt/bce.yaml is of digits_mlt, not of bed digits_lt"),
        ({"bed": "coco"}, "bed is 'coco'; choose one of digits_mlt"),
    ],
)
def test_a_key_that_is_none_is_refused_with_the_sweep_and_its_arm(read, arm, changes, reason):
    with pytest.raises(ConfigError, match=reason):
        arm(read(**changes), "bce")


def test_arms_of_a_seed_share_photos_and_order_and_the_next_seed_has_others(read, arm):
    sweep = read(arms={**SWEEP["arms"], "steep": {"imbalance": 50}})
    bce, more, steep = (arm(sweep, name, 1) for name in sweep.arms)
    assert (bce.config.seed, bce.config.data_seed, bce.photos.test_split) == (1, 1, "val")
    assert bce.config.data_root == more.config.data_root != steep.config.data_root
    assert arm(sweep, "bce", 0).config.data_root != bce.config.data_root
    plain, other = bce.config.to_dict(), more.config.to_dict()
    assert {key for key in plain if plain[key] != other[key]} == {"tuning", "rho", "run", "method"}
    assert bce.values == {"epochs": 4.0}
    assert more.values == {"epochs": 4.0, "tuning": "more", "rho": 0.2}
    assert arm(read(judged_on="test"), "bce", 1).photos.test_split == "test"


def test_more_steps_for_equal_compute(read, arm):
    sweep = read(steps_times={"more": 2.5})
    assert arm(sweep, "more").config.epochs == 10
    assert arm(sweep, "more").values["epochs"] == 10
    assert arm(sweep, "bce").config.epochs == 4


@pytest.fixture
def own_recipe(tmp_path):
    """A copy of a recipe, to be changed."""
    from matrix_rows import RECIPES

    return Path(shutil.copy(RECIPES / SWEEP["recipe"], tmp_path / "own.yaml"))


def test_a_line_is_stale_when_recipe_or_defaults_have_changed_since(read, own_recipe, tmp_path, monkeypatch):
    from ablate_plan import plan
    from ablate_records import differing

    def heads():
        return [run.head for run in plan([read(recipe=str(own_recipe))], tmp_path / "out", tmp_path)]

    before = heads()
    assert before[0]["settings"] == before[2]["settings"] != before[1]["settings"]  # bce, seeds 0 and 1, and more
    assert not any(differing(line, head) for line, head in zip(before, heads(), strict=True))
    changed = ["settings: the recipe, or defaults of keys, have changed since"]
    with monkeypatch.context() as patch:
        patch.setitem(TrainConfig.__init__.__kwdefaults__, "momentum", 0.8)
        assert differing(before[0], heads()[0]) == changed
    own_recipe.write_text(own_recipe.read_text().replace("batch_size: 64", "batch_size: 32"))
    assert differing(before[0], heads()[0]) == changed
    assert differing({key: value for key, value in before[0].items() if key != "settings"}, before[0]) == changed


def test_a_key_that_came_later_makes_no_line_stale_while_it_is_at_its_default():
    from ablate_settings import settings_of

    Later = dataclasses.make_dataclass("Later", [("new_key", int, 3)], bases=(TrainConfig,), kw_only=True)
    before = settings_of(TrainConfig(lr=0.5))
    assert settings_of(Later(lr=0.5)) == before != settings_of(TrainConfig())
    assert settings_of(Later(lr=0.5, new_key=4)) != before
    assert settings_of(TrainConfig(lr=0.5, seed=3, data_root="here", run="x", workers=5)) == before


def test_a_changed_default_makes_another_run_where_it_is_read_alone():
    from ablate_settings import settings_of

    def same(one, other, **shared):
        return settings_of(TrainConfig(**shared, **one)) == settings_of(TrainConfig(**shared, **other))

    both, stopped = {"discrepancy_gradient": "both"}, {"discrepancy_gradient": "stop_general"}
    assert same(both, stopped, tuning="full")
    assert same(both, stopped, tuning="more", amplitude=0.0)
    assert not same(both, stopped, tuning="more")
    assert not same(both, stopped, tuning="full", dropout=0.1, discrepancy_pair="dropout")
    weak, strong = {"amplitude": 0.1}, {"amplitude": 2.0}
    assert same(weak, strong, tuning="full")
    assert same(weak, strong, tuning="more", amplitude_ratio=0.3)
    assert not same(weak, strong, tuning="more")
    assert not same(weak, strong, tuning="full", dropout=0.1, discrepancy_pair="dropout")


def test_a_default_that_is_written_out_is_no_difference():
    from ablate_records import differing

    line = {"bed": "b", "judged_on": "test", "recipe": "r", "values": {"lr": 1.0}, "settings": "abc"}
    assert differing(line, line | {"values": {"lr": 1.0, "rho": 0.1}}) == []
    assert differing(line, line | {"values": {"lr": 2.0}, "settings": "abd"}) == ["lr: 1.0 there, 2.0 now"]
    assert differing(line, line | {"settings": "abd"}) == [
        "settings: the recipe, or defaults of keys, have changed since"
    ]
    assert differing(line, line | {"judged_on": "validation"}) == ["judged_on: 'test' there, 'validation' now"]


def test_groups_while_training_on_three_quarters_have_three_quarters_of_the_bounds(arm):
    from ablate_sweep import Sweep

    def bounds(config):
        return config.head_min, config.tail_max

    def made(judged_on, **keys):
        recipe = "voc2012_lt_tiny/bce.yaml"
        return arm(Sweep(Path("v.yaml"), "v", "voc2012_lt_tiny", recipe, judged_on, (3,), "a", {"a": keys}), "a", 3)

    held_out, whole = made("validation"), made("test")
    assert bounds(held_out.config) == (75, 15)
    assert bounds(held_out.photos) == bounds(whole.config) == (100, 20)  # those of the groups to judge by
    assert bounds(made("validation", tail_max=12).config) == (75, 12)


def test_ids_of_photos_are_found_whatever_folder_the_runs_are_in():
    from ablate_beds import make_arm
    from ablate_sweep import Sweep

    sweep = Sweep(Path("v.yaml"), "v", "voc2012_lt_tiny", "voc2012_lt_tiny/bce.yaml", "test", (3,), "a", {"a": {}})
    assert Path(make_arm(sweep, "a", 3, Path("runs"), "photos").config.img_ids).is_absolute()


def test_a_commit_says_when_the_code_is_ahead_of_it(tmp_path, monkeypatch):
    import ablate_plan

    def git(*arguments):
        own = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *own, *arguments], check=True, capture_output=True)

    script = tmp_path / "eval" / "ablate_plan.py"
    monkeypatch.setattr(ablate_plan, "__file__", str(script))
    script.parent.mkdir()
    script.touch()
    assert ablate_plan._commit() is None
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    (tmp_path / "notes.md").touch()
    clean = ablate_plan._commit()
    assert clean.isalnum()
    script.write_text("changed")
    assert ablate_plan._commit() == f"{clean}+"


def test_drawn_classes_become_as_rare_as_wanted_and_others_lose_nothing_else():
    from ablate_voc import RARE, draw_rows

    targets = np.random.default_rng(0).random((900, 12)) < np.linspace(0.15, 0.06, 12)
    counts, draws = targets.sum(axis=0), set()
    for seed in range(6):
        rows = draw_rows(targets, seed)
        left = targets[rows].sum(axis=0)
        drawn = np.argsort(left)[: len(RARE)]
        assert sorted(left[drawn]) == list(RARE)
        assert (counts[drawn] < 100).all()
        gone = np.setdiff1d(np.arange(900), rows)
        assert targets[np.ix_(gone, drawn)].any(axis=1).all()
        assert np.array_equal(rows, draw_rows(targets, seed))
        draws.add(tuple(sorted(drawn)))
    assert len(draws) > 3


def test_no_held_out_photo_is_in_a_list_that_is_trained_on(tmp_path):
    root = os.environ.get("CLIP_MORE_TEST_DATA")
    if not root:
        pytest.skip("CLIP_MORE_TEST_DATA does not name the photos")
    from ablate_beds import make_arm
    from ablate_sweep import Sweep
    from ablate_voc import draw_voc

    sweep = Sweep(Path("v.yaml"), "v", "voc2012_lt_tiny", "voc2012_lt_tiny/bce.yaml", "test", (3,), "a", {"a": {}})
    own = make_arm(sweep, "a", 3, tmp_path)
    draw_voc(own.photos, tmp_path, [3])
    lists = {path.name: [line.split()[0] for line in path.read_text().splitlines()] for path in tmp_path.glob("*.txt")}
    held_out = set(lists["validation.txt"])
    assert not held_out & {*lists["train.txt"], *lists["validation-s3.txt"]}
    assert len(held_out) + len(lists["train.txt"]) == 852
    assert set(lists["validation-s3.txt"]) == set(lists["test-s3.txt"]) - held_out
    profile = ClassProfile.load(tmp_path / "s3.json")
    assert profile.photos == len(lists["test-s3.txt"])
    assert min(profile.counts) >= 5
    assert len(profile.indices("tail")) >= 5


def test_columns_are_those_of_the_package_and_medium_and_tail_together():
    from ablate_records import columns_of, resampled_columns

    rng = np.random.default_rng(1)
    profile = ClassProfile(tuple("abcde"), (500, 200, 50, 30, 4))
    targets, scores = rng.random((60, 5)) < 0.3, rng.normal(size=(60, 5))
    ap, drawn = average_precision(targets, scores), resampled_ap(targets, scores, draws=7, seed=3)
    expected = split_map(ap, profile)
    columns = columns_of(ap, profile)
    assert all(math.isclose(columns[name], expected[name], abs_tol=1e-6) for name in list(columns)[:4])
    assert math.isclose(columns["medium+tail"], ap[2:].mean(), abs_tol=1e-6)
    resampled, means = np.array(resampled_columns(drawn, profile)), group_means(drawn, profile)
    assert resampled.shape == (7, 5)
    for place, name in enumerate(("total", "head", "medium", "tail")):
        assert np.abs(resampled[:, place] / 1e4 - means[name]).max() < 1e-4
    without = columns_of(np.array([0.5, np.nan, 0.25, np.nan, np.nan]), profile)
    assert without == {"total": 0.375, "head": 0.5, "medium": 0.25, "tail": None, "medium+tail": 0.25}


def test_time_is_that_of_the_loop_over_all_starts():
    from ablate_records import training_seconds

    events = [("start", 10), ("train", 11), ("train", 14), ("start", 100), ("train", 101), ("stopped", 103),
              ("start", 3), ("train", 5), ("done", 90)]  # fmt: skip
    assert training_seconds(({"event": event, "cpu": at} for event, at in events), "cpu") == 4 + 3 + 2


def test_half_a_line_and_lines_that_were_run_anew_spoil_nothing(tmp_path):
    from ablate_records import drop_lines, read_lines

    path = tmp_path / "s.jsonl"
    rows = [{"arm": arm, "seed": seed, "n": n} for n, (arm, seed) in enumerate([("a", 0), ("a", 1), ("a", 0)])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"arm": "b", "se')
    assert [line["n"] for line in read_lines(path)] == [2, 1]
    drop_lines(path, [{"arm": "a", "seed": 0}])
    assert path.read_text() == json.dumps(rows[1]) + "\n"


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """The command on a few scenes and steps; what it trained is counted by `trained`."""
    pytest.importorskip("matplotlib")
    import ablate
    import clip_more.data.digits
    import clip_more.training.loop
    import clip_more.training.report as report

    few = partial(clip_more.data.digits.read_digits, largest=60, scenes=30)
    monkeypatch.setattr(clip_more.data.digits, "read_digits", few)
    for name in ("plot_ap_by_frequency", "plot_training"):
        monkeypatch.setattr(report, name, lambda *_: None)
    train = clip_more.training.loop.train

    def call(path, *arguments):
        folders = ("--out", str(tmp_path / "out"), "--evidence", str(tmp_path / "evidence"))
        code = ablate.main([*folders, "--jobs", "1", str(path), *arguments])
        return code, capsys.readouterr()

    def counted(config):
        call.trained.append(config.run_name)
        return train(config)

    call.trained = []
    monkeypatch.setattr(clip_more.training.loop, "train", counted)
    return call


SHORT = {"seeds": 1, "set": {"max_steps": 2, "batch_size": 16, "imbalance": 30}}


def test_from_a_sweep_to_lines_and_a_table_once(run, write, tmp_path):
    from ablate_records import read_lines

    wise = {"bce": [0, 1], "more": [1]}
    path = write(**SHORT, wise=wise, contrasts={"more": ["bce alpha=0", "more alpha=1"]})
    code, printed = run(path)
    assert code == 0, printed
    assert run.trained == ["bce-s0", "more-s0"]
    lines = {line["arm"]: line for line in read_lines(tmp_path / "evidence" / "s.jsonl")}
    assert list(lines) == ["bce", "bce alpha=0", "bce alpha=1", "more", "more alpha=1"]
    for mixed, whole in (("bce alpha=1", "bce"), ("more alpha=1", "more")):
        assert np.allclose(lines[mixed]["ap"], lines[whole]["ap"], atol=1e-6)
        assert lines[mixed]["of"] == whole
        assert np.shape(lines[mixed]["resampled"]) == (100, 5)
    assert lines["bce alpha=0"]["map"] == lines["bce"]["zero_shot"] == lines["more"]["zero_shot"]
    assert lines["bce"]["general"] is None
    assert lines["bce"]["steps"] == 2
    assert lines["bce"]["counts"] == lines["more"]["counts"]
    assert "| more alpha=1 |" in printed.out
    assert "| more less bce alpha=0 |" in printed.out
    found = json.loads((tmp_path / "evidence" / "s.results.json").read_text())
    assert found["base"] == "bce"
    same = found["contrasts"][1]
    assert (same["arm"], same["against"]) == ("more", "more alpha=1")
    assert abs(same["columns"]["medium"]["mean"]) < 1e-5
    assert len({line["settings"] for line in lines.values()}) == 2
    assert {path.suffix for path in (tmp_path / "evidence").iterdir()} == {".jsonl", ".json", ".md"}
    assert list((tmp_path / "out" / "figures").glob("s_*.png"))
    left = {path.name for path in (tmp_path / "out" / "s" / "more-s0").iterdir()}
    assert not left & {"merged", "general", "tail", "checkpoints"}

    shutil.rmtree(tmp_path / "out")  # as in a fresh clone
    assert run(path)[0] == 0
    assert len(run.trained) == 2

    # What a line left to a default of its day is read off the sweep as it is written now.
    bare = [json.dumps(line | {"values": {}}) + "\n" for line in lines.values()]
    (tmp_path / "evidence" / "s.jsonl").write_text("".join(bare))
    assert run(path, "--table")[0] == 0
    arms = json.loads((tmp_path / "evidence" / "s.results.json").read_text())["arms"]
    assert arms["more"]["values"]["rho"] == 0.2


def test_lines_of_other_settings_are_named_and_run_anew_only_when_told(run, write, tmp_path):
    from ablate_records import read_lines

    assert run(write(**SHORT, arms={"bce": {}}))[0] == 0
    changed = write(**SHORT, arms={"bce": {"lr": 0.001}})
    code, printed = run(changed)
    assert code == 2
    assert "arm 'bce', seed 0, is of other settings" in printed.err
    assert "lr: 'as the recipe' there, 0.001 now" in printed.err
    assert run(changed, "--table")[0] == 2
    (tmp_path / "evidence" / "s.jsonl").rename(tmp_path / "kept")
    code, printed = run(changed)
    assert code == 2
    assert "s/bce-s0 is a run of other settings: lr: 0.0003 there, 0.001 now" in printed.err
    (tmp_path / "kept").rename(tmp_path / "evidence" / "s.jsonl")
    assert run(changed, "--again")[0] == 0
    (line,) = read_lines(tmp_path / "evidence" / "s.jsonl")
    assert line["values"]["lr"] == 0.001
    assert run.trained == ["bce-s0"] * 2


def test_a_table_may_be_made_while_lines_are_added(run, write, tmp_path):
    short = {**SHORT, "arms": {"bce": {}}}
    file = tmp_path / "evidence" / "s.jsonl"
    other = write(**short, name="t").rename(tmp_path / "t.yaml")
    path = write(**short)
    code, printed = run(path, str(other), "--table")
    assert code == 0, printed
    assert f"s: no table, as there is no line in {file} yet" in printed.out
    assert not (tmp_path / "evidence").exists()
    assert run(path)[0] == 0
    with file.open("ab") as half:
        half.write('{"arm": "weiß'.encode()[:-1])
    written = file.read_bytes()
    code, printed = run(path, str(other), "--table")
    assert code == 0, printed
    assert "| bce |" in printed.out
    assert "t: no table" in printed.out
    assert file.read_bytes() == written
    assert not (tmp_path / "evidence" / "t.jsonl").exists()


def test_keys_of_the_command_line_are_those_of_every_arm_and_need_a_folder_of_their_own(run, write, tmp_path):
    import ablate
    from ablate_records import read_lines

    path = write(**SHORT)
    code, printed = run(path, "--set", "lr=1e-5", "tail_towers=both", "group_weights={tail: 2}")
    assert code == 0, printed
    values = [line["values"] for line in read_lines(tmp_path / "evidence" / "s.jsonl")]
    assert len(values) == 2
    assert all(own["lr"] == 1e-5 and own["group_weights"] == {"tail": 2} for own in values)
    assert (
        run(path, "--set", "seed=3")[1].err
        == f"ablate.py: {path}, --set: seed is set by the bed and the seed; leave it out\n"
    )
    assert "differ in tuning; copy the file" in run(path, "--set", "tuning=full")[1].err
    assert "'lr' is no KEY=VALUE" in run(path, "--set", "lr")[1].err
    assert "unknown key 'lrr'; did you mean lr?" in run(path, "--set", "lrr=1")[1].err
    with pytest.raises(SystemExit):
        ablate.main([str(path), "--set", "lr=1e-5"])


def test_a_new_mixture_of_a_finished_run_trains_it_again_and_adds_its_line(run, write, tmp_path):
    from ablate_records import read_lines

    file = tmp_path / "evidence" / "s.jsonl"
    assert run(write(**SHORT, arms={"bce": {}}))[0] == 0
    before = read_lines(file)
    other = write(**SHORT | {"name": "t", "base": "plain"}, arms={"plain": {}}).rename(tmp_path / "t.yaml")
    assert run(other)[0] == 0  # the same run under another name
    assert run.trained == ["bce-s0"]
    assert read_lines(tmp_path / "evidence" / "t.jsonl") == [before[0] | {"sweep": "t", "arm": "plain"}]
    assert run(write(**SHORT, arms={"bce": {}}, wise={"bce": [0.5]}))[0] == 0
    assert run.trained == ["bce-s0"] * 2
    after = read_lines(file)
    assert after[0] == before[0]
    assert [line["arm"] for line in after] == ["bce", "bce alpha=0.5"]
