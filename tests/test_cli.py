import subprocess
import sys

import pytest

from clip_more.cli import main


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from clip_more.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'peft', 'accelerate', 'datasets', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--discrepancy_weighting" in done.stdout
    assert "(default: label)" in done.stdout


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
