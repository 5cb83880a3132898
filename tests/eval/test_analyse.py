import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.numpy import save_file

from clip_more.adapters import add_tail, tail_parameters
from clip_more.config import TrainConfig
from clip_more.data.form import multi_hot
from clip_more.data.load import load_data
from clip_more.evaluation.average_precision import average_precision
from clip_more.evaluation.scores import load_scores, save_scores
from clip_more.hub.export import export_run
from clip_more.models.classifier import Classifier
from clip_more.models.clip import load_clip
from clip_more.models.feature_heads import LinearHead
from clip_more.models.head_files import save_head
from clip_more.models.heads import PromptHead
from clip_more.models.prompts import class_prompts, load_templates
from clip_more.training.run_folder import write_recipe

CLASSES = ("red", "green", "blue")
STEP = {"event": "train", "loss": 2.0, "base": 1.9, "gradient_norm": 1.0, "alpha": 1.0, "discrepancy": 0.2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Thirty photos: labels of one to three classes in one list, of one class in the other."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    lines = {"several": [], "one": []}
    for n in range(30):
        PIL.Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / f"{n:02d}.png")
        present = [c for c, share in enumerate((0.8, 0.5, 0.25)) if random.random() < share]
        lines["several"].append(f"{n:02d}.png {' '.join(map(str, present))}".strip())
        lines["one"].append(f"{n:02d}.png {(0, 0, 0, 0, 1, 1, 1, 2)[n % 8]}")
    for kind, rows in lines.items():
        (root / f"{kind}_train.txt").write_text("\n".join(rows[:16]) + "\n")
        (root / f"{kind}_test.txt").write_text("\n".join(rows[16:]) + "\n")
    (root / "classes.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(CLASSES)))
    return root


def make_run(photos, output, *, tail=True, kind="several", gradient="stop_general"):
    """A run folder as training leaves it, of a CLIP whose weights and tail are random."""
    config = TrainConfig(
        dataset="lists", data_root=str(photos), train_list=f"{kind}_train.txt", test_list=f"{kind}_test.txt",
        class_file="classes.txt", head_min=8, tail_max=5, model="tiny", tuning="more" if tail else "full", run="trial",
        output_dir=str(output), workers=0, batch_size=8, task="single_label" if kind == "one" else "multi_label",
        discrepancy_gradient=gradient,
    )  # fmt: skip
    clip = load_clip("tiny")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in clip.model.named_parameters():
            weight.add_((0.5 if "token" in name else 0.05) * torch.randn(weight.shape, generator=generator))
        if tail:
            add_tail(clip.model)
            for weight in tail_parameters(clip.model).values():
                weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    head = PromptHead(clip, class_prompts(CLASSES, load_templates("plain")), scale=17.5)
    data = load_data(config)
    export_run(config.run_folder, Classifier(clip, head).eval(), data.profile, config)
    write_recipe(config, {})
    events = [STEP | {"step": step} for step in range(1, 21)]
    (config.run_folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return config.run_folder


@pytest.fixture(scope="module")
def exported(photos, tmp_path_factory):
    return make_run(photos, tmp_path_factory.mktemp("exported"))


@pytest.fixture
def run(exported, tmp_path):
    """A copy to change."""
    return shutil.copytree(exported, tmp_path / "trial")


@pytest.fixture
def analyse(monkeypatch, capsys):
    """Run the program with the real page, or with none where it is not looked for; its measures."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "eval")
    import analyse as program
    import clip_more.analysis.run

    def call(folder, *more, split="train", page=False):
        if not page:
            monkeypatch.setattr(clip_more.analysis.run, "draw_page", lambda found, path: None)
        code = program.main([str(folder), "--split", split, *more])
        if code:
            return code, capsys.readouterr().err
        assert "measures_" in capsys.readouterr().out
        out = Path(more[more.index("--out") + 1]) if "--out" in more else folder / "analysis"
        return code, json.loads((out / f"measures_{split}.json").read_text())

    return call


def test_run_with_a_tail_has_every_measure_and_a_page(analyse, exported, tmp_path):
    pytest.importorskip("matplotlib")
    code, found = analyse(exported, "--out", str(tmp_path / "out"), page=True)
    assert code == 0
    assert set(found["models"]) == {"merged", "general"}
    assert found["models"]["merged"]["photos"] == 16
    assert found["models"]["merged"]["fisher"] != found["models"]["general"]["fisher"]
    assert found["tail_layers"][0]["share"] > 0
    assert found["mechanism"]["relative_discrepancy"] > 0
    assert (found["mechanism"]["general_part_moved"], found["mechanism"]["verdict"]) == (True, None)
    assert [change["against"] for change in found["changes"]] == ["general"]
    assert found["diagnosis"]
    assert (tmp_path / "out" / "page_train.png").read_bytes().startswith(b"\x89PNG")
    assert not (exported / "analysis").exists()


def test_mechanism_has_a_verdict_where_l_more_left_the_general_part_alone(analyse, photos, tmp_path):
    _, found = analyse(make_run(photos, tmp_path, gradient="both"))
    assert not found["mechanism"]["general_part_moved"]
    assert found["mechanism"]["verdict"].endswith("seen")


def test_split_names_the_photos_and_the_files(analyse, run):
    _, found = analyse(run, "--batch_size", "5", split="test")
    assert (found["split"], found["models"]["merged"]["photos"]) == ("test", 14)


def test_kept_scores_are_those_that_are_tested(analyse, run, photos):
    data = load_data(TrainConfig(
        dataset="lists", data_root=str(photos), train_list="several_train.txt", test_list="several_test.txt",
        class_file="classes.txt", run="x",
    ))  # fmt: skip
    targets, _ = multi_hot(data.test)
    random = np.random.default_rng(0)
    rows = {name: random.normal(size=targets.shape).astype(np.float32) for name in ("zero-shot", "general", "merged")}
    save_scores(run / "report" / "scores.safetensors", rows, targets, None, list(data.test["image_id"]))
    _, found = analyse(run)
    lost = average_precision(targets, rows["merged"]) - average_precision(targets, rows["general"])
    np.testing.assert_allclose(found["mechanism"]["lost"]["by_class"], lost)
    assert [change["against"] for change in found["changes"]] == ["general", "zero-shot"]


def test_baseline_on_the_same_photos_is_compared_with_and_another_is_refused(analyse, run, tmp_path):
    _, alone = analyse(run)
    other = tmp_path / "base"
    data = load_data(TrainConfig(**json.loads(json.dumps(_recipe(run)))))
    targets, _ = multi_hot(data.test)
    scores = np.random.default_rng(0).normal(size=targets.shape).astype(np.float32)
    ids = list(data.test["image_id"])
    save_scores(other / "report" / "scores.safetensors", {"merged": scores}, targets, None, ids)
    _, found = analyse(run, "--baseline", str(other))
    assert [change["against"] for change in found["changes"]] == ["general", "base"]
    assert found["mechanism"] == alone["mechanism"]
    save_scores(other / "report" / "scores.safetensors", {"merged": scores}, targets, None, ids[::-1])
    code, message = analyse(run, "--baseline", str(other))
    assert code == 2
    assert "other test photos" in message
    assert load_scores(other / "report" / "scores.safetensors").image_ids == ids[::-1]


def _recipe(folder):
    import yaml

    return yaml.safe_load((folder / "config.yaml").read_text())["config"]


def test_run_without_a_tail_has_what_needs_none(analyse, photos, tmp_path):
    _, found = analyse(make_run(photos, tmp_path, tail=False))
    assert set(found["models"]) == {"merged"}
    assert not {"mechanism", "tail_layers", "forgetting"} & set(found)
    assert found["diagnosis"][0]["sign"] == "cannot_tell"


def test_single_label_run_is_measured_by_accuracy_and_fisher_of_all_classes(analyse, photos, tmp_path):
    _, found = analyse(make_run(photos, tmp_path, kind="one"))
    assert found["mechanism"]["lost_is"] == "accuracy"
    assert found["models"]["merged"]["fisher"]["all_classes"]["ratio"] > 0
    assert found["models"]["merged"]["collapse"]["photos"] == 16


def test_forgetting_is_of_the_epochs_that_the_run_noted(analyse, run):
    (run / "forgetting").mkdir()
    for epoch, right in enumerate((1, 0, 1)):
        table = np.full(16, right, dtype=np.uint8)
        save_file({"correct": table}, run / "forgetting" / f"step_{epoch:08d}.safetensors")
    _, found = analyse(run)
    assert found["forgetting"]["score"]["total"] == 1
    assert found["forgetting"]["epochs"] == 3


def test_head_on_features_is_measured_as_prompts_are(analyse, run):
    weight = torch.randn(3, load_clip("tiny").model.config.projection_dim, generator=torch.Generator().manual_seed(0))
    save_head(run / "merged", LinearHead(weight), {"class_names": list(CLASSES)})
    (run / "merged" / "multilabel.json").unlink()
    _, found = analyse(run)
    own = found["models"]["merged"]
    assert (own["inputs"], own["row_norms_matter"]) == ("raw", True)
    np.testing.assert_allclose(own["classifier_norm"]["by_class"], weight.norm(dim=1), rtol=1e-6)
    assert own["classifier_norm"] == found["models"]["general"]["classifier_norm"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: shutil.rmtree(run / "merged"), "has no merged/, so it is not finished"),
        (lambda run: (run / "config.yaml").unlink(), "is not the config of a run"),
        (lambda run: (run / "tail" / "adapter_model.safetensors").write_bytes(b"x"), "cannot be read"),
    ],
)
def test_what_cannot_be_analysed_is_one_sentence_and_another_exit_code(analyse, run, damage, message):
    damage(run)
    code, error = analyse(run)
    assert code == 2
    assert error.startswith("analyse: ")
    assert message in error
    assert not (run / "analysis").exists()
