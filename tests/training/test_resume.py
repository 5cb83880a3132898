"""A run that is named again: what goes on, what is refused, what is declared."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clip_more.config import ConfigError
from clip_more.evaluation.results import Results
from clip_more.evaluation.scores import load_scores
from clip_more.recipe import from_dict
from clip_more.training import loop
from clip_more.training.checkpoint import list_checkpoints, read_document, write_checkpoint
from clip_more.training.run_folder import clear_leftovers, has_trained
from clip_more.training.run_lock import alone, locked
from clip_more.training.signals import Stopped
from tests.training.conftest import recipe_of


@pytest.fixture(scope="module")
def stopped(squares, tmp_path_factory):
    """The settings of a run that was stopped after three of six steps."""
    settings = {**recipe_of(squares, tmp_path_factory.mktemp("stopped")), "checkpoint_every": 1}
    with pytest.MonkeyPatch.context() as patch:
        step_losses, seen = loop.step_losses, []

        def stopping(*arguments):
            seen.append(1)
            values, _ = step_losses(*arguments)
            return values, len(seen) == 3

        patch.setattr(loop, "step_losses", stopping)
        with pytest.raises(Stopped):
            loop.train(from_dict(settings, "test"))
    return settings


@pytest.fixture
def half(stopped, tmp_path):
    """A copy of it: a run's folder may be moved."""
    shutil.copytree(stopped["output_dir"], tmp_path / "runs")
    return {**stopped, "output_dir": str(tmp_path / "runs")}


def rewrite_progress(settings, **values):
    """Give the newest checkpoint another progress, manifest included."""
    newest = list_checkpoints(from_dict(settings, "test").run_folder / "checkpoints")[-1]
    documents = {path.stem: json.loads(path.read_text()) for path in newest.glob("*.json") if path.stem != "manifest"}
    documents["progress"] |= values
    tensors = {path.stem: load_file(path) for path in newest.glob("*.safetensors")}
    write_checkpoint(newest.parent, newest.name, tensors, documents)


def test_changed_recipe_is_refused_with_every_difference(half):
    with pytest.raises(ConfigError) as refused:
        loop.train(from_dict({**half, "lr": 0.5, "amplitude": 3.0}, "test"))
    lines = str(refused.value).splitlines()
    assert lines[0].endswith("is a run of another recipe:")
    assert sorted(lines[1:3]) == ["    amplitude  0.5 there, 3.0 now", "    lr         0.001 there, 0.5 now"]
    assert "--changed_recipe accept" in lines[3]


def test_changed_recipe_that_is_accepted_is_written_into_log_and_result(half, events, capsys):
    folder = loop.train(from_dict({**half, "lr": 0.002, "changed_recipe": "accept"}, "test"))
    assert "going on under a changed recipe: lr from 0.001 to 0.002" in capsys.readouterr().out
    assert [event["changes"] for event in events(folder, "recipe_changed")] == [{"lr": [0.001, 0.002]}]
    assert Results.load(folder / "report/results.json").evaluated["recipe_changed"] == ["lr from 0.001 to 0.002"]
    assert loop.train(from_dict({**half, "lr": 0.002}, "test")) == folder  # it is that recipe's run now


def test_what_no_checkpoint_fits_is_refused_though_accepted_and_leaves_the_folder_with_its_recipe(half, events):
    with pytest.raises(ConfigError, match="does not fit this recipe's model"):
        loop.train(from_dict({**half, "rho": 0.5, "changed_recipe": "accept"}, "test"))
    folder = loop.train(from_dict(half, "test"))
    assert not events(folder, "recipe_changed")
    assert events(folder, "resume")[0]["exact"]


def test_fewer_steps_than_were_done_are_refused_though_changes_are_accepted(half):
    with pytest.raises(ConfigError, match=r"step_3 is beyond the 2 steps of this recipe"):
        loop.train(from_dict({**half, "max_steps": 2, "changed_recipe": "accept"}, "test"))


def test_other_prompts_are_refused_though_changes_are_accepted(half):
    """The checkpoint holds the embeddings of the prompts' tokens, by their order alone."""
    changed = {**half, "class_prompts": {"blue square": "green cat"}, "changed_recipe": "accept"}
    with pytest.raises(ConfigError, match=r"the prompts of .* are no longer those it was trained on"):
        loop.train(from_dict(changed, "test"))


def test_accepted_changes_judge_the_untouched_model_again(half):
    folder = loop.train(from_dict({**half, "views": "flip", "changed_recipe": "accept"}, "test"))
    plain = loop.train(from_dict({**half, "views": "flip", "run": "plain", "max_steps": 1}, "test"))
    one, two = (load_scores(run / "report/scores.safetensors").rows["zero-shot"] for run in (folder, plain))
    assert np.array_equal(one, two)


