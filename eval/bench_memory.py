"""Section ``memory``: peak memory of one training step, optimiser included, of three contenders of section ``step``.

16 photos a step: with more, activations outweigh all that sets the contenders apart.

Every figure comes from a process of its own and is what a step takes above the process's imports: resident memory on a
CPU, what torch allocates on a GPU. The first step makes AdamW's moments; one after it is measured. glibc's malloc is
held to its initial threshold, or it would keep freed blocks by their history: a fifth to a third more than there are
tensors, and another share for each contender.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.tuners.lora.layer import LoraLayer

from bench_batch import clip, synthetic_batch
from bench_contenders import contender, stepper
from bench_memory_arithmetic import count, peaks
from bench_metrics_tasks import peak_memory
from bench_rows import Options, Row, compared
from clip_more.adapters import TailCheckpointContext

if TYPE_CHECKING:
    from peft import PeftModel

PHOTOS = 16
CONTENDERS = ("plain", "peft", "exact")
PEERS = {"plain": None, "peft": 1.0}  # with their goals
FORMS = ("", "_checkpointed")
# Memory hardly varies between processes: more rounds would show the same.
ROUNDS = 2


def memory(options: Options) -> Iterator[Row]:
    """Rows of the section: without and with activation checkpointing."""
    for dtype in options.dtypes:
        if dtype == "fp32":
            print(f"  {counted(options)}")
        mib: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for turn in range(1 if options.quick else min(options.repetitions, ROUNDS)):
            for name in CONTENDERS[turn:] + CONTENDERS[:turn]:
                mib[name].append(in_own_process(name, dtype, options))
        for form in FORMS:
            for peer, goal in PEERS.items():
                ours, theirs = ([figures[form] for figures in mib[name]] for name in ("exact", peer))
                yield compared(f"memory.exact_vs_{peer}{form}", dtype, ours, theirs, goal=goal, unit="MiB")


def counted(options: Options) -> str:
    """What the figures should be by arithmetic, in words."""
    with torch.device("meta"):
        tensors = count(clip(options.quick), synthetic_batch("meta", PHOTOS))
    words = (f"{name} {mib:,.0f} ({checkpointed:,.0f})" for name, (mib, checkpointed) in peaks(tensors).items())
    anew = f"W + BA, made anew layer by layer, would be {tensors.full_weights:,.0f}"
    return f"MiB of tensors at the peak (checkpointed): {', '.join(words)}; {anew}"


def in_own_process(name: str, dtype: str, options: Options) -> dict[str, float]:
    """MiB of one contender by form, from a fresh process.

    Raises:
        RuntimeError: The process failed; with its last line.
    """
    command = [sys.executable, __file__, name, dtype, options.device, str(torch.get_num_threads())]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 * 1024)}
    done = subprocess.run(
        [*command, *(["--quick"] if options.quick else [])], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        words = done.stderr.strip().split("\n")[-1] or "no word, as of a process that the system ends for its memory"
        raise RuntimeError(f"The process of {name} ended with code {done.returncode}: {words}")
    return dict(zip(FORMS, map(float, done.stdout.split()), strict=True))


def main() -> None:
    """Print the MiB of one contender, without and with activation checkpointing."""
    parser = argparse.ArgumentParser(description="One contender of section memory; benchmark.py starts it.")
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("dtype", choices=("fp32", "bf16"))
    parser.add_argument("device", choices=("cpu", "cuda"))
    parser.add_argument("threads", type=int)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = step_peaks(arguments.name, arguments.dtype, arguments.device, arguments.quick)
    print(*(figures[form] for form in FORMS))


def step_peaks(name: str, dtype: str, device: str, quick: bool) -> dict[str, float]:
    """MiB of a step by form; the frugal one first, where only the highest of a process's whole life can be read."""
    from transformers import CLIPModel  # noqa: F401 - imports are no part of a step

    batch = synthetic_batch(device, PHOTOS)
    before = highest(gc.collect, device)
    one = contender(name, clip(quick, device), batch)
    step = stepper(one, device, dtype)
    model: Any = one.model.get_submodule("classifier.clip.model") if name == "exact" else one.model
    checkpoint_activations(name, model)
    step()
    checkpointed = highest(step, device) - before
    model.gradient_checkpointing_disable()
    return {"": highest(step, device) - before, "_checkpointed": checkpointed}


def checkpoint_activations(name: str, model: Any) -> None:
    """transformers' own switch, with what two passes need besides.

    Plain fine-tuning takes it as it is. A layer of the general pass must also be recomputed without its low-rank part:
    ours has a context for that. Stock PEFT has none, and under `disable_adapter` alone recomputation raises an error,
    or gives wrong gradients where it is reentrant; it is given the same kind of context here, to be measured at all.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if name == "exact":
        options["context_fn"] = TailCheckpointContext(model)
    elif name == "peft":
        options["context_fn"] = partial(adapter_as_it_stood, model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def adapter_as_it_stood(model: PeftModel) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for the forward pass and for its recomputation."""
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    return nullcontext(), model.disable_adapter() if layer.disable_adapters else nullcontext()


def highest(call: Callable[[], object], device: str) -> float:
    """MiB that were held at most while `call` ran."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() / 2**20
    with suppress(OSError):  # Linux sets the mark back to what is resident now; elsewhere it stays
        Path("/proc/self/clear_refs").write_text("5")
    call()
    return peak_memory()


if __name__ == "__main__":
    main()
