import re
import shlex
import subprocess
import sys

import pytest

from clip_more.cli import _parser, main


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from clip_more.cli import main\n"
        "for verb in ('predict', 'export', 'train'):\n"
        "    try: main([verb, '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'accelerate', 'datasets', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--discrepancy_weighting" in done.stdout
    assert "(default: label)" in done.stdout
    assert "--broken {refuse,skip}" in done.stdout
    assert "--form {classifier,onnx,torch}" in done.stdout


VERBS = (
    "train", "stats", "prepare", "long-tail", "evaluate", "zero-shot", "export", "predict", "runs", "compare",
    "pretrain", "demo",
)  # fmt: skip


def test_help_lists_every_verb_in_order(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    listed = re.findall(r"^    (\S+)(?: |$)", capsys.readouterr().out, re.M)
    assert tuple(name for name in listed if name in VERBS) == VERBS


@pytest.mark.parametrize("verb", VERBS)
def test_examples_of_the_help_are_read_by_its_own_parser(verb):
    options = _parser()
    (choices,) = (action.choices for action in options._actions if action.dest == "verb")
    for line in (choices[verb].epilog or "").splitlines()[1:]:
        words = shlex.split(line)
        words = words[words.index("clip_more.cli" if words[0] == "accelerate" else "clip-more") + 1 :]
        read, unknown = options.parse_known_args(words)
        assert (read.verb in VERBS, unknown) == (True, [])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["train", "nowhere.yaml"], "clip-more train: cannot read recipe nowhere.yaml"),
        (["train", "--dataset", "digits_mlt", "--lrr", "3"], "command line: unknown key 'lrr'; did you mean lr?"),
        (["train", "--dataset", "digits_mlt", "--lr", "fast"], "command line: lr is 'fast', but it must be a number"),
        (["train", "a.yaml", "b.yaml"], "'b.yaml' follows no --key"),
        (["evaluate", "nowhere"], "there is no folder nowhere"),
        (["evaluate", "."], ". is no run (it has no config.yaml); add a recipe"),
        (["zero-shot", "."], ". is no run (it has no config.yaml)"),
        (["export", "nowhere", "--form", "torch", "--out", "a.pt2"], "there is no folder nowhere"),
        (["export", ".", "--form", "onnx", "--out", "x"], ". is neither a run nor a classifier"),
        (["predict", ".", "nowhere", "--out", "p.parquet"], "there is no folder or file nowhere"),
        (["predict", ".", "test", "--out", "p.parquet"], ". is no run (it has no config.yaml); add a recipe"),
        (["demo", "--epochs", "3"], "command line: demo takes no --epochs"),
    ],
)
def test_errors_are_one_sentence_and_a_code(arguments, text, capsys):
    assert main(arguments) != 0
    error = capsys.readouterr().err
    assert text in error
    assert "Traceback" not in error


def test_every_recipe_is_valid():
    from pathlib import Path

    from clip_more.recipe import load_config

    recipes = sorted((Path(__file__).parents[1] / "recipes").glob("*/*.yaml"))
    recipes = [path for path in recipes if path.parent.name != "accelerate"]
    assert len(recipes) >= 28
    for path in recipes:
        config = load_config(path, {"data_root": "somewhere"})
        assert config.run_name == f"{path.parent.name}-{path.stem}"
        first, second = path.read_text().splitlines()[:2]
        assert first.startswith(("# clip-more train recipes/", "# clip-more pretrain recipes/")), path
        assert f"recipes/{path.parent.name}/{path.name}" in first
        assert "measured" in second or "%" in second or "|" in second, path


@pytest.fixture
def photos(tmp_path):
    import PIL.Image

    folder = tmp_path / "photos"
    folder.mkdir()
    rows = ["file_name,labels"]
    for n in range(24):
        PIL.Image.new("RGB", (40, 32), (10 * n, 0, 0)).save(folder / f"{n}.png")
        rows.append(f"{n}.png,{';'.join(['cat'] * (n % 2) + ['dog'] * (n % 3 == 0))}")
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_stats_counts_absent_photos_and_says_how_test_was_made(photos, capsys):
    arguments = ["stats", "--dataset", "folder", "--data_root", str(photos)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "test is 0.25 of the photos, drawn by data_seed 0" in told
    assert "absent" not in told
    (photos / "3.png").unlink()
    assert main([*arguments, "--out", str(photos / "out")]) == 0
    assert "photos absent: 1 of 24, such as" in capsys.readouterr().out
    assert (photos / "out" / "absent.csv").read_text().splitlines()[1].endswith("3.png,there is no such file")


def test_a_long_tail_is_written_once_and_can_be_trained_on(photos, tmp_path, capsys):
    out = tmp_path / "lists"
    arguments = ["long-tail", "--dataset", "folder", "--data_root", str(photos), "--out", str(out)]
    assert main([*arguments, "--long_tail", "exponential", "--imbalance", "3"]) == 0
    told = capsys.readouterr().out
    assert "train photos were kept" in told
    assert f"--train_list {out / 'train.txt'}" in told
    assert main(["stats", *told.strip().splitlines()[-1].split(" with ")[1].split()]) == 0
    assert main([*arguments, "--long_tail", "pareto"]) == 1
    assert "holds lists already" in capsys.readouterr().err


def test_what_is_judged_after_a_run_is_judged_on_its_own_test_photos_and_by_its_own_rules(photos, tmp_path, capsys):
    import json

    from clip_more.evaluation.results import Results
    from clip_more.evaluation.scores import load_scores

    run = ["--run", "x", "--output_dir", str(tmp_path / "runs"), "--workers", "0"]
    keys = ["--model", "tiny", "--max_steps", "2", "--lr", "1e-3", "--score", "softmax", "--views", "flip"]
    data = ["--dataset", "folder", "--data_root", str(photos), "--val_fraction", "0.25", "--geometry", "squash"]
    data += ["--missing", "skip"]
    (photos / "5.png").unlink()
    assert main(["train", *data, *run, *keys, "--classes", "dog,cat"]) == 0, capsys.readouterr().err
    folder = tmp_path / "runs" / "x"
    own = Results.load(folder / "report" / "results.json")
    assert own.protocol.geometry == "squash"
    assert own.evaluated["photos_skipped"] == 1
    assert (folder / "skipped.csv").read_text() == "image_id,cause\n5.png,there is no such file\n"
    # A photo that comes later is no reason to judge on photos that were trained on.
    import PIL.Image

    PIL.Image.new("RGB", (8, 8)).save(photos / "new.png")
    with (photos / "metadata.csv").open("a") as file:
        file.write("new.png,dog\n")
    assert main(["evaluate", str(folder), "--json", str(tmp_path / "again.json")]) == 0
    assert main(["zero-shot", str(folder), "--json", str(tmp_path / "side.json")]) == 0
    again, side = Results.load(tmp_path / "again.json"), Results.load(tmp_path / "side.json")
    ids = load_scores(folder / "report" / "scores.safetensors").image_ids
    assert load_scores(tmp_path / "again.safetensors").image_ids == ids
    assert set(json.loads((folder / "test_ids.json").read_text())) == set(ids)
    for other in (again, side):
        assert other.protocol == own.protocol
        assert other.maps["merged"]["total"] == pytest.approx(own.maps["merged"]["total"])
        assert other.metrics["merged"] == pytest.approx(own.metrics["merged"])
    for row in ("zero-shot", "general"):
        assert side.maps[row]["total"] == pytest.approx(own.maps[row]["total"])
        assert side.metrics[row]["micro_ap"] == pytest.approx(own.metrics[row]["micro_ap"])
