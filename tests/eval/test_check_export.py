import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clip_more.adapters import add_tail, tail_parameters
from clip_more.config import TrainConfig
from clip_more.data.profile import ClassProfile
from clip_more.hub.export import export_run
from clip_more.models.classifier import Classifier
from clip_more.models.clip import load_clip
from clip_more.models.heads import PromptHead
from clip_more.models.prompts import class_prompts, load_templates

CHECKS = ("keys_and_shapes", "both_libraries", "zero_shot_pipeline", "general_and_tail")
NAMES = ["dog", "traffic light", "tvmonitor"]
LIMITED = {
    "keys and shapes: merged v plain CLIP",
    "keys and shapes: merged v general",
    "logits: transformers v ours",
    "cosines: open_clip v transformers",
    "logits: open_clip v ours",
    "softmax: pipeline v ours, on the pipeline's pixels",
    "logits: general + tail by PEFT v ours",
}


def export(folder, names=NAMES, *, preset="tiny", templates="plain", tail=True):
    """Export a CLIP far from a fresh one's zero biases and nearly equal text features, with a random tail."""
    clip = load_clip(preset)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in clip.model.named_parameters():
            weight.add_((0.5 if "token" in name else 0.05) * torch.randn(weight.shape, generator=generator))
        if tail:
            add_tail(clip.model)
            for weight in tail_parameters(clip.model).values():
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
        head = PromptHead(clip, class_prompts(names, load_templates(templates)), scale=17.5)
        head.bias.copy_(torch.randn(len(names), generator=generator))
    config = TrainConfig(dataset="digits_mlt", method="bce_more", run="trial", model=preset, templates=templates)
    export_run(folder, Classifier(clip, head).eval(), ClassProfile(tuple(names), (300,) * len(names)), config)
    return folder


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(path, **changes):
    state = load_file(path)
    save_file(state | {key: change(state.get(key)) for key, change in changes.items()}, path, metadata={"format": "pt"})


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "eval")
    import check_export

    return check_export


@pytest.fixture
def check(program, monkeypatch, capsys):
    """Run the program; its exit code, the verdict of each row with a limit, and all that it printed."""

    def run(folder, photos, *more, only=CHECKS):
        for name in set(CHECKS) - set(only):
            monkeypatch.setattr(program, name, lambda export: None)
        code = program.main([str(folder), "--photos", str(photos), *more])
        print(output := capsys.readouterr().out)
        rows = re.findall(r"^(\S.*?) {2,}\S+ +\S+  (ok|FAILED)", output, flags=re.MULTILINE)
        return code, dict(rows), output

    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export(tmp_path_factory.mktemp("exported") / "run")


@pytest.fixture
def run(exported, tmp_path):
    """A copy to damage."""
    return shutil.copytree(exported, tmp_path / "run")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for index, size in enumerate([(32, 32), (32, 35), (50, 70)]):
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    (folder / "notes.txt").write_text("no photo")
    return folder


def test_all_is_well_with_an_export_as_it_was_written(check, exported, photos):
    code, verdicts, output = check(exported, photos)
    assert verdicts == dict.fromkeys(LIMITED, "ok")
    assert code == 0
    assert "3 photos, 3 prompts, scale 17.5" in output
    # The photo of 32 x 35 pixels is 3 too wide.
    assert re.search(r"pixels: open_clip v shared .* reported: on 1 of 3 photos", output)
    assert re.search(r"pixels: transformers v shared .* reported: on \d of 3 photos", output)


def failures(verdicts):
    return {check for check, verdict in verdicts.items() if verdict == "FAILED"}


def test_weight_that_is_another_for_open_clip_fails_its_rows(check, run, photos):
    edit_weights(
        run / "merged" / "open_clip_model.safetensors", **{"visual.conv1.weight": lambda weight: 1.01 * weight}
    )
    code, verdicts, _ = check(run, photos, only=["both_libraries"])
    assert failures(verdicts) == {"cosines: open_clip v transformers", "logits: open_clip v ours"}
    assert code == 1


def test_scale_that_no_library_knows_fails_all_logits_and_probabilities(check, run, photos):
    edit_json(run / "merged" / "multilabel.json", logit_scale=18.0)
    code, verdicts, _ = check(run, photos)
    assert failures(verdicts) == {check for check in LIMITED if check.startswith(("logits", "softmax"))}
    assert code == 1


