from types import SimpleNamespace

import torch
from accelerate import Accelerator

from clip_more.training.prepared import prepare
from clip_more.training.schedule import Plan
from tests.training.tiny_task import photos, tiny_task


def test_a_step_that_the_scaler_skips_is_heard_of():
    """Under fp16; a fused AdamW would skip it in its own kernel, and all that asks would be told that weights moved."""
    task, config = tiny_task()
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plan = Plan.of(config, photos=10, classes=3, processes=1, validates=False)
    prepared = prepare(SimpleNamespace(config=config, accelerator=accelerator), task, plan)
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    for factor, skipped in ((torch.inf, True), (1.0, False)):
        prepared.optimizer.zero_grad()
        accelerator.backward(prepared.wrapped(photos(4), alpha=1.0)["loss"] * factor)
        prepared.optimizer.step()
        assert accelerator.optimizer_step_was_skipped is skipped
        assert skipped == all(torch.equal(p, before[name]) for name, p in task.named_parameters())
    assert accelerator.scaler.get_scale() == 512.0
