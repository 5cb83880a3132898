"""The processes of a run: what came up, compared with what was asked for."""

import os

from accelerate import Accelerator

from clip_more.config import ConfigError, TrainConfig


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of a recipe, its processes compared with those asked for.

    Raises:
        ConfigError: If another number of processes came up; launchers do this silently.
    """
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulation,
        log_with=config.trackers or None,
        project_dir=str(config.run_folder) if config.trackers else None,
    )
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
    return accelerator
