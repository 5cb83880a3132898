import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from clip_more.evaluation.judge import judge_checkpoint
from clip_more.evaluation.results import Results
from clip_more.models.classifier import FeatureClassifier, load_classifier
from clip_more.stage2 import run as module
from clip_more.stage2.folder import weight_hashes
from clip_more.stage2.methods import METHODS
from clip_more.stage2.options import Stage2Options
from clip_more.stage2.run import stage2
from clip_more.stage2.text import method_text

QUICK = Stage2Options(epochs=2)


@pytest.fixture
def linear(linear_run, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(linear_run, tmp_path / "linear", ignore=shutil.ignore_patterns("checkpoints", "stage2"))


@pytest.fixture
def prompts(prompt_run, tmp_path):
    return shutil.copytree(prompt_run, tmp_path / "prompts", ignore=shutil.ignore_patterns("checkpoints", "stage2"))


def record(folder):
    return json.loads((folder / "selection.json").read_text())


def test_every_method_leaves_a_classifier_results_and_a_curve_and_the_encoder_as_it_was(linear, capsys):
    before = weight_hashes(linear / "merged")
    assert set(before) == {"model.safetensors", "head.safetensors"}
    for method in ("tau", "la_additive", "la_multiplicative", "ncm"):
        folder = stage2(linear, method)
        assert folder == linear / "stage2" / method
        names = {path.name for path in folder.iterdir()}
        assert names >= {"head.json", "head.safetensors", "config.json", "model.safetensors", "results.json",
                         "selection.json", "selection.png", "scores.safetensors"}  # fmt: skip
        assert weight_hashes(folder)["model.safetensors"] == before["model.safetensors"]
        assert list(Results.load(folder / "results.json").ap) == ["joint", method]
        classifier, classes = load_classifier(folder)
        assert isinstance(classifier, FeatureClassifier)
        assert classes == ["red", "green", "blue"]
        assert method in method_text(folder)
    assert weight_hashes(linear / "merged") == before
    assert capsys.readouterr().out.count("taken in") == 1  # features are taken once
    assert not list((linear / "stage2").glob(".*"))


@pytest.mark.parametrize("method", ["crt", "lws", "maxnorm_cb"])
def test_learnt_heads_leave_every_weight_and_buffer_of_the_encoder(linear, method):
    before = load_classifier(linear / "merged")[0].encoder.state_dict()
    folder = stage2(linear, method, Stage2Options(epochs=2, lr=1.0))
    after = load_classifier(folder)[0].encoder.state_dict()
    assert any(name.endswith("running_mean") for name in before)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_joint_is_the_merged_classifier_and_the_row_is_what_the_folder_gives_on_photos(linear, squares):
    from accelerate import Accelerator

    from clip_more.data.load import load_data
    from clip_more.training.run_folder import read_config

    folder = stage2(linear, "tau", Stage2Options(tau=0.7))
    results = Results.load(folder / "results.json")
    trained = Results.load(linear / "report" / "results.json")
    assert np.allclose(results.ap["joint"], trained.ap["merged"], atol=1e-6)
    assert results.metrics["joint"]["top1"] == trained.metrics["merged"]["top1"]
    config = read_config(linear)
    judged, _ = judge_checkpoint(folder, config, load_data(config), Accelerator())
    assert np.allclose(judged.ap["tau"], results.ap["tau"], atol=1e-6)
    assert judged.metrics["tau"]["top1"] == results.metrics["tau"]["top1"]


def test_a_method_that_is_there_is_left_and_other_options_make_it_again(linear, capsys):
    folder = stage2(linear, "tau", Stage2Options(tau=0.7))
    made = (folder / "selection.json").stat().st_mtime_ns
    stage2(linear, "tau", Stage2Options(tau=0.7))
    assert "is there already, with these options" in capsys.readouterr().out
    assert (folder / "selection.json").stat().st_mtime_ns == made
    stage2(linear, "tau")
    out = capsys.readouterr().out
    assert "is of other options; it is made again" in out
    assert "features of 54 photos: from" in out
    assert len(record(folder)["candidates"]) == 21


def test_other_weights_in_merged_take_features_and_method_again(linear, capsys):
    from safetensors.torch import load_file, save_file

    stage2(linear, "ncm")
    weights = linear / "merged" / "model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    saved = (linear / "stage2" / "ncm" / "model.safetensors").read_bytes()
    weights.unlink()  # its content is also that of the method's folder
    save_file({**tensors, name: 1.5 * tensors[name]}, weights)
    capsys.readouterr()
    stage2(linear, "ncm")
    out = capsys.readouterr().out
    assert "is of other weights, photos or version; it is made again" in out
    assert "(other weights than those in features.safetensors)" in out
    assert (linear / "stage2" / "ncm" / "model.safetensors").read_bytes() != saved


def test_held_out_photos_choose_and_the_record_says_so(linear):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        folder = stage2(linear, "tau")
    found = record(folder)
    assert (found["selection"], found["measure"], found["photos"]) == ("held_out", "balanced top-1", 8)
    assert not found["refitted"]
    own = Results.load(folder / "results.json").evaluated["stage2"]
    assert own["selection"] == "held_out"
    assert own["keeps_ap"] is True
    assert own["map_difference"]["total"]["difference"] == pytest.approx(0, abs=1e-9)
    assert set(own["top1_difference"]) == {"all", "many", "medium", "few"}
    assert "macro mAP stay as they are" in method_text(folder)


def test_without_held_out_photos_a_part_of_train_chooses_with_a_warning_and_refit_takes_all(prompts, monkeypatch):
    seen = []
    own = METHODS["crt"]

    def watched(stage, options):
        seen.append((len(stage.train), len(stage.val), stage.refit))
        return own.run(stage, options)

    monkeypatch.setitem(METHODS, "crt", replace(own, run=watched))
    with pytest.warns(
        UserWarning, match=r"values are chosen on \d+ of its train photos, which the encoder was trained on"
    ):
        folder = stage2(prompts, "crt", QUICK)
    (train, val, refit), found = seen[0], record(folder)
    assert train + val == 36
    assert refit
    assert found["refitted"]
    assert (found["selection"], found["measure"]) == ("train_part", "macro mAP")
    content = json.loads((folder / "head.json").read_text())
    assert content["stage2"]["selection"] == content["selection"] == "train_part"
    assert content["thresholds"] is None
    assert content["options"]["inputs"] == "unit"
    assert not (folder / "multilabel.json").exists()


def test_what_is_given_needs_no_photos_to_choose_on(prompts):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        folder = stage2(prompts, "la_additive", Stage2Options(tau=0.5))
    found = record(folder)
    joint, merged = Results.load(folder / "results.json"), Results.load(prompts / "report" / "results.json")
    assert np.allclose(joint.ap["joint"], merged.ap["merged"], atol=1e-6)
    assert np.allclose(joint.ap["la_additive"], joint.ap["joint"], atol=1e-6)
    assert (found["selection"], found["photos"], found["chosen"]) == ("given", 0, {"tau": 0.5})


@pytest.mark.parametrize(
    ("method", "options", "why"),
    [
        ("tau", {}, "are equal: all rows of its weight have the norm .*, as with text prompts"),
        ("maxnorm_cb", {}, "maxnorm_cb works on the norms"),
        ("la_multiplicative", {}, "after a loss of one sigmoid a class most of them are negative"),
        ("knn", {}, "--method is 'knn'; choose one of crt, ncm, tau"),
        ("crt", {"gamma": 0.5}, "crt takes no --gamma; it takes --lr, --epochs, --batch_size, --weight_decay"),
    ],
)
@pytest.mark.filterwarnings("ignore:the run held no photos out")
def test_what_cannot_help_is_refused_with_the_reason_and_leaves_nothing(prompts, method, options, why):
    with pytest.raises(ValueError, match=why):
        stage2(prompts, method, Stage2Options(**options))
    assert not (prompts / "stage2" / method).exists()


def test_a_run_that_is_not_finished_is_refused(linear, tmp_path):
    (linear / "report" / "results.json").unlink()
    with pytest.raises(ValueError, match="is not finished: it has no merged checkpoint and report yet"):
        stage2(linear, "ncm")
    with pytest.raises(ValueError, match="is no run"):
        stage2(tmp_path, "ncm")


def test_weights_that_change_meanwhile_are_noticed(linear, monkeypatch):
    answers = iter([{"model.safetensors": "a"}, {"model.safetensors": "b"}])
    monkeypatch.setattr(module, "weight_hashes", lambda folder: next(answers))
    with pytest.raises(RuntimeError, match="changed while the second stage ran"):
        stage2(linear, "ncm")


def test_correcting_twice_is_warned_about(linear):
    recipe = linear / "config.yaml"
    recipe.write_text(recipe.read_text().replace("loss: ce\n", "loss: balanced_softmax\n"))
    with pytest.warns(UserWarning, match="trained with loss: balanced_softmax.*la_additive on top corrects twice"):
        stage2(linear, "la_additive")
