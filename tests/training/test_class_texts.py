"""How often, and on what, the text tower is run."""

import pytest
import torch

from clip_more.config import ConfigError
from clip_more.losses.sampling import Share
from clip_more.recipe import from_dict
from clip_more.training.loop import train
from tests.training.test_passes import BOTH, assert_same, count_calls, in_float64
from tests.training.tiny_task import ALPHA, gradients, photos, tiny_task

RECOMPUTED = BOTH | {"gradient_checkpointing": True}


def micro_batches(batch, count):
    return [{name: tensor[i::count] for name, tensor in batch.items()} for i in range(count)]


def accumulated(task, parts, once=True):
    task.zero_grad()
    for i, part in enumerate(parts):
        (task(part, alpha=ALPHA, last=i == len(parts) - 1 or not once)["loss"] / len(parts)).backward()
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "recipe",
    [{}, BOTH, {"tail_towers": "vision"}, {"tuning": "full"}, {"gradient_checkpointing": True}, RECOMPUTED],
    ids=str,
)
@pytest.mark.parametrize("count", [2, 4])
def test_text_run_once_a_step_gives_the_gradients_of_once_a_micro_batch(recipe, count):
    task, batch = in_float64(recipe)
    calls = count_calls(task)
    found = accumulated(task, micro_batches(batch, count))
    once = sum(block == "text 0" for block, _ in calls)
    assert_same(found, accumulated(task, micro_batches(batch, count), once=False))
    assert once == (
        2 if recipe in ({"tail_towers": "vision"}, {"tuning": "full"}) else 4
    )  # without a graph and with one, in each pass that has a tail there
    assert task.texts._collecting == []


def test_dropout_in_the_text_tower_is_drawn_for_each_micro_batch():
    task, _ = tiny_task()
    for block in task.classifier.clip.model.text_model.encoder.layers:
        block.self_attn.dropout = 0.2
    parts = micro_batches(photos(8), 2)
    assert task(parts[0], alpha=ALPHA, last=False)["loss"].requires_grad
    assert task.texts._collecting == []


@pytest.mark.parametrize("recipe", [{}, BOTH, {"tail_towers": "vision"}, {"tuning": "full"}], ids=str)
@pytest.mark.parametrize("alpha", [0.0, ALPHA])
def test_chunks_give_the_gradients_of_one_piece(recipe, alpha):
    found = []
    for chunk in (None, 2, 1):
        task, batch = in_float64({"text_chunk": chunk, **recipe})
        calls = count_calls(task)
        loss = task(batch, alpha=alpha)["loss"]
        assert max(count for block, count in calls if block == "text 0") == (chunk or 3)
        loss.backward()
        found.append({name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None})
    assert_same(found[1], found[0])
    assert_same(found[2], found[0])


@pytest.mark.parametrize("recipe", [{}, {"tail_towers": "vision"}], ids=str)
def test_every_micro_batch_reads_prompts_in_chunks_and_a_tower_without_a_tail_once(recipe):
    task, _ = tiny_task(text_chunk=1, **recipe)
    calls = count_calls(task)
    for last in (False, True):
        calls.clear()
        task(photos(4), alpha=ALPHA, last=last)
        assert [count for block, count in calls if block == "text 0"] == [1] * (3 if recipe else 6)


def test_a_step_that_was_abandoned_leaves_nothing_behind(monkeypatch):
    monkeypatch.setattr("clip_more.training.task.LEAST_CLASSES", 1)
    task, _ = tiny_task(discrepancy_fraction=0.4)
    task(photos(4), alpha=ALPHA, last=False)
    assert task.texts._collecting
    assert task._drawn
    task.train()
    assert not task.texts._collecting
    assert not task._drawn


@pytest.mark.parametrize("recipe", [{"text_chunk": 2}, {"text_refresh": 2}, {"discrepancy_fraction": 0.4}], ids=str)
def test_accumulation_takes_the_same_features_for_all_micro_batches(recipe):
    """With one share for the whole step, the gradients of once a step and of once a micro-batch agree."""
    found = []
    for once in (True, False):
        task, batch = in_float64(recipe)
        share = (
            Share(None, torch.tensor([0, 2]), torch.tensor([1.5, 2.0])) if "discrepancy_fraction" in recipe else Share()
        )
        task._share = lambda *_, share=share: share
        found.append(accumulated(task, micro_batches(batch, 2), once))
    assert_same(*found)


