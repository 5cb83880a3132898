"""Reading ``metrics.jsonl``: the events of a run that still count."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

# What a resumed run does again, from the checkpoint it went back to.
_REPEATED = ("train", "eval")


def read_events(metrics: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The events of a ``metrics.jsonl`` in the order written, without lines that were cut in the middle.

    A ``resume`` event names the `offset` in bytes that its checkpoint had reached: the ``train`` and ``eval`` events
    between there and the ``resume`` were lost with the weights they tell of, and are left out.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is not a JSON object.
    """
    file = Path(metrics)
    if not file.is_file():
        raise FileNotFoundError(f"There is no metrics file at {file}.")
    places: list[int] = []
    events: list[dict[str, Any]] = []
    place = 0
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        start, place = place, place + len(line) + 1
        event = _parse(line, f"{file}, line {number}")
        if event is None:
            continue
        if event.get("event") == "resume" and isinstance(event.get("offset"), int):
            kept = [n for n, e in enumerate(events) if places[n] < event["offset"] or e.get("event") not in _REPEATED]
            places, events = [places[n] for n in kept], [events[n] for n in kept]
        places.append(start)
        events.append(event)
    return events


def _parse(line: bytes, where: str) -> dict[str, Any] | None:
    """The event on a line; None where it is empty or was cut by a kill."""
    line = line.strip(b"\0 \t\r")  # a power cut may leave zeros in the place of what was written last
    if not line:
        return None
    try:
        event = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        if _wants_more(error) or not line.endswith(b"}"):
            return None
        raise ValueError(f"{where} is not JSON: {error}.") from error
    if not isinstance(event, dict):
        raise ValueError(f"{where} is not a JSON object.")
    return event


def _wants_more(error: Exception) -> bool:
    """Whether JSON was right as far as it went: a cut line may well end with a brace, of a text or an inner object."""
    return isinstance(error, json.JSONDecodeError) and (
        error.pos == len(error.doc) or error.msg.startswith("Unterminated string")
    )
