from pathlib import Path

import pytest
import torch


@pytest.fixture
def stage2(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "eval")
    import bench_stage2

    return bench_stage2


@pytest.fixture
def tower():
    """Pixels to features, and how many photos it was called with."""
    calls = []
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3 * 8 * 8, 12, generator=generator)

    def encode(pixels):
        calls.append(len(pixels))
        return pixels.flatten(1) @ weight / 14

    encode.calls = calls
    return encode


@pytest.fixture
def batch(stage2):
    batch = stage2.synthetic_batch("cpu", photos=40, size=8)
    return batch.pixel_values, (batch.targets.bool(), batch.known)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_backbone_is_run_in_every_epoch_and_not_at_all_on_cached_features(stage2, tower, batch, dtype):
    contenders = stage2.stage2_contenders(tower, *batch, "cpu", dtype)
    found = {}
    for name, run in contenders.items():
        tower.calls.clear()
        run()
        found[name] = list(tower.calls)
    assert found == {"cached": [], "backbone": [32, 8] * stage2.EPOCHS, "extraction": [32, 8]}


def test_classifiers_that_differ_are_refused(stage2):
    heads = [stage2.LinearHead(torch.full((2, 3), value)) for value in (1.0, 1.001)]
    with pytest.raises(RuntimeError, match=r"differ by 1\.0e-03 in weight"):
        stage2.check_same_classifier(*heads, "fp32")


def test_rows(stage2, tower, batch, monkeypatch):
    pixels, (targets, known) = batch
    model = torch.nn.Identity()
    model.vision_model = None
    monkeypatch.setattr(stage2, "clip", lambda quick, device: model)
    monkeypatch.setattr(stage2, "read_out_last", lambda tower: None)
    monkeypatch.setattr(stage2, "VisionTower", lambda model: tower)
    monkeypatch.setattr(
        stage2,
        "synthetic_batch",
        lambda device, photos: type("B", (), {"pixel_values": pixels, "targets": targets, "known": known}),
    )
    options = stage2.Options(quick=True, dtypes=("fp32",), repetitions=1, device="cpu")
    rows = list(stage2.stage2(options))
    assert [(row.row, row.dtype, row.unit, row.better, row.goal) for row in rows] == [
        ("stage2.cached_vs_backbone", "fp32", "s", "lower", 0.05),
        ("stage2.with_features_vs_backbone", "fp32", "s", "lower", None),
    ]
    assert rows[1].ours > rows[0].ours
