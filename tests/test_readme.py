"""The README's code runs as printed."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

README = Path(__file__).parents[1] / "README.md"


def block(containing: str) -> str:
    (found,) = [code for code in re.findall(r"```python\n(.*?)```", README.read_text(), re.S) if containing in code]
    return found


@pytest.fixture
def data():
    torch.manual_seed(0)
    return torch.randn(24, 6), (torch.rand(24, 3) < torch.tensor([0.8, 0.4, 0.3])).float()


def test_plain_loop_trains_both_parts_and_ends_in_a_plain_model(data):
    x, targets = data
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))
    code = block("merge_tail(model)")
    setup, loop = code.split("for step,")
    names = {"model": model, "positives_per_class": targets.sum(0), "epochs": 1}
    names["loader"] = list(zip(x.split(4), targets.split(4), strict=True))
    exec(setup, names)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    names["optimizer"] = torch.optim.SGD(model.parameters(), 0.1)
    exec(f"for step,{loop}", names)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any("lora" in key or "base_layer" in key for key in names["model"].state_dict())
    assert names["model"][1].num_batches_tracked == len(names["loader"])


def trainer_on(data, folder, batch, accumulation, steps):
    from transformers import TrainingArguments
    from transformers.modeling_outputs import ImageClassifierOutput

    from clip_more import MoreConfig, add_tail

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x, **kwargs):
            return ImageClassifierOutput(logits=self.layer(x))

    names: dict = {}
    exec(block("class MoreTrainer"), names)
    x, targets = data
    torch.manual_seed(0)
    model = add_tail(Net(), MoreConfig(rho=0.5, target_modules="all"))
    arguments = TrainingArguments(
        folder, max_steps=steps, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
        report_to=[], use_cpu=True, remove_unused_columns=False, label_names=["labels"], learning_rate=0.1,
        save_strategy="no", disable_tqdm=True, optim="sgd", max_grad_norm=0.0, seed=3,
    )  # fmt: skip
    rows = [{"x": a, "labels": b} for a, b in zip(x, targets, strict=True)]
    counts = targets.sum(0)
    return names["MoreTrainer"](model, arguments, train_dataset=rows, eval_dataset=rows, positives_per_class=counts)


def test_trainer_trains_with_more(data, tmp_path, monkeypatch):
    trainer, seen = trainer_on(data, tmp_path, 6, 1, 4), []
    discrepancy = trainer.discrepancy.forward
    monkeypatch.setattr(trainer.discrepancy, "forward", lambda *a: seen.append(discrepancy(*a)) or seen[-1])
    trainer.train()
    assert len(seen) == 4
    assert seen[0] == 0  # B is zero before the first step
    assert seen[-1] > 0
    assert trainer.evaluate()["eval_loss"] > 0
    assert len(seen) == 4  # the general pass is for training alone


def test_trainer_steps_the_same_under_accumulation(data, tmp_path):
    weights = []
    for batch, accumulation in ((8, 1), (2, 4)):
        trainer = trainer_on(data, tmp_path, batch, accumulation, 1)
        trainer.train()
        weights.append(trainer.model.layer.base_layer.weight.detach())
    torch.testing.assert_close(*weights)


def test_test_command_is_the_one_that_ci_runs():
    assert "make test" in README.read_text()
    assert "make test\n" in (README.parent / ".ci/run").read_text()
