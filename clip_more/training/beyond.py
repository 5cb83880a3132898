"""Options beyond the paper: groups of rare classes, a tail apart from W_g, ranks by importance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import send_to_device
from torch import Tensor, nn

from clip_more.adapters import MoreConfig, TailLayer, tail_parameters
from clip_more.adapters.config import lora_config
from clip_more.config import LOSSES_OF_ONE_LABEL, ConfigError, TrainConfig
from clip_more.data.form import label_pairs
from clip_more.data.loading import batches, photo_loader
from clip_more.data.photos import Photos
from clip_more.data.profile import ClassProfile
from clip_more.data.transforms import test_transform
from clip_more.files import written_aside
from clip_more.models.classifier import AnyClassifier, Classifier
from clip_more.training.checkpoint import list_checkpoints
from clip_more.training.routing import RoutedGradient
from clip_more.training.task import LongTailTask

if TYPE_CHECKING:
    from peft import LoraConfig

    from clip_more.training.run import Run

# Photos that the importance of layers is measured on, at most.
IMPORTANCE_PHOTOS = 256


def check_beyond(config: TrainConfig, classifier: AnyClassifier, profile: ClassProfile) -> None:
    """Refuse these options where they cannot do what they say.

    Raises:
        ConfigError: Naming the key, and what to do.
    """
    default = TrainConfig()
    keys = ("tail_learns", "tail_groups", "orthogonality", "rank_allocation", "discrepancy_count_cap")
    given = [key for key in keys if getattr(config, key) != getattr(default, key)]
    if not given:
        return
    if config.tuning != "more":
        raise ConfigError(f"{given[0]} is about a tail, and tuning: {config.tuning} has none; leave it out")
    cap = config.discrepancy_count_cap
    if cap is not None and (cap < 1 or config.discrepancy_prior_exponent == 0):
        raise ConfigError(
            f"discrepancy_count_cap is {cap}; it must be 1 or more"
            if cap < 1
            else "discrepancy_count_cap changes nothing at discrepancy_prior_exponent: 0; leave one of them out"
        )
    if config.orthogonality < 0:
        raise ConfigError(f"orthogonality is {config.orthogonality:g}; it must be 0 or more")
    if given != ["discrepancy_count_cap"] and PartialState().num_processes > 1:
        raise ConfigError(f"{given[0]} is made for one process; leave it out, or start one")
    if not isinstance(classifier, Classifier) and (config.tail_groups or config.rank_allocation != "uniform"):
        key = "tail_groups" if config.tail_groups else "rank_allocation"
        raise ConfigError(f"{key} is made for both towers of a CLIP; leave it out, or set head: prompts")
    if config.tail_learns != "all":
        _check_routing(config, classifier, profile)
    if config.rank_allocation == "importance" and not _rare(profile):
        raise ConfigError("rank_allocation: importance is that for rare classes, and all are head; leave it out")
    if config.tail_groups:
        _check_groups(config, profile)


def _check_routing(config: TrainConfig, classifier: AnyClassifier, profile: ClassProfile) -> None:
    weights = config.group_weights
    weighed = torch.tensor([weights.get(group, 1.0) > 0 for group in profile.groups])
    if not (learnt_by_tail(config, profile) & weighed).any():
        raise ConfigError(f"tail_learns: {config.tail_learns} leaves no class to learn from; leave it out")
    others = {
        f"loss: {config.loss}": config.loss in LOSSES_OF_ONE_LABEL,
        "head: anything but prompts": not isinstance(classifier, Classifier),
        "text_classes": config.text_classes is not None,
        "text_refresh": config.text_refresh > 1,
        "amplitude_ratio": config.amplitude_ratio is not None,
        "mixed_precision: fp16": config.mixed_precision == "fp16",
        "gradient_checkpointing": config.gradient_checkpointing,
        f"distribution: {config.distribution}": config.distribution not in (None, "one"),
        "loss_reduction: mean": config.loss_reduction == "mean",
        "accumulation": config.accumulation > 1 and config.text_tower == "train" and config.tail_towers != "vision",
    }
    if clash := [key for key, is_set in others.items() if is_set]:
        raise ConfigError(f"tail_learns does not go with {clash[0]}; leave one of them out")


def learnt_by_tail(config: TrainConfig, profile: ClassProfile) -> Tensor:
    """(C,) bool: classes whose base loss A and B learn from."""
    spared = {"all": (), "rare": ("head",), "tail": ("head", "medium")}[config.tail_learns]
    return torch.tensor([group not in spared for group in profile.groups])


def _check_groups(config: TrainConfig, profile: ClassProfile) -> None:
    rare = len(profile.names) - len(profile.indices("head"))
    if not 1 <= config.tail_groups <= rare:
        raise ConfigError(
            f"tail_groups is {config.tail_groups}, and {rare} of {len(profile.names)} classes are not head; it must be "
            f"0 to {rare}"
        )
    others = {
        "rank_allocation: importance": config.rank_allocation == "importance",
        "discrepancy_weighting: sample": config.discrepancy_weighting == "sample",
        "discrepancy_centred": config.discrepancy_centred,
        "discrepancy_distance: kl of one softmax": config.discrepancy_distance == "kl"
        and config.loss in LOSSES_OF_ONE_LABEL,
        "gradient_checkpointing": config.gradient_checkpointing,
        "text_chunk": config.text_chunk is not None,
        "text_refresh": config.text_refresh > 1,
    }
    if clash := [key for key, is_set in others.items() if is_set]:
        raise ConfigError(f"tail_groups does not go with {clash[0]}; leave one of them out")


# The task


class BeyondTask(LongTailTask):
    """A `LongTailTask` whose tail learns from some classes, or has groups of them, or is kept apart from W_g.

    With K groups the ranks of each tail are cut into K blocks. Each step draws a group k; its general pass goes without
    block k alone, and L_MORE leaves out the classes of group k: block k is kept out of all classes but its own.

    Args:
        arguments: Of a `LongTailTask`.
        learnt: (C,) bool, classes whose base loss A and B learn from; all without it.
        accumulation: Micro-batches of an optimiser step.
        groups: (C,) group of each class from 0 to K - 1, -1 for head classes; no groups without it.
        orthogonality: Weight of `shared_directions` in the loss.
        options: Of a `LongTailTask`.
    """

    def __init__(
        self,
        *arguments: Any,
        learnt: Tensor | None = None,
        accumulation: int = 1,
        groups: Tensor | None = None,
        orthogonality: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.learnt: Tensor | None
        self.register_buffer("learnt", learnt, persistent=False)
        tail = list(tail_parameters(self).values())
        self.routed = None if learnt is None else RoutedGradient(tail, accumulation)
        self.orthogonality = orthogonality
        self.groups: Tensor | None
        self.register_buffer("groups", groups)  # in checkpoints, so that a run goes on with the same
        self.group_count = 0 if groups is None else int(groups.max()) + 1
        self._group: int | None = None

    def forward(
        self, batch: dict[str, Tensor], alpha: float = 0.0, *, last: bool = True, fresh: bool = True
    ) -> dict[str, Any]:
        """As of a `LongTailTask`; `loss` holds the penalty."""
        if self.groups is None or alpha == 0:
            losses = super().forward(batch, alpha, last=last, fresh=fresh)
        else:
            if self._group is None:
                self._group = int(torch.randint(self.group_count, ()))
            with self._without(self._group):
                losses = super().forward(batch, alpha, last=last, fresh=fresh)
        if last:
            self._group = None
        if self.orthogonality:
            losses["loss"] = losses["loss"] + self.orthogonality * shared_directions(self.classifier)
        if self.routed is not None and self.learnt is not None and torch.is_grad_enabled():
            known = batch["known"] & self.learnt
            loss = self.base_loss(losses["logits"], batch["targets"], known)
            self.routed.take(loss + losses["loss"] - losses["base"])
        return losses

    def train(self, mode: bool = True) -> BeyondTask:
        """As of a `LongTailTask`."""
        self._group = None
        super().train(mode)
        return self

    @contextmanager
    def _without(self, group: int) -> Iterator[None]:
        """Inside, a general pass goes without the block of one group, and L_MORE without its classes."""
        assert self.groups is not None
        assert self.discrepancy is not None
        layers = [module for module in self.modules() if isinstance(module, TailLayer)]
        self.discrepancy.left_out = self.groups == group
        for layer in layers:
            (a,) = layer.lora_A.values()
            size = len(a.weight) // self.group_count
            layer.tail_off = slice(group * size, (group + 1) * size)
        try:
            yield
        finally:
            self.discrepancy.left_out = None
            for layer in layers:
                layer.tail_off = None


def beyond_options(config: TrainConfig, classifier: AnyClassifier, profile: ClassProfile) -> dict[str, Any]:
    """What a `BeyondTask` takes beside the arguments of a `LongTailTask`; empty where the recipe asks for none."""
    options: dict[str, Any] = {}
    if config.tail_learns != "all":
        options |= {"learnt": learnt_by_tail(config, profile), "accumulation": config.accumulation}
    if config.tail_groups:
        assert isinstance(classifier, Classifier)
        options["groups"] = class_groups(classifier, profile, config.tail_groups, config.seed)
    if config.orthogonality:
        options["orthogonality"] = config.orthogonality
    return options


@torch.no_grad()
def class_groups(classifier: Classifier, profile: ClassProfile, count: int, seed: int) -> Tensor:
    """Classes that are not head, clustered by their texts (k-means): (C,) from 0 to `count` - 1, -1 for head classes.

    Args:
        classifier: With the untouched CLIP.
        profile: Says which classes are head.
        count: Of groups.
        seed: Of k-means.
    """
    from sklearn.cluster import KMeans

    was_training = classifier.training
    texts = classifier.eval().head.text_features(classifier.clip)
    classifier.train(was_training)
    rare = [c for c, group in enumerate(profile.groups) if group != "head"]
    found = KMeans(count, n_init=10, random_state=seed).fit_predict(texts[rare].double().cpu().numpy())
    groups = torch.full((len(profile.names),), -1)
    groups[rare] = torch.from_numpy(found).long()
    return groups.to(texts.device)


def shared_directions(model: nn.Module) -> Tensor:
    """Mean over tail layers of `||W_g^T B||^2 / (||W_g||^2 ||B||^2) + ||W_g A^T||^2 / (||W_g||^2 ||A||^2)`.

    Frobenius norms; a term is 0 where B (or A) is. No gradient goes to W_g.
    """
    terms = []
    for layer in (module for module in model.modules() if isinstance(module, TailLayer)):
        (a,), (b,) = ([part.weight.flatten(1) for part in parts.values()] for parts in (layer.lora_A, layer.lora_B))
        weight = layer.base_layer.weight.detach().flatten(1)
        with torch.autocast(weight.device.type, enabled=False):
            square = weight.square().sum()
            terms += [_share(weight.T @ b, square * b.square().sum()), _share(weight @ a.T, square * a.square().sum())]
    return torch.stack(terms).sum() / (len(terms) / 2)


def _share(product: Tensor, whole: Tensor) -> Tensor:
    return product.square().sum() / torch.where(whole == 0, 1.0, whole)


# Ranks


@dataclass(frozen=True)
class RankedConfig(MoreConfig):
    """A tail whose ranks are given, or multiples of something.

    Attributes:
        ranks: Module path to rank; by `rho` without it.
        multiple: Ranks are rounded up to multiples of this.
    """

    ranks: dict[str, int] | None = None
    multiple: int = 1

    def to_lora(self, model: nn.Module) -> LoraConfig:
        """As of a `MoreConfig`."""
        layers = self.find_layers(model)
        ranks = {name: self.rank(layer) for name, layer in layers.items()} if self.ranks is None else self.ranks
        if ranks.keys() != layers.keys():
            raise ValueError(f"ranks are given for {sorted(ranks)}, and the tail has {sorted(layers)}")
        return lora_config({name: -(-rank // self.multiple) * self.multiple for name, rank in ranks.items()})


def run_ranks(run: Run) -> dict[str, int] | None:
    """Ranks of a run by module path, None where `rho` says them: measured before its first step, and then those of its
    `ranks.json`.

    Raises:
        ConfigError: If a run that has trained lacks that file.
    """
    if run.config.tuning != "more" or run.config.rank_allocation == "uniform":
        return None
    path = run.folder / "ranks.json"
    if list_checkpoints(run.checkpoints):
        try:
            return dict(json.loads(path.read_text(encoding="utf-8"))["ranks"])
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(
                f"{path} is absent or damaged ({type(error).__name__}), and the checkpoints beside it have the ranks "
                "that it says; bring it back, or name another run with --run NAME"
            ) from None
    from clip_more.training.build import tail_config

    places = tail_config(run.config, run.classifier.encoder)
    layers = places.find_layers(run.classifier.encoder.model)
    shapes = [_shape(layer) for layer in layers.values()]
    importance = layer_importance(run, list(layers.values()))
    uniform = [places.rank(layer) for layer in layers.values()]
    ranks = dict(zip(layers, allocate(uniform, importance, shapes), strict=True))
    with written_aside(path) as aside:
        text = {"ranks": ranks, "importance": dict(zip(layers, importance, strict=True))}
        aside.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    return ranks


def layer_importance(run: Run, layers: Sequence[nn.Module]) -> list[float]:
    """Root mean square over the weights of each layer of the base loss's gradient for rare classes.

    The loss is that of the logits of rare classes (with one softmax over the classes: of all logits) over up to
    `IMPORTANCE_PHOTOS` train photos that show one, in evaluation mode.

    Args:
        run: Before its first step, without a tail.
        layers: With a `weight` each.
    """
    from clip_more.training.build import build_losses

    config, classifier, train = run.config, run.classifier, run.data.train
    rare = _rare(run.data.profile)
    rows, classes = label_pairs(train)
    shown = np.unique(rows[np.isin(classes, rare)])
    shown = np.sort(np.random.default_rng(config.seed).permutation(shown)[:IMPORTANCE_PHOTOS])
    base_loss = build_losses(config, run.data.profile)[0].to(run.accelerator.device)
    encoder = classifier.encoder
    transform = test_transform(
        encoder.image_size,
        encoder.image_mean,
        encoder.image_std,
        geometry=encoder.geometry,
        interpolation=encoder.interpolation,
    )
    photos = Photos(train.select(shown), transform)
    loader = photo_loader(photos, workers=config.workers, timeout=config.worker_timeout, batch_size=config.batch_size)
    weights = [layer.get_parameter("weight") for layer in layers]
    gradients = [torch.zeros_like(weight) for weight in weights]
    was_training = classifier.training
    classifier.eval()
    for batch in batches(loader, photos):
        batch = send_to_device(batch, run.accelerator.device)
        known = batch["known"]
        if config.loss not in LOSSES_OF_ONE_LABEL:
            of_rare = torch.zeros_like(known)
            of_rare[:, rare] = True
            known = known & of_rare
        loss = base_loss(classifier(batch["pixel_values"]), batch["targets"], known) * len(known) / len(shown)
        for total, part in zip(gradients, torch.autograd.grad(loss, weights), strict=True):
            total += part
    classifier.train(was_training)
    return [float(gradient.square().mean().sqrt()) for gradient in gradients]


def allocate(uniform: Sequence[int], importance: Sequence[float], shapes: Sequence[tuple[int, int]]) -> list[int]:
    """Ranks proportional to uniform rank times importance, of at most as many weights as the uniform ones.

    Args:
        uniform: Rank of each layer if all are alike.
        importance: Of each layer, 0 or more; equal ones give the uniform ranks.
        shapes: (out, in) of each layer; its tail has `rank (out + in)` weights.

    Returns:
        Ranks from 1 to min(out, in). What is left over is less than any layer's next rank would take.
    """
    base, cost = np.asarray(uniform, dtype=float), np.asarray([sum(shape) for shape in shapes])
    highest = np.asarray([min(shape) for shape in shapes])
    budget = int(base @ cost)
    wanted = np.asarray(importance, dtype=float)
    wanted = base * (wanted / wanted.max() if wanted.max() > 0 else 1.0)

    def ranks(times: float) -> np.ndarray:
        return np.clip(times * wanted, 1, highest)

    low, high = 0.0, 1.0
    while ranks(high) @ cost < budget and high < 1e12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if ranks(middle) @ cost <= budget else (low, middle)
    exact = ranks(low)
    found = np.floor(exact + 1e-9).astype(int)
    while (fits := (found < highest) & (cost <= budget - found @ cost)).any():
        found[np.argmax(np.where(fits, exact - found, -np.inf))] += 1
    return found.tolist()


def _rare(profile: ClassProfile) -> list[int]:
    """The classes that are tail, or medium where none is."""
    return profile.indices("tail") or profile.indices("medium")


def _shape(layer: nn.Module) -> tuple[int, int]:
    weight = layer.get_parameter("weight")
    return weight.shape[0], weight[0].numel()
