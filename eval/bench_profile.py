"""``--profile``: one step of exact MORE under torch's profiler, its most expensive operations in a file."""

from __future__ import annotations

import os
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from bench_batch import clip, synthetic_batch
from bench_contenders import contender, stepper
from bench_rows import Options
from bench_step import photos

OPERATIONS = 25


def profile_step(options: Options, file: Path) -> None:
    """Write the table of the second step of `exact`, in the first of the dtypes asked for."""
    batch = synthetic_batch(options.device, photos(options))
    exact = contender("exact", clip(options.quick, options.device), batch)
    step = stepper(exact, options.device, options.dtypes[0])
    step()  # makes AdamW's moments
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if options.device == "cuda" else [])]
    with profile(activities=activities, record_shapes=True) as found:
        step()
    operations = found.key_averages(group_by_input_shape=True)
    table = operations.table(
        sort_by=f"self_{options.device}_time_total",
        row_limit=OPERATIONS,
        max_name_column_width=50,
        max_shapes_column_width=60,
    )
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    aside.write_text(f"exact, {options.dtypes[0]}, {photos(options)} photos, one step\n{table}\n")
    aside.replace(file)
