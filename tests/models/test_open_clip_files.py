import json

import pytest
import torch
from safetensors.torch import save_file

from clip_more.models import open_clip_files
from clip_more.models.clip import load_clip
from clip_more.models.convert import hf_to_open_clip, open_clip_config
from clip_more.models.presets import random_clip


@pytest.fixture(scope="module")
def tiny():
    return random_clip("tiny", 2)


@pytest.fixture
def as_architecture(monkeypatch, tiny):
    """Let open_clip's ViT-B-32 have the sizes of `tiny`."""
    monkeypatch.setattr(open_clip_files, "architecture", lambda name: open_clip_config(tiny.config))


def same_weights(clip, model):
    ours, theirs = clip.model.state_dict(), model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_architecture_equals_open_clips_own_answer():
    import open_clip

    for name in ("ViT-B-32", "ViT-B-16-quickgelu", "ViT-H-14", "RN50"):
        assert open_clip_files.architecture(name) == open_clip.get_model_config(name)


def test_safetensors_and_checkpoints_of_a_training_run_load(tiny, as_architecture, tmp_path):
    state, _ = hf_to_open_clip(tiny)
    save_file(state, tmp_path / "a.safetensors")
    torch.save(state, tmp_path / "b.bin")
    wrapped = {f"module.{key}": tensor for key, tensor in state.items()}
    torch.save({"epoch": 3, "name": "x", "state_dict": wrapped}, tmp_path / "c.pt")
    for name in ("a.safetensors", "b.bin", "c.pt"):
        clip = load_clip(f"open_clip:ViT-B-32:{tmp_path / name}")
        assert same_weights(clip, tiny)
        assert clip.source == f"open_clip:ViT-B-32:{tmp_path / name}"


def test_half_precision_file_with_openais_extras_comes_up_in_fp32(tiny, as_architecture, tmp_path):
    state = {key: tensor.half() for key, tensor in hf_to_open_clip(tiny)[0].items()}
    state |= {name: torch.tensor(224) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save(state, tmp_path / "openai.pt")
    clip = load_clip(f"open_clip:ViT-B-32:{tmp_path / 'openai.pt'}")
    assert clip.model.dtype == torch.float32
    torch.testing.assert_close(clip.model.state_dict(), tiny.half().float().state_dict())


def test_folder_with_open_clip_files_alone_loads_with_its_preprocessing(tmp_path):
    model = random_clip("tiny", 4)
    state, cfg = hf_to_open_clip(model)
    save_file(state, tmp_path / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "interpolation": "bilinear", "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}))
    clip = load_clip(str(tmp_path))
    assert same_weights(clip, model)
    assert clip.image_mean == (0.5, 0.5, 0.5)
    assert clip.image_std == (0.2, 0.2, 0.2)
    assert int(clip.image_processor.resample) == 2
    pixels = clip.image_processor(torch.zeros(3, 50, 90), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has open_clip_config.json but no weights"):
        load_clip(str(tmp_path))


def test_folder_whose_config_is_not_open_clips_is_refused(tmp_path):
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"open_clip_config.json is not open_clip's: it needs a model_cfg"):
        load_clip(str(tmp_path))


@pytest.mark.parametrize(("arch", "forced"), [("ViT-B-32", True), ("ViT-B-32-quickgelu", True)])
def test_tag_is_loaded_by_open_clip_with_the_tags_activation_and_preprocessing(monkeypatch, arch, forced):
    import open_clip

    asked = {}

    def create_model(name, pretrained, force_quick_gelu):
        asked.update(name=name, tag=pretrained, quick=force_quick_gelu)
        cfg = {**open_clip_config(random_clip("tiny", 0).config), "quick_gelu": force_quick_gelu}
        model = open_clip.CLIP(**cfg)
        model.visual.preprocess_cfg = {
            "size": 32,
            "mean": (0.1, 0.2, 0.3),
            "std": (1, 1, 1),
            "interpolation": "bilinear",
        }
        return model

    small = {**open_clip_config(random_clip("tiny", 0).config), "quick_gelu": arch.endswith("quickgelu")}
    monkeypatch.setattr(open_clip_files, "architecture", lambda name: dict(small))
    monkeypatch.setattr(open_clip, "create_model", create_model)
    clip = load_clip(f"open_clip:{arch}/openai")
    assert asked == {"name": arch, "tag": "openai", "quick": forced}
    assert clip.model.config.vision_config.hidden_act == clip.model.config.text_config.hidden_act == "quick_gelu"
    assert clip.image_mean == (0.1, 0.2, 0.3)
    assert int(clip.image_processor.resample) == 2
    assert clip.source == f"open_clip:{arch}/openai"


def test_tag_that_cannot_be_fetched_says_so(monkeypatch):
    import open_clip

    def no_network(*args, **kwargs):
        raise RuntimeError("Failed to download weights for tag 'openai'")

    monkeypatch.setattr(open_clip, "create_model", no_network)
    with pytest.raises(FileNotFoundError, match=r"could not fetch ViT-B-32/openai \(no network"):
        load_clip("open_clip:ViT-B-32/openai")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("open_clip:ViT-B-32", "names no weights; write open_clip:ViT-B-32/<tag> or open_clip:ViT-B-32:<file>"),
        ("open_clip:ViT-Q-9/openai", "open_clip has no architecture 'ViT-Q-9'; it has ViT-B-"),
        ("open_clip:ViT-B-32/nobody", "no weights 'nobody' for ViT-B-32; its tags are: openai, "),
        ("open_clip:RN50/openai", "has a ModifiedResNet.*what works are"),
        ("open_clip:ViT-B-16-SigLIP/webli", "has a timm vision tower|has SigLIP's logit bias"),
        ("open_clip:coca_ViT-B-32/laion2b_s13b_b90k", "has CoCa's caption decoder"),
        ("open_clip:convnext_base/laion400m_s13b_b51k", "has a timm vision tower"),
        ("open_clip:roberta-ViT-B-32/laion2b_s12b_b32k", "has a Hugging Face text tower"),
    ],
)
def test_sources_that_cannot_work_are_refused_before_any_download(source, message):
    with pytest.raises(ValueError, match=message):
        load_clip(source)


def test_torchscript_archive_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(ValueError, match=r"TorchScript archive.*keep its weights alone: torch\.save\(torch\.jit\.load"):
        load_clip(f"open_clip:ViT-B-32:{path}")


def test_pickled_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt cannot be read as weights alone"):
        load_clip(f"open_clip:ViT-B-32:{tmp_path / 'evil.pt'}")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"not weights at all"])
@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_broken_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} (is no readable|cannot be read)"):
        load_clip(f"open_clip:ViT-B-32:{tmp_path / name}")


def test_absent_file_and_wrong_architecture_are_named(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no weight file /nowhere/x\.pt"):
        load_clip("open_clip:ViT-B-32:/nowhere/x.pt")
    torch.save({"visual.class_embedding": torch.zeros(3)}, tmp_path / "x.pt")
    with pytest.raises(
        ValueError, match=r"x\.pt as ViT-B-32: the open_clip weight .* has shape \(3,\), which does not fit"
    ):
        load_clip(f"open_clip:ViT-B-32:{tmp_path / 'x.pt'}")
    torch.save([1], tmp_path / "x.pt")
    with pytest.raises(ValueError, match="holds no weights"):
        load_clip(f"open_clip:ViT-B-32:{tmp_path / 'x.pt'}")
