import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import CheckpointError

from clip_more.adapters import tail

HERE = Path(__file__).parent
EVAL = HERE.parents[1] / "eval"
SIZE = 32


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
    return bench.synthetic_batch("cpu", photos=40, classes=40, size=SIZE)


def tiny_clip(patch: int = 16, layers: int = 3) -> nn.Module:
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": layers, "num_attention_heads": 1}
    torch.manual_seed(0)
    vision = tower | {"image_size": SIZE, "patch_size": patch}
    return CLIPModel(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=64)).train()


def many_tokens(bench):
    """Activations of about 140 MiB a pass, weights of 14."""
    return tiny_clip(patch=4), bench.synthetic_batch("cpu", photos=170, classes=8, size=SIZE)


def measure_many_tokens() -> None:
    """What the child process of a test runs in place of ViT-B/32."""
    import bench_memory

    model, batch = many_tokens(bench_memory)
    bench_memory.clip = lambda quick, device: model
    bench_memory.synthetic_batch = lambda device, photos: batch
    bench_memory.main()


def kept(model: nn.Module, forward) -> int:
    """Bytes that autograd keeps of one pass, parameters apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    sizes, alive = {}, []

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = forward()
    assert logits.requires_grad
    return sum(sizes.values())


def kept_of_peer(contender, batch) -> int:
    return kept(contender.model, lambda: logits(contender.model, batch, padded=False))


def kept_of_ours(contender, batch) -> int:
    return kept(contender.model, lambda: contender.model.classifier(batch.pixel_values))


def logits(*arguments, **options):
    import bench_peers

    return bench_peers.logits(*arguments, **options)


def gradients(contender) -> dict[str, torch.Tensor]:
    contender.model.zero_grad()
    contender.losses()["loss"].backward()
    parameters = contender.model.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in parameters if parameter.grad is not None}


def switch(contender) -> nn.Module:
    """The model that transformers' switch for checkpointing lies on."""
    return contender.model.classifier.clip.model if hasattr(contender.model, "classifier") else contender.model


@pytest.mark.parametrize("quick", [False, True])
def test_rows_are_the_declared_ones_and_contenders_take_turns(bench, monkeypatch, quick):
    options = bench.Options(quick=quick, dtypes=("fp32",), repetitions=3, device="cpu")
    order = []
    mib = {"plain": 100.0, "peft": 200.0, "exact": 210.0}
    monkeypatch.setattr(bench, "counted", lambda options: "")

    def measure(name, dtype, options):
        order.append(name)
        return {"": mib[name], "_checkpointed": mib[name] / 2 + 5}

    monkeypatch.setattr(bench, "in_own_process", measure)
    rows = list(bench.memory(options))
    assert order == ["plain", "peft", "exact", *([] if quick else ["peft", "exact", "plain"])]
    assert [(row.row, row.ours, row.peer, row.goal) for row in rows] == [
        ("memory.exact_vs_plain", 210.0, 100.0, None),
        ("memory.exact_vs_peft", 210.0, 200.0, 1.0),
        ("memory.exact_vs_plain_checkpointed", 110.0, 55.0, None),
        ("memory.exact_vs_peft_checkpointed", 110.0, 105.0, 1.0),
    ]
    assert {(row.dtype, row.unit, row.better) for row in rows} == {("fp32", "MiB", "lower")}


@pytest.mark.parametrize("name", ["plain", "peft", "exact"])
def test_checkpointed_contenders_have_the_gradients_of_the_others(bench, batch, name):
    contender = bench.contender(name, tiny_clip(), batch)
    torch.manual_seed(2)
    for key, parameter in contender.model.named_parameters():
        if ".lora_B." in key:
            nn.init.normal_(parameter, std=0.05)
    expected = gradients(contender)
    bench.checkpoint_activations(name, switch(contender))
    found = gradients(contender)
    assert set(expected) == {key for key, parameter in contender.model.named_parameters() if parameter.requires_grad}
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_stock_peft_cannot_be_checkpointed_by_itself(bench, batch):
    contender = bench.contender("peft", tiny_clip(), batch)
    contender.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with pytest.raises(CheckpointError):
        gradients(contender)


