"""The command line: `clip-more VERB ...`. A door, not a room.

`verb_options.py` says what each verb takes; `verbs.py` and `inference_verbs.py` call the rooms.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from clip_more import __version__
from clip_more.config import SECTIONS
from clip_more.recipe import unknown_key
from clip_more.training.signals import EXIT_STOPPED, Stopped
from clip_more.verb_options import add_verbs


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code. Expected errors are one sentence on stderr, without a traceback."""
    warnings.showwarning = _note  # type: ignore[assignment]
    options, unknown = _parser().parse_known_args(arguments)
    for argument in unknown:
        name = argument.removeprefix("--").partition("=")[0]
        if not argument.startswith("--"):
            what = f"{argument!r} follows no --key"
        else:
            what = f"{options.verb} takes no --{name}" if name in _KEYS else unknown_key(name)
        print(f"clip-more {options.verb}: command line: {what}", file=sys.stderr)
        return 2
    try:
        options.run_verb(options)
    except KeyboardInterrupt:
        print(f"\nstopped{_AGAIN.get(options.verb, '')}", file=sys.stderr)
        return 130
    except Stopped as stop:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"stopped by {stop}; the same command goes on from there", file=sys.stderr)
        return EXIT_STOPPED
    except BrokenPipeError:  # whoever read our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        if options.traceback:
            raise
        print(f"clip-more {options.verb}: {_sentence(error)}", file=sys.stderr)
        return 1
    return 0


_AGAIN = {
    "train": "; the same command goes on from the last checkpoint, if there is one",
    "stage2": "; the features are kept, the method begins anew",
    "predict": "; the same command goes on from the last part that was written",
}
_KEYS = {field.name for section in SECTIONS for field in fields(section)}


def _note(message: Warning | str, category: type[Warning], *place: Any) -> None:
    """Our own warnings as sentences; those of libraries are for developers."""
    if issubclass(category, UserWarning):
        print(f"note: {message}", file=sys.stderr)


def _sentence(error: Exception) -> str:
    """The error's own words; of one that a data worker passed on with its traceback, the last line."""
    text = str(error)
    if "Original Traceback" not in text:
        return text
    return text.strip().splitlines()[-1].partition(": ")[2] or text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="clip-more", description="Fine-tune CLIP for multi-label long-tail recognition with MORE tail adapters."
    )
    parser.add_argument("--version", action="version", version=f"clip-more {__version__}")
    add_verbs(parser.add_subparsers(dest="verb", required=True, metavar="VERB"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
