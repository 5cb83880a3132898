"""Weight decay towards the weights that training started from (L2-SP, arXiv 1802.01483)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from clip_more.config import ConfigError

if TYPE_CHECKING:
    from clip_more.training.schedule import Plan


def check_pull(plan: Plan) -> None:
    """Refuse a `weight_decay_total` of which a step would go beyond the start.

    Raises:
        ConfigError: Naming it, and what the run can hold.
    """
    total = plan.config.weight_decay_total
    if total is not None and total >= plan.peak_steps:
        raise ConfigError(
            f"weight_decay_total is {total:g}, and the {plan.total} steps of this run are worth {plan.peak_steps:.3g} "
            "at the peak learning rate; it must be below that"
        )


def spread_pull(optimizer: torch.optim.Optimizer, plan: Plan) -> None:
    """Set the `pull` of an optimiser's groups such that lr * pull adds up to the recipe's `weight_decay_total`."""
    total = plan.config.weight_decay_total
    if total is None:
        return
    for group in optimizer.param_groups:
        if "pull" in group and group["peak_lr"]:
            group["pull"] = total / (group["peak_lr"] * plan.peak_steps)


def pull_to_start(optimizer: torch.optim.Optimizer) -> None:
    """Before each step of an optimiser `p += lr * pull * (p_start - p)`, in its groups that have a `pull`.

    p_start is p as it is now, of which a copy is kept. Decoupled, as AdamW's decay, which it is where p_start is 0. The
    optimiser calls it: a step that a scaler skips pulls nothing, and neither does one on parameters without a gradient,
    which AdamW leaves alone too. Parameters may be sharded.

    Args:
        optimizer: Of torch, with the parameters that it will move.
    """
    starts = {
        parameter: parameter.detach().clone()
        for group in optimizer.param_groups
        if group.get("pull")
        for parameter in group["params"]
    }

    @torch.no_grad()
    def pull(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            moved = [p for p in group["params"] if p in starts and p.grad is not None]
            if moved:
                torch._foreach_lerp_(moved, [starts[p] for p in moved], group["lr"] * group["pull"])

    optimizer.register_step_pre_hook(pull)
