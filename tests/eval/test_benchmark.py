from dataclasses import asdict
from pathlib import Path

import pytest
import torch

PHOTOS, CLASSES, SIZE = 3, 4, 32


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "eval")
    import bench_rows

    return bench_rows


@pytest.fixture
def bench(rows):
    import bench_step

    return bench_step


@pytest.fixture
def contenders(bench):
    """A tiny CLIP with our tail, the same one with stock PEFT's, and a batch."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": 100, "max_position_embeddings": 16, "eos_token_id": 99, "bos_token_id": 98}
    config = CLIPConfig(text_config=text, vision_config=tower | {"image_size": SIZE, "patch_size": 16})
    torch.manual_seed(0)
    model = CLIPModel(config)
    twin = CLIPModel(config)
    twin.load_state_dict(model.state_dict())
    input_ids = torch.randint(1, 90, (CLASSES, 5))
    input_ids[:, -1] = 99
    targets = (torch.rand(PHOTOS, CLASSES) < 0.5).float()
    prior = torch.tensor([0.4, 0.3, 0.2, 0.1])
    batch = bench.Batch(torch.randn(PHOTOS, 3, SIZE, SIZE), input_ids, targets, prior)
    return bench.add_tail(model), bench.stock_peft(twin), batch


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


def test_ours_and_peft_have_the_same_loss_and_gradients(bench, contenders):
    ours, peft, batch = contenders
    bench.check_same_work(ours, peft, batch)
    for name, model in (("exact", ours), ("peft", peft)):
        bench.CONTENDERS[name][1](model, batch).backward()
    theirs = {name.removeprefix("base_model.model."): value.grad for name, value in peft.named_parameters()}
    assert any(".lora_A." in name for name in theirs)
    for name, value in ours.named_parameters():
        assert value.grad is not None, name
        torch.testing.assert_close(value.grad, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


def test_contenders_that_differ_are_refused(bench, contenders, monkeypatch):
    ours, peft, batch = contenders
    monkeypatch.setattr(bench, "peft_passes", lambda model, batch: (batch.logits(model), batch.logits(model)))
    with pytest.raises(RuntimeError, match=r"contenders differ by .* in their logits"):
        bench.check_same_work(ours, peft, batch)
