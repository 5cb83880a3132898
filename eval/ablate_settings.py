"""Digest of all that a run's figures depend on but its seed: a line keeps it, so that it is known for another run's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from clip_more.config import TrainConfig

# Defaults when the evidence was begun. A key that came later and is at its default is left out of the digest, so that
# lines of before it still count; one of the table whose default changes is in it, so that they no longer do.
BEGUN: dict[str, Any] = json.loads(Path(__file__).with_name("ablate_defaults.json").read_text(encoding="utf-8"))
# Names, places, seeds, and how the work is done and kept.
NO_SETTINGS = frozenset({
    "dataset_name", "method", "run", "output_dir", "data_root", "img_ids", "train_list", "test_list", "class_file",
    "seed", "data_seed", "download", "follow_links", "workers", "worker_timeout", "process_timeout", "bootstrap",
    "save_scores", "checkpoint_every", "keep_checkpoints", "changed_recipe", "log_every", "trackers", "push_to_hub",
})  # fmt: skip


def settings_of(config: TrainConfig) -> str:
    """12 hex digits, alike for all seeds, folders and machines.

    Args:
        config: Of a run, with a word that is the same everywhere for a `model` that is a folder of the runner.
    """
    defaults = BEGUN | {key: value for key, value in _defaults(type(config)).items() if key not in BEGUN}
    plain = json.loads(json.dumps(config.to_dict()))
    idle = NO_SETTINGS | _unread(config)
    other = {key: value for key, value in plain.items() if key not in idle and value != defaults[key]}
    return hashlib.sha256(json.dumps(other, sort_keys=True).encode()).hexdigest()[:12]


def _unread(config: TrainConfig) -> set[str]:
    """Keys whose default has changed since, where nothing reads them: lines of before it still count."""
    if config.tuning != "more" and config.discrepancy_pair == "tail":
        return {"amplitude", "discrepancy_gradient"}
    if config.amplitude_ratio is not None:
        return {"amplitude"}
    return {"discrepancy_gradient"} if config.amplitude == 0 else set()


def _defaults(kind: type[TrainConfig]) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(kind())))
