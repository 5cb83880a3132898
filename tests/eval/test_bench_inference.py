from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "eval")
    monkeypatch.delenv("CLIP_MORE_TEST_DATA", raising=False)
    import bench_inference

    return bench_inference


@pytest.fixture
def small(bench, monkeypatch):
    """A CLIP small enough for a test, and two photos a batch."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=dict(tower), vision_config=tower | {"image_size": 32, "patch_size": 16})
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    monkeypatch.setattr(bench, "plain_clip", lambda quick: model)
    monkeypatch.setattr(bench, "SIZE", 32)
    monkeypatch.setattr(bench, "BATCH", 2)
    monkeypatch.setattr(bench, "COCO_CLASSES", bench.COCO_CLASSES[:5])
    monkeypatch.setattr(bench, "LEAST_ROUNDS", 1)
    return bench


def test_rows_are_the_declared_ones_with_their_goals(small):
    from bench_rows import Options

    rows = list(small.inference(Options(quick=True, dtypes=("fp32",), repetitions=1, device="cpu")))
    assert [(row.row, row.unit, row.better, row.goal) for row in rows] == [
        ("inference.merged_vs_plain", "s", "lower", 1.0),
        ("inference.classifier_vs_pipeline", "photos/s", "higher", 6.0),
        ("inference.classifier_vs_batched", "photos/s", "higher", None),
        ("inference.classifier_vs_tower", "photos/s", "higher", 0.9),
    ]


@pytest.mark.parametrize(("spread", "met"), [([0.98, 1.01], True), ([1.0, 1.2], True), ([1.01, 1.2], False)])
def test_equality_is_met_where_the_spread_contains_one(bench, spread, met):
    assert bench.EqualRow("a.b", "fp32", "s", "lower", 1.0, 1.0, 1.0, spread, 1.0).met is met


def test_merged_has_the_plain_tree_and_other_values(small):
    plain = small.plain_clip(True)
    merged = small.merged_twin(plain)
    small.check_same_tree(merged, plain)
    assert not torch.equal(merged.visual_projection.weight, plain.visual_projection.weight)


def test_another_tree_is_refused_by_name(small):
    import copy

    from clip_more.adapters import add_tail

    plain = small.plain_clip(True)
    with pytest.raises(RuntimeError, match="has other modules than the plain one"):
        small.check_same_tree(add_tail(copy.deepcopy(plain)), plain)
    other = copy.deepcopy(plain).half()
    with pytest.raises(RuntimeError, match=r"has other weights than the plain one: \('logit_scale'"):
        small.check_same_tree(other, plain)
    with pytest.raises(RuntimeError, match="nothing was merged"):
        small.check_same_tree(copy.deepcopy(plain), plain)


def test_scores_that_differ_are_refused(bench):
    logits = np.array([[1.0, 2.0, 4.0]])
    softmax = np.exp(logits) / np.exp(logits).sum()
    bench.check_same_scores(logits, softmax)
    with pytest.raises(RuntimeError, match=r"The scores differ by 2\.0e-01"):
        bench.check_same_scores(logits, softmax + 0.2)