def test_counted_weights_are_those_of_the_model_and_of_its_tail(bench, arithmetic, batch):
    plain = tiny_clip()
    tailed = switch(bench.contender("exact", plain, batch))
    tensors = arithmetic.count(plain, batch)
    sizes = [4 * sum(p.numel() for p in model.parameters()) / 2**20 for model in (plain, tailed)]
    assert (tensors.weights, tensors.weights + tensors.tail) == pytest.approx(sizes)
    towers = (plain.vision_model, tensors.image), (plain.text_model, tensors.text)
    for model, counted in towers:
        assert counted.weights == pytest.approx(4 * sum(p.numel() for p in model.parameters()) / 2**20)


def test_counted_activations_are_what_autograd_keeps_of_a_layer(bench, arithmetic, batch):
    models = tiny_clip(layers=3), tiny_clip(layers=2)
    counted = [arithmetic.count(model, batch) for model in models]
    three, two = (tensors.image.activations + tensors.text.activations for tensors in counted)
    found = [kept_of_peer(bench.contender("plain", model, batch), batch) / 2**20 for model in models]
    # Besides, norms and attention keep five numbers a token.
    assert three - two == pytest.approx(found[0] - found[1], rel=0.01)


def test_our_last_blocks_keep_little_but_keys_and_values(bench, arithmetic, batch):
    model = tiny_clip(patch=8)
    tensors = arithmetic.count(model, batch)
    plain = kept_of_peer(bench.contender("plain", model, batch), batch)
    ours = kept_of_ours(bench.contender("one_pass", model, batch), batch)
    assert (plain - ours) / 2**20 == pytest.approx(tensors.image.spared + tensors.text.spared, rel=0.02)


def test_the_full_pass_keeps_of_its_weights_the_kernel_alone(bench, arithmetic, batch):
    model = tiny_clip()
    exact = bench.contender("exact", model, batch)
    full = kept_of_ours(exact, batch)
    with tail(exact.model, enabled=False):
        general = kept_of_ours(exact, batch)
    tensors = arithmetic.count(model, batch)
    assert (full - general) / 2**20 == tensors.kernel


def test_lora_keeps_a_little_of_every_token(bench, arithmetic, batch):
    model = tiny_clip()
    more = arithmetic.count(model, batch).token_space * 2**20
    found = [kept_of_peer(bench.contender(name, model, batch), batch) for name in ("plain", "peft")]
    assert found[1] - found[0] == pytest.approx(more, rel=0.05)


def test_the_peak_is_where_the_passes_end_or_after_a_tower_or_in_the_update(arithmetic):
    def figures(image, text):
        towers = arithmetic.Tower(*image), arithmetic.Tower(*text)
        return arithmetic.peaks(arithmetic.Tensors(100, 10, *towers, token_space=7, kernel=2, full_weights=80))

    few = figures((40, 15, 1), (30, 5, 1))
    assert few == {"plain": (400, 400), "peft": (440, 440), "exact": (440, 440)}
    many = figures((60, 350, 20), (40, 50, 5))
    assert many == {"plain": (700, 400), "peft": (1137, 440), "exact": (330 + 2 * 375 + 2, 440)}
    # The text tower goes back first in a stock CLIP, the image tower in ours.
    small_text_activations = figures((60, 350, 20), (90, 50, 5))
    assert small_text_activations == {"plain": (740, 400), "peft": (1177, 440), "exact": (1082, 440)}
    small_image_activations = figures((400, 350, 20), (40, 50, 5))
    assert small_image_activations["exact"] == (1082 + 400 - 330, 440)


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
    image = arithmetic.count(*many_tokens(bench)).image
    # Checkpointed, a pass keeps its layers' inputs, one number in 17, and one of three layers is there again.
    saved = image.activations * (2 - 2 / 17 - 1 / 3) - 2 * image.spared
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
