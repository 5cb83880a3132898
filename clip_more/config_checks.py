"""What a recipe may not say: keys that do not agree with each other, numbers out of their range.

Every function raises `ConfigError` on the first such key. What depends on the data or the model is checked where these
are read; pairs of methods that do not go together are in `training/combinations.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from clip_more.config import DATASETS, ConfigError, TrainConfig


def check_data(config: TrainConfig) -> None:
    """Keys about the photos, and what is selected on them."""
    if not config.dataset:
        raise ConfigError(f"dataset is not set; choose one of {', '.join(DATASETS)}")
    if config.dataset == "hub":
        if not config.hub_dataset:
            raise ConfigError("hub_dataset is not set; give the id of a Hub data set, or the folder of a local one")
    elif config.dataset not in ("digits_mlt", "digits_lt") and not config.data_root:
        raise ConfigError("data_root is not set; say where the photos are with --data_root")
    if config.dataset == "lists" and not (config.train_list and config.test_list):
        raise ConfigError("dataset lists needs train_list and test_list")
    if config.dataset == "lists" and not config.class_file and config.task == "multi_label":
        raise ConfigError("dataset lists needs class_file (only with task: single_label may folders name the classes)")
    if config.img_ids and config.dataset not in ("voc", "coco", "prepared"):
        raise ConfigError(f"img_ids keeps photos of voc or coco, not of {config.dataset}")
    if config.task == "single_label" and config.missing_labels:
        raise ConfigError("missing_labels hides labels of multi-label photos; leave it out with task: single_label")
    for key in ("classes", "templates", "tail_targets"):
        if getattr(config, key) == []:
            raise ConfigError(f"{key} is an empty list; leave it out, or name some")
    if config.tail_max > config.head_min:
        raise ConfigError(f"tail_max ({config.tail_max}) is above head_min ({config.head_min})")
    held_out = (config.val_fraction > 0 and not config.refit) or config.legacy_select_on_test
    for key, wanted in (("keep: best", config.keep == "best"), ("eval_every", config.eval_every > 0)):
        if wanted and not held_out:
            raise ConfigError(f"{key} evaluates on a held-out part of train; set val_fraction (0.2, say), no refit")
    if config.keep == "best" and config.eval_every == 0:
        raise ConfigError("keep: best needs eval_every")


def check_method(config: TrainConfig) -> None:
    """Keys about what is trained."""
    low_rank = config.tuning in ("more", "lora")
    prompts = config.head == "prompts"
    if low_rank and prompts and config.text_tower == "freeze" and config.tail_towers != "vision":
        raise ConfigError("text_tower: freeze leaves no text layer to train; set tail_towers: vision")
    if prompts and config.head_init != "random":
        raise ConfigError("head_init is about heads without prompts; leave it out, or set head: linear")
    if config.nesterov and not config.momentum:
        raise ConfigError("nesterov needs momentum; set momentum: 0.9")
    _check_text(config)
    if config.weight_decay_to == "start" and config.distribution == "deepspeed":
        raise ConfigError("weight_decay_to: start is not for DeepSpeed, which has weights of its own; use fsdp2")
    if config.weight_decay_to == "start" and config.decay_all:
        raise ConfigError("decay_all decays the head to zero, which has no start to be pulled to; leave it out")
    if config.weight_decay_total is not None and config.weight_decay_to == "zero":
        raise ConfigError("weight_decay_total is about weight_decay_to: start; set that, or leave it out")
    if config.weight_decay_to == "start" and config.weight_decay_total is None and config.lr * config.weight_decay >= 1:
        raise ConfigError(
            f"weight_decay_to: start moves weights by lr * weight_decay of the way, and that is "
            f"{config.lr * config.weight_decay:g}; it must be below 1"
        )
    if config.tuning != "more" and config.discrepancy_pair == "tail":
        return
    if config.amplitude_ratio is not None:
        _check_ratio(config)
    if config.discrepancy_gradient == "tail" and config.gradient_checkpointing:
        raise ConfigError("discrepancy_gradient: tail cannot be recomputed; set gradient_checkpointing: false")
    if config.discrepancy_gradient == "tail" and config.distribution == "fsdp2":
        raise ConfigError("discrepancy_gradient: tail needs whole weights on each process; use distribution: ddp")
    if config.discrepancy_gradient == "tail" and config.discrepancy_fraction < 1:
        raise ConfigError("discrepancy_gradient: tail runs three whole passes; leave discrepancy_fraction at 1")
    if config.discrepancy_centred and config.discrepancy_distance == "kl":
        raise ConfigError("discrepancy_centred needs discrepancy_distance: l2")


def _check_ratio(config: TrainConfig) -> None:
    if config.processes not in (None, 1) or config.distribution not in (None, "one"):
        raise ConfigError("amplitude_ratio measures gradients on one process; use one, or set amplitude instead")
    if config.mixed_precision == "fp16":
        raise ConfigError("amplitude_ratio measures gradients that fp16 cannot hold; set mixed_precision: bf16")
    if config.text_refresh > 1:
        raise ConfigError("amplitude_ratio needs the gradients of both towers at once; leave text_refresh at 1")
    if config.accumulation > 1 and config.tail_towers == "text" and config.head == "prompts":
        raise ConfigError(
            "amplitude_ratio measures on the first micro-batch, and the text tower learns on the last; set "
            "accumulation: 1, or tail_towers: both"
        )


def _check_text(config: TrainConfig) -> None:
    options = {
        "text_classes": config.text_classes is not None,
        "text_refresh": config.text_refresh > 1,
        "text_chunk": config.text_chunk is not None,
    }
    given = [key for key, is_given in options.items() if is_given]
    if given and (config.text_tower == "freeze" or config.tuning in ("head", "lora") or config.head != "prompts"):
        raise ConfigError(f"{given[0]} is about a text tower that is trained; leave it out, or train it (tuning: full)")
    if given and config.tuning == "more" and config.discrepancy_gradient == "tail":
        raise ConfigError(f"discrepancy_gradient: tail runs three whole passes; leave {given[0]} out")
    if options["text_chunk"] and config.distribution in ("fsdp2", "deepspeed"):
        raise ConfigError("text_chunk makes chunks again, which shards do not; set gradient_checkpointing instead")
    if not options["text_classes"]:
        return
    if options["text_refresh"]:
        raise ConfigError("text_classes draws other classes in each step; leave text_refresh at 1")
    if config.accumulation > 1:
        raise ConfigError("text_classes draws the classes of a batch; set accumulation: 1 and a larger batch_size")
    if config.loss_reduction == "mean":
        raise ConfigError("text_classes keeps sums over classes unbiased, not means; set loss_reduction: sum")
    compares = config.tuning == "more" or config.discrepancy_pair == "dropout"
    if compares and (config.discrepancy_centred or config.discrepancy_scale_free):
        raise ConfigError("discrepancy_centred and discrepancy_scale_free need all classes; leave text_classes out")


def check_numbers(config: TrainConfig) -> None:
    """Each number by itself."""
    bounds: dict[str, tuple[str, Callable[[float], bool]]] = {
        "val_fraction": ("in [0, 1)", lambda v: 0 <= v < 1),
        "warmup": ("in [0, 1)", lambda v: 0 <= v < 1),
        "dropout": ("in [0, 1)", lambda v: 0 <= v < 1),
        "ema_decay": ("in [0, 1)", lambda v: 0 <= v < 1),
        "rho": ("in (0, 1]", lambda v: 0 < v <= 1),
        "tail_depth": ("in (0, 1]", lambda v: 0 < v <= 1),
        "discrepancy_fraction": ("in (0, 1]", lambda v: 0 < v <= 1),
        "min_crop": ("in (0, 1]", lambda v: 0 < v <= 1),
        "epochs": ("above 0", lambda v: v > 0),
        "imbalance": ("1 or more", lambda v: v >= 1),
        "test_fraction": ("in (0, 1)", lambda v: 0 < v < 1),
        "missing_labels": ("in [0, 1)", lambda v: 0 <= v < 1),
        "asl_margin": ("in [0, 1)", lambda v: 0 <= v < 1),
        "cb_beta": ("in [0, 1)", lambda v: 0 <= v < 1),
        "momentum": ("in [0, 1)", lambda v: 0 <= v < 1),
        "focal_alpha": ("in [0, 1]", lambda v: 0 <= v <= 1),
        "ldam_defer": ("in [0, 1]", lambda v: 0 <= v <= 1),
        "db_negative_scale": ("above 0", lambda v: v > 0),
        "ldam_scale": ("above 0", lambda v: v > 0),
        "amplitude_ratio": ("above 0", lambda v: v > 0),
    }
    bounds |= dict.fromkeys(
        (
            "batch_size",
            "accumulation",
            "log_every",
            "max_steps",
            "image_size",
            "processes",
            "stream_limit",
            "long_tail_largest",
            "keep_checkpoints",
            "sampler_per_class",
            "text_classes",
            "text_refresh",
            "text_chunk",
            "process_timeout",
        ),
        ("1 or more", lambda v: v >= 1),
    )
    bounds |= dict.fromkeys(
        ("lr", "lr_tail", "lr_head", "weight_decay", "weight_decay_total", "weight_decay_tail", "weight_decay_head",
         "clip_norm", "amplitude", "eval_every", "checkpoint_every", "workers", "worker_timeout", "max_skipped",
         "sampler_unlabelled", "seed", "data_seed", "bootstrap", "tail_max", "head_min", "asl_gamma_positive",
         "asl_gamma_negative", "focal_gamma", "db_alpha", "db_beta", "db_mu", "db_init_bias", "logit_tau",
         "ldam_margin", "feature_regularisation"),
        ("0 or more", lambda v: v >= 0),
    )  # fmt: skip
    for name, number in config.to_dict().items():
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError(f"{name} is {number}; it must be finite")
    for name, (text, holds) in bounds.items():
        value = getattr(config, name)
        if value is not None and not holds(value):
            raise ConfigError(f"{name} is {value}; it must be {text}")