def test_torch_of_another_version_is_declared(half, events):
    rewrite_progress(half, torch="1.0")
    (resume,) = events(loop.train(from_dict(half, "test")), "resume")
    assert "before 1.0 on cpu" in resume["why"]


def test_what_does_not_matter_may_change(half, events):
    free = {"workers": 1, "log_every": 3, "checkpoint_every": 5, "keep_checkpoints": 1, "process_timeout": 60.0}
    assert events(loop.train(from_dict({**half, **free}, "test")), "resume")[0]["exact"]


def test_changed_labels_are_refused(half, squares, tmp_path):
    lines = (squares / "train.txt").read_text().splitlines()
    (tmp_path / "train.txt").write_text("\n".join([*lines[:-1], lines[-1].split()[0] + " 1"]) + "\n")
    changed = {**half, "train_list": str(tmp_path / "train.txt"), "changed_recipe": "accept"}
    loop.train(from_dict(changed, "test"))  # declared when accepted; the list's name alone would be refused
    rewrite_progress(half, data="0" * 32)
    (from_dict(half, "test").run_folder / "report/results.json").unlink()
    with pytest.raises(ConfigError, match="are no longer those it was trained on"):
        loop.train(from_dict({**changed, "changed_recipe": "refuse"}, "test"))


def test_another_number_of_processes_with_the_same_photos_a_step_goes_on_and_is_declared(half, events, capsys):
    rewrite_progress(half, processes=2, distribution="ddp")
    folder = loop.train(from_dict({**half, "batch_size": 4, "accumulation": 2}, "test"))
    (resume,) = events(folder, "resume")
    assert not resume["exact"]
    assert "1 process(es) (one), before 2 (ddp): the same photos, but sums in another order" in resume["why"]
    assert "not bit for bit what one go would have given" in capsys.readouterr().out
    (declared,) = Results.load(folder / "report/results.json").evaluated["resumed_not_bit_exact"]
    assert declared == f"step 3: {resume['why']}"


@pytest.mark.parametrize("extra", [{}, {"changed_recipe": "accept"}])
def test_other_photos_a_step_are_refused_with_what_to_set(half, extra):
    rewrite_progress(half, processes=2, photos_a_step=16)
    with pytest.raises(ConfigError, match=r"on 16 photos a step .* is 8.* product 16, with --accumulation 2"):
        loop.train(from_dict({**half, **extra}, "test"))


def test_another_split_on_one_process_is_declared(half, events):
    (resume,) = events(loop.train(from_dict({**half, "batch_size": 4, "accumulation": 2}, "test")), "resume")
    assert "4 photos a micro-batch, before 8" in resume["why"]


def test_a_finished_run_of_other_photos_a_step_is_not_this_one(half):
    folder = loop.train(from_dict(half, "test"))
    assert loop.train(from_dict({**half, "batch_size": 2, "accumulation": 4}, "test")) == folder
    with pytest.raises(ConfigError, match=r"is finished, with 8 photos a step, .* is 2 now"):
        loop.train(from_dict({**half, "batch_size": 2}, "test"))


def test_a_damaged_log_costs_no_results(half):
    folder = from_dict(half, "test").run_folder
    with (folder / "metrics.jsonl").open("a") as log:
        log.write("[1, 2]\n")
    assert "metrics_log_damaged" in Results.load(loop.train(from_dict(half, "test")) / "report/results.json").evaluated


def test_leftovers_are_cleared_and_what_is_a_users_stays(tmp_path):
    ours = [".merged.new-77", ".config.77.yaml", "report/.results.77.json", "report/.scores.77.safetensors"]
    others = [".notes.2024", "docs/.todo.1.txt", ".lock", "report/.mine.1", "merged"]
    for name in ours + others:
        (tmp_path / name).mkdir(parents=True)
    clear_leftovers(tmp_path)
    assert [name for name in ours + others if (tmp_path / name).exists()] == others


