"""The training task: one forward from a batch to its losses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clip_more.adapters import TailLayer, tail, tail_parameters
from clip_more.losses import DiscrepancyLoss
from clip_more.losses.feature_norm import feature_norm
from clip_more.losses.sampling import Share, draw_classes, draw_images, inclusion_probabilities, positives_and_others
from clip_more.models.classifier import Classifier, FeatureClassifier
from clip_more.models.clip import Clip
from clip_more.training.class_texts import ClassTexts, TextRequest
from clip_more.training.passes import tower_passes
from clip_more.training.randomness import RandomState, frozen_batch_statistics, general_pass

# Drawn at least in the economical mode: few prompts cost little, and one class of ten is a noisy estimate of their sum.
LEAST_CLASSES = 32


class LongTailTask(nn.Module):
    """`L = L_base(full) + alpha * L_MORE(full, general)` (MORE, arXiv 2510.08177).

    Both passes happen inside this one forward, so that DDP and FSDP see a single module. For a CLIP they share what
    lies below the tail, and the text tower learns once a step.

    Args:
        classifier: pixel_values (N, 3, H, W) -> logits (N, C); with a tail when `discrepancy` is given.
        base_loss: (logits, targets, known) -> scalar.
        discrepancy: (full, general, targets, known) -> scalar; without it there is one pass and no L_MORE.
        tail_only: L_MORE sends its gradient to A and B alone, at the price of a third pass: theta_g is detached inside.
        fraction: Below 1 the economical mode, for a CLIP: L_MORE is taken on this share of the photos and, where the
            text tower has a tail, of the classes (but at least `LEAST_CLASSES`), drawn anew in each step and weighted
            so that it stays unbiased.
        texts: How the text tower is run.
        feature_regularisation: lambda: `lambda / 2 mean ||h||^2` is added to the loss, h being the features that the
            head reads (weight balancing, ICLR 2024). For heads on features alone.
        class_sample: Classes a step where there are thousands: all that are positive in the batch, and a random sample
            of the others, weighted so that sums over classes stay unbiased. All classes without it.
        pair: What L_MORE compares: `tail`, the model and its general part; `dropout`, a control for a CLIP without a
            tail, two passes with dropout masks of their own.
    """

    def __init__(
        self,
        classifier: nn.Module,
        base_loss: nn.Module,
        discrepancy: DiscrepancyLoss | None = None,
        tail_only: bool = False,
        fraction: float = 1.0,
        texts: ClassTexts | None = None,
        class_sample: int | None = None,
        feature_regularisation: float = 0.0,
        pair: str = "tail",
    ) -> None:
        super().__init__()
        self.classifier = classifier
        self.base_loss = base_loss
        self.discrepancy = discrepancy
        self.tail_only = tail_only
        self.texts = texts or ClassTexts()
        self.class_sample = class_sample
        self.fraction = fraction
        self.feature_regularisation = feature_regularisation
        self.pair = pair
        self._inclusion: Tensor | None = None
        self._drawn: tuple[Tensor, Tensor] | None = None

    def forward(
        self, batch: dict[str, Tensor], alpha: float = 0.0, *, last: bool = True, fresh: bool = True
    ) -> dict[str, Any]:
        """Losses of a batch.

        Args:
            batch: pixel_values (N, 3, H, W), targets (N, C), known (N, C).
            alpha: Weight of L_MORE now; at 0 the general pass is left out.
            last: Whether this is the last micro-batch of its optimiser step.
            fresh: Whether the text tower is run in this step (see `ClassTexts`).

        Returns:
            loss (their sum, with the feature regularisation), base and discrepancy (scalars; discrepancy None where it
            was left out) and logits (N, k), of all classes or of those drawn.
        """
        if isinstance(self.classifier, Classifier) and not self.tail_only:
            return self._of_clip(self.classifier, batch, alpha, last, fresh)
        if isinstance(self.classifier, FeatureClassifier) and not self.tail_only:
            return self._of_features(self.classifier, batch, alpha)
        pixel_values, targets, known = batch["pixel_values"], batch["targets"], batch["known"]
        two_passes = self.discrepancy is not None and alpha != 0
        masks = RandomState(pixel_values.device) if two_passes else None
        full = self.classifier(pixel_values)
        base = self.base_loss(full, targets, known)
        if self.discrepancy is None or masks is None:
            return {"loss": base, "base": base, "discrepancy": None, "logits": full}
        if self.tail_only:
            pair = self._without_theta_g(pixel_values, masks, True), self._without_theta_g(pixel_values, masks, False)
        else:
            with general_pass(self, masks), torch.set_grad_enabled(self._general_needs_gradient()):
                pair = full, self.classifier(pixel_values)
        discrepancy = self.discrepancy(*pair, targets, known)
        return {"loss": base + alpha * discrepancy, "base": base, "discrepancy": discrepancy, "logits": full}

    def _of_clip(
        self, classifier: Classifier, batch: dict[str, Tensor], alpha: float, last: bool, fresh: bool
    ) -> dict[str, Any]:
        pixel_values, targets, known = batch["pixel_values"], batch["targets"], batch["known"]
        clip, head, gradient = classifier.clip, classifier.head, self._general_needs_gradient()
        two_passes = self.discrepancy is not None and alpha != 0
        drawn = positives_and_others(targets, self.class_sample)
        share = self._share(classifier, len(targets), drawn, last)
        both_texts = two_passes or (self.discrepancy is not None and self.texts.refresh > 1)
        request = TextRequest(drawn, share if both_texts else None, gradient, last, fresh)
        texts, general_texts = self.texts(classifier, request)
        if self.discrepancy is None or not two_passes:
            images, general_images = clip.encode_image(pixel_values), None
        else:
            images, general_images = self._images(clip, pixel_values, share.images, gradient)
        full = head.logits(images, texts, drawn.classes)
        base = self.base_loss(full, drawn.columns(targets), drawn.weighted(known))
        if self.discrepancy is None or general_images is None:
            return {"loss": base, "base": base, "discrepancy": None, "logits": full}
        with torch.set_grad_enabled(gradient):
            general = head.logits(general_images, general_texts, share.classes)
        discrepancy = self.discrepancy(drawn.spread(full, targets.shape[1]), general, targets, known, share)
        return {"loss": base + alpha * discrepancy, "base": base, "discrepancy": discrepancy, "logits": full}

    def _of_features(self, classifier: FeatureClassifier, batch: dict[str, Tensor], alpha: float) -> dict[str, Any]:
        pixel_values, targets, known = batch["pixel_values"], batch["targets"], batch["known"]
        encoder, head, gradient = classifier.encoder, classifier.head, self._general_needs_gradient()
        two_passes = self.discrepancy is not None and alpha != 0
        share = Share(draw_images(len(targets), self.fraction, pixel_values.device)) if self.fraction < 1 else Share()
        general: Tensor | None = None
        if not two_passes:
            features = encoder.encode_image(pixel_values)
        elif isinstance(encoder, Clip):
            features, general = self._images(encoder, pixel_values, share.images, gradient)
        else:
            masks = RandomState(pixel_values.device)
            features = encoder.encode_image(pixel_values)
            with general_pass(self, masks), torch.set_grad_enabled(gradient):
                general = encoder.encode_image(pixel_values)
        full = head(features)
        base = self.base_loss(full, targets, known)
        loss = base
        if self.feature_regularisation:
            loss = loss + feature_norm(features, self.feature_regularisation)
        if self.discrepancy is None or general is None:
            return {"loss": loss, "base": base, "discrepancy": None, "logits": full}
        with torch.set_grad_enabled(gradient):
            without = head(general)
        discrepancy = self.discrepancy(full, without, targets, known, share)
        return {"loss": loss + alpha * discrepancy, "base": base, "discrepancy": discrepancy, "logits": full}

    def _images(self, clip: Clip, pixel_values: Tensor, rows: Tensor | None, gradient: bool) -> tuple[Tensor, Tensor]:
        """Image features (N, D) of the first pass, and (n, D) of the one that it is compared with."""
        if self.pair == "tail":
            return tower_passes(clip, clip.vision, pixel_values, rows, gradient)
        return clip.encode_image(pixel_values), clip.encode_image(pixel_values if rows is None else pixel_values[rows])

    def _share(self, classifier: Classifier, images: int, drawn: Share, last: bool) -> Share:
        """Photos and classes of L_MORE: all, or a random share; the classes stay the same through a step."""
        if self.discrepancy is None or self.fraction >= 1:
            return Share(None, drawn.classes, drawn.weights)
        device = self.discrepancy.prior.device
        rows = draw_images(images, self.fraction, device)
        if drawn.classes is not None:
            return Share(rows, drawn.classes, drawn.weights)
        return Share(rows, *(self._classes(classifier, last) or (None, None)))

    def _classes(self, classifier: Classifier, last: bool) -> tuple[Tensor, Tensor] | None:
        """Classes of L_MORE and their weights, the same for all micro-batches of a step; None for all classes."""
        assert self.discrepancy is not None
        weights = self.discrepancy.class_weights()
        needless = classifier.head.frozen_features is not None or classifier.clip.text.first(TailLayer) is None
        if weights is None or needless or self.texts.refresh > 1:
            return None
        size = max(LEAST_CLASSES, round(self.fraction * len(weights)))
        if size >= len(weights):
            return None
        if self._inclusion is None:
            self._inclusion = inclusion_probabilities(weights.cpu(), size)
        drawn = self._drawn or draw_classes(self._inclusion, weights.device)
        self._drawn = None if last else drawn
        return drawn

    def train(self, mode: bool = True) -> LongTailTask:
        """As in torch; a step that was begun and never ended is forgotten."""
        self._drawn = None
        self.texts.forget()
        return super().train(mode)

    def _general_needs_gradient(self) -> bool:
        stopped = self.discrepancy is not None and self.discrepancy.gradient == "stop_general"
        return torch.is_grad_enabled() and not stopped

    def _without_theta_g(self, pixel_values: Tensor, masks: RandomState, enabled: bool) -> Tensor:
        """Logits through which no gradient reaches theta_g: everything but A and B is detached."""
        kept = tail_parameters(self.classifier)
        detached = {n: p if n in kept else p.detach() for n, p in self.classifier.named_parameters()}
        with masks.replayed(), frozen_batch_statistics(self), tail(self, enabled=enabled):
            return torch.func.functional_call(self.classifier, detached, (pixel_values,))
