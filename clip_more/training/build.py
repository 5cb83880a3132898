"""From a recipe to the task and the optimiser's parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from clip_more.adapters import MoreConfig, TailCheckpointContext, add_lora, add_tail, tail_parameters
from clip_more.adapters.config import CLIP_TARGETS
from clip_more.config import TrainConfig
from clip_more.data.profile import ClassProfile
from clip_more.losses import BASE_LOSSES, DiscrepancyLoss
from clip_more.models.classifier import Classifier
from clip_more.models.clip import Clip
from clip_more.models.heads import PromptHead
from clip_more.models.prompts import class_prompts, load_templates
from clip_more.training.class_texts import ClassTexts
from clip_more.training.decay import decays
from clip_more.training.task import LongTailTask


def build_classifier(config: TrainConfig, clip: Clip, profile: ClassProfile) -> Classifier:
    """CLIP and prompt head, before any tail: what zero-shot is measured on."""
    prompts = class_prompts(profile.names, load_templates(config.templates), config.class_prompts)
    return Classifier(clip, PromptHead(clip, prompts, scale=float(clip.model.logit_scale.detach().exp())))


def build_task(config: TrainConfig, classifier: Classifier, profile: ClassProfile) -> LongTailTask:
    """Freeze, add the tail or LoRA, set dropout and recomputation, and put the losses beside the classifier."""
    model = classifier.clip.model
    model.logit_scale.requires_grad_(False)  # The head has a scale of its own.
    if config.tuning == "head":
        model.requires_grad_(False)
        model.visual_projection.requires_grad_(True)  # scale and biases alone could not change the AP of a class
    if config.text_tower == "freeze" or config.tuning == "head":
        for part in (model.text_model, model.text_projection):
            part.requires_grad_(False)
        classifier.head.freeze_text(classifier.clip)
    if config.tuning in ("more", "lora"):
        (add_tail if config.tuning == "more" else add_lora)(model, _tail_config(config))
    if config.dropout > 0:
        for name, module in model.vision_model.named_modules():
            if name.endswith("self_attn"):
                module.dropout = config.dropout
    if config.gradient_checkpointing:
        options: dict[str, Any] = {"use_reentrant": False}
        if config.tuning == "more":
            options["context_fn"] = TailCheckpointContext(model)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        model.disable_input_require_grads()  # transformers' hook for reentrant checkpointing; it outlives deep copies
    return LongTailTask(
        classifier,
        *build_losses(config, profile),
        tail_only=config.tuning == "more" and config.discrepancy_gradient == "tail",
        fraction=config.discrepancy_fraction,
        texts=ClassTexts(config.text_chunk, config.text_refresh, (len(profile.names), model.config.projection_dim)),
        class_sample=config.text_classes,
    )


def check_method(config: TrainConfig, classifier: Classifier, profile: ClassProfile) -> None:
    """Refuse what `build_task` would refuse, while nothing is written yet.

    Raises:
        ValueError: If a loss refuses its options, or no layer is there for the tail.
    """
    build_losses(config, profile)
    if config.tuning in ("more", "lora"):
        _tail_config(config).find_layers(classifier.clip.model)


def build_losses(config: TrainConfig, profile: ClassProfile) -> tuple[nn.Module, DiscrepancyLoss | None]:
    """The base loss, and L_MORE where the recipe has a tail."""
    return _base_loss(config), _discrepancy(config, profile) if config.tuning == "more" else None


def parameter_groups(config: TrainConfig, task: LongTailTask) -> list[dict[str, Any]]:
    """Optimiser groups with their peak learning rates: towers with and without decay, tail, head.

    Weight decay is for matrices: biases, norms, embeddings and the head go without.
    """
    low_rank = {id(p) for p in tail_parameters(task).values()}
    decayed = decays(task)
    lr_tail = config.lr if config.lr_tail is None else config.lr_tail
    groups: dict[str, dict[str, Any]] = {
        "towers": {"params": [], "peak_lr": config.lr, "weight_decay": config.weight_decay},
        "towers_no_decay": {"params": [], "peak_lr": config.lr, "weight_decay": 0.0},
        "tail": {"params": [], "peak_lr": lr_tail, "weight_decay": config.weight_decay_tail},
        "head": {"params": [], "peak_lr": config.lr_head, "weight_decay": 0.0},
    }
    for name, parameter in task.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in low_rank:
            group = "tail"
        elif config.tuning == "head" or name.startswith("classifier.head."):
            group = "head"
        else:
            group = "towers" if decayed[name] else "towers_no_decay"
        groups[group]["params"].append(parameter)
    return [{**group, "name": name, "lr": group["peak_lr"]} for name, group in groups.items() if group["params"]]


def _tail_config(config: TrainConfig) -> MoreConfig:
    targets = tuple(config.tail_targets) if config.tail_targets else CLIP_TARGETS
    return MoreConfig(config.rho, config.tail_towers, targets, config.tail_depth)


def _base_loss(config: TrainConfig) -> nn.Module:
    options: dict[str, Any] = {"reduction": config.loss_reduction}
    if config.loss == "asl":
        options |= {
            "gamma_positive": config.asl_gamma_positive,
            "gamma_negative": config.asl_gamma_negative,
            "margin": config.asl_margin,
            "focal_gradient": config.asl_focal_gradient,
        }
    return BASE_LOSSES[config.loss](**options)


def _discrepancy(config: TrainConfig, profile: ClassProfile) -> DiscrepancyLoss:
    return DiscrepancyLoss(
        torch.tensor(profile.counts),
        weighting=config.discrepancy_weighting,
        sample_reduce=config.discrepancy_sample_reduce,
        prior_exponent=config.discrepancy_prior_exponent,
        distance=config.discrepancy_distance,
        reduction=config.discrepancy_reduction or config.loss_reduction,
        scale_free=config.discrepancy_scale_free,
        centred=config.discrepancy_centred,
        gradient="both" if config.discrepancy_gradient == "tail" else config.discrepancy_gradient,
    )