def test_tail_that_is_another_fails_for_peft(check, run, photos):
    key = next(iter(load_file(run / "tail" / "adapter_model.safetensors")))
    edit_weights(run / "tail" / "adapter_model.safetensors", **{key: lambda weight: 1.01 * weight})
    code, verdicts, _ = check(run, photos, only=["general_and_tail"])
    assert verdicts == {"logits: general + tail by PEFT v ours": "FAILED"}
    assert code == 1


def test_key_that_a_plain_clip_has_not_fails_and_is_named(check, run, photos):
    edit_weights(run / "merged" / "model.safetensors", a_new_key=lambda _: torch.zeros(1))
    code, verdicts, output = check(run, photos, only=["keys_and_shapes"])
    assert verdicts == dict.fromkeys(
        ["keys and shapes: merged v plain CLIP", "keys and shapes: merged v general"], "FAILED"
    )
    assert output.count("FAILED: a_new_key") == 2
    assert code == 1


def test_what_a_library_cannot_load_fails_in_its_own_words_and_the_others_go_on(check, run, photos):
    shutil.rmtree(run / "general")
    (run / "merged" / "open_clip_model.safetensors").write_bytes(b"x")
    code, verdicts, output = check(run, photos, only=["both_libraries", "general_and_tail"])
    assert failures(verdicts) == {"both_libraries", "general_and_tail"}
    assert re.search(r"both_libraries +nan +0  FAILED: SafetensorError: ", output)
    assert code == 1


def test_templates_of_an_ensemble_are_compared_one_by_one(check, photos, tmp_path):
    code, verdicts, output = check(export(tmp_path / "run", templates="ensemble"), photos, only=["zero_shot_pipeline"])
    assert verdicts == {"softmax: pipeline v ours, on the pipeline's pixels": "ok"}
    assert "3 photos, 21 prompts" in output
    assert code == 0


def test_what_an_export_lacks_is_skipped_with_a_line(check, photos, tmp_path):
    run = export(tmp_path / "run", tail=False)
    for path in (run / "merged").glob("open_clip*"):
        path.unlink()
    code, verdicts, output = check(run, photos, only=["keys_and_shapes", "both_libraries", "general_and_tail"])
    assert verdicts == {"keys and shapes: merged v plain CLIP": "ok", "logits: transformers v ours": "ok"}
    assert "open_clip: skipped, merged/ has no files for it" in output
    assert "general + tail by PEFT: skipped, this run has no tail/" in output
    assert code == 0


def test_real_photos_agree_too(check, test_data, tmp_path):
    names = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"]
    photos = test_data / "voc2012_lt_tiny" / "VOCdevkit" / "VOC2012" / "JPEGImages"
    code, verdicts, output = check(export(tmp_path / "run", names, preset="small"), photos)
    assert verdicts == dict.fromkeys(LIMITED, "ok")
    assert "32 photos, 10 prompts" in output
    assert code == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda run, photos: shutil.rmtree(run / "merged"),
            r"run is no run with an export: it has no merged/multilabel",
        ),
        (lambda run, photos: shutil.rmtree(photos), r"there is no folder \S+ with photos in it \(\.bmp, "),
        (lambda run, photos: [path.unlink() for path in photos.glob("*.png")], r"no folder \S+ with photos in it"),
        (lambda run, photos: (photos / "1.png").write_bytes(b"x"), r"cannot read photo \S+1\.png: it is not an image"),
        (lambda run, photos: (run / "merged" / "multilabel.json").write_text("{"), r"multilabel\.json is not JSON"),
    ],
)
def test_nothing_to_check_is_one_sentence_and_another_exit_code(
    program, run, photos, tmp_path, capsys, damage, message
):
    photos = shutil.copytree(photos, tmp_path / "photos")
    damage(run, photos)
    with pytest.raises(SystemExit) as stop:
        program.main([str(run), "--photos", str(photos)])
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert re.fullmatch(rf"check_export: .*{message}.*\n", err)
    assert not out


def test_count_takes_the_first_photos_by_name(check, program, exported, photos, capsys):
    assert "1 photos, 3 prompts" in check(exported, photos, "--count", "1", only=[])[2]
    with pytest.raises(SystemExit):
        program.main([str(exported), "--photos", str(photos), "--count", "0"])
    assert "--count is 0; it takes at least one photo" in capsys.readouterr().err
