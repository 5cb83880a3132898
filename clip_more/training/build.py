"""From a recipe to the task and the optimiser's parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from clip_more.adapters import MoreConfig, TailCheckpointContext, add_lora, add_tail, tail_parameters
from clip_more.adapters.config import CLIP_TARGETS
from clip_more.config import LOSSES_OF_ONE_LABEL, ConfigError, TrainConfig
from clip_more.data.profile import ClassProfile
from clip_more.losses import BASE_LOSSES, DiscrepancyLoss, GroupWeighted
from clip_more.losses.asymmetric import Focus
from clip_more.models.classifier import AnyClassifier, Classifier, Encoder, FeatureClassifier
from clip_more.models.clip import Clip
from clip_more.models.heads import PromptHead
from clip_more.models.prompts import class_prompts, load_templates
from clip_more.training.class_texts import ClassTexts
from clip_more.training.combinations import check_combination
from clip_more.training.decay import decays
from clip_more.training.heads import make_head
from clip_more.training.task import LongTailTask


def build_classifier(config: TrainConfig, encoder: Encoder, profile: ClassProfile) -> AnyClassifier:
    """Encoder and head, before any tail: with prompts, what zero-shot is measured on.

    Raises:
        ConfigError: If the encoder cannot carry the head.
    """
    if config.head != "prompts":
        return FeatureClassifier(encoder, make_head(config, encoder, profile))
    if not isinstance(encoder, Clip):
        raise ConfigError(f"head: prompts needs a text tower, and {encoder.source} has none; set head: linear")
    return prompt_classifier(config, encoder, profile)


def prompt_classifier(config: TrainConfig, clip: Clip, profile: ClassProfile) -> Classifier:
    """A CLIP and the recipe's prompts."""
    prompts = class_prompts(profile.names, load_templates(config.templates), config.class_prompts)
    return Classifier(clip, PromptHead(clip, prompts, scale=float(clip.model.logit_scale.detach().exp())))


def build_task(config: TrainConfig, classifier: AnyClassifier, profile: ClassProfile) -> LongTailTask:
    """Freeze, add the tail or LoRA, set dropout and recomputation, and put the losses beside the classifier."""
    encoder = classifier.encoder
    model = encoder.model
    _freeze(config, classifier)
    if config.tuning in ("more", "lora"):
        (add_tail if config.tuning == "more" else add_lora)(model, _tail_config(config, encoder))
    if isinstance(encoder, Clip):
        _set_clip(config, encoder)
    texts = None
    if isinstance(classifier, Classifier):
        shape = len(profile.names), classifier.clip.model.config.projection_dim
        texts = ClassTexts(config.text_chunk, config.text_refresh, shape)
    return LongTailTask(
        classifier,
        *build_losses(config, profile),
        tail_only=config.tuning == "more" and config.discrepancy_gradient == "tail",
        fraction=config.discrepancy_fraction,
        texts=texts,
        class_sample=config.text_classes,
        feature_regularisation=config.feature_regularisation,
        pair=config.discrepancy_pair,
    )


def check_method(config: TrainConfig, classifier: AnyClassifier, profile: ClassProfile) -> list[str]:
    """Refuse what `build_task` would refuse, while nothing is written yet; returns what the user should know.

    Raises:
        ConfigError: If keys do not go together, or not with this encoder.
        ValueError: If a loss refuses its options, or no layer is there for the tail.
    """
    encoder = classifier.encoder
    notes = check_combination(config)
    build_losses(config, profile)
    if absent := sorted(set(config.group_weights) - set(profile.groups)):
        notes.append(f"group_weights weighs {', '.join(absent)}, and no class is that: see head_min and tail_max")
    if not isinstance(encoder, Clip):
        _check_backbone(config, encoder.source)
        if "random weights" in encoder.source and config.lr <= _FOR_PRETRAINED and config.tuning != "head":
            notes.append(
                f"lr is {config.lr:g}, for pretrained weights, and {encoder.source} learns from nothing; a ResNet "
                "takes --optimizer sgd --lr 0.1 --lr_head 0.1 and a hundred epochs or more"
            )
    if config.tuning in ("more", "lora"):
        _tail_config(config, encoder).find_layers(encoder.model)
    return notes


# Rates that leave random weights where they are.
_FOR_PRETRAINED = 1e-5


def build_losses(config: TrainConfig, profile: ClassProfile) -> tuple[nn.Module, DiscrepancyLoss | None]:
    """The base loss, and L_MORE where the recipe has a tail, or another pair to compare."""
    compares = config.tuning == "more" or config.discrepancy_pair == "dropout"
    return _base_loss(config, profile), _discrepancy(config, profile) if compares else None


