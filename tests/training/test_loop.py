import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clip_more.config import ConfigError
from clip_more.evaluation.results import Results
from clip_more.recipe import from_dict
from clip_more.training import loop
from clip_more.training.run_folder import read_config
from clip_more.training.schedule import Plan
from clip_more.training.task import LongTailTask
from tests.training.twins import differences


def test_a_run_leaves_what_the_house_says(settings, events, figures):
    folder = loop.train(from_dict(settings, "test"))
    assert folder.name == "lists-x"
    for name in ("config.yaml", "class_profile.json", "report/results.json", "checkpoints/step_6/model.safetensors",
                 "general/model.safetensors", "tail/adapter_model.safetensors", "merged/multilabel.json",
                 "merged/README.md", "merged/open_clip_model.safetensors", "report/training.png",
                 "report/ap_by_frequency.png"):  # fmt: skip
        assert (folder / name).exists(), name
    assert list(Results.load(folder / "report/results.json").ap) == ["zero-shot", "general", "merged"]
    steps = events(folder, "train")
    assert [e["step"] for e in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[0]["discrepancy"] is None  # alpha is 0 there
    assert all(e["discrepancy"] >= 0 for e in steps[1:])
    assert not list(folder.rglob("*.tmp")) + list(folder.rglob(".*"))
    before = (folder / "metrics.jsonl").read_text()
    assert loop.train(from_dict(settings, "test")) == folder  # naming it again finds it finished
    assert (folder / "metrics.jsonl").read_text() == before


def test_head_start_is_near_the_priors(settings, events):
    folder = loop.train(from_dict({**settings, "max_steps": 1}, "test"))
    counts = np.array(Results.load(folder / "report/results.json").profile.counts)
    p = counts / 24
    floor = -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum()
    assert events(folder, "head_start")[0]["loss"] <= floor + 0.01


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"accumulation": 2, "batch_size": 4},
        {"keep": "ema"},
        {"amplitude_ratio": 0.3, "weight_decay_to": "start", "weight_decay_total": 0.5},
        {"discrepancy_pair": "dropout", "tuning": "full", "discrepancy_gradient": "both"},
    ],
    ids=lambda extra: "-".join(extra) or "defaults",
)
def test_interrupted_and_resumed_run_is_bit_identical(settings, monkeypatch, extra, events):
    settings = {**settings, **extra, "checkpoint_every": 2, "output_dir": settings["output_dir"] + "/one"}
    whole = loop.train(from_dict(settings, "test"))
    broken = from_dict({**settings, "output_dir": settings["output_dir"] + "/two"}, "test")

    steps = []

    def power_cut(*arguments):
        steps.append(arguments)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return step_losses(*arguments)

    step_losses = loop.step_losses
    monkeypatch.setattr(loop, "step_losses", power_cut)
    with pytest.raises(KeyboardInterrupt):
        loop.train(broken)
    monkeypatch.setattr(loop, "step_losses", step_losses)
    torch.rand(5)  # whatever the process drew since
    resumed = loop.train(broken)
    assert events(resumed, "resume")[0]["step"] == 4
    assert differences(whole, resumed) == []


@pytest.mark.parametrize(
    "extra",
    [
        {"tuning": "full", "loss": "asl"},
        {"tuning": "lora"},
        {"tuning": "head"},
        {"text_tower": "freeze", "tail_towers": "vision"},
        {"gradient_checkpointing": True},
        {"discrepancy_gradient": "tail"},
        {"keep": "best", "val_fraction": 0.25, "eval_every": 1},
        {"mixed_precision": "bf16"},
        {"image_size": 48, "templates": ["a {}.", "the {}."]},
    ],
    ids=lambda extra: "-".join(map(str, extra.values())),
)
def test_every_way_of_training_ends_in_a_merged_checkpoint(settings, extra):
    folder = loop.train(from_dict({**settings, **extra, "max_steps": 2}, "test"))
    results = Results.load(folder / "report/results.json")
    assert 0 <= results.maps["merged"]["total"] <= 1
    assert (folder / "merged/model.safetensors").exists()
    assert (folder / "tail").exists() == (extra.get("tuning") in (None, "lora"))


def test_what_is_frozen_stays_bit_identical(settings):
    from clip_more.models.clip import load_clip

    start = load_clip("tiny").model.state_dict()
    head = load_file(
        loop.train(from_dict({**settings, "tuning": "head", "max_steps": 2}, "t")) / "merged/model.safetensors"
    )
    assert [key for key in start if not torch.equal(start[key], head[key])] == [
        "logit_scale",
        "visual_projection.weight",
    ]
    lora = loop.train(from_dict({**settings, "tuning": "lora", "run": "lora", "max_steps": 2}, "t"))
    general = load_file(lora / "general/model.safetensors")
    assert [key for key in start if not torch.equal(start[key], general[key])] == ["logit_scale"]


