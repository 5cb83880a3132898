"""What two processes of test_processes.py do: gradients of one step under DDP and FSDP2, written to a folder."""

import copy

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from clip_more.training.average import RunningAverage
from clip_more.training.prepared import as_number
from clip_more.training.sharding import (
    full_weights,
    load_full_weights,
    load_optimizer_tensors,
    optimizer_tensors,
    shard,
    shardable_copy,
)
from tests.training.tiny_task import ALPHA, adamw, gradients, photos, tiny_task

# name: (recipe, micro-batches a step, the ways to run it)
CASES = {
    "more": ({}, 1, ("ddp", "fsdp2")),
    "more_accumulated": ({}, 2, ("ddp", "fsdp2")),
    "both_accumulated": ({"discrepancy_gradient": "both"}, 2, ("ddp", "fsdp2")),
    "upper_half": ({"tail_depth": 0.5}, 2, ("ddp", "fsdp2")),
    "chunked": ({"text_chunk": 2}, 1, ("ddp",)),
    "checkpointed": ({"gradient_checkpointing": True}, 2, ("ddp", "fsdp2")),
    "frozen_text": ({"text_tower": "freeze", "tail_towers": "vision"}, 1, ("fsdp2",)),
    "lora": ({"tuning": "lora"}, 1, ("fsdp2",)),
    "tail_alone": ({"discrepancy_gradient": "tail"}, 2, ("ddp",)),
}
PHOTOS = 8


def micro_batches(accumulation, rank=0, processes=1):
    """The parts of one global batch that a process takes: micro-batch m of rank r is part m * processes + r."""
    batch, size = photos(PHOTOS), PHOTOS // (accumulation * processes)
    places = [(m * processes + rank) * size for m in range(accumulation)]
    return [{name: tensor[place : place + size] for name, tensor in batch.items()} for place in places]


def run(folder):
    for name, (recipe, accumulation, ways) in CASES.items():
        accelerator = Accelerator(gradient_accumulation_steps=accumulation)
        assert accelerator.num_processes == 2
        task, _ = tiny_task(**recipe)
        parts = micro_batches(accumulation, accelerator.process_index, 2)
        for way in ways:
            if way == "ddp":
                trained = accelerator.prepare(copy.deepcopy(task))
            else:
                trained = shard(shardable_copy(task))
                assert all(isinstance(parameter, DTensor) for parameter in trained.parameters())
                assert sum(isinstance(module, FSDPModule) for module in trained.modules()) > 2
            found = gradients(trained, parts, accelerator)
            if accelerator.is_main_process:
                save_file(found, folder / f"{name}.{way}.safetensors")
    three_steps(folder)


def three_steps(folder):
    """Weights, averages, optimiser state and gradient norms of three steps in shards, through a save and a load."""
    accelerator = Accelerator(gradient_accumulation_steps=1)
    parts = micro_batches(1, accelerator.process_index, 2)
    task, config = tiny_task()
    trained = shard(shardable_copy(task))
    optimizer, average = accelerator.prepare(adamw(trained, config)), RunningAverage(trained, 0.9)
    norms = []
    for step in range(1, 4):
        if step == 3:
            weights, averages = full_weights(trained), average.full()
            state = {name: tensor.clone() for name, tensor in optimizer_tensors(trained, optimizer)[0].items()}
            trained = shard(shardable_copy(tiny_task()[0]))
            optimizer, average = adamw(trained, config), RunningAverage(trained, 0.9)
            load_full_weights(trained, weights)
            load_optimizer_tensors(trained, optimizer, state)
            average.load(averages)
            assert all(torch.equal(state[name], t) for name, t in optimizer_tensors(trained, optimizer)[0].items())
        optimizer.zero_grad()
        accelerator.backward(trained(parts[0], alpha=ALPHA)["loss"])
        norms.append(as_number(accelerator.clip_grad_norm_(trained.parameters(), 1.0)))
        optimizer.step()
        trained.classifier.head.clamp_scale()
        average.update(trained, step)
    weights, averages = full_weights(trained), average.full()
    state = optimizer_tensors(trained, optimizer, everywhere=False)[0]
    assert bool(state) == accelerator.is_main_process
    if accelerator.is_main_process:
        save_file(weights, folder / "weights.safetensors")
        save_file(averages, folder / "averages.safetensors")
        save_file({**state, "norms": torch.tensor(norms)}, folder / "optimizer.safetensors")
