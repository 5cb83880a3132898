"""What the fuzz tests of all readers share: damage, and the rule that every outcome keeps.

A reader may read a damaged file, or refuse it in a sentence. It may not fail in any other way, and where it reads,
rows read and rows skipped are the rows listed. `CLIP_MORE_FUZZ=10000` tries that many inputs a reader (`make soak`).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from clip_more.config import ConfigError
from clip_more.data.opening import PhotoError

INPUTS = int(os.environ.get("CLIP_MORE_FUZZ", "200"))

# Fixed inputs in the suite, so that it never fails by chance; new ones with every soak.
fuzz = settings(
    max_examples=INPUTS,
    deadline=None,
    derandomize=INPUTS == 200,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# The kinds of error that stand for a sentence; a KeyError, IndexError or UnicodeDecodeError is an accident.
SENTENCES = (ValueError, FileNotFoundError, NotADirectoryError, PhotoError, ConfigError)

# Reader to outcome ("read", "refused", "failed") to count; printed at the end of a soak.
TALLY: dict[str, Counter[str]] = {}


def outcome(reader: str, read: Callable[[], Any], *names: str) -> Any:
    """What `read` returns, or None where it refused its input in a sentence.

    Args:
        reader: name under which the outcome is counted.
        read: reads the damaged input.
        names: texts of which at least one must stand in a refusal, such as the names of the files.

    Raises:
        AssertionError: it failed otherwise, or its sentence says nothing that helps.
    """
    counts = TALLY.setdefault(reader, Counter())
    try:
        value = read()
    except Exception as error:
        text = str(error)
        counts["failed"] += 1  # until the sentence is found good
        if type(error) not in SENTENCES:
            raise AssertionError(f"{reader}: {type(error).__name__} is no sentence: {text}") from error
        assert len(re.findall(r"\w+", text)) >= 4, f"{reader}: says too little: {text!r}"
        assert not names or any(name in text for name in names), f"{reader}: names none of {names}: {text!r}"
        counts["failed"] -= 1
        counts["refused"] += 1
        return None
    counts["read"] += 1
    return value


@contextmanager
def files(folder: Any, contents: dict[str, bytes | None]) -> Iterator[None]:
    """Write files below `folder` (None: make sure that it is absent) and take them away again."""
    written = []
    try:
        for name, content in contents.items():
            path = folder / name
            path.unlink(missing_ok=True)
            if content is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                written.append(path)
        yield
    finally:
        for path in written:
            path.unlink(missing_ok=True)


@st.composite
def damaged(draw: st.DrawFn, valid: bytes, tokens: tuple[bytes, ...] = ()) -> bytes:
    """A valid file after zero to four accidents: cut off, bytes changed, lines lost or doubled, other line ends, BOM.

    Args:
        draw: hypothesis's own.
        valid: the file as it should be.
        tokens: pieces that are put in now and then, such as `b","` or `b"-1"`.
    """
    content = valid
    pieces = (b"\0", b"\xff\xfe", b" ", b"\t", b"-1", b"99999999999999999999", b"1.5", b"nan", b'"', b"../", *tokens)
    for kind in draw(st.lists(st.sampled_from(_ACCIDENTS), max_size=4)):
        at = draw(st.integers(0, len(content)))
        lines = content.split(b"\n")
        line = draw(st.integers(0, len(lines) - 1))
        if kind == "cut":
            content = content[:at]
        elif kind == "byte" and content:
            at = min(at, len(content) - 1)
            content = content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
        elif kind == "insert":
            content = content[:at] + draw(st.sampled_from(pieces)) + content[at:]
        elif kind == "delete":
            content = content[:at] + content[at + draw(st.integers(1, 20)) :]
        elif kind == "double":
            content = b"\n".join([*lines[: line + 1], lines[line], *lines[line + 1 :]])
        elif kind == "lose":
            content = b"\n".join([*lines[:line], *lines[line + 1 :]])
        elif kind == "swap":
            other = draw(st.integers(0, len(lines) - 1))
            lines[line], lines[other] = lines[other], lines[line]
            content = b"\n".join(lines)
        elif kind == "crlf":
            content = content.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        elif kind == "bom":
            content = b"\xef\xbb\xbf" + content
        elif kind == "empty":
            content = b""
    return content


_ACCIDENTS = ("cut", "byte", "byte", "insert", "insert", "delete", "double", "lose", "swap", "crlf", "bom", "empty")
