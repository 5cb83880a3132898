"""The processes of a run: what came up, compared with what was asked for."""

import os
from datetime import timedelta
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs, LoggerType

from clip_more.config import ConfigError, TrainConfig


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of a recipe, its processes compared with those asked for.

    Raises:
        ConfigError: If another number of processes, or another kind of distribution, came up; launchers do this
            silently.
    """
    if unknown := [name for name in config.trackers if name not in {str(kind) for kind in LoggerType}]:
        raise ConfigError(f"trackers: {unknown[0]} is none of Accelerate's: {', '.join(map(str, LoggerType))}")
    handlers: list[Any] = [InitProcessGroupKwargs(timeout=timedelta(seconds=config.process_timeout))]
    if config.text_refresh > 1:  # between two refreshes the text tower has no gradients
        handlers.append(DistributedDataParallelKwargs(find_unused_parameters=True))
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulation,
        log_with=config.trackers or None,
        project_dir=str(config.run_folder) if config.trackers else None,
        kwargs_handlers=handlers,
    )
    if absent := set(config.trackers) - {str(getattr(tracker, "value", tracker)) for tracker in accelerator.log_with}:
        raise ConfigError(f"trackers: {', '.join(sorted(absent))} is not installed here; install it, or leave it out")
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise ConfigError(
            f"the launcher started {launched} processes, but Accelerate sees {accelerator.num_processes} "
            f"({accelerator.distributed_type}): each would train alone. On CPUs put ACCELERATE_USE_CPU=true in front"
        )
    if config.processes is not None and config.processes != accelerator.num_processes:
        raise ConfigError(
            f"the recipe asks for {config.processes} processes, but {accelerator.num_processes} came up; start it with "
            f"`accelerate launch --num_processes {config.processes} -m clip_more.cli train ...` "
            "(on CPUs: ACCELERATE_USE_CPU=true in front, and --multi_gpu)"
        )
    came_up = distribution(config, accelerator)
    if config.distribution not in (None, came_up):
        raise ConfigError(
            f"the recipe asks for distribution {config.distribution}, but {came_up} came up "
            f"({accelerator.num_processes} processes on {accelerator.device.type}); recipes/README.md shows how each "
            "is started"
        )
    if config.amplitude_ratio is not None and came_up != "one":
        raise ConfigError(
            f"amplitude_ratio measures gradients on one process, and {accelerator.num_processes} came up ({came_up}); "
            "start one, or set amplitude instead"
        )
    if config.weight_decay_to == "start" and came_up == "deepspeed":
        raise ConfigError("weight_decay_to: start is not for DeepSpeed, which has weights of its own; use fsdp2")
    return accelerator


def distribution(config: TrainConfig, accelerator: Accelerator) -> str:
    """How the processes that came up share the work: `one`, `ddp`, `fsdp2` or `deepspeed`.

    Raises:
        ConfigError: Under FSDP version 1.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.NO:
        return "one"
    if kind == DistributedType.DEEPSPEED:
        return "deepspeed"
    if kind == DistributedType.FSDP:
        if not accelerator.is_fsdp2:
            raise ConfigError("FSDP version 1 came up; set fsdp_version: 2, as recipes/accelerate/fsdp2.yaml does")
        return "fsdp2"
    # On CPUs Accelerate knows no FSDP: the trainer shards by itself.
    return "fsdp2" if config.distribution == "fsdp2" and accelerator.device.type == "cpu" else "ddp"
