"""Text features of the classes while training: how often the text tower is run, on what, and at what memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clip_more.adapters import TailCheckpointContext, TailLayer, tail
from clip_more.losses.sampling import Share
from clip_more.models.classifier import Classifier
from clip_more.models.clip import Clip
from clip_more.models.heads import encode_prompts
from clip_more.training.passes import tower_passes


@dataclass(frozen=True)
class TextRequest:
    """What a micro-batch asks of the text tower.

    Attributes:
        full: Classes of the pass with the tail.
        general: Classes of the pass without it, drawn from all classes or else those of `full`; None for no such pass.
        gradient: Whether gradients go through the general pass.
        last: Whether this is the last micro-batch of its step.
        fresh: Whether the tower is run in this step, or its last features stand.
    """

    full: Share = field(default_factory=Share)
    general: Share | None = None
    gradient: bool = True
    last: bool = True
    fresh: bool = True


class ClassTexts(nn.Module):
    """Unit text features of the classes, with the tail and without it.

    The text tower learns once a step, never from every photo or micro-batch: where a step has several micro-batches,
    all but the last take features without a graph, and the gradients that these collect go into the graph of the last.
    (With dropout in the text tower each micro-batch has a graph, and masks, of its own.)

    Args:
        chunk: Prompts read at a time, each chunk made again in the backward pass: memory is bounded by a chunk, and
            time grows by one forward pass. All prompts at once without it.
        refresh: Steps from one run of the tower to the next. Above 1 its last features stand meanwhile, and it learns
            from every `refresh`-th step alone.
        shape: (C, D) of the features that stand; needed with `refresh`.
    """

    def __init__(self, chunk: int | None = None, refresh: int = 1, shape: tuple[int, int] = (0, 0)) -> None:
        super().__init__()
        self.chunk, self.refresh = chunk, refresh
        self.standing: Tensor | None
        # Part of the state dict, so that a run goes on with the same features.
        self.register_buffer("standing", torch.zeros(2, *shape) if refresh > 1 else None)
        self._collecting: list[Tensor] = []

    def forward(self, classifier: Classifier, request: TextRequest) -> tuple[Tensor, Tensor | None]:
        """Features (k, D) of the full pass, and (k', D) of the general one where it was asked for."""
        head, clip, general = classifier.head, classifier.clip, request.general
        if head.frozen_features is not None:
            full = head.text_features(clip, request.full.classes)
            return full, None if general is None else head.text_features(clip, general.classes)
        if self.standing is not None and not request.fresh:
            return self.standing[0], None if general is None else self.standing[1]
        if request.last or clip.text.draws:
            features = self._collected_into(self._encode(classifier, request))
        else:
            features = self._collecting_from(classifier, request)
        if self.standing is not None:
            with torch.no_grad():
                for row, part in zip(self.standing, features, strict=True):
                    row.copy_(features[0] if part is None else part)
        return features

    def forget(self) -> None:
        """Drop what micro-batches have collected, if their step was never ended."""
        self._collecting = []

    def _encode(self, classifier: Classifier, request: TextRequest) -> tuple[Tensor, Tensor | None]:
        clip, head, general = classifier.clip, classifier.head, request.general
        prompts = head.prompts(request.full.classes)
        rows = None
        if general is not None and general.classes is not None and request.full.classes is None:
            rows = head.rows(general.classes)
        has_tail = clip.text.first(TailLayer) is not None
        if self.chunk is None and general is not None:
            full, without = tower_passes(clip, clip.text, prompts, rows, request.gradient)
            return head.class_features(full), head.class_features(without)
        full = self._read(clip, prompts, has_tail)
        if general is None:
            return head.class_features(full), None
        if not has_tail:
            without = (full if request.gradient else full.detach())[slice(None) if rows is None else rows]
        else:
            with torch.set_grad_enabled(torch.is_grad_enabled() and request.gradient), tail(clip, enabled=False):
                without = self._read(clip, prompts if rows is None else prompts[rows], has_tail)
        return head.class_features(full), head.class_features(without)

    def _read(self, clip: Clip, prompts: Tensor, has_tail: bool) -> Tensor:
        """Features of prompts; in chunks, which are made again in the backward pass, where `chunk` says so."""
        if self.chunk is None:
            return encode_prompts(clip, prompts)
        parts = prompts.split(self.chunk)
        if not torch.is_grad_enabled():
            return torch.cat([clip.encode_text(part) for part in parts])
        options: dict[str, Any] = {"use_reentrant": False}
        if has_tail:
            options["context_fn"] = TailCheckpointContext(clip)
        return torch.cat([checkpoint(clip.encode_text, part, **options) for part in parts])

    def _collecting_from(self, classifier: Classifier, request: TextRequest) -> tuple[Tensor, Tensor | None]:
        """Features without a graph, the same tensors for all but the last micro-batch: gradients add up in them."""
        if not self._collecting:
            with torch.no_grad():
                found = self._encode(classifier, request)
            self._collecting = [part.requires_grad_() for part in found if part is not None]
        return self._collecting[0], self._collecting[1] if request.general is not None else None

    def _collected_into(self, features: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
        """Features with a graph, which the gradients collected so far in this step will flow into."""
        for part, collected in zip(features, self._collecting, strict=False):
            if part is not None and part.requires_grad and collected.grad is not None:
                part.register_hook(partial(torch.add, collected.grad))
        self._collecting = []
        return features
