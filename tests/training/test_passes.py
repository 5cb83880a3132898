"""The two passes as they are run, against two naive whole passes."""

import pytest
import torch
from torch import nn

from clip_more.adapters import tail
from clip_more.losses.sampling import Share
from clip_more.training.passes import tower_passes
from clip_more.training.randomness import RandomState, general_pass
from tests.training.tiny_task import ALPHA, gradients, photos, tiny_task

PLACES = [
    {},
    {"tail_depth": 0.5},
    {"tail_depth": 0.34},
    {"tail_towers": "text"},
    {"tail_towers": "vision"},
    {"tail_targets": ["fc1", "visual_projection"]},
    {"tail_targets": ["text_projection", "patch_embedding"]},
    {"text_tower": "freeze", "tail_towers": "vision"},
]


BOTH = {"discrepancy_gradient": "both"}


class Stock(nn.Module):
    """The same classifier as stock transformers runs it: every layer, every token, prompts padded to 77."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, pixel_values):
        clip, head = self.classifier.clip, self.classifier.head
        images = clip.model.get_image_features(pixel_values=pixel_values).pooler_output
        if head.frozen_features is not None:
            return head.logits(images, head.frozen_features)
        ids = nn.functional.pad(head.input_ids, (0, 77 - head.input_ids.shape[1]), value=int(head.input_ids[0, -1]))
        return head.logits(images, head.class_features(clip.model.get_text_features(input_ids=ids).pooler_output))


def in_float64(recipe, count=8):
    """A task and a batch, so exact that rounding hides nothing."""
    task, _ = tiny_task(**recipe)
    batch = {name: t.double() if t.is_floating_point() else t for name, t in photos(count).items()}
    return task.double(), batch


def naive(task, batch):
    """Gradients of two whole passes of stock transformers, written down as the paper has it."""
    task.zero_grad()
    stock, masks = Stock(task.classifier), RandomState(torch.device("cpu"))
    full = stock(batch["pixel_values"])
    with general_pass(stock, masks):
        general = stock(batch["pixel_values"])
    targets, known = batch["targets"], batch["known"]
    loss = task.base_loss(full, targets, known) + ALPHA * task.discrepancy(full, general, targets, known)
    loss.backward()
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def assert_same(found, expected, tolerance=1e-11):
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() <= tolerance * largest, name


@pytest.mark.parametrize("extra", [{}, {"gradient_checkpointing": True}, BOTH, BOTH | {"gradient_checkpointing": True}])
@pytest.mark.parametrize("recipe", PLACES, ids=str)
def test_gradients_are_those_of_two_whole_passes_of_stock_transformers(recipe, extra):
    task, batch = in_float64(recipe | extra)
    found = gradients(task, [batch])
    assert any(gradient.abs().max() > 0 for name, gradient in found.items() if "lora_A" in name)
    assert_same(found, naive(task, batch))


def test_gradients_in_float32_are_those_of_two_whole_passes_up_to_rounding():
    task, _ = tiny_task()
    assert_same(gradients(task, [photos(8)]), naive(task, photos(8)), tolerance=1e-6)


def count_calls(task):
    """Names of the blocks run, in order."""
    calls = []
    for name, module in task.named_modules():
        if name.rpartition(".")[0].endswith("layers"):
            tower = "vision" if "vision_model" in name else "text"
            module.register_forward_hook(lambda m, i, o, block=f"{tower} {name[-1]}": calls.append((block, len(o))))
    return calls


def test_what_lies_below_the_tail_is_run_once():
    task, _ = tiny_task(tail_depth=0.34)  # the last of three vision blocks, the last of two text blocks
    calls = count_calls(task)
    task(photos(8), alpha=1.0)
    blocks = [block for block, _ in calls]
    assert sorted(blocks) == sorted(["text 0", "text 1", "text 1", "vision 0", "vision 1", "vision 2", "vision 2"])


def test_a_tail_on_the_text_tower_alone_has_no_second_image_pass():
    task, _ = tiny_task(tail_towers="text")
    calls = count_calls(task)
    task(photos(8), alpha=1.0)
    assert sum(block.startswith("vision") for block, _ in calls) == 3
    assert sum(block.startswith("text") for block, _ in calls) == 4


def test_without_weight_there_is_one_pass():
    task, _ = tiny_task()
    calls = count_calls(task)
    assert task(photos(8), alpha=0.0)["discrepancy"] is None
    assert len(calls) == 5


@pytest.mark.parametrize("recipe", [{}, {"tail_depth": 0.5}], ids=str)
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_new_tail_has_no_discrepancy_with_dropout_on(recipe, fraction):
    task, _ = tiny_task(dropout=0.4, discrepancy_fraction=fraction, **recipe)
    for name, parameter in task.named_parameters():
        if "lora_B" in name:
            nn.init.zeros_(parameter)
    losses = task(photos(8), alpha=3.0)
    assert losses["discrepancy"].item() == pytest.approx(0, abs=1e-9)
    task.zero_grad()


def test_shared_blocks_draw_their_masks_once_and_the_others_the_same_twice():
    task, _ = tiny_task(dropout=0.4, tail_depth=0.34)
    clip, x = task.classifier.clip, photos(8)["pixel_values"]
    torch.manual_seed(4)
    full, general = tower_passes(clip, clip.vision, x)
    torch.manual_seed(4)
    assert torch.equal(clip.encode_image(x), full)
    torch.manual_seed(4)
    with tail(clip, enabled=False):
        assert torch.equal(clip.encode_image(x), general)


@pytest.mark.parametrize("recipe", [{}, {"tail_depth": 0.34}, {"tail_towers": "text"}], ids=str)
def test_rows_of_the_general_pass_are_those_of_the_whole_one(recipe):
    task, _ = tiny_task(**recipe)
    clip, x, rows = task.classifier.clip, photos(8)["pixel_values"], torch.tensor([1, 6])
    full, general = tower_passes(clip, clip.vision, x)
    again, part = tower_passes(clip, clip.vision, x, rows)
    torch.testing.assert_close(again, full, rtol=0, atol=0)
    torch.testing.assert_close(part, general[rows], rtol=0, atol=1e-6)


def test_full_features_keep_the_order_of_the_images_where_masks_come_in_another():
    task, _ = tiny_task(dropout=0.4, tail_depth=0.34)
    clip, x = task.classifier.clip, photos(8)["pixel_values"]
    for block in clip.model.vision_model.encoder.layers:
        block.self_attn.dropout = 1e-9  # masks are drawn, and drop nothing
    full, _ = tower_passes(clip, clip.vision, x, torch.tensor([1, 6]))
    torch.testing.assert_close(full, clip.encode_image(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "recipe", [{}, {"tail_towers": "text"}, {"tail_towers": "vision", "text_tower": "freeze"}], ids=str
)
def test_economical_gradient_has_the_exact_one_as_its_expectation(recipe, monkeypatch):
    """The mean over all shares that can be drawn, each with its probability: no sampling, no noise."""
    exact, batch = in_float64(recipe, 2)
    expected = gradients(exact, [batch])
    task, _ = in_float64({**recipe, "discrepancy_fraction": 0.4})  # one photo of two, one class of three
    monkeypatch.setattr("clip_more.training.task.LEAST_CLASSES", 1)
    samples_classes = task._classes(task.classifier, last=True) is not None
    assert samples_classes == (recipe.get("text_tower") != "freeze")
    weights = task.discrepancy.class_weights().double()
    classes = [(torch.tensor([c]), 1 / weights[c : c + 1], weights[c].item()) for c in range(3)]
    mean: dict[str, torch.Tensor] = {}
    for row in range(2):
        for drawn, weight, probability in classes if samples_classes else [(None, None, 1.0)]:
            share = Share(torch.tensor([row]), drawn, weight)
            monkeypatch.setattr(task, "_share", lambda *_, share=share: share)
            for name, gradient in gradients(task, [batch]).items():
                mean[name] = mean.get(name, 0) + gradient * probability / 2
    assert_same(mean, expected, tolerance=1e-7)  # the prior is in fp32


def test_economical_pass_takes_its_share_of_photos_and_prompts(monkeypatch):
    monkeypatch.setattr("clip_more.training.task.LEAST_CLASSES", 1)
    task, _ = tiny_task(discrepancy_fraction=0.34)
    calls = count_calls(task)
    losses = task(photos(9), alpha=1.0)
    assert losses["logits"].shape == (9, 3)
    assert {count for block, count in calls if block == "vision 0"} == {9, 3}
    assert {count for block, count in calls if block == "text 0"} == {3, 1}


def test_few_classes_are_all_taken():
    task, _ = tiny_task(discrepancy_fraction=0.1)
    assert task._share(task.classifier, 20, Share(), True).classes is None
    assert len(task._share(task.classifier, 20, Share(), True).images) == 2


def test_share_of_one_is_the_exact_loss():
    task, _ = tiny_task()
    assert task._share(task.classifier, 8, Share(), True) == Share()


@pytest.mark.parametrize("recipe", [{}, {"tail_towers": "text"}], ids=str)
def test_a_general_pass_without_gradient_has_none_whether_or_not_the_tower_has_a_tail(recipe):
    task, _ = tiny_task(**recipe)
    clip = task.classifier.clip
    full, general = tower_passes(clip, clip.vision, photos(4)["pixel_values"], gradient=False)
    assert full.requires_grad
    assert not general.requires_grad
