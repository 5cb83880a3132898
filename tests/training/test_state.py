"""What a checkpoint brings back, and what it refuses, on a model of two layers."""

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from clip_more.config import ConfigError
from clip_more.training import state
from clip_more.training.average import RunningAverage
from clip_more.training.checkpoint import CheckpointError, read_document, write_checkpoint
from clip_more.training.state import Progress, TrainingState, _best_of, _random_state, _set_random_state

START = Progress(
    step=0, total=10, photos_a_step=8, processes=1, batch_size=8, distribution="one", data="d", prompts="p",
    torch="2.0", device="cpu",
)  # fmt: skip


@pytest.fixture
def make(tmp_path):
    """A function: a state at step 0, of a run in `tmp_path`."""

    def made(average=False, changes=None, progress=START, **config):
        torch.manual_seed(0)
        task = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).requires_grad_(False))
        optimizer = torch.optim.AdamW([{"params": list(task[0].parameters()), "name": "towers"}], lr=0.1)
        settings = {"keep_checkpoints": 2, "keep": "last", "changed_recipe": "refuse", "seed": 3} | config
        said = []
        run = SimpleNamespace(
            accelerator=SimpleNamespace(num_processes=1, is_main_process=True, process_index=0, scaler=None),
            config=SimpleNamespace(**settings), folder=tmp_path, checkpoints=tmp_path / "checkpoints",
            changes=changes or {}, said=said,
            log=SimpleNamespace(offset=lambda: 77, write=lambda event, **values: said.append((event, values))),
        )  # fmt: skip
        prepared = SimpleNamespace(
            trained=task, optimizer=optimizer, average=RunningAverage(task, 0.5) if average else None, strength=None
        )
        return TrainingState(run, prepared, replace(progress))

    return made


def train(kept, steps=1):
    for _ in range(steps):
        kept.optimizer.zero_grad()
        kept.task(torch.ones(1, 3)).sum().backward()
        kept.optimizer.step()
        kept.progress.step += 1
        if kept.average is not None:
            kept.average.update(kept.task, kept.progress.step)


def saved(kept, **progress):
    """The state after a step, saved."""
    train(kept)
    for name, value in progress.items():
        setattr(kept.progress, name, value)
    kept.save()
    return kept


def test_what_is_yet_to_be_written_is_counted(make, tmp_path):
    """Weights of 14 numbers, 8 of them trained; AdamW's two moments, an average, five exports, two best ones."""
    weights, trained = 4 * 14, 4 * 8
    assert make().bytes_to_come() == 3 * (weights + 2 * trained) + 5 * weights
    assert make(average=True).bytes_to_come() == 3 * (weights + 3 * trained) + 5 * weights
    assert make(keep="best").bytes_to_come() == 3 * (weights + 2 * trained) + 7 * weights
    kept = make()
    for _ in range(2):
        saved(kept)
    assert kept.bytes_to_come() == weights + 2 * trained + 5 * weights
    assert make(keep_checkpoints=1).bytes_to_come() == weights + 2 * trained + 5 * weights  # one more is written aside


def test_weights_moments_average_and_progress_come_back(make):
    one = make(average=True)
    saved(one, best=0.5, best_step=1, skipped=4)
    two = make(average=True)
    with torch.no_grad():
        two.task[0].weight.zero_()
    assert two.resume() == ""
    assert two.progress == replace(START, step=1, best=0.5, best_step=1, skipped=4, offset=77)
    for kept in (one, two):
        train(kept)
    for key, tensor in one.task.state_dict().items():
        assert torch.equal(two.task.state_dict()[key], tensor)
    for key, tensor in one.average.tensors.items():
        assert torch.equal(two.average.tensors[key], tensor)


def test_without_checkpoint_there_is_nothing_to_go_on_from(make):
    assert make().resume() is None


def draws():
    numpy = np.random.random(), np.random.normal()  # noqa: NPY002 (libraries may use it)
    return random.random(), random.gauss(0, 1), *numpy, torch.rand(1).item()


def test_every_generator_goes_on_where_it_was():
    for _ in range(3):  # normal numbers come in pairs: the second is kept beside the words
        draws()
        tensors, numbers = _random_state()
        expected = [draws() for _ in range(2)]
        _set_random_state(tensors, numbers)
        assert [draws() for _ in range(2)] == expected