def test_token_rows_that_no_prompt_uses_do_not_move(settings):
    from clip_more.models.clip import load_clip

    clip = load_clip("tiny")
    key = "text_model.embeddings.token_embedding.weight"
    merged = load_file(loop.train(from_dict({**settings, "tuning": "full"}, "t")) / "merged/model.safetensors")
    moved = (merged[key] != clip.model.state_dict()[key]).any(dim=1).nonzero().flatten()
    used = clip.tokenize([f"a photo of a {name}." for name in ("red square", "green square", "blue square")]).unique()
    assert len(moved) > 3
    assert set(moved.tolist()) <= set(used.tolist())


def test_folder_of_another_recipe_is_refused(settings):
    loop.train(from_dict({**settings, "max_steps": 1}, "test"))
    with pytest.raises(ConfigError, match=r"is a finished run of another recipe:\n    lr  0.001 there, 0.1 now\n"):
        loop.train(from_dict({**settings, "max_steps": 1, "lr": 0.1}, "test"))


def test_recipe_may_change_as_long_as_nothing_was_trained(settings, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    start = loop.before_first_step
    monkeypatch.setattr(loop, "before_first_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.train(from_dict(settings, "test"))
    monkeypatch.setattr(loop, "before_first_step", start)
    folder = loop.train(from_dict({**settings, "model": "tiny", "seed": 1, "max_steps": 1}, "test"))
    assert read_config(folder).seed == 1


def test_folder_that_is_no_run_is_refused(settings, tmp_path):
    (tmp_path / "runs/lists-x").mkdir(parents=True)
    (tmp_path / "runs/lists-x/thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no run"):
        loop.train(from_dict(settings, "test"))


def test_loss_that_is_not_finite_stops_with_step_parts_and_checkpoint(settings, monkeypatch):
    monkeypatch.setattr(Plan, "alpha", lambda self, step: 1e39 if step == 2 else 0.5)
    with pytest.raises(loop.TrainingError, match=r"not finite at step 3: loss (inf|nan), base .* before: .*step_2"):
        loop.train(from_dict({**settings, "checkpoint_every": 1}, "test"))


def test_not_finite_micro_batch_or_gradient_stops_before_the_weights_move(settings, monkeypatch):
    settings = {**settings, "tuning": "full", "accumulation": 2, "batch_size": 4, "checkpoint_every": 1}
    forward, calls = LongTailTask.forward, []

    def broken(self, batch, alpha=0.0, **when):
        calls.append(1)
        losses = forward(self, batch, alpha, **when)
        return {**losses, "loss": losses["loss"] * torch.nan} if len(calls) == 3 else losses

    monkeypatch.setattr(LongTailTask, "forward", broken)
    with pytest.raises(loop.TrainingError, match=r"not finite at step 2: loss nan.*step_1"):
        loop.train(from_dict(settings, "test"))
    (folder,) = (tmp for tmp in [from_dict(settings, "test").run_folder])
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step_1"]


@pytest.mark.parametrize(
    "extra", [{"tail_targets": ["nonsense"]}, {"image_size": 33}, {"classes": ["red square", "x"]}]
)
def test_what_can_be_known_before_is_refused_before_anything_is_written(settings, tmp_path, extra):
    with pytest.raises(ValueError, match=r"nonsense|patch size|'x' not among"):
        loop.train(from_dict({**settings, **extra}, "test"))
    assert not (tmp_path / "runs").exists()


def test_line_cut_by_a_kill_spoils_neither_log_nor_figures(settings, figures, events):
    from clip_more.evaluation.run_events import read_events

    config = from_dict({**settings, "max_steps": 2}, "test")
    folder = loop.train(config)
    (folder / "report/results.json").unlink()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "tra')
    loop.train(config)
    kinds = [event["event"] for event in read_events(folder / "metrics.jsonl")]
    assert kinds == ["head_start", "start", "train", "train", "done", "start", "resume", "done"]
    assert (folder / "report/training.png").exists()


def test_other_number_of_processes_is_refused_before_anything_is_written(settings, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="asks for 4 processes, but 1 came up"):
        loop.train(from_dict({**settings, "processes": 4}, "test"))
    assert not (tmp_path / "runs").exists()


def test_independent_processes_of_a_launcher_are_refused(settings, monkeypatch):
    loop.make_accelerator(from_dict(settings, "test"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="started 2 processes, but Accelerate sees 1"):
        loop.make_accelerator(from_dict(settings, "test"))


@pytest.mark.parametrize("head_start", ["fit", "none"])
def test_broken_photo_is_named_before_training(settings, squares, tmp_path, head_start):
    text = (squares / "train.txt").read_text()
    (squares / "cut.png").write_bytes((squares / "00.png").read_bytes()[:300])
    (squares / "broken.txt").write_text(text + "cut.png 0\n")
    with pytest.raises(ValueError, match=r"cannot (be )?read.*cut\.png"):
        loop.train(from_dict({**settings, "train_list": "broken.txt", "head_start": head_start}, "test"))
    assert not (tmp_path / "runs/lists-x/checkpoints").exists()
