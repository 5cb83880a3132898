from pathlib import Path

import pytest
import torch

SIZE = 32


@pytest.fixture
def text(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "eval")
    import bench_text

    monkeypatch.setattr(bench_text, "clip", lambda quick, device: tiny_clip())
    return bench_text


@pytest.fixture
def scale(text, monkeypatch):
    import bench_scale

    monkeypatch.setattr(bench_scale, "clip", lambda quick, device: tiny_clip())
    monkeypatch.setattr(bench_scale, "MANY", 200)
    monkeypatch.setattr(bench_scale, "PHOTOS", 4)
    return bench_scale


@pytest.fixture
def options(text):
    return text.Options(quick=True, dtypes=("bf16",), repetitions=1, device="cpu")


def tiny_clip():
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    vision = tower | {"image_size": SIZE, "patch_size": 16}
    return CLIPModel(CLIPConfig(text_config=tower, vision_config=vision, projection_dim=24)).train()


@pytest.fixture
def batch(text):
    return text.synthetic_batch("cpu", photos=8, classes=4, size=SIZE)


def test_text_rows(text, options, batch, monkeypatch):
    monkeypatch.setattr(text, "synthetic_batch", lambda device, photos: batch)
    rows = list(text.text(options))
    assert [(row.row, row.dtype, row.unit, row.goal) for row in rows] == [
        ("text.trimmed_vs_padded", "bf16", "s", 0.15),
        ("text.once_vs_per_micro_batch", "bf16", "s", None),
    ]


def test_text_towers_that_differ_are_refused(text):
    encoders = {"ours": lambda: torch.ones(2, 3), "padded": lambda: torch.full((2, 3), 1.1)}
    with pytest.raises(RuntimeError, match=r"differ by 1\.0e-01 in their features"):
        text.check_same_features(encoders)


def test_one_run_of_the_text_tower_has_the_gradients_of_four(text, batch):
    exact = text.contender("exact", tiny_clip(), batch)
    text.random_tail(exact)
    text.check_same_gradients(exact.model, batch)
    texts, encode = exact.model.texts, exact.model.texts._collected_into
    texts._collected_into = lambda features: encode((features[0] * 1.01, features[1]))
    with pytest.raises(RuntimeError, match=r"differ by .* in gradients"):
        text.check_same_gradients(exact.model, batch)


def test_the_text_tower_is_run_for_its_gradient_once_a_step_or_with_each_micro_batch(text, batch):
    exact = text.contender("exact", tiny_clip(), batch)
    runs = []
    exact.model.classifier.clip.model.text_model.encoder.layers[0].register_forward_hook(
        lambda *_: runs.append(torch.is_grad_enabled())
    )
    for once in (True, False):
        text.accumulated(exact.model, batch, "cpu", "fp32", once=once)()
    # Without the tail and with it; once more without a graph, for the micro-batches before the last.
    assert runs == [False] * 2 + [True] * 2 + [True] * 8


def test_scale_row(scale, options):
    rows = list(scale.scale(options))
    assert [(row.row, row.dtype, row.unit, row.goal) for row in rows] == [
        ("scale.classes_200_vs_80", "bf16", "s", 1.10),
    ]


def test_scale_trains_all_but_the_text_tower_on_both_passes(scale):
    model = tiny_clip()
    contender = scale.frozen_text(model, classes=50, photos=4)
    losses = contender.losses()
    assert losses["logits"].shape == (4, 50)
    losses["loss"].backward()
    trained = {id(p) for group in contender.groups for p in group["params"]}
    for name, parameter in contender.model.named_parameters():
        read = ".text_" in name or name.endswith("logit_scale")
        assert (id(parameter) in trained, parameter.grad is not None) == (not read, not read), name
    assert losses["discrepancy"] == 0
    for name, parameter in contender.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter)
    assert contender.losses()["discrepancy"] > 0
