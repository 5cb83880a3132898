import argparse

import pytest

from clip_more import stage2_verb
from clip_more.stage2.methods import METHODS
from clip_more.stage2.options import Stage2Options


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser(exit_on_error=False)
    stage2_verb.add_stage2(parser)
    return parser


@pytest.fixture
def calls(monkeypatch):
    from clip_more.stage2 import run, text

    seen = []
    monkeypatch.setattr(run, "stage2", lambda *arguments: seen.append(arguments) or "folder")
    monkeypatch.setattr(text, "method_text", lambda folder: f"text of {folder}")
    return seen


def test_options_reach_the_method_and_defaults_are_those_of_the_options(parser, calls, capsys):
    stage2_verb.stage2(parser.parse_args(["runs/x", "--method", "crt"]))
    stage2_verb.stage2(
        parser.parse_args(["runs/x", "--method", "tau", "--tau", "0.5", "--data_root", "d", "--workers", "0"])
    )
    assert calls == [
        ("runs/x", "crt", Stage2Options(), {}),
        ("runs/x", "tau", Stage2Options(tau=0.5), {"data_root": "d", "workers": 0}),
    ]
    assert capsys.readouterr().out == "\ntext of folder\n" * 2


def test_the_methods_are_those_there_are(parser):
    action = next(action for action in parser._actions if action.dest == "method")
    assert tuple(action.choices) == tuple(METHODS)
    for name, method in METHODS.items():
        assert set(method.chooses) <= set(method.takes), name


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"tau": -1.0}, "--tau is -1.0; it must be 0 or more"),
        ({"gamma": float("nan")}, "--gamma is nan"),
        ({"beta": 1.0}, r"--beta is 1.0; it must be in \[0, 1\)"),
        ({"thresh": 1.1}, r"--thresh is 1.1; it must be in \[0, 1\]"),
        ({"batch_size": 0}, "--batch_size 0; 0 and 1 are the least"),
    ],
)
def test_options_out_of_their_range_are_refused(options, why):
    with pytest.raises(ValueError, match=why):
        Stage2Options(**options)
