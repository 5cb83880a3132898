"""TrainConfig: everything a recipe may say, each key documented once, for YAML, command line and `--help` alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# ruff: noqa: RUF009 (_key is a spelling of dataclasses.field)


class ConfigError(ValueError):
    """A recipe, key or value that cannot be used; the message says which and what to do."""


def _key(default: Any, text: str, *, choices: Sequence[str] = ()) -> Any:
    metadata = {"help": text, "choices": tuple(choices)}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


DATASETS = (
    "folder", "lists", "voc", "coco", "nus_wide", "nus_wide_scene", "miml", "cifar10", "cifar100", "open_images",
    "lvis", "hub", "prepared", "digits_mlt", "digits_lt",
)  # fmt: skip


LOSSES_OF_ONE_LABEL = ("ce", "focal_ce", "cb_ce", "balanced_softmax", "logit_adjusted_ce", "ldam")
LOSSES = ("bce", "asl", "focal", "cb_bce", "db", "db_focal", *LOSSES_OF_ONE_LABEL)


@dataclass(kw_only=True)
class DataConfig:
    """Photos, labels, classes."""

    dataset: str = _key("", "Data set family.", choices=DATASETS)
    data_root: str | None = _key(None, "Folder of the data set.")
    task: str = _key(
        "multi_label", "Any number of classes a photo, or exactly one.", choices=("multi_label", "single_label")
    )
    train_split: str | None = _key(
        None,
        "voc: a list of ImageSets/Main (trainval without it); coco: train2017 or train2014; lvis: lvis_v1_train; "
        "open_images, folder, hub: train without it; digits_mlt: pretrain, or none.",
    )
    test_split: str = _key(
        "test", "The same for evaluation; digits_mlt, digits_lt: test, or val to choose settings on."
    )
    test_fraction: float = _key(
        0.25, "folder, hub, miml: share of the photos held out as test, stratified, where the data has no test split."
    )
    data_seed: int = _key(0, "Of what is drawn from the data: test_fraction, long_tail, missing_labels.")
    classes: list[str] | str | None = _key(
        None, "Keep only these classes: a list of names, or a file of bare names below data_root."
    )
    head_min: int = _key(100, "Head classes have at least this many train positives.")
    tail_max: int = _key(20, "Tail classes have fewer train positives than this.")
    val_fraction: float = _key(0.0, "Share of train held out for selection, stratified by label.")
    refit: bool = _key(False, "Train on all of train, held-out part included; nothing can be selected then.")
    missing: str = _key(
        "refuse",
        "Photos that are listed and absent: refuse the data, skip them, or allow them (labels alone; stats does).",
        choices=("refuse", "skip", "allow"),
    )
    follow_links: bool = _key(False, "Photos may be symbolic links to files outside data_root.")
    download: bool = _key(False, "voc, coco, cifar: fetch what data_root lacks from its makers, checksums included.")
    year: int = _key(2007, "voc: VOC2007 or VOC2012.")
    test_year: int | None = _key(None, "voc: year of the test split, where it is another (VOC-MLT tests on VOC2007).")
    annotations: str = _key(
        "xml", "voc: labels from the XML files or from ImageSets/Main.", choices=("xml", "imagesets")
    )
    difficult: str = _key(
        "positive", "voc: objects marked difficult count as this.", choices=("positive", "negative", "ignore")
    )
    img_ids: str | None = _key(
        None, "voc, coco: keep the train photos that this file lists (img_id.txt of VOC-MLT, img_id.pkl of COCO-MLT)."
    )
    class_freq: str | None = _key(None, "File class_freq.pkl that the counted class profile must agree with.")
    class_split: str | None = _key(None, "File class_split.pkl that the groups must agree with.")
    train_list: str | None = _key(None, "lists: file of `path index index ...` lines, below data_root.")
    test_list: str | None = _key(None, "lists: the same for evaluation.")
    class_file: str | None = _key(None, "lists: file of `name index` or bare name lines, below data_root.")
    hub_dataset: str | None = _key(None, "hub: id of a Hub data set, or folder or file of a local one.")
    hub_config: str | None = _key(None, "hub: name of the data set's configuration, where it has several.")
    image_column: str | None = _key(None, "folder, hub: column of the photos; found by its type without it.")
    label_column: str | None = _key(None, "folder, hub: column of the labels; found by its type or name without it.")
    streaming: bool = _key(False, "hub: read the data set once, as a stream, without downloading it first.")
    stream_limit: int | None = _key(None, "hub: stop after this many photos a split of the stream.")
    unlisted: str = _key(
        "ignore",
        "open_images, lvis, missing_labels: classes that nobody verified in a photo are unknown, or assumed negative. "
        "(lvis: a class marked as partly annotated, without an annotation, stays unknown.)",
        choices=("ignore", "negative"),
    )
    missing_labels: float = _key(
        0.0, "Share of the train labels, positive and negative, hidden at random; a class keeps one."
    )
    long_tail: str = _key(
        "none",
        "Subsample train to a long tail: exponential counts, or the Pareto recipe of VOC-MLT and COCO-MLT.",
        choices=("none", "exponential", "pareto"),
    )
    imbalance: float = _key(100.0, "digits_mlt, digits_lt, long_tail: most common over rarest class.")
    long_tail_largest: int | None = _key(
        None,
        "long_tail: positives of the most common class; all that it has without it. (VOC-MLT: 800 with imbalance 170; "
        "COCO-MLT: 1200 with 183.)",
    )
    shuffle_classes: bool = _key(
        False,
        "digits_mlt, digits_lt: data_seed draws which digits are common, and all scenes; without it zero is the most "
        "common digit, nine the rarest.",
    )
    shuffle_digits: bool = _key(
        False,
        "digits_mlt, digits_lt: data_seed draws which handwritten digits train and test show; without it they are the "
        "same whatever data_seed is.",
    )


@dataclass(kw_only=True)
class ModelConfig:
    """The CLIP and its head."""

    model: str = _key(
        "small",
        "A CLIP: Hub id, local folder, open_clip:ARCH/TAG, open_clip:ARCH:FILE, or a preset: tiny and small (random "
        "weights), digits (the demo's tiny pretrained CLIP). Or a vision backbone without text: cifar_resnet32, "
        "cifar_resnet34, torchvision:NAME, timm:NAME, the last two pretrained with /DEFAULT and /pretrained behind.",
    )
    head: str = _key(
        "prompts",
        "From features to logits. prompts: the text tower; linear, which stage2's tau and maxnorm_cb need; "
        "normed_linear, rows of unit length; cosine, features too; etf, a fixed simplex; frame, fixed orthonormal "
        "rows. All but prompts go with any backbone.",
        choices=("prompts", "linear", "normed_linear", "cosine", "etf", "frame"),
    )
    head_init: str = _key(
        "random",
        "Rows of a head without prompts at step 0: random, the class texts of a CLIP, or class means of its features; "
        "etf and frame are rotated towards them.",
        choices=("random", "text", "class_mean"),
    )
    image_size: int | None = _key(None, "Train and test at this size; position embeddings are interpolated.")
    templates: list[str] | str = _key("plain", "Prompt templates: a named set, a list, or a file with one a line.")
    class_prompts: dict[str, str] = _key({}, "English spelling of class names in prompts, where ours is not wanted.")
    text_tower: str = _key(
        "train", "Train the text tower, or freeze it and encode prompts once.", choices=("train", "freeze")
    )
    text_classes: int | None = _key(
        None,
        "For thousands of classes: train on about so many a step, those of the batch and a random sample of the "
        "others, weighted so that the loss stays unbiased.",
    )
    text_refresh: int = _key(
        1,
        "For thousands of classes: run the text tower every so many steps; between, its last features stand, and it "
        "learns nothing.",
    )
    text_chunk: int | None = _key(
        None, "Prompts read at a time, each chunk made again in the backward pass: memory is bounded by a chunk."
    )
    head_start: str = _key(
        "fit",
        "Before step 0 fit scale and class biases on train, or start from the checkpoint's scale.",
        choices=("fit", "none"),
    )
    dropout: float = _key(0.0, "Attention dropout of the vision tower while training.")
    gradient_checkpointing: bool = _key(False, "Recompute activations in the backward pass: less memory, more time.")


@dataclass(kw_only=True)
class MethodConfig:
    """What is trained, and on which loss."""

    tuning: str = _key(
        "more",
        "more: all weights and the tail; full: all weights; lora: stock PEFT LoRA, base frozen; head: the vision "
        "projection, scale and biases.",
        choices=("full", "more", "lora", "head"),
    )
    loss: str = _key(
        "bce",
        "Base loss. For several labels a photo, or one: bce, asl, focal, cb_bce (class-balanced), db and db_focal "
        "(distribution-balanced). For one: ce, focal_ce, cb_ce, balanced_softmax, logit_adjusted_ce, ldam.",
        choices=LOSSES,
    )
    loss_reduction: str = _key(
        "sum", "Over the classes of an image; divides base loss and L_MORE alike.", choices=("sum", "mean")
    )
    group_weights: dict[str, float] = _key(
        {}, "Times the base loss of a group's classes: {head: 1, medium: 1, tail: 3}; 1 for groups that are not named."
    )
    asl_gamma_positive: float = _key(0.0, "ASL focusing of positives.")
    asl_gamma_negative: float = _key(4.0, "ASL focusing of negatives.")
    asl_margin: float = _key(0.05, "ASL probability shift.")
    asl_focal_gradient: bool = _key(False, "ASL focusing factor inside the gradient (the equations) or not (its code).")
    focal_gamma: float = _key(2.0, "focal, focal_ce, db_focal: focusing.")
    focal_alpha: float | None = _key(None, "focal: weight of positives, 1 minus it of negatives; none without it.")
    cb_beta: float = _key(0.9999, "cb_bce, cb_ce, and ldam once deferred: weights (1 - beta) / (1 - beta^n).")
    db_alpha: float = _key(0.1, "db: least weight a.")
    db_beta: float = _key(10.0, "db: steepness b of the weight.")
    db_mu: float = _key(0.3, "db: centre g of the weight (COCO-MLT: 0.2).")
    db_negative_scale: float = _key(5.0, "db: tolerance l of negatives (COCO-MLT: 2).")
    db_init_bias: float = _key(0.05, "db: class-specific bias kappa.")
    logit_tau: float = _key(1.0, "logit_adjusted_ce: times the log prior that is added to the logits.")
    ldam_margin: float = _key(0.5, "ldam: margin of the rarest class.")
    ldam_scale: float = _key(30.0, "ldam: times the logits, which are meant to be cosines.")
    ldam_defer: float | None = _key(None, "ldam: share of the steps after which class-balanced weights set in.")
    feature_regularisation: float = _key(
        0.0, "lambda / 2 times the mean squared length of the features, added to the loss (weight balancing: 0.01)."
    )
    rho: float = _key(0.1, "Rank of a tail over the smaller side of its layer.")
    tail_towers: str = _key("both", "Towers that get a tail.", choices=("both", "vision", "text"))
    tail_targets: list[str] | None = _key(
        None, "Names of the layers that get a tail; all usual ones of a CLIP without it."
    )
    tail_depth: float = _key(
        1.0,
        "Share of a tower's blocks, from its output, that get a tail: 0.5 is the upper half. What lies below is run "
        "once for both passes: faster.",
    )
    discrepancy_fraction: float = _key(
        1.0,
        "Below 1 the economical mode: L_MORE is taken on this share of the photos, and of the prompts, drawn anew in "
        "each step and unbiased.",
    )
    discrepancy_weighting: str = _key("label", "L_MORE weighted by class, or by image.", choices=("label", "sample"))
    discrepancy_sample_reduce: str = _key(
        "min", "sample: prior of an image from its positives.", choices=("min", "mean", "max")
    )
    discrepancy_prior_exponent: float = _key(1.0, "q in n^q: 1 the prior, 0 uniform, below 0 inverse.")
    discrepancy_distance: str = _key("l2", "Distance between full and general logits.", choices=("l2", "kl"))
    discrepancy_reduction: str | None = _key(
        None, "Over classes, when it shall differ from loss_reduction.", choices=("sum", "mean")
    )
    discrepancy_scale_free: bool = _key(
        False, "Divide logits by their standard deviation, so that the scale does not matter."
    )
    discrepancy_centred: bool = _key(False, "Subtract the mean of the logit differences over classes.")
    discrepancy_gradient: str = _key(
        "stop_general",
        "Where the gradient of L_MORE goes: stop_general, into the full pass alone, which damps what W_g learns of "
        "common classes; both, which only makes B A smaller; stop_full; or tail, A and B only (costs a third pass).",
        choices=("stop_general", "both", "stop_full", "tail"),
    )
    discrepancy_focus: bool = _key(
        False, "asl: each term of L_MORE is focused as its label is in the base loss, without a gradient through that."
    )
    discrepancy_pair: str = _key(
        "tail",
        "What L_MORE compares: the model with and without its tail, or (a control, for tuning: full and "
        "discrepancy_gradient: both) two draws of dropout.",
        choices=("tail", "dropout"),
    )
    amplitude: float = _key(
        0.5,
        "Peak weight of L_MORE: A', which is A over the number of classes; A itself with amplitude_normalised: false.",
    )
    amplitude_ratio: float | None = _key(
        None,
        "Strength of L_MORE by its gradient, in place of amplitude: peak of its norm on A and B over that of the base "
        "loss.",
    )
    amplitude_normalised: bool = _key(True, "amplitude is A' = A / number of classes.")
    alpha_schedule: str = _key(
        "sinusoidal", "Weight of L_MORE over the steps.", choices=("sinusoidal", "cosine", "constant")
    )
    sampler: str = _key(
        "instance",
        "Which photos an epoch draws: instance, each once; square_root and class_balanced, by class counts to the "
        "power 1/2 and 0; weighted, to the power sampler_exponent; progressive, from instance in the first epoch to "
        "class_balanced in the last; class_aware, the classes in turn, a few photos of each; distribution_balanced, by "
        "the sum of 1 / n over a photo's classes.",
        choices=(
            "instance",
            "square_root",
            "class_balanced",
            "weighted",
            "progressive",
            "class_aware",
            "distribution_balanced",
        ),
    )
    sampler_exponent: float = _key(0.0, "weighted: q, a class is drawn with probability n^q / sum n^q.")
    sampler_per_class: int | None = _key(
        None, "class_aware: photos of a class in turn; 4 with one label a photo, 3 with several, without it."
    )
    sampler_unlabelled: float = _key(
        1.0, "Weight of a photo without a label over the mean weight of the others (class_aware never draws it)."
    )


@dataclass(kw_only=True)
class OptimiserConfig:
    """Steps, rates, precision."""

    epochs: float = _key(10.0, "Passes over train (a fraction is allowed).")
    max_steps: int | None = _key(None, "Stop after this many optimiser steps, whatever epochs says.")
    batch_size: int = _key(32, "Photos a process and micro-batch.")
    accumulation: int = _key(1, "Micro-batches an optimiser step.")
    lr: float = _key(1.0e-5, "Learning rate of the towers.")
    lr_tail: float | None = _key(None, "Learning rate of A and B; as lr without it.")
    lr_head: float = _key(1.0e-3, "Learning rate of the head: scale and class biases, or all that it has.")
    optimizer: str = _key("adamw", "AdamW, or SGD with momentum.", choices=("adamw", "sgd"))
    momentum: float = _key(0.9, "sgd: momentum.")
    nesterov: bool = _key(False, "sgd: Nesterov's form of it.")
    weight_decay: float = _key(0.01, "On weight matrices of towers (not on biases, norms, embeddings, head).")
    weight_decay_to: str = _key(
        "zero",
        "Where weight_decay pulls the towers: to zero, or to their weights before training (L2-SP).",
        choices=("zero", "start"),
    )
    weight_decay_total: float | None = _key(
        None,
        "weight_decay_to: start: lr * weight_decay summed over the run, in place of weight_decay, so that the pull is "
        "the same at any rate and length. At 2, weights that drift evenly go 43 % of their way.",
    )
    weight_decay_tail: float = _key(0.0, "On A and B.")
    weight_decay_head: float = _key(0.0, "On the head.")
    decay_all: bool = _key(
        False, "weight_decay on all but A and B: biases, norms, embeddings and head too, as in weight balancing."
    )
    warmup: float = _key(0.05, "Share of the steps with a rising learning rate; a cosine to zero follows.")
    clip_norm: float = _key(1.0, "Gradients are scaled down to this norm; 0 leaves them.")
    mixed_precision: str = _key("no", "Autocast of the towers.", choices=("no", "bf16", "fp16"))
    seed: int = _key(0, "Of weights, order, augmentation and splits.")
    not_finite: str = _key(
        "stop", "At a loss or gradient that is not finite: stop, or skip the step.", choices=("stop", "skip")
    )
    max_skipped: int = _key(10, "not_finite: skip stops after all once it has skipped more steps than this.")
    processes: int | None = _key(
        None, "How many processes this recipe needs; the run refuses to start on another number."
    )
    distribution: str | None = _key(
        None,
        "How they must share the work; the run refuses any other: one process, copies of the model (ddp), or shards of "
        "it (fsdp2, deepspeed).",
        choices=("one", "ddp", "fsdp2", "deepspeed"),
    )


@dataclass(kw_only=True)
class EvaluationConfig:
    """The protocol, written into every result."""

    score: str = _key(
        "logit",
        "What ranks the photos of a class; a softmax over classes re-orders them.",
        choices=("logit", "sigmoid", "softmax"),
    )
    ap: str = _key(
        "step",
        "AP as scikit-learn takes it, or VOC's two interpolated forms.",
        choices=("step", "voc07_11point", "voc10_interpolated"),
    )
    test_difficult: str | None = _key(
        None, "voc: difficult objects in test; as difficult without it.", choices=("positive", "negative", "ignore")
    )
    unlabelled: str = _key("keep", "Test photos without a positive label.", choices=("keep", "drop"))
    geometry: str | None = _key(
        None,
        "How a test photo becomes a square: resized and centre-cropped, squashed, or padded; without it as the "
        "checkpoint's own processor does (crop, for CLIP).",
        choices=("crop", "squash", "pad"),
    )
    views: str = _key(
        "one", "Views of a test photo whose logits are averaged.", choices=("one", "flip", "five_crop", "ten_crop")
    )
    bootstrap: int = _key(1000, "Resamples of the test photos behind the confidence intervals; 0: none.")
    save_scores: bool = _key(True, "Keep the test logits beside results.json, for intervals and comparisons.")
    legacy_select_on_test: bool = _key(
        False, "keep: best chooses on test, as much published code does; recorded in the result."
    )


@dataclass(kw_only=True)
class RunConfig:
    """Where results go, and when."""

    method: str = _key("", "Name of the method; with the data set it names the run. The recipe's file name without it.")
    dataset_name: str = _key("", "Name of the data set in run names and results. The recipe's folder name without it.")
    run: str | None = _key(None, "Name of the run; naming it again resumes it. <dataset>-<method> without it.")
    output_dir: str = _key("runs", "Folder of all runs.")
    eval_every: int = _key(0, "Evaluate every so many steps on the held-out part of train; 0: only at the end.")
    checkpoint_every: int = _key(0, "Checkpoint every so many steps; 0: once an epoch.")
    keep_checkpoints: int = _key(2, "How many of the last checkpoints are kept; with keep: best that one too.")
    changed_recipe: str = _key(
        "refuse",
        "A run that is named again with another recipe: refused, or accepted and written into the result.",
        choices=("refuse", "accept"),
    )
    keep: str = _key(
        "last",
        "Weights that are exported: last step, running average, or best on the held-out part.",
        choices=("last", "ema", "best"),
    )
    ema_decay: float = _key(0.999, "Decay of the running average.")
    min_crop: float = _key(0.5, "Smallest share of a photo in a random training crop.")
    train_crop: str = _key(
        "resized",
        "Random part of a training photo: resized, of any size from min_crop; padded, shifted by up to 4 pixels over a "
        "black border, as for CIFAR.",
        choices=("resized", "padded"),
    )
    flip: bool = _key(True, "Random horizontal flips in training.")
    forgetting: bool = _key(
        False,
        "After each epoch note which train photos are classified rightly, for forgetting scores (eval/analyse.py).",
    )
    workers: int = _key(2, "Processes that load photos.")
    worker_timeout: float = _key(300.0, "Seconds to wait for photos before the run ends, naming them; 0: for ever.")
    process_timeout: float = _key(1800.0, "Seconds that processes wait for each other before the run ends.")
    log_every: int = _key(10, "Steps between lines of metrics.jsonl; fewer on short runs.")
    trackers: list[str] = _key([], "Accelerate trackers, such as tensorboard.")
    push_to_hub: str | None = _key(None, "Upload merged/ to this Hub repository after the run.")


@dataclass(kw_only=True)
class TrainConfig(RunConfig, EvaluationConfig, OptimiserConfig, MethodConfig, ModelConfig, DataConfig):
    """One recipe, resolved. Flat, so that every key is also a `--key value` of the command line."""

    @property
    def run_name(self) -> str:
        """`run`, or `<dataset name>-<method>`."""
        return self.run or f"{self.dataset_name or self.dataset}-{self.method or f'{self.loss}_{self.tuning}'}"

    @property
    def run_folder(self) -> Path:
        """`<output_dir>/<run_name>`."""
        return Path(self.output_dir) / self.run_name

    def to_dict(self) -> dict[str, Any]:
        """All keys and values, as YAML can hold them."""
        return dataclasses.asdict(self)

    def check(self) -> TrainConfig:
        """This config, if its keys agree with each other.

        Raises:
            ConfigError: On the first pair of keys that do not.
        """
        from clip_more.config_checks import check_data, check_method, check_numbers

        check_data(self)
        check_method(self)
        check_numbers(self)
        if any(part in self.run_name for part in ("/", "\\")) or self.run_name in ("", ".", ".."):
            raise ConfigError(f"run is {self.run_name!r}; a run name is one folder name")
        return self


SECTIONS = (DataConfig, ModelConfig, MethodConfig, OptimiserConfig, EvaluationConfig, RunConfig)
