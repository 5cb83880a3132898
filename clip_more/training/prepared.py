"""The task as it is trained: on one process, copied to several, or sharded over them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from clip_more.config import ConfigError
from clip_more.models.feature_heads import FeatureHead
from clip_more.models.heads import PromptHead
from clip_more.training.anchor import pull_to_start, spread_pull
from clip_more.training.average import RunningAverage, batch_statistics
from clip_more.training.build import make_optimiser
from clip_more.training.processes import distribution
from clip_more.training.run import Run
from clip_more.training.schedule import Plan
from clip_more.training.sharding import full_weights, is_sharded, load_full_weights, shard, shardable_copy
from clip_more.training.strength import GradientRatio
from clip_more.training.task import LongTailTask


@dataclass
class Prepared:
    """A task with all that training needs around it.

    Attributes:
        task: Plain: what is judged and exported.
        trained: The same object; where the model is sharded, a copy of it whose weights are brought back for judging.
        wrapped: What the loop calls: `trained`, or the wrapper that averages its gradients.
        optimizer: As Accelerate prepared it.
        average: Running average of the weights, if one is kept.
        strength: What weighs L_MORE by its gradient, where the recipe says so.
        distribution: `one`, `ddp`, `fsdp2` or `deepspeed`.
        device: Of this process.
    """

    task: LongTailTask
    trained: LongTailTask
    wrapped: nn.Module
    optimizer: Any
    average: RunningAverage | None
    strength: GradientRatio | None
    distribution: str
    device: torch.device

    @property
    def resumable(self) -> bool:
        """DeepSpeed keeps the optimiser's state in parts and under names of its own."""
        return self.distribution != "deepspeed"

    @property
    def head(self) -> PromptHead | FeatureHead:
        """As trained."""
        return cast(PromptHead | FeatureHead, self.trained.classifier.get_submodule("head"))

    def after_step(self, step: int, *, moved: bool) -> None:
        """What follows optimiser step `step`: the scale's bound, and the running average where weights moved."""
        self.head.clamp_scale()
        if self.average is not None and moved:
            self.average.update(self.trained, step)

    @torch.no_grad()
    def share_statistics(self) -> None:
        """Give all processes the batch statistics of the first, as checkpoints and exports have them.

        Each gathers its own from its photos, and would judge by them.
        """
        if PartialState().num_processes > 1:
            for _, statistic in batch_statistics(self.trained):
                broadcast(statistic)

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Inside, `task` holds the weights to judge now: the running average, where one is kept."""
        with nullcontext() if self.average is None else self.average.applied(self.trained):
            self.share_statistics()
            self._bring_home()
            try:
                yield
            finally:
                if self.trained is not self.task:
                    self.task.to("cpu")

    def finish(self) -> None:
        """Leave the weights that the recipe keeps in `task`."""
        if self.average is not None:
            self.average.swap(self.trained)
        self.share_statistics()
        self._bring_home()

    def _bring_home(self) -> None:
        if self.trained is not self.task:
            load_full_weights(self.task, full_weights(self.trained))
            self.task.to(self.device)


def prepare(run: Run, task: LongTailTask, plan: Plan) -> Prepared:
    """Make the optimiser, and wrap or shard the task as the processes that came up share the work."""
    accelerator = run.accelerator
    kind = distribution(run.config, accelerator)
    trained = shardable_copy(task) if kind == "fsdp2" else task
    by_ourselves = kind == "fsdp2" and accelerator.device.type == "cpu"
    if by_ourselves:
        shard(trained)
    # Under fp16 a fused optimiser skips steps by itself, and nobody hears of it; and torch has no fused SGD for shards.
    fused = accelerator.scaler is None and not (kind == "fsdp2" and run.config.optimizer == "sgd")
    optimizer: Any = make_optimiser(run.config, trained, fused=fused)
    wrapped: nn.Module = trained
    if kind == "deepspeed":  # what Accelerate would take from a loader
        accelerator.state.deepspeed_plugin.deepspeed_config |= {
            "train_micro_batch_size_per_gpu": run.config.batch_size,
            "gradient_accumulation_steps": run.config.accumulation,
            "gradient_clipping": run.config.clip_norm,
        }
    if by_ourselves:
        optimizer = accelerator.prepare(optimizer)
    else:
        wrapped, optimizer = accelerator.prepare(trained, optimizer)
    if kind == "fsdp2":
        if not is_sharded(trained):
            raise ConfigError("the recipe asks for shards (fsdp2), but the model is whole on every process")
        task.to("cpu")  # until it is judged
    if run.config.weight_decay_to == "start":  # before a checkpoint is read
        spread_pull(optimizer.optimizer, plan)
        pull_to_start(optimizer.optimizer)
    average = RunningAverage(trained, run.config.ema_decay) if run.config.keep == "ema" else None
    strength = None
    if run.config.amplitude_ratio is not None and trained.discrepancy is not None:
        strength = GradientRatio.of(trained, run.config.amplitude_ratio)
    return Prepared(task, trained, wrapped, optimizer, average, strength, kind, accelerator.device)


def as_number(value: Any) -> float:
    """A tensor of one element, sharded or not, as a float."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.item() if isinstance(value, Tensor) else float(value)
