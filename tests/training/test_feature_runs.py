"""Whole runs of heads on features: what they leave, how they go on, and who reads it."""

import json
import shutil

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from clip_more.cli import main
from clip_more.config import ConfigError
from clip_more.data.load import load_data
from clip_more.evaluation.predict import predict_logits
from clip_more.evaluation.results import Results
from clip_more.models.classifier import FeatureClassifier, load_classifier
from clip_more.recipe import from_dict
from clip_more.training import loop

NET = {"model": "cifar_resnet32", "head": "linear", "dropout": 0.0, "optimizer": "sgd", "lr": 1e-2, "max_steps": 4}
CLIP = {"model": "tiny", "head": "cosine", "head_init": "class_mean", "max_steps": 4}


@pytest.fixture
def one_label(settings, squares, tmp_path):
    """The squares with the rarest of each photo's labels alone."""
    root = tmp_path / "one"
    shutil.copytree(squares, root, ignore=shutil.ignore_patterns("[!0-9]*.png"))  # other tests put broken photos there
    for split in ("train", "test"):
        rows = [line.split() for line in (root / f"{split}.txt").read_text().splitlines()]
        (root / f"{split}.txt").write_text("".join(f"{row[0]} {row[-1] if row[1:] else 0}\n" for row in rows))
    return {**settings, "data_root": str(root), "task": "single_label", "loss": "balanced_softmax"}


@pytest.mark.parametrize("keys", [NET, CLIP], ids=["net", "clip"])
def test_a_run_leaves_what_evaluate_predict_and_export_read(keys, settings, one_label, tmp_path, capsys):
    folder = loop.train(from_dict({**one_label, **keys, "val_fraction": 0.3}, "test"))
    for name in ("general/model.safetensors", "tail/adapter_model.safetensors", "merged/model.safetensors",
                 "merged/head.json", "merged/head.safetensors", "merged/README.md"):  # fmt: skip
        assert (folder / name).exists(), name
    assert not (folder / "merged/multilabel.json").exists()
    results = Results.load(folder / "report/results.json")
    assert list(results.ap) == (["zero-shot"] if keys is CLIP else []) + ["general", "merged"]
    classifier, names = load_classifier(folder / "merged")
    assert isinstance(classifier, FeatureClassifier)
    assert names == ["red square", "green square", "blue square"]
    content = json.loads((folder / "merged/head.json").read_text())
    assert (content["softmax"], content["thresholds"]) == (True, None)

    assert main(["evaluate", str(folder), "--json", str(tmp_path / "again.json")]) == 0
    again = Results.load(tmp_path / "again.json")
    np.testing.assert_array_equal(again.ap["merged"], results.ap["merged"])
    assert main(["zero-shot", str(folder), "--json", str(tmp_path / "rows.json")]) == 0
    rows = Results.load(tmp_path / "rows.json").ap
    for row, ap in results.ap.items():
        np.testing.assert_allclose(rows[row], ap, rtol=0, atol=1e-6, err_msg=row)

    out = tmp_path / "p.parquet"
    assert main(["predict", str(folder), str(one_label["data_root"]), "--out", str(out), "--workers", "0"]) == 0
    import pyarrow.parquet as pq

    table = pq.read_table(out).to_pylist()
    assert {len(row["labels"]) for row in table} == {1}
    np.testing.assert_allclose([sum(row[name] for name in names) for row in table], 1, rtol=1e-6)
    assert main(["export", str(folder), "--form", "torch", "--out", str(tmp_path / "net.pt2")]) == 0
    capsys.readouterr()
    assert main(["export", str(folder), "--form", "classifier", "--out", str(tmp_path / "c")]) == 1
    assert "has a head on features" in capsys.readouterr().err


@pytest.mark.parametrize("keys", [NET | {"momentum": 0.9}, CLIP | {"keep": "ema"}], ids=["net", "clip"])
def test_interrupted_and_resumed_run_is_bit_identical(keys, one_label, monkeypatch):
    settings = {**one_label, **keys, "checkpoint_every": 2}
    whole = loop.train(from_dict({**settings, "output_dir": settings["output_dir"] + "/one"}, "test"))
    broken = from_dict({**settings, "output_dir": settings["output_dir"] + "/two"}, "test")
    steps = []

    def power_cut(*arguments):
        steps.append(arguments)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return step_losses(*arguments)

    step_losses = loop.step_losses
    monkeypatch.setattr(loop, "step_losses", power_cut)
    with pytest.raises(KeyboardInterrupt):
        loop.train(broken)
    monkeypatch.setattr(loop, "step_losses", step_losses)
    torch.rand(5)
    again = loop.train(broken)
    for name in ("merged/model.safetensors", "merged/head.safetensors", "general/model.safetensors"):
        one, two = load_file(whole / name), load_file(again / name)
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), name


def test_another_optimiser_does_not_take_over_the_state_of_the_first(one_label, monkeypatch):
    settings = from_dict({**one_label, **NET, "checkpoint_every": 2}, "test")
    monkeypatch.setattr(loop, "report", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(settings)
    other = from_dict({**one_label, **NET, "optimizer": "adamw", "changed_recipe": "accept", "max_steps": 6}, "test")
    with pytest.raises(ConfigError, match="has momentum_buffer, so another `optimizer` wrote it"):
        loop.train(other)


def interrupted(*_):
    raise KeyboardInterrupt


def test_comparison_by_prompts_says_that_it_needs_them(one_label, capsys):
    folder = loop.train(from_dict({**one_label, **CLIP}, "test"))
    assert main(["zero-shot", str(folder), "--alphas", "0,1"]) == 1
    assert "has a head on features and no prompts" in capsys.readouterr().err


def test_forgetting_is_noted_after_each_epoch(one_label):
    folder = loop.train(from_dict({**one_label, **NET, "max_steps": None, "epochs": 2, "forgetting": True}, "test"))
    files = sorted((folder / "forgetting").iterdir())
    assert [file.name for file in files] == ["step_00000003.safetensors", "step_00000006.safetensors"]
    correct = load_file(files[-1])["correct"]
    classifier, _ = load_classifier(folder / "merged")
    train = load_data(from_dict({**one_label, **NET}, "test")).train
    last = predict_logits(classifier, train, Accelerator(cpu=True), batch_size=8, workers=0)
    assert correct.dtype == torch.uint8
    assert correct.tolist() == (last.scores.argmax(1) == last.targets.argmax(1)).astype(int).tolist()
    assert 0 < correct.sum() < len(correct)


def test_ldam_is_told_how_far_the_run_is(one_label, monkeypatch):
    told = []
    monkeypatch.setattr("clip_more.losses.ldam.LdamLoss.at", lambda self, progress: told.append(progress))
    loop.train(from_dict({**one_label, **CLIP, "loss": "ldam", "tuning": "full"}, "test"))
    assert told == [0, 0.25, 0.5, 0.75]


def test_notes_of_doubtful_keys_are_printed_and_refusals_leave_nothing(one_label, capsys, tmp_path):
    loop.train(from_dict({**one_label, **CLIP, "tuning": "full", "sampler": "class_balanced", "max_steps": 1}, "test"))
    assert "note: sampler: class_balanced and loss: balanced_softmax both make up" in capsys.readouterr().out
    refused = from_dict({**one_label, **CLIP, "task": "multi_label", "run": "other"}, "test")
    with pytest.raises(ConfigError, match="loss: balanced_softmax is one softmax"):
        loop.train(refused)
    assert not refused.run_folder.exists()
