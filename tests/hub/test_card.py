import re

import numpy as np
import pytest
import torch
from PIL import Image

from clip_more.config import TrainConfig
from clip_more.data.profile import ClassProfile
from clip_more.evaluation.results import Results
from clip_more.hub.card import model_card, public_name
from clip_more.hub.export import export_run
from clip_more.models.classifier import Classifier
from clip_more.models.clip import load_clip
from clip_more.models.heads import PromptHead
from clip_more.models.multilabel import make_multilabel
from clip_more.models.prompts import class_prompts, load_templates

NAMES = ("dog", "traffic light", "tvmonitor", "bird")
PROFILE = ClassProfile(NAMES, (300, 50, 7, 3))
RESULTS = Results(
    profile=PROFILE,
    test_positives=np.array([50, 20, 9, 0]),
    ap={"zero-shot": np.array([0.5, 0.4, 0.3, np.nan]), "merged": np.array([0.8, 0.6, 0.2, np.nan])},
    evaluated={"dataset": "voc", "split": "/home/someone/lists/test.txt", "images": 462},
    chance={
        "mean": {"total": 0.1, "head": 0.2, "medium": 0.1, "tail": 0.05},
        "q95": {"total": 0.2, "head": 0.3, "medium": 0.2, "tail": 0.1},
    },
)


def config(**keys):
    return TrainConfig(dataset="voc", data_root="/home/someone/VOC", method="bce_more", model="small", **keys)


def multilabel(prompts=None, trained_from="small (random weights, seed 0)"):
    return make_multilabel(NAMES, prompts or [[name] for name in NAMES], 20.0, [0.0] * 4, trained_from=trained_from)


def code_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def exported(folder, templates):
    settings = config(templates=templates)
    clip = load_clip("tiny")
    with torch.no_grad():
        for weight in clip.model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    head = PromptHead(clip, class_prompts(NAMES, load_templates(templates)), 20.0)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.5, -0.5, 1.0, -1.0]))
    classifier = Classifier(clip, head).eval()
    return classifier, export_run(folder, classifier, PROFILE, settings, RESULTS)


@pytest.mark.parametrize("templates", ["plain", "ensemble"])
def test_usage_runs_as_printed_and_gives_the_classifiers_probabilities(templates, tmp_path, monkeypatch, capsys):
    classifier, merged = exported(tmp_path, templates)
    card = (merged / "README.md").read_text()
    assert ("](ap_by_frequency.png)" in card) == (merged / "ap_by_frequency.png").is_file()
    (usage,) = code_blocks(card)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 60, 3), dtype=np.uint8))
    image.save(merged / "photo.jpg")
    monkeypatch.chdir(merged)
    capsys.readouterr()
    exec(compile(usage, "README.md", "exec"), {})
    printed = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    batch = classifier.clip.image_processor(Image.open("photo.jpg").convert("RGB"), return_tensors="pt")
    with torch.no_grad():
        expected = classifier(batch["pixel_values"]).sigmoid()[0].tolist()
    assert list(printed) == list(NAMES)
    assert [float(value) for value in printed.values()] == pytest.approx(expected, abs=6e-4)


def test_usage_after_an_upload_fetches_that_repository():
    card = model_card(name="x", multilabel=multilabel(), config=config(push_to_hub="someone/their-clip"))
    (usage,) = code_blocks(card)
    compile(usage, "README.md", "exec")
    assert 'folder = snapshot_download("someone/their-clip")' in usage
    assert "from huggingface_hub import snapshot_download" in usage
    assert "hf-hub:someone/their-clip" in card


def test_metadata_is_read_by_the_hub_with_the_split_map():
    from huggingface_hub import ModelCard

    data = ModelCard(model_card(name="voc-bce_more", multilabel=multilabel(), results=RESULTS)).data
    assert data.license == "apache-2.0"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert "multi-label" in data.tags
    assert data.model_name == "voc-bce_more"
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert found == {
        "mAP, all classes": 53.33,
        "mAP, head classes": 80.0,
        "mAP, medium classes": 60.0,
        "mAP, tail classes": 20.0,
    }
    assert {result.dataset_split for result in data.eval_results} == {"test.txt"}


def test_table_shows_every_row_by_group_and_names_classes_left_out():
    card = model_card(name="x", multilabel=multilabel(), results=RESULTS, figure="f.png")
    assert "| mAP | total (4) | head (1) | medium (1) | tail (2) |" in card
    assert re.search(r"\| zero-shot \| 40.00", card)
    assert re.search(
        r"\| merged \| 53.33 \(\+13.33\) \| 80.00 \(\+30.00\) \| 60.00 \(\+20.00\) \| 20.00 \(-10.00\)", card
    )
    assert "| random ranking, mean | 10.00" in card
    assert "in no mean: bird." in card
    assert "](f.png)" in card


def test_random_weights_are_named():
    assert "Started from: small (random weights, seed 0). There was no pretraining" in model_card(
        name="x", multilabel=multilabel()
    )
    pretrained = model_card(name="x", multilabel=multilabel(trained_from="openai/clip-vit-base-patch32"))
    assert "no pretraining" not in pretrained
    assert "base_model: openai/clip-vit-base-patch32" in pretrained


def test_softmax_of_the_pipeline_is_called_no_multi_label_score():
    assert "its scores are no multi-label scores" in model_card(name="x", multilabel=multilabel())


def test_recipe_is_shown_without_paths_of_this_machine():
    card = model_card(
        name="x",
        multilabel=multilabel(trained_from=public_name("/home/someone/clips/mine")),
        config=config(lr=3e-5, classes="/home/someone/classes14.txt"),
        results=RESULTS,
    )
    assert "lr: 3.0e-05" in card
    assert "tuning: more" in card
    assert "classes: classes14.txt" in card
    assert "Started from: mine." in card
    assert "/home" not in card


def test_open_clip_is_named_only_where_its_files_are():
    assert "open_clip" in model_card(name="x", multilabel=multilabel())
    assert "open_clip" not in model_card(name="x", multilabel=multilabel(), open_clip=False)


@pytest.mark.parametrize(
    ("source", "public"),
    [
        ("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch32"),
        ("open_clip:ViT-B-32/openai", "open_clip:ViT-B-32/openai"),
        ("open_clip:ViT-B-32:/home/me/epoch_3.pt", "open_clip:ViT-B-32:epoch_3.pt"),
        ("/home/me/clips/mine", "mine"),
        ("../runs/a/merged", "merged"),
        ("tiny (random weights, seed 0)", "tiny (random weights, seed 0)"),
        ("", ""),
    ],
)
def test_public_name_drops_folders(source, public):
    assert public_name(source) == public
