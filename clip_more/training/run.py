"""What the parts of a run share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from clip_more.config import TrainConfig
from clip_more.data.load import LongTailData
from clip_more.evaluation.predict import Predictions, predict_logits
from clip_more.models.classifier import AnyClassifier
from clip_more.training.metrics_log import MetricsLog
from clip_more.training.schedule import Plan
from clip_more.training.signals import StopRequest

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class Run:
    """One run: its recipe, data, model and folder.

    Attributes:
        config: The recipe, resolved.
        accelerator: Processes, devices, precision.
        data: Train, held-out and test photos with the class profile.
        classifier: Unwrapped; the task trains it in place.
        folder: `runs/<name>`.
        log: metrics.jsonl.
        stop: Whether a signal asked the run to stop.
        changes: Keys of the recipe that were accepted to differ from the folder's, to [before, now].
    """

    config: TrainConfig
    accelerator: Accelerator
    data: LongTailData
    classifier: AnyClassifier
    folder: Path
    log: MetricsLog
    stop: StopRequest = field(default_factory=StopRequest)
    changes: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return self.folder / "checkpoints"

    @property
    def plan(self) -> Plan:
        """Its steps."""
        return Plan.of(
            self.config,
            photos=len(self.data.train),
            classes=len(self.data.profile.names),
            processes=self.accelerator.num_processes,
            validates=self.data.val is not None,
        )

    def logits(self, dataset: datasets.Dataset, label: str) -> Predictions:
        """Logits of the classifier as it stands, on every process; `label` names the progress bar."""
        config = self.config
        return predict_logits(
            self.classifier,
            dataset,
            self.accelerator,
            batch_size=config.batch_size,
            workers=config.workers,
            worker_timeout=config.worker_timeout,
            label=label,
            views=config.views,
        )
