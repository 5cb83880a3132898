"""Two finished runs of a few steps: a linear head on a small ResNet, and prompts of a tiny CLIP."""

import numpy as np
import PIL.Image
import pytest
from accelerate.state import AcceleratorState

from tests.training.conftest import fresh_accelerate, one_tokenizer

__all__ = ["fresh_accelerate", "one_tokenizer"]

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230)}


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """Photos of 16 pixels with a coloured square; one.txt: one label each; several.txt: a second one for some."""
    root = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    lines = {}
    for split, counts in (("train", (20, 10, 6)), ("test", (6, 6, 6))):
        for c, count in enumerate(counts):
            for n in range(count):
                image = rng.integers(0, 90, (16, 16, 3), dtype=np.uint8)
                y, x = rng.integers(0, 9, 2)
                image[y : y + 7, x : x + 7] = list(COLOURS.values())[c]
                PIL.Image.fromarray(image).save(root / f"{split}_{c}_{n}.png")
                lines.setdefault(f"{split}_one", []).append(f"{split}_{c}_{n}.png {c}")
                more = f" {(c + 1) % 3}" if n % 3 == 0 else ""
                lines.setdefault(f"{split}_several", []).append(f"{split}_{c}_{n}.png {c}{more}")
    for name, rows in lines.items():
        (root / f"{name}.txt").write_text("\n".join(rows) + "\n")
    (root / "classes.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(COLOURS)))
    return root


def _trained(squares, folder, **keys):
    import clip_more.evaluation.plots
    import clip_more.training.report
    from clip_more.recipe import from_dict
    from clip_more.training.loop import train

    task = "several" if keys.get("task") is None else "one"
    recipe = {
        "dataset": "lists", "data_root": str(squares), "train_list": f"train_{task}.txt",
        "test_list": f"test_{task}.txt", "class_file": "classes.txt", "head_min": 15, "tail_max": 8, "lr": 1e-2,
        "lr_head": 1e-2, "batch_size": 12, "epochs": 1, "workers": 0, "tuning": "full", "bootstrap": 50,
        "output_dir": str(folder), "keep_checkpoints": 1,
    }  # fmt: skip
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.MonkeyPatch.context() as patch:  # figures of training are tested elsewhere
        patch.setattr(clip_more.training.report, "plot_ap_by_frequency", lambda *_, **__: None)
        patch.setattr(clip_more.evaluation.plots, "plot_ap_by_frequency", lambda *a, **_: a[3].touch())
        patch.setattr(clip_more.training.report, "plot_training", lambda metrics, path: path.touch())
        return train(from_dict({**recipe, **keys}, "test"))


@pytest.fixture(scope="package")
def linear_run(squares, tmp_path_factory, one_tokenizer):
    """Single-label, a quarter of train held out."""
    keys = {"task": "single_label", "model": "cifar_resnet32", "head": "linear", "loss": "ce", "val_fraction": 0.25}
    return _trained(squares, tmp_path_factory.mktemp("runs"), run="linear", **keys)


@pytest.fixture(scope="package")
def prompt_run(squares, tmp_path_factory, one_tokenizer):
    """Multi-label, nothing held out, refit."""
    return _trained(squares, tmp_path_factory.mktemp("runs"), run="prompts", model="tiny", lr=1e-3, refit=True)
