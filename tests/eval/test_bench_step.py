import copy
import sys
from pathlib import Path

import pytest
import torch

SIZE = 32


@pytest.fixture
def eval_path(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "eval")


@pytest.fixture
def checks(eval_path):
    import bench_checks

    return bench_checks


@pytest.fixture
def bench(checks):
    import bench_step

    return bench_step


@pytest.fixture
def batch(checks):
    return checks.synthetic_batch("cpu", photos=6, classes=8, size=SIZE)


def tiny_clip(layers: int = 3):
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 2}
    torch.manual_seed(0)
    vision = tower | {"image_size": SIZE, "patch_size": 16}
    return CLIPModel(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=24)).train()


OURS = ["one_pass", "stopped", "exact", "upper_half", "last4", "text_only", "economical"]
PEERS = ["plain", "plain_padded", "peft", "peft_padded", "peft_stopped", "lora", "open_clip"]


@pytest.mark.parametrize("name", [*OURS, *PEERS])
def test_every_contender_has_losses_and_gradients_of_naive_passes(checks, batch, name):
    model = tiny_clip()
    checks.check_contender(name, checks.contender(name, model, batch), model, batch)


@pytest.mark.parametrize(
    ("name", "twin", "words"),
    [
        ("exact", "one_pass", "exact: no layer has a low-rank part"),
        ("plain", "exact", r"plain: its loss is .*; the naive passes give"),
        ("economical", "last4", None),  # has the same base loss
        ("peft", "lora", "peft: its loss is"),
        ("peft_stopped", "peft", "peft_stopped: the gradient of .* off"),
        ("stopped", "exact", "stopped: the gradient of .* off"),
    ],
)
def test_a_contender_that_computes_something_else_is_refused(checks, batch, name, twin, words):
    model = tiny_clip()
    other = checks.contender(twin, model, batch)
    if words is None:
        checks.check_contender(name, other, model, batch)
    else:
        with pytest.raises(RuntimeError, match=words):
            checks.check_contender(name, other, model, batch)


def test_a_gradient_that_is_off_is_named(checks, batch):
    model = tiny_clip()
    exact = checks.contender("exact", model, batch)
    weight = exact.model.classifier.clip.model.text_projection.base_layer.weight
    weight.register_hook(lambda gradient: gradient * 1.001)
    with pytest.raises(RuntimeError, match=r"exact: the gradient of text_projection.weight is 1.0e-03 off"):
        checks.check_contender("exact", exact, model, batch)


def test_a_weight_that_is_not_trained_is_named(checks, batch):
    model = tiny_clip()
    plain = checks.contender("plain", model, batch)
    plain.model.visual_projection.requires_grad_(False)
    try:
        with pytest.raises(RuntimeError, match=r"plain: visual_projection.weight is not trained"):
            checks.check_contender("plain", plain, copy.deepcopy(model).requires_grad_(True), batch)
    finally:
        model.requires_grad_(True)


def test_contenders_share_the_weights_and_the_moments_of_one_model(bench, batch):
    model, moments = tiny_clip(), bench.defaultdict(dict)
    plain, exact = (bench.contender(name, model, batch) for name in ("plain", "exact"))
    before = model.visual_projection.weight.detach().clone()
    for one in (plain, exact):
        bench.stepper(one, "cpu", "fp32", moments)()
    trained = {id(p) for one in (plain, exact) for group in one.groups for p in group["params"]}
    assert {id(p) for p in moments} == trained
    assert {moments[p]["step"].item() for p in model.visual_projection.parameters()} == {2}
    assert not torch.equal(model.visual_projection.weight, before)
    assert all(p.grad is None for p in model.parameters())


def test_a_frozen_base_is_its_own_and_stays_as_it_is(bench, batch):
    model = tiny_clip()
    lora = bench.contender("lora", model, batch)
    assert all(p.requires_grad for p in model.parameters())
    trained = [name for name, p in lora.model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)
    assert {id(p) for group in lora.groups for p in group["params"]}.isdisjoint(map(id, model.parameters()))


def test_every_row_has_its_goal_by_dtype(bench, batch, monkeypatch, capsys):
    seconds = {name: [float(number)] for number, name in enumerate([*OURS, *PEERS], 1)}
    monkeypatch.setattr(bench, "clip", lambda quick, device: tiny_clip())
    monkeypatch.setattr(bench, "synthetic_batch", lambda device, photos: batch)
    monkeypatch.setattr(bench, "check_contenders", lambda names, device: None)
    monkeypatch.setattr(bench, "interleaved", lambda steps, options: {name: seconds[name] for name in steps})
    options = bench.Options(quick=True, dtypes=("fp32", "bf16"), repetitions=1, device="cpu")
    found = {(row.row, row.dtype): row for row in bench.step(options)}
    assert {key: row.goal for key, row in found.items()} == {
        **{("step.exact_vs_plain", dtype): goal for dtype, goal in (("fp32", 2.10), ("bf16", 2.25))},
        **{("step.economical_vs_plain", dtype): goal for dtype, goal in (("fp32", 1.30), ("bf16", 1.45))},
        **{
            (f"step.{name}", dtype): goal
            for dtype in ("fp32", "bf16")
            for name, goal in {
                "upper_half_vs_plain": 1.65,
                "last4_vs_plain": 1.45,
                "text_only_vs_plain": 1.15,
                "exact_vs_peft": 0.80,
                "whole_vs_stock": 0.30,
                "stopped_vs_plain": None,
                "stopped_vs_plain_padded": None,
                "stopped_vs_peft_stopped": None,
                "stopped_vs_open_clip": None,
                "one_pass_vs_plain": None,
                "exact_vs_one_pass": None,
                "exact_vs_plain_padded": None,
                "exact_vs_lora": None,
                "exact_vs_open_clip": None,
            }.items()
        },
    }
    whole = found["step.whole_vs_stock", "fp32"]
    assert (whole.ours, whole.peer) == (seconds["exact"][0], seconds["peft_padded"][0])
    header = "  32 photos, 8 prompts of 8 tokens (padded: 77); image layers with a tail: stopped 3, exact 3, "
    assert capsys.readouterr().out.startswith(header)


def test_without_open_clip_its_rows_are_left_out_with_a_word(bench, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert bench.present() == [*OURS, *PEERS[:-1]]
    assert capsys.readouterr().out.startswith("  open_clip cannot be imported, its rows are left out: ")


def test_profile_is_a_table_of_the_most_expensive_operations(bench, batch, monkeypatch, tmp_path):
    import bench_profile

    monkeypatch.setattr(bench_profile, "clip", lambda quick, device: tiny_clip())
    monkeypatch.setattr(bench_profile, "synthetic_batch", lambda device, photos: batch)
    options = bench.Options(quick=True, dtypes=("fp32",), repetitions=1, device="cpu")
    bench_profile.profile_step(options, tmp_path / "step.txt")
    text = (tmp_path / "step.txt").read_text()
    assert text.startswith("exact, fp32, 32 photos, one step\n")
    assert "aten::" in text
    assert "Self CPU" in text
    assert [path.name for path in tmp_path.iterdir()] == ["step.txt"]
