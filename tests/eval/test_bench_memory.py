import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointError

from clip_more.adapters import tail

HERE = Path(__file__).parent
EVAL = HERE.parents[1] / "eval"
PHOTOS, CLASSES, SIZE = 3, 4, 32


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(EVAL)
    import bench_memory

    return bench_memory


@pytest.fixture
def arithmetic(bench):
    import bench_memory_arithmetic

    return bench_memory_arithmetic


@pytest.fixture
def options(bench):
    return bench.Options(quick=True, dtypes=("fp32",), repetitions=3, device="cpu")


@pytest.fixture
def batch(bench):
    return make_batch(PHOTOS, SIZE)


def make_batch(photos: int, size: int):
    from bench_step import Batch

    torch.manual_seed(1)
    input_ids = torch.randint(1, 90, (CLASSES, 5))
    input_ids[:, -1] = 99
    targets = (torch.rand(photos, CLASSES) < 0.5).float()
    return Batch(torch.randn(photos, 3, size, size), input_ids, targets, torch.tensor([0.4, 0.3, 0.2, 0.1]))


def tiny_clip(patch: int = 16, layers: int = 3) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": layers, "num_attention_heads": 1}
    text = tower | {"vocab_size": 100, "max_position_embeddings": 16, "eos_token_id": 99, "bos_token_id": 98}
    torch.manual_seed(0)
    vision = tower | {"image_size": SIZE, "patch_size": patch}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision)).train()


def many_tokens():
    """Activations of about 140 MiB a pass, weights of less than two."""
    return tiny_clip(patch=4), make_batch(170, SIZE)


def measure_many_tokens() -> None:
    """What the child process of a test runs in place of ViT-B/32."""
    import bench_memory

    model, batch = many_tokens()
    bench_memory.clip = lambda quick: model
    bench_memory.synthetic_batch = lambda device: batch
    bench_memory.main()