def test_chunks_keep_no_activations_of_the_text_tower():
    def kept(chunk):
        task, _ = tiny_task(text_chunk=chunk, tail_towers="vision")
        sizes = []
        width = task.classifier.clip.model.config.text_config.intermediate_size
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: (sizes.append(1) if t.dim() == 3 and t.shape[-1] == width else None, t)[1], lambda t: t
        ):
            task(photos(8), alpha=0.0)
        return len(sizes)

    assert kept(None) > 0
    assert kept(2) == 0


def test_sampled_classes_have_the_exact_gradient_as_their_expectation(monkeypatch):
    """One positive class, and one of two others: the mean over both shares that can be drawn."""
    from clip_more.training import task as task_module

    task, batch = in_float64({"text_classes": 2})
    batch["targets"][:, 1:] = 0
    expected = gradients(in_float64({})[0], [batch])
    assert task(batch, alpha=ALPHA)["logits"].shape == (8, 2)
    mean = {}
    for other in (1, 2):
        share = Share(None, torch.tensor([0, other]), torch.tensor([1.0, 2.0]))
        monkeypatch.setattr(task_module, "positives_and_others", lambda *_, share=share: share)
        for name, gradient in gradients(task, [batch]).items():
            mean[name] = mean.get(name, 0) + gradient / 2
    assert_same(mean, expected)


def test_features_stand_between_refreshes():
    task, batch = in_float64({"text_refresh": 3})
    calls = count_calls(task)
    exact, _ = in_float64({})
    assert_same(gradients(task, [batch]), gradients(exact, [batch]))
    assert sum(block == "text 0" for block, _ in calls) == 2
    standing = task.texts.standing.clone()
    calls.clear()
    task.zero_grad()
    losses = task(batch, alpha=ALPHA, fresh=False)
    losses["loss"].backward()
    assert not any(block.startswith("text") for block, _ in calls)
    torch.testing.assert_close(losses["loss"], exact(batch, alpha=ALPHA)["loss"])
    with_gradient = {name for name, p in task.named_parameters() if p.grad is not None}
    assert not any("text_" in name for name in with_gradient)
    assert any("vision_model" in name for name in with_gradient)
    assert torch.equal(task.texts.standing, standing)


@pytest.mark.parametrize(
    "extra",
    [{"text_refresh": 3}, {"accumulation": 2, "batch_size": 4}, {"text_classes": 2}, {"discrepancy_fraction": 0.4}],
    ids=str,
)
def test_a_run_with_it_goes_on_bit_for_bit(settings, extra, monkeypatch):
    from clip_more.training import loop

    whole = train(from_dict({**settings, **extra, "run": "whole", "checkpoint_every": 2}, "test"))
    step_losses, steps = loop.step_losses, []

    def power_cut(*arguments):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step_losses(*arguments)

    monkeypatch.setattr(loop, "step_losses", power_cut)
    recipe = from_dict({**settings, **extra, "run": "cut", "checkpoint_every": 2}, "test")
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    monkeypatch.setattr(loop, "step_losses", step_losses)
    cut = train(recipe)
    assert (cut / "merged/model.safetensors").read_bytes() == (whole / "merged/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"text_refresh": 2, "text_tower": "freeze", "tail_towers": "vision"}, "text_refresh is about a text tower"),
        ({"text_classes": 2, "text_refresh": 2}, "leave text_refresh at 1"),
        ({"text_classes": 2, "accumulation": 2}, "set accumulation: 1"),
        ({"text_classes": 2, "loss_reduction": "mean"}, "loss_reduction: sum"),
        ({"text_classes": 2, "discrepancy_scale_free": True}, "need all classes"),
        ({"text_chunk": 2, "distribution": "fsdp2"}, "gradient_checkpointing"),
        ({"text_chunk": 2, "discrepancy_gradient": "tail"}, "three whole passes"),
        ({"discrepancy_fraction": 0.5, "discrepancy_gradient": "tail"}, "three whole passes"),
        ({"discrepancy_fraction": 0.0}, "discrepancy_fraction is 0.0"),
        ({"tail_depth": 1.5}, "tail_depth is 1.5"),
    ],
)
def test_what_cannot_be_is_refused(keys, words):
    with pytest.raises(ConfigError, match=words):
        from_dict({"dataset": "digits_mlt", "model": "tiny", **keys}, "test").check()
