"""What an optimiser step does beside the gradient, what is judged meanwhile, and which weights are kept."""

import json
import math

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from clip_more.data.form import make_dataset
from clip_more.data.load import LongTailData
from clip_more.data.profile import ClassProfile
from clip_more.evaluation.average_precision import average_precision
from clip_more.evaluation.groups import split_map
from clip_more.evaluation.multi_label import precision_recall_f1
from clip_more.evaluation.results import Results
from clip_more.evaluation.scores import load_scores
from clip_more.models.clip import load_clip
from clip_more.models.multilabel import read_multilabel
from clip_more.recipe import from_dict
from clip_more.training import loop
from clip_more.training.build import build_classifier, build_task
from clip_more.training.metrics_log import MetricsLog
from clip_more.training.processes import make_accelerator
from clip_more.training.run import Run
from clip_more.training.schedule import warmup_cosine

NAMES = ("red", "green", "blue")
HELD_OUT = {"val_fraction": 0.25, "eval_every": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Twenty-four noisy photos: the first twelve to train on, as a list-file data set as well."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for n in range(24):
        PIL.Image.fromarray(generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(root / f"{n:02d}.png")
    rows = [f"{n:02d}.png {' '.join(map(str, labels(n)))}" for n in range(24)]
    (root / "train.txt").write_text("\n".join(rows[:16]) + "\n")
    (root / "test.txt").write_text("\n".join(rows[16:]) + "\n")
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return root


@pytest.fixture(scope="module")
def data(root):
    """Train, held-out and test photos of different numbers and names."""
    train, val, test = (
        make_dataset([str(root / f"{n:02d}.png") for n in part], [labels(n) for n in part], NAMES,
                     image_ids=[f"{name} {n}" for n in part])
        for name, part in (("train", range(12)), ("val", range(12, 17)), ("test", range(17, 24)))
    )  # fmt: skip
    return LongTailData(train, val, test, ClassProfile.from_dataset(train, head_min=5, tail_max=3))


def labels(n):
    return [[0], [1], [0, 2]][n % 3]


@pytest.fixture
def optimised(data, tmp_path):
    """Four steps of MORE by `optimise`, other keys and an own start given; returns the task and the events."""

    def run(prepare=lambda task: None, **keys):
        settings = {
            "dataset": "digits_mlt", "model": "tiny", "method": "x", "text_tower": "freeze", "tail_towers": "vision",
            "batch_size": 6, "epochs": 2, "workers": 0, "log_every": 1, "output_dir": str(tmp_path),
        }  # fmt: skip
        config = from_dict({**settings, **keys}, "test")
        accelerator = make_accelerator(config)
        clip = load_clip("tiny")
        classifier = build_classifier(config, clip, data.profile).to(accelerator.device)
        config.run_folder.mkdir()
        log = MetricsLog(config.run_folder, active=True)
        task = build_task(config, classifier, data.profile)
        prepare(task)
        loop.optimise(Run(config, accelerator, data, classifier, config.run_folder, log), task)
        return task, [json.loads(line) for line in log.path.read_text().splitlines()]

    return run


@pytest.fixture
def at_each_step():
    """A function to register what shall see the optimiser before, or after, each of its real steps."""
    handles = []

    def register(look, after=False):
        add = register_optimizer_step_post_hook if after else register_optimizer_step_pre_hook
        handles.append(add(lambda optimizer, *_: look(optimizer)))

    yield register
    for handle in handles:
        handle.remove()


@pytest.fixture
def judged(monkeypatch):
    """(image_ids, predictions, weights then) of everything that is judged."""
    seen, logits = [], Run.logits

    def spy(self, dataset, *arguments, **keys):
        predictions = logits(self, dataset, *arguments, **keys)
        seen.append((list(dataset["image_id"]), predictions, weights(self.classifier)))
        return predictions

    monkeypatch.setattr(Run, "logits", spy)
    return seen


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def assert_close(one, two, rtol=0.0, atol=0.0):
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=rtol, atol=atol, msg=name)


def of_kind(events, kind):
    return [event for event in events if event["event"] == kind]


# A step


@pytest.mark.parametrize(
    ("keys", "peak"),
    [({}, 0.7 * 3), ({"amplitude_normalised": False}, 0.7), ({"accumulation": 2, "batch_size": 3}, 0.7 * 3)],
)
def test_amplitude_is_times_the_number_of_classes_and_alpha_a_half_wave_over_the_steps(optimised, keys, peak):
    _, events = optimised(amplitude=0.7, lr_tail=1e-2, **keys)
    steps = of_kind(events, "train")
    assert [event["step"] for event in steps] == [1, 2, 3, 4]
    assert [event["alpha"] for event in steps] == pytest.approx([peak * math.sin(math.pi * s / 4) for s in range(4)])
    for event in steps[1:]:
        assert event["loss"] == pytest.approx(event["base"] + event["alpha"] * event["discrepancy"], rel=1e-5)
    assert steps[-1]["alpha"] * steps[-1]["discrepancy"] > 1e-4 * steps[-1]["loss"]


def test_alpha_schedule_of_the_recipe_is_used(optimised):
    _, events = optimised(amplitude=0.7, alpha_schedule="cosine")
    wanted = [2.1 * (1 + math.cos(math.pi * s / 4)) / 2 for s in range(4)]
    assert [event["alpha"] for event in of_kind(events, "train")] == pytest.approx(wanted)


def test_every_group_follows_the_schedule_from_its_own_peak(optimised, at_each_step):
    seen = []
    at_each_step(lambda optimizer: seen.append({group["name"]: group["lr"] for group in optimizer.param_groups}))
    peaks = {"lr": 1e-4, "lr_tail": 2e-4, "lr_head": 3e-4}
    _, events = optimised(**peaks, warmup=0.5, accumulation=2, batch_size=3)
    factors = [warmup_cosine(step, 4, 0.5) for step in range(4)]
    assert factors == pytest.approx([0.5, 1.0, 1.0, 0.5])
    assert [event["lr"] for event in of_kind(events, "train")] == pytest.approx([1e-4 * factor for factor in factors])
    names = {"towers": "lr", "towers_no_decay": "lr", "tail": "lr_tail", "head": "lr_head"}
    assert len(seen) == 4
    for rates, factor in zip(seen, factors, strict=True):
        assert rates == pytest.approx({name: factor * peaks[key] for name, key in names.items()})


@pytest.mark.parametrize("bound", [0.05, 0.0])
def test_gradients_are_clipped_to_the_norm_of_the_recipe_and_logged_before_that(optimised, at_each_step, bound):
    seen = []

    def norm_of_all(optimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm().item())

    at_each_step(norm_of_all)
    _, events = optimised(clip_norm=bound, max_steps=3)
    logged = [event["gradient_norm"] for event in of_kind(events, "train")]
    assert min(logged) > 0.5
    assert seen == pytest.approx([bound] * 3 if bound else logged, rel=1e-3)


def test_scale_is_back_at_its_bound_after_a_step(optimised):
    def beyond(task):
        with torch.no_grad():
            task.classifier.head.log_scale.fill_(math.log(150))

    task, _ = optimised(beyond, max_steps=1, lr_head=0.0)
    assert task.classifier.head.log_scale.exp().item() == pytest.approx(100)


# What is judged


@pytest.mark.parametrize(("every", "steps"), [(1, [1, 2, 3]), (2, [2, 3]), (0, [3])])
def test_only_the_held_out_photos_are_judged_while_training_and_last_of_all_at_the_end(
    optimised, judged, data, every, steps
):
    _, events = optimised(val_fraction=0.25, eval_every=every, max_steps=3)
    assert [ids for ids, _, _ in judged] == [list(data.val["image_id"])] * len(steps)
    found = of_kind(events, "eval")
    assert [(event["step"], event["split"]) for event in found] == [(step, "val") for step in steps]
    for event, (_, predictions, _) in zip(found, judged, strict=True):
        ap = average_precision(predictions.targets, predictions.scores, predictions.known)
        assert event["map"] == split_map(ap, data.profile)


def test_judging_is_without_dropout_and_training_goes_on_with_it(optimised):
    modes = []

    def watch(task):
        parts = [m for name, m in task.named_modules() if name.endswith("self_attn") and "vision" in name]
        parts[0].register_forward_hook(lambda *_: modes.append({part.training for part in parts}))

    optimised(watch, **HELD_OUT, max_steps=3, amplitude=0.0, dropout=0.5)  # one pass a step, one batch held out
    assert modes == [{True}, {False}] * 3


# Which weights are kept


@pytest.mark.parametrize("keep", ["best", "last"])
def test_best_keeps_the_weights_of_the_best_validation_and_last_those_of_the_last_step(
    optimised, judged, monkeypatch, tmp_path, keep
):
    figures = iter([0.1, 0.9, 0.3, 0.9])
    monkeypatch.setattr(
        loop, "split_map", lambda *_: {"total": next(figures), "head": None, "medium": None, "tail": None}
    )
    task, _ = optimised(keep=keep, **HELD_OUT, lr=1e-3, lr_tail=1e-2)
    held = [then for _, _, then in judged]
    assert len(held) == 4
    kept, other = (held[1], held[3]) if keep == "best" else (held[3], held[1])
    assert_close(weights(task.classifier), kept)
    assert bool(list(tmp_path.rglob("best_step_*"))) == (keep == "best")
    assert all(not torch.equal(kept[name], other[name]) for name in kept)


def test_running_average_is_judged_and_kept_while_the_weights_train_on(optimised, judged, at_each_step):
    """Against its closed form on the weights that the optimiser saw."""
    trained, before, models = [], [], []

    def prepare(task):
        models.append(task)
        trained.append(weights(task.classifier))

    at_each_step(lambda _: before.append(weights(models[0].classifier)))
    at_each_step(lambda _: trained.append(weights(models[0].classifier)), after=True)
    task, _ = optimised(prepare, keep="ema", ema_decay=0.25, **HELD_OUT, lr=1e-3, lr_tail=1e-2)
    assert len(trained) == 5
    expected = trained[0]
    for step, (now, (_, _, at_judging)) in enumerate(zip(trained[1:], judged, strict=True), start=1):
        decay = min(0.25, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * now[name] for name in now}
        assert_close(at_judging, expected, rtol=1e-5, atol=1e-7)
    assert_close(weights(task.classifier), expected, rtol=1e-5, atol=1e-7)
    for after, then in zip(trained[:-1], before, strict=True):
        assert_close(then, after)
    assert all(not torch.equal(expected[name], trained[-1][name]) for name in expected)


def test_a_whole_run_judges_test_at_its_two_ends_and_exports_the_average_without_dropout(root, judged, tmp_path):
    settings = {
        "dataset": "lists", "data_root": str(root), "train_list": "train.txt", "test_list": "test.txt",
        "class_file": "classes.txt", "head_min": 5, "tail_max": 3, "model": "tiny", "tuning": "full", "method": "x",
        "dropout": 0.5, "lr": 1e-3, "batch_size": 8, "max_steps": 2, "workers": 0, "keep": "ema", **HELD_OUT,
        "output_dir": str(tmp_path),
    }  # fmt: skip
    folder = loop.train(from_dict(settings, "test"))
    photos = [{str(image_id).removesuffix(".png")[-2:] for image_id in ids} for ids, _, _ in judged]
    test = {f"{n:02d}" for n in range(16, 24)}
    assert len(photos) == 5
    assert photos[0] == photos[3] == test
    assert photos[1] == photos[2] == photos[4]  # validation twice, and the thresholds of the weights that are kept
    assert photos[1] < {f"{n:02d}" for n in range(16)}

    merged = load_file(folder / "merged/model.safetensors")
    trained, average = (load_file(folder / "checkpoints/step_2" / f"{n}.safetensors") for n in ("model", "average"))
    name = "visual_projection.weight"
    assert torch.equal(merged[name], average[f"classifier.clip.model.{name}"])
    assert not torch.equal(merged[name], trained[f"classifier.clip.model.{name}"])

    scores = load_scores(folder / "report" / "scores.safetensors")
    assert list(scores.rows) == ["zero-shot", "merged"]
    thresholds = read_multilabel(folder / "merged")["thresholds"]
    results = Results.load(folder / "report/results.json")
    expected = precision_recall_f1(scores.targets, 1 / (1 + np.exp(-scores.rows["merged"])), np.array(thresholds))
    assert results.metrics["merged"]["CF1"] == pytest.approx(expected["CF1"])
    assert results.metrics["merged"]["thresholds"] == "fitted on held-out"
    assert results.intervals["merged"]["total"][0] <= results.maps["merged"]["total"]
    assert not (folder / "report" / "zero_shot.safetensors").exists()

    clip = load_clip(str(folder / "merged")).train()
    pixels = torch.rand(2, 3, 32, 32)
    assert torch.equal(clip.encode_image(pixels), clip.encode_image(pixels))
