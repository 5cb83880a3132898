"""A task whose weights are sharded over processes (FSDP2), and its weights and optimiser state in full again.

All functions that return full tensors are collective where the task is sharded: every process makes the same calls in
the same order.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Module = TypeVar("Module", bound=nn.Module)


def shardable_copy(task: Module) -> Module:
    """A copy that `fully_shard` takes, whoever calls it: frozen scalars (CLIP's own logit_scale) are buffers in it.

    Keys and shapes of its state dict are those of `task`.

    Raises:
        ValueError: If the task cannot be trained in shards.
    """
    copied = copy.deepcopy(task)
    _make_shardable(copied)
    return copied


def shard(task: Module, mesh: DeviceMesh | None = None) -> Module:
    """Shard every CLIP encoder layer, then what remains, over all processes, in place.

    Precision is left to autocast. The layers gather their weights in each of MORE's two passes, and again where one
    goes back.

    Args:
        task: On its device; on CPUs the process group is gloo.
        mesh: One-dimensional; all processes without it.

    Returns:
        The same `task`.

    Raises:
        ValueError: If the task cannot be trained in shards.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers.models.clip.modeling_clip import CLIPEncoderLayer

    _make_shardable(task)
    device = next(task.parameters()).device.type
    mesh = mesh or init_device_mesh(device, (torch.distributed.get_world_size(),))
    for module in task.modules():
        if isinstance(module, CLIPEncoderLayer):
            fully_shard(module, mesh=mesh)
    fully_shard(task, mesh=mesh)
    return task


def is_sharded(task: nn.Module) -> bool:
    """Whether any parameter of the task is spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in task.parameters())


@torch.no_grad()
def full_weights(task: nn.Module, everywhere: bool = True) -> dict[str, Tensor]:
    """Plain CPU tensors by state-dict name; those of a task on the CPU that is not sharded share its memory.

    Args:
        task: Plain, under DDP, or sharded.
        everywhere: On every process; otherwise on rank 0 alone, and the others get an empty dict.
    """
    return gathered(_unwrapped(task).state_dict(), everywhere)


@torch.no_grad()
def load_full_weights(task: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put full weights into a task, sharded or not; each process takes its own part, nothing is sent.

    Raises:
        ValueError: If keys or shapes are not the task's; the task is left as it is then.
    """
    scatter(weights, _unwrapped(task).state_dict())


@torch.no_grad()
def gathered(tensors: Mapping[str, Tensor], everywhere: bool = True) -> dict[str, Tensor]:
    """Full CPU tensors of tensors that may be sharded; with `everywhere` false on rank 0 alone."""
    keep = everywhere or not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    full = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            tensor = tensor.full_tensor()  # one at a time: the whole model may not fit on the device
        if keep:
            full[name] = tensor.detach().cpu()
    return full


@torch.no_grad()
def scatter(full: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy full tensors into those of the same names, which may be sharded.

    Raises:
        ValueError: If names or shapes differ; nothing is copied then.
    """
    _check_names(tensors.keys(), full.keys())
    for name, tensor in tensors.items():
        _check_shape(name, tensor, full[name])
    for name, tensor in tensors.items():
        tensor.copy_(share_of(tensor, full[name]))


@torch.no_grad()
def optimizer_tensors(
    task: nn.Module, optimizer: Any, everywhere: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's state by parameter name, and the options of its groups.

    Args:
        task: Whose parameters the optimiser moves.
        optimizer: Of torch, or as Accelerate prepared it.
        everywhere: On every process; otherwise the tensors are on rank 0 alone, and the others get an empty dict.

    Returns:
        Full CPU tensors ``<slot>.<parameter>``, such as ``exp_avg.classifier.head.bias``, and ``step.<parameter>``;
        and learning rate, decay and so on by name of the group, for a reader: loading takes them from the recipe.
    """
    names = _names(task)
    states: dict[str, Tensor] = {}
    for parameter, state in optimizer.state.items():
        for slot, value in state.items():
            if value is not None:
                states[f"{slot}.{names[id(parameter)]}"] = torch.as_tensor(value)
    groups = {
        str(group.get("name", i)): {k: v for k, v in group.items() if k not in ("params", "name")}
        for i, group in enumerate(optimizer.param_groups)
    }
    return gathered(states, everywhere), groups


@torch.no_grad()
def load_optimizer_tensors(task: nn.Module, optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`, whatever the number of processes that wrote them; nothing is sent.

    Raises:
        ValueError: If they are not of the optimiser's parameters; the optimiser is left as it is then.
    """
    names = _names(task)
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        slot, _, name = key.partition(".")
        found.setdefault(name, {})[slot] = tensor
    kept = {slot for own in found.values() for slot in own}
    is_sgd = isinstance(getattr(optimizer, "optimizer", optimizer), torch.optim.SGD)
    if kept and ("momentum_buffer" in kept) != is_sgd:
        raise ValueError(
            f"the optimiser's state has {_few(sorted(kept))}, so another `optimizer` wrote it; go on with that one"
        )
    held = optimizer.state_dict()
    numbered = {
        names[id(parameter)]: (number, parameter)
        for group, packed in zip(optimizer.param_groups, held["param_groups"], strict=True)
        for parameter, number in zip(group["params"], packed["params"], strict=True)
    }
    if foreign := sorted(found.keys() - numbered.keys()):
        raise ValueError(f"the optimiser's state is of {_few(foreign)}, which this recipe does not train")
    state: dict[int, dict[str, Tensor]] = {}
    for name, slots in found.items():
        number, parameter = numbered[name]
        for slot, tensor in slots.items():
            if tensor.ndim:  # not a step count
                _check_shape(f"{slot} of {name}", parameter, tensor)
        # Clones: the tensors may be a file's pages, which a checkpoint that is let go takes along.
        state[number] = {slot: share_of(parameter, t).clone() if t.ndim else t.clone() for slot, t in slots.items()}
    optimizer.load_state_dict({**held, "state": state})


def _make_shardable(task: nn.Module) -> None:
    if getattr(task, "tail_only", False):
        raise ValueError(
            "discrepancy_gradient: tail detaches weights that FSDP2 gathers anew, so its gradients would be wrong "
            "without a word; choose another discrepancy_gradient, or distribution: ddp"
        )
    for path, module in task.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim:
                continue
            if parameter.requires_grad:
                raise ValueError(f"{path}.{name} is a trained scalar, which FSDP2 cannot shard; give it shape (1,)")
            delattr(module, name)
            module.register_buffer(name, parameter.detach())


def share_of(model: Tensor, full: Tensor) -> Tensor:
    """`full` on the device of `model`, and this process's part of it where `model` is sharded."""
    full = full.to(model.device)
    if isinstance(model, DTensor):
        return distribute_tensor(full, model.device_mesh, model.placements, src_data_rank=None)
    return full


def _unwrapped(task: nn.Module) -> nn.Module:
    return task.module if isinstance(task, DistributedDataParallel) else task


def _names(task: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in _unwrapped(task).named_parameters()}


def _check_names(wanted: Any, given: Any) -> None:
    lacking, foreign = sorted(wanted - given), sorted(given - wanted)
    parts = ([f"lack {_few(lacking)}"] if lacking else []) + ([f"hold {_few(foreign)} besides"] if foreign else [])
    if parts:
        raise ValueError(f"the weights {' and '.join(parts)}")


def _check_shape(name: str, wanted: Tensor, given: Tensor) -> None:
    if wanted.shape != given.shape:
        raise ValueError(f"{name} has shape {tuple(given.shape)}, and the model's is {tuple(wanted.shape)}")


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
