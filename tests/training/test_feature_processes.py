"""A net with batch statistics on two processes: each has its own, and one model comes out."""

import numpy as np
import pytest
from accelerate import Accelerator

from clip_more.data.load import load_data
from clip_more.evaluation.predict import predict_logits
from clip_more.evaluation.scores import load_scores
from clip_more.models.classifier import load_classifier
from clip_more.recipe import load_config
from tests.training.test_processes import one_thread, recipe, settings, two

__all__ = ["one_thread", "settings"]

NET = {
    "model": "cifar_resnet32", "head": "linear", "tuning": "full", "optimizer": "sgd", "lr": 0.1, "max_steps": 3,
    "processes": 2, "keep": "last",
}  # fmt: skip


@pytest.mark.parametrize("distribution", ["ddp", "fsdp2"])
def test_what_is_judged_is_what_is_exported(settings, distribution):
    path = recipe(settings, f"net_{distribution}", distribution=distribution, **NET)
    for code, printed in two(path):
        assert code == 0, printed[-3000:]
    config = load_config(path)
    classifier, _ = load_classifier(config.run_folder / "merged")
    data = load_data(config)
    accelerator = Accelerator(cpu=True)
    again = predict_logits(classifier, data.test, accelerator, batch_size=4, workers=0).scores
    reported = load_scores(config.run_folder / "report" / "scores.safetensors").rows["merged"]
    np.testing.assert_allclose(reported, again, rtol=0, atol=1e-4 * np.ptp(again))
