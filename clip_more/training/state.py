"""Everything that a run must find again to go on as if nothing had happened."""

from __future__ import annotations

import hashlib
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from torch import Tensor

from clip_more.config import ConfigError
from clip_more.data.form import digest
from clip_more.models.heads import PromptHead
from clip_more.training.checkpoint import (
    CheckpointError,
    holds,
    list_checkpoints,
    newest_intact,
    prune,
    read_document,
    read_tensors,
    verify,
    write_checkpoint,
)
from clip_more.training.guards import on_main
from clip_more.training.sharding import full_weights, load_full_weights, load_optimizer_tensors, optimizer_tensors

if TYPE_CHECKING:
    from clip_more.training.prepared import Prepared
    from clip_more.training.run import Run
    from clip_more.training.schedule import Plan


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: Optimiser steps done; the schedules are functions of it.
        total: Steps in all.
        photos_a_step: Photos of a step, over all processes and micro-batches; step times this is the place in the
            stream of photos.
        processes: That wrote this.
        distribution: Of their work.
        batch_size: Photos of a micro-batch.
        data: Digest of the train photos and their labels.
        prompts: Digest of the prompts' tokens, or of the head's kind.
        torch: Its version.
        device: Its type.
        best: Highest mAP on the held-out part so far.
        best_step: Its step.
        skipped: Steps without an update, their loss or gradient not being finite.
        offset: Length of metrics.jsonl in bytes.
    """

    step: int
    total: int
    photos_a_step: int
    processes: int
    batch_size: int
    distribution: str
    data: str
    prompts: str
    torch: str
    device: str
    best: float | None = None
    best_step: int | None = None
    skipped: int = 0
    offset: int = 0

    @classmethod
    def at_start(cls, run: Run, prepared: Prepared, plan: Plan) -> Progress:
        """Step 0 of a run, as it was started now."""
        head = prepared.head
        tokens = head.input_ids.cpu().numpy().tobytes() if isinstance(head, PromptHead) else head.kind.encode()
        return cls(
            step=0,
            total=plan.total,
            photos_a_step=plan.photos_a_step,
            processes=run.accelerator.num_processes,
            batch_size=run.config.batch_size,
            distribution=prepared.distribution,
            data=digest(run.data.train),
            prompts=hashlib.blake2b(tokens, digest_size=16).hexdigest(),
            torch=torch.__version__,
            device=run.accelerator.device.type,
        )


class TrainingState:
    """Model, optimiser, averages, scaler, random generators and progress, to and from a checkpoint.

    Args:
        run: The run.
        prepared: Its task as it is trained.
        progress: At step 0.
    """

    def __init__(self, run: Run, prepared: Prepared, progress: Progress) -> None:
        self.run = run
        self.task = prepared.trained
        self.optimizer = prepared.optimizer
        self.average = prepared.average
        self.strength = prepared.strength
        self.progress = progress

    def bytes_to_come(self) -> int:
        """About what this run is yet to write: its checkpoints, one of them aside, and the exports."""
        config = self.run.config
        weights = sum(tensor.numel() * tensor.element_size() for tensor in self.task.state_dict().values())
        trained = sum(p.numel() * p.element_size() for p in self.task.parameters() if p.requires_grad)
        checkpoint = weights + trained * (2 if self.average is None else 3)
        there = len(list_checkpoints(self.run.checkpoints))
        best = 2 * weights if config.keep == "best" else 0
        exports = 5 * weights  # general/, tail/, merged/ for transformers and for open_clip, and one aside
        return max(1, config.keep_checkpoints + 1 - there) * checkpoint + best + exports

    def save(self) -> None:
        """Write `checkpoints/step_N`, then let go of those that are no longer kept.

        Raises:
            CheckpointError: If it cannot be written; those before it are as they were.
        """
        accelerator, progress = self.run.accelerator, self.progress
        tensors: dict[str, dict[str, Tensor]] = {"model": full_weights(self.task, everywhere=False)}
        tensors["optimizer"], groups = optimizer_tensors(self.task, self.optimizer, everywhere=False)
        if self.average is not None:
            tensors["average"] = self.average.full(everywhere=False)
        states = gather_object([_random_state()])
        documents: dict[str, Any] = {"optimizer": groups, "random": [numbers for _, numbers in states]}
        for rank, (generators, _) in enumerate(states):
            tensors[f"random_{rank}"] = generators
        if accelerator.scaler is not None:
            documents["scaler"] = accelerator.scaler.state_dict()
        if self.strength is not None:
            documents["strength"] = self.strength.state_dict()

        def write() -> None:
            progress.offset = self.run.log.offset()
            documents["progress"] = asdict(progress)
            write_checkpoint(self.run.checkpoints, f"step_{progress.step}", tensors, documents)
            # Should the newest be damaged, the one before it is used, with the best weights of its own time.
            kept = list_checkpoints(self.run.checkpoints)[-self.run.config.keep_checkpoints :]
            prune(self.run.checkpoints, self.run.config.keep_checkpoints, {_best_of(path) for path in kept})

        on_main(accelerator, write)

    def save_best(self) -> None:
        """Keep the weights as they are now as the best so far."""
        weights = {"model": full_weights(self.task, everywhere=False)}
        self.progress.best_step = self.progress.step
        name, documents = str(self._best_name), {"progress": asdict(self.progress)}
        on_main(self.run.accelerator, lambda: write_checkpoint(self.run.checkpoints, name, weights, documents))

    def load_best(self) -> None:
        """Bring the best weights back.

        Raises:
            CheckpointError: If they are damaged.
        """
        if self._best_name is None:
            raise CheckpointError(
                "nothing was judged under keep: best; --keep last --changed_recipe accept exports the last weights"
            )
        best = self.run.checkpoints / self._best_name
        try:
            on_main(self.run.accelerator, lambda: verify(best))
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}. The last weights are there: --keep last --changed_recipe accept exports them instead"
            ) from None
        load_full_weights(self.task, read_tensors(best, "model"))

    def resume(self) -> str | None:
        """Go on from the newest intact checkpoint, if there is one.

        Returns:
            None where there is none; otherwise why the rest will not be bit for bit what an uninterrupted run would
            have done, or an empty text.

        Raises:
            CheckpointError: If every checkpoint is damaged.
            ConfigError: If the data, the photos of a step or the model are others.
        """
        accelerator = self.run.accelerator
        found: list[Any] = [None]

        def search() -> None:
            found[0] = newest_intact(self.run.checkpoints, self._say_damaged)

        on_main(accelerator, search)
        if accelerator.num_processes > 1:
            broadcast_object_list(found)
        checkpoint: Path | None = found[0]
        return None if checkpoint is None else self._read(checkpoint)

    def _read(self, checkpoint: Path) -> str:
        now = self.progress
        try:
            before = Progress(**read_document(checkpoint, "progress"))
        except TypeError:
            raise ConfigError(f"{checkpoint} was written by another version of clip_more; finish with that") from None
        why = self._differences(before)
        if before.step > now.total:
            raise ConfigError(
                f"{checkpoint} is beyond the {now.total} steps of this recipe; raise max_steps or epochs, or name "
                "another run with --run NAME"
            )
        try:
            load_full_weights(self.task, read_tensors(checkpoint, "model"))
            load_optimizer_tensors(self.task, self.optimizer, read_tensors(checkpoint, "optimizer"))
        except ValueError as error:
            raise ConfigError(f"{checkpoint} does not fit this recipe's model: {error}") from None
        accelerator = self.run.accelerator
        if self.average is not None:
            if not holds(checkpoint, "average"):
                raise ConfigError(f"{checkpoint} holds no running average; it was written without keep: ema")
            self.average.load(read_tensors(checkpoint, "average"))
        if accelerator.scaler is not None and holds(checkpoint, "scaler"):
            accelerator.scaler.load_state_dict(read_document(checkpoint, "scaler"))
        if self.strength is not None and holds(checkpoint, "strength"):
            self.strength.load_state_dict(read_document(checkpoint, "strength"))
        numbers = read_document(checkpoint, "random")
        if before.processes == now.processes:
            rank = accelerator.process_index
            _set_random_state(read_tensors(checkpoint, f"random_{rank}"), numbers[rank])
        else:
            set_seed(self.run.config.seed + 1_000_003 * before.step + accelerator.process_index)
        now.step = before.step
        now.best, now.best_step, now.skipped, now.offset = before.best, before.best_step, before.skipped, before.offset
        return why

    def _differences(self, before: Progress) -> str:
        """What makes the rest of the run another than it would have been, where that is well defined.

        Raises:
            ConfigError: Where it is not, or where it must be accepted and is not.
        """
        now, accepted = self.progress, self.run.config.changed_recipe == "accept"
        if before.data != now.data and not accepted:
            raise ConfigError(
                f"the train photos of {self.run.folder} or their labels are no longer those it was trained on; bring "
                "them back, name another run with --run NAME, or go on with --changed_recipe accept"
            )
        if before.prompts != now.prompts:
            raise ConfigError(
                f"the prompts of {self.run.folder}, or its head, are no longer those it was trained on, and its "
                "checkpoint holds the weights of those alone; name another run with --run NAME"
            )
        if before.photos_a_step != now.photos_a_step:
            times, left = divmod(before.photos_a_step, now.processes * now.batch_size)
            raise ConfigError(
                f"{self.run.folder} was trained on {before.photos_a_step} photos a step (by {before.processes} "
                f"process(es)), and {now.processes} process(es) x batch_size x accumulation is {now.photos_a_step}: "
                f"steps would not mean the same photos. Make the product {before.photos_a_step}"
                f"{'' if left else f', with --accumulation {times}'}, or name another run with --run NAME"
            )
        why = []
        if changes := self.run.changes:
            why.append(f"the recipe changed ({', '.join(changes)})")
        if before.data != now.data:
            why.append("the train data changed")
        if (before.processes, before.distribution) != (now.processes, now.distribution):
            why.append(
                f"{now.processes} process(es) ({now.distribution}), before {before.processes} ({before.distribution}): "
                "the same photos, but sums in another order and other dropout masks"
            )
        elif before.batch_size != now.batch_size:
            why.append(
                f"{now.batch_size} photos a micro-batch, before {before.batch_size}: the same photos, but sums in "
                "another order and other dropout masks"
            )
        if (before.torch, before.device) != (now.torch, now.device):
            why.append(f"torch {now.torch} on {now.device}, before {before.torch} on {before.device}")
        return "; ".join(why)

    @property
    def _best_name(self) -> str | None:
        step = self.progress.best_step
        return None if step is None else f"best_step_{step}"

    def _say_damaged(self, text: str) -> None:
        print(f"note: {text}", flush=True)
        self.run.log.write("damaged", what=text)


def _best_of(checkpoint: Path) -> str:
    """Name of the best weights that a checkpoint knows of; a damaged one knows of none, and will not be used."""
    try:
        return f"best_step_{read_document(checkpoint, 'progress')['best_step']}"
    except (CheckpointError, TypeError, KeyError):
        return ""


def _random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Generators of this process: tensors, and the few numbers beside them."""
    version, words, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)  # noqa: NPY002 (libraries may use it)
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(numpy["state"]["key"].astype(np.int64)),
    }
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        tensors["accelerator"] = torch.get_device_module(device).get_rng_state()
    numbers = {
        "python": [version, gauss],
        "numpy": [int(numpy["state"]["pos"]), int(numpy["has_gauss"]), float(numpy["gauss"])],
    }
    return tensors, numbers


def _set_random_state(tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["torch"])
    version, gauss = numbers["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    position, has_gauss, gauss = numbers["numpy"]
    np.random.set_state(  # noqa: NPY002
        ("MT19937", tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, gauss)
    )
    if "accelerator" in tensors and torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
        torch.get_device_module(device).set_rng_state(tensors["accelerator"])