def test_another_number_of_processes_draws_by_seed_step_and_process(make):
    saved(make(progress=replace(START, processes=2, batch_size=4, distribution="ddp")))
    seen = []
    for seed in (3, 3, 4):
        draws()
        make(seed=seed).resume()
        seen.append(draws())
    assert seen[0] == seen[1]
    assert not set(seen[0]) & set(seen[2])


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ({"processes": 2, "distribution": "ddp"}, "1 process(es) (one), before 2 (ddp): the same photos, but sums"),
        ({"distribution": "fsdp2"}, "1 process(es) (one), before 1 (fsdp2)"),
        ({"batch_size": 4}, "8 photos a micro-batch, before 4: the same photos, but sums in another order"),
        ({"torch": "1.0"}, "torch 2.0 on cpu, before 1.0 on cpu"),
        ({"device": "cuda"}, "torch 2.0 on cpu, before 2.0 on cuda"),
    ],
)
def test_what_makes_the_rest_another_is_said(make, before, said):
    saved(make(progress=replace(START, **before)))
    why = make().resume()
    assert why.startswith(said)
    assert ";" not in why


def test_all_reasons_are_said_and_accepted_changes_among_them(make):
    saved(make(progress=replace(START, data="other", torch="1.0")))
    why = make(changes={"lr": [1, 2], "rho": [3, 4]}, changed_recipe="accept").resume()
    assert why == "the recipe changed (lr, rho); the train data changed; torch 2.0 on cpu, before 1.0 on cpu"


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ({"data": "other"}, "train photos of .* or their labels are no longer those .* --changed_recipe accept"),
        ({"prompts": "other"}, "the prompts of .* are no longer those"),
        (
            {"photos_a_step": 24},
            r"on 24 photos a step \(by 1 process\(es\)\), .* is 8: .* 24, with --accumulation 3,",
        ),
        ({"photos_a_step": 12}, "Make the product 12, or name another run"),
        ({"step": 10}, "step_11 is beyond the 10 steps of this recipe"),
    ],
)
def test_what_is_no_longer_the_same_run_is_refused(make, before, said):
    saved(make(progress=replace(START, **before)))
    with pytest.raises(ConfigError, match=said):
        make().resume()


def test_a_run_at_its_last_step_goes_on_to_its_report(make):
    saved(make(progress=replace(START, step=9)))
    assert make().resume() == ""


def test_a_checkpoint_without_average_is_refused_under_keep_ema(make):
    saved(make())
    with pytest.raises(ConfigError, match="step_1 holds no running average; it was written without keep: ema"):
        make(average=True).resume()


def test_progress_of_another_version_is_refused(make, monkeypatch):
    saved(make())
    monkeypatch.setattr(state, "read_document", lambda *at: {**read_document(*at), "epoch": 3})
    with pytest.raises(ConfigError, match="step_1 was written by another version of clip_more"):
        make().resume()


def test_a_damaged_checkpoint_is_said_and_logged(make, capsys):
    kept = make()
    for _ in range(2):
        saved(kept)
    (kept.run.checkpoints / "step_2/model.safetensors").write_bytes(b"")
    again = make()
    assert again.resume() == ""
    assert again.progress.step == 1
    ((event, values),) = again.run.said
    assert event == "damaged"
    assert "model.safetensors" in values["what"]
    assert f"note: {values['what']}" in capsys.readouterr().out


def test_best_weights_come_back_and_are_kept_as_long_as_a_checkpoint_knows_of_them(make):
    kept = make(keep="best")
    train(kept)
    kept.save_best()
    best = {key: tensor.clone() for key, tensor in kept.task.state_dict().items()}
    for _ in range(2):
        saved(kept)
    train(kept)
    kept.save_best()
    saved(kept)  # step 3, before this one, knows of the first best
    assert sorted(p.name for p in kept.run.checkpoints.iterdir()) == ["best_step_1", "best_step_4", "step_3", "step_5"]
    kept.progress.best_step = 1
    kept.load_best()
    assert all(torch.equal(tensor, best[key]) for key, tensor in kept.task.state_dict().items())
    (kept.run.checkpoints / "best_step_1/model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"best_step_1.*--keep last --changed_recipe accept exports them"):
        kept.load_best()


def test_without_best_weights_the_last_are_offered(make):
    with pytest.raises(CheckpointError, match="nothing was judged under keep: best; --keep last"):
        make(keep="best").load_best()


@pytest.mark.parametrize(
    "documents", [{}, {"progress": []}, {"progress": {}}, {"progress": "text"}, {"progress": None}]
)
def test_a_damaged_checkpoint_knows_of_no_best_weights(tmp_path, documents):
    write_checkpoint(tmp_path, "step_1", {}, {"progress": {"best_step": 7}})
    assert _best_of(tmp_path / "step_1") == "best_step_7"
    write_checkpoint(tmp_path, "step_2", {}, documents)
    assert _best_of(tmp_path / "step_2") == ""
