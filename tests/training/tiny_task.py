"""A small but whole training task: both towers of the tiny CLIP, a tail that is not zero, and L_MORE."""

from contextlib import nullcontext

import torch

from clip_more.adapters import tail_parameters
from clip_more.data.profile import ClassProfile
from clip_more.models.clip import load_clip
from clip_more.recipe import from_dict
from clip_more.training.build import build_classifier, build_task, parameter_groups
from clip_more.training.sharding import gathered
from clip_more.training.vocabulary import CompactEmbedding

ALPHA = 1.5


def tiny_task(**recipe):
    """The task of a recipe on three classes, and its config."""
    config = from_dict({"dataset": "digits_mlt", "model": "tiny", "lr": 1e-3, **recipe}, "test")
    clip = load_clip("tiny")
    profile = ClassProfile(("red", "green", "blue"), (10, 6, 2), head_min=6, tail_max=6)
    classifier = build_classifier(config, clip, profile)
    if config.text_tower == "train" and config.tuning in ("more", "full"):
        embeddings = clip.model.text_model.embeddings
        embeddings.token_embedding = CompactEmbedding(
            embeddings.token_embedding.weight.detach(), classifier.head.input_ids
        )
    task = build_task(config, classifier, profile)
    torch.manual_seed(1)
    for parameter in tail_parameters(task).values():
        torch.nn.init.normal_(parameter, std=0.05)
    return task.train(), config


def photos(count):
    """A batch of noise."""
    generator = torch.Generator().manual_seed(5)
    return {
        "pixel_values": torch.randn(count, 3, 32, 32, generator=generator),
        "targets": (torch.rand(count, 3, generator=generator) < 0.4).float(),
        "known": torch.ones(count, 3, dtype=torch.bool),
    }


def gradients(task, parts, accelerator=None):
    """Full gradients by name of one step over the micro-batches `parts`, as the training loop takes them."""
    task.zero_grad()
    for number, part in enumerate(parts, 1):
        with accelerator.accumulate(task) if accelerator is not None else nullcontext():
            loss = task(part, alpha=ALPHA, last=number == len(parts))["loss"]
            (loss / len(parts)).backward() if accelerator is None else accelerator.backward(loss)
    return gathered({n.removeprefix("module."): p.grad for n, p in task.named_parameters() if p.grad is not None})


def adamw(task, config):
    return torch.optim.AdamW(parameter_groups(config, task))


def train(task, optimizer, steps, batch):
    for _ in range(steps):
        optimizer.zero_grad()
        task(batch, alpha=ALPHA)["loss"].backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
        task.classifier.head.clamp_scale()