def parameter_groups(config: TrainConfig, task: LongTailTask) -> list[dict[str, Any]]:
    """Optimiser groups with their peak learning rates: towers with and without decay, tail, head.

    Weight decay is for matrices: biases, norms and embeddings go without, and the head has its own, unless
    `decay_all` says otherwise. With `weight_decay_to: start` that of the towers is their `pull` (see `anchor`).
    """
    low_rank = {id(p) for p in tail_parameters(task).values()}
    decayed = decays(task)
    lr_tail = config.lr if config.lr_tail is None else config.lr_tail
    to_start = config.weight_decay_to == "start"
    decay = {"weight_decay": 0.0, "pull": config.weight_decay} if to_start else {"weight_decay": config.weight_decay}
    groups: dict[str, dict[str, Any]] = {
        "towers": {"params": [], "peak_lr": config.lr, **decay},
        "towers_no_decay": {
            "params": [],
            "peak_lr": config.lr,
            "weight_decay": config.weight_decay if config.decay_all else 0.0,
        },
        "tail": {"params": [], "peak_lr": lr_tail, "weight_decay": config.weight_decay_tail},
        "head": {
            "params": [],
            "peak_lr": config.lr_head,
            "weight_decay": config.weight_decay if config.decay_all else config.weight_decay_head,
        },
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


def make_optimiser(config: TrainConfig, task: LongTailTask, *, fused: bool) -> torch.optim.Optimizer:
    """AdamW or SGD over `parameter_groups`.

    Args:
        config: The recipe.
        task: As it is trained.
        fused: One kernel for all weights.
    """
    groups = parameter_groups(config, task)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
    return torch.optim.AdamW(groups, fused=fused)


def _freeze(config: TrainConfig, classifier: AnyClassifier) -> None:
    model = classifier.encoder.model
    if isinstance(classifier.encoder, Clip):
        model.logit_scale.requires_grad_(False)  # The head has a scale of its own.
    if config.tuning == "head":
        model.requires_grad_(False)
    if isinstance(classifier, FeatureClassifier):
        if isinstance(classifier.encoder, Clip):
            _freeze_text(model)
        return
    if config.tuning == "head":
        model.visual_projection.requires_grad_(True)  # scale and biases alone could not change the AP of a class
    if config.text_tower == "freeze" or config.tuning == "head":
        _freeze_text(model)
        classifier.head.freeze_text(classifier.clip)


def _freeze_text(model: Any) -> None:
    for part in (model.text_model, model.text_projection):
        part.requires_grad_(False)


def _set_clip(config: TrainConfig, clip: Clip) -> None:
    """Dropout and recomputation."""
    model = clip.model
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


def _check_backbone(config: TrainConfig, source: str) -> None:
    """Raises ConfigError on keys that only a CLIP can follow."""
    default = TrainConfig()
    for key in ("dropout", "gradient_checkpointing", "tail_towers", "tail_depth", "discrepancy_fraction"):
        if getattr(config, key) != getattr(default, key):
            raise ConfigError(f"{key} is about the towers of a CLIP, and {source} is none; leave it out")


def _tail_config(config: TrainConfig, encoder: Encoder) -> MoreConfig:
    targets: tuple[str, ...] | str = tuple(config.tail_targets) if config.tail_targets else CLIP_TARGETS
    if not isinstance(encoder, Clip):
        return MoreConfig(config.rho, target_modules=targets if config.tail_targets else "all")
    towers = config.tail_towers if config.head == "prompts" else "vision"
    return MoreConfig(config.rho, towers, targets, config.tail_depth)


def _base_loss(config: TrainConfig, profile: ClassProfile) -> nn.Module:
    counts = torch.tensor(profile.counts)
    reduction = {"reduction": config.loss_reduction}
    asl = {
        "gamma_positive": config.asl_gamma_positive,
        "gamma_negative": config.asl_gamma_negative,
        "margin": config.asl_margin,
        "focal_gradient": config.asl_focal_gradient,
    }
    db = {
        "smoothing_alpha": config.db_alpha,
        "smoothing_beta": config.db_beta,
        "smoothing_mu": config.db_mu,
        "negative_scale": config.db_negative_scale,
        "init_bias": config.db_init_bias,
        "counts": counts,
        "photos": profile.photos,
    }
    # A cosine head applies the scale itself, so that what it exports, and L_MORE, know of it.
    scaled = config.head == "cosine"
    ldam = {
        "max_margin": config.ldam_margin * (config.ldam_scale if scaled else 1.0),
        "scale": 1.0 if scaled else config.ldam_scale,
        "defer": config.ldam_defer,
    }
    options: dict[str, dict[str, Any]] = {
        "bce": reduction,
        "asl": asl | reduction,
        "focal": {"gamma": config.focal_gamma, "alpha": config.focal_alpha} | reduction,
        "cb_bce": {"counts": counts, "beta": config.cb_beta} | reduction,
        "db": db | reduction,
        "db_focal": db | {"gamma": config.focal_gamma} | reduction,
        "ce": {},
        "focal_ce": {"gamma": config.focal_gamma},
        "cb_ce": {"counts": counts, "beta": config.cb_beta},
        "balanced_softmax": {"counts": counts},
        "logit_adjusted_ce": {"counts": counts, "tau": config.logit_tau},
        "ldam": ldam | {"counts": counts, "beta": config.cb_beta},
    }
    loss = BASE_LOSSES[config.loss](**options[config.loss])
    if not config.group_weights:
        return loss
    return GroupWeighted(loss, [config.group_weights.get(group, 1.0) for group in profile.groups])


def _discrepancy(config: TrainConfig, profile: ClassProfile) -> DiscrepancyLoss:
    focus = Focus(config.asl_gamma_positive, config.asl_gamma_negative, config.asl_margin)
    return DiscrepancyLoss(
        torch.tensor(profile.counts),
        weighting=config.discrepancy_weighting,
        sample_reduce=config.discrepancy_sample_reduce,
        prior_exponent=config.discrepancy_prior_exponent,
        distance=config.discrepancy_distance,
        softmax=config.loss in LOSSES_OF_ONE_LABEL,
        reduction=config.discrepancy_reduction or config.loss_reduction,
        scale_free=config.discrepancy_scale_free,
        centred=config.discrepancy_centred,
        gradient="both" if config.discrepancy_gradient == "tail" else config.discrepancy_gradient,
        focus=focus if config.discrepancy_focus else None,
    )