def test_a_run_without_checkpoint_is_not_a_run_that_trained(tmp_path):
    for name in (".step_2.new", "best_step_1"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert not has_trained(tmp_path)
    (tmp_path / "checkpoints/damaged_step_1").mkdir()
    assert has_trained(tmp_path)


def test_another_split_of_the_same_step_sees_the_same_photos(settings, events):
    """Weights are no measure: AdamW makes full steps of rounding where a gradient is 0, as that of k_proj.bias is."""
    settings = {**settings, "dropout": 0.0}
    whole = loop.train(from_dict({**settings, "run": "whole"}, "test"))
    split = loop.train(from_dict({**settings, "batch_size": 2, "accumulation": 4, "run": "split"}, "test"))
    other = loop.train(from_dict({**settings, "seed": 1, "run": "other"}, "test"))
    one, two, three = ([event["loss"] for event in events(run, "train")] for run in (whole, split, other))
    assert two == pytest.approx(one, rel=1e-4)
    assert three != pytest.approx(one, rel=1e-2)


def test_resumed_events_say_from_where_the_log_counts(half, events):
    before = (from_dict(half, "test").run_folder / "metrics.jsonl").stat().st_size
    (resume,) = events(loop.train(from_dict(half, "test")), "resume")
    offset = resume["offset"]
    assert 0 < offset <= before
    log = (from_dict(half, "test").run_folder / "metrics.jsonl").read_bytes()
    steps = [event["step"] for event in map(json.loads, log[:offset].splitlines()) if event["event"] == "train"]
    assert steps == [1, 2, 3]


def test_best_weights_survive_a_stop_and_stay_with_the_last_checkpoints(settings, monkeypatch):
    settings = {**settings, "keep": "best", "val_fraction": 0.25, "eval_every": 1, "checkpoint_every": 1}
    values = iter([0.2, 0.9, 0.5, 0.4, 0.3, 0.1])
    split_map = loop.split_map
    monkeypatch.setattr(loop, "split_map", lambda *a: {**split_map(*a), "total": next(values, 0.0)})
    folder = loop.train(from_dict(settings, "test"))
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    last = max(int(name.removeprefix("step_")) for name in kept if name.startswith("step_"))
    assert kept == ["best_step_2", f"step_{last - 1}", f"step_{last}"]
    assert read_document(folder / "checkpoints" / f"step_{last}", "progress")["best_step"] == 2
    best = load_file(folder / "checkpoints/best_step_2/model.safetensors")
    general = load_file(folder / "general/model.safetensors")
    key = "visual_projection.weight"
    trained = next(name for name in best if name.endswith("visual_projection.base_layer.weight"))
    assert torch.equal(best[trained], general[key])


def test_the_best_weights_of_every_kept_checkpoint_stay(settings, monkeypatch, capsys):
    """The newest checkpoint may turn out damaged, and the one before has another best."""
    settings = {
        **settings,
        "keep": "best",
        "val_fraction": 0.25,
        "eval_every": 1,
        "checkpoint_every": 2,
        "max_steps": 4,
    }
    values = iter([0.2, 0.5, 0.3, 0.9])
    split_map = loop.split_map
    monkeypatch.setattr(loop, "split_map", lambda *a: {**split_map(*a), "total": next(values, 0.0)})
    folder = loop.train(from_dict(settings, "test"))
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert kept == ["best_step_2", "best_step_4", "step_2", "step_4"]
    (folder / "checkpoints/step_4/model.safetensors").unlink()
    (folder / "report/results.json").unlink()
    loop.train(from_dict(settings, "test"))  # nothing better comes now: best_step_2 is what is exported
    assert "step_4" in capsys.readouterr().out
    best = load_file(folder / "checkpoints/best_step_2/model.safetensors")
    trained = next(name for name in best if name.endswith("visual_projection.base_layer.weight"))
    assert torch.equal(best[trained], load_file(folder / "general/model.safetensors")["visual_projection.weight"])


def test_a_damaged_older_checkpoint_does_not_stop_the_next_save(half, monkeypatch):
    checkpoints = from_dict(half, "test").run_folder / "checkpoints"
    (checkpoints / "step_2/progress.json").write_text("{")
    (checkpoints / "step_2/manifest.json").unlink()
    loop.train(from_dict({**half, "keep_checkpoints": 4}, "test"))
    assert [path.name for path in list_checkpoints(checkpoints)] == ["step_3", "step_4", "step_5", "step_6"]


HOLD = """
import sys, time
from pathlib import Path
from clip_more.training.run_lock import alone
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_is_being_trained_cannot_be_taken(settings):
    folder = from_dict(settings, "test").run_folder
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        assert locked(folder)
        with pytest.raises(ConfigError, match=rf"is being trained by process {holder.pid} on "), alone(folder):
            pass
        holder.kill()  # the lock goes with the process, whatever ended it
    assert not locked(folder)
    with alone(folder):
        pass


def test_trackers_get_the_numbers_of_the_log(settings, events):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = loop.train(from_dict({**settings, "trackers": ["tensorboard"], "max_steps": 3}, "test"))
    (written,) = {
        path.parent for path in folder.rglob("events.out*") if path.parent.name == settings.get("run", "lists-x")
    }
    read = EventAccumulator(str(written))
    read.Reload()
    last = events(folder, "train")[-1]
    assert read.Scalars("loss")[-1].value == pytest.approx(last["loss"])
    share = read.Scalars("tail_share/vision.attention")
    assert [event.step for event in share] == [1, 2, 3]
    assert share[-1].value == pytest.approx(last["tail_share"]["vision.attention"])