def kept(model: nn.Module, batch) -> int:
    """Bytes that autograd keeps of one pass, parameters and the batch apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *vars(batch).values())}
    sizes = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = batch.logits(model)
    assert logits.requires_grad
    return sum(sizes.values())


def gradients(loss, model: nn.Module, batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss(model, batch).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def with_random_tail(model: nn.Module) -> nn.Module:
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.05)
    return model


def test_rows_are_the_declared_ones_and_contenders_take_turns(bench, options, monkeypatch, capsys):
    order = []
    mib = {"plain": 100.0, "peft": 200.0, "exact": 210.0}
    monkeypatch.setattr(bench, "counted", lambda options: "")

    def measure(name, dtype, options):
        order.append(name)
        return {"": mib[name], "_checkpointed": mib[name] / 2 + 5}

    monkeypatch.setattr(bench, "in_own_process", measure)
    rows = list(bench.memory(options))
    assert order == ["plain", "peft", "exact", "peft", "exact", "plain"]
    assert [(row.row, row.ours, row.peer, row.goal) for row in rows] == [
        ("memory.exact_vs_plain", 210.0, 100.0, None),
        ("memory.exact_vs_peft", 210.0, 200.0, 1.0),
        ("memory.exact_vs_plain_checkpointed", 110.0, 55.0, None),
        ("memory.exact_vs_peft_checkpointed", 110.0, 105.0, 1.0),
    ]
    assert {(row.dtype, row.unit, row.better) for row in rows} == {("fp32", "MiB", "lower")}


@pytest.mark.parametrize("name", ["plain", "peft", "exact"])
def test_checkpointed_contenders_have_the_gradients_of_the_others(bench, batch, name):
    make, loss = bench.CONTENDERS[name]
    model = with_random_tail(make(tiny_clip()))
    expected = gradients(loss, model, batch)
    bench.checkpoint_activations(name, model)
    found = gradients(loss, model, batch)
    assert len(expected) == len(list(model.parameters()))
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7, msg=key)


def test_stock_peft_cannot_be_checkpointed_by_itself(bench, batch):
    make, loss = bench.CONTENDERS["peft"]
    model = make(tiny_clip())
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(CheckpointError):
        gradients(loss, model, batch)


def test_counted_weights_are_those_of_the_model_and_of_its_tail(bench, arithmetic, batch):
    plain, tailed = tiny_clip(), bench.CONTENDERS["exact"][0](tiny_clip())
    tensors = arithmetic.count(plain, batch)
    sizes = [4 * sum(p.numel() for p in model.parameters()) / 2**20 for model in (plain, tailed)]
    assert (tensors.weights, tensors.weights + tensors.tail) == pytest.approx(sizes)


def test_counted_activations_are_what_autograd_keeps_of_a_layer(arithmetic, batch):
    models = tiny_clip(layers=3), tiny_clip(layers=2)
    three, two = (arithmetic.count(model, batch).activations * 2**20 for model in models)
    # Besides, norms and attention keep five numbers a token.
    assert three - two == pytest.approx(kept(models[0], batch) - kept(models[1], batch), rel=0.01)


def test_the_full_pass_keeps_the_weights_with_their_tail_besides(bench, arithmetic, batch):
    plain, tailed = tiny_clip(), bench.CONTENDERS["exact"][0](tiny_clip())
    more = arithmetic.count(plain, batch).full_weights * 2**20
    assert kept(tailed, batch) - kept(plain, batch) == round(more)
    with tail(tailed, enabled=False):
        assert kept(tailed, batch) == kept(plain, batch)


def test_lora_keeps_a_little_of_every_token(bench, arithmetic, batch):
    plain, peft = tiny_clip(), bench.CONTENDERS["peft"][0](tiny_clip())
    more = arithmetic.count(plain, batch).token_space * 2**20
    assert kept(peft, batch) - kept(plain, batch) == pytest.approx(more, rel=0.05)


def test_the_peak_is_where_the_passes_end_or_in_the_update(arithmetic):
    few = arithmetic.Tensors(100, 10, 20, 5, 80, 1, 4, 30)
    assert arithmetic.peaks(few, "cpu") == {"plain": (460, 460), "peft": (500, 500), "exact": (500, 500)}
    assert arithmetic.peaks(few, "cuda")["plain"] == (500, 500)
    many = arithmetic.Tensors(100, 10, 400, 50, 80, 7, 4, 30)
    assert arithmetic.peaks(many, "cpu") == {"plain": (700, 460), "peft": (1137, 500), "exact": (1210, 500)}
    small_text_tower = arithmetic.Tensors(100, 10, 400, 50, 80, 7, 60, 30)
    assert arithmetic.peaks(small_text_tower, "cpu")["exact"] == (1220, 500)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the system keeps the mark for good")
def test_what_was_freed_again_counts_and_what_came_before_does_not(bench):
    before = bench.highest(lambda: None, "cpu")
    large = bench.highest(lambda: torch.ones(256 * 2**18), "cpu") - before
    small = bench.highest(lambda: torch.ones(64 * 2**18), "cpu") - before
    assert 250 < large < 290
    assert small < 100


def test_a_process_measures_the_activations_that_checkpointing_saves(bench, arithmetic, options, monkeypatch, tmp_path):
    script = tmp_path / "child.py"
    script.write_text(
        f"import sys\nsys.path[:0] = {[str(EVAL), str(HERE)]}\n"
        "import test_bench_memory\ntest_bench_memory.measure_many_tokens()\n"
    )
    monkeypatch.setattr(bench, "__file__", str(script))
    mib = bench.in_own_process("exact", "fp32", options)
    activations = arithmetic.count(*many_tokens()).activations
    # Checkpointed, a pass keeps its layers' inputs, one number in 17, and one of three layers is there again.
    saved = activations * (2 - 2 / 17 - 1 / 3)
    assert mib[""] - mib["_checkpointed"] == pytest.approx(saved, rel=0.15)


def test_a_process_is_given_the_settings_and_a_malloc_that_frees(bench, options, monkeypatch, tmp_path):
    stub = tmp_path / "python"
    stub.write_text('#!/bin/sh\necho "$2 $3 $4 $6" > "$(dirname "$0")/arguments"\necho $MALLOC_MMAP_THRESHOLD_ 7.5\n')
    stub.chmod(0o755)
    monkeypatch.setattr(bench.sys, "executable", str(stub))
    assert bench.in_own_process("peft", "bf16", options) == {"": 131072.0, "_checkpointed": 7.5}
    assert (tmp_path / "arguments").read_text() == "peft bf16 cpu --quick\n"


@pytest.mark.parametrize(
    ("end", "words"),
    [("echo 'Error: no room' >&2; exit 3", "code 3: Error: no room"), ("kill -9 $$", "code -9: no word")],
)
def test_a_process_that_fails_is_named_with_its_last_line(bench, options, monkeypatch, tmp_path, end, words):
    stub = tmp_path / "python"
    stub.write_text(f"#!/bin/sh\n{end}\n")
    stub.chmod(0o755)
    monkeypatch.setattr(bench.sys, "executable", str(stub))
    with pytest.raises(RuntimeError, match=f"The process of exact ended with {words}"):
        bench.in_own_process("exact", "fp32", options)
