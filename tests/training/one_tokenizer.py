"""CLIP's tokenizer built once a process and never copied: both cost more than the tiny models that it comes with."""

import functools
from collections.abc import Callable
from typing import Any

from clip_more.models import tokenizer


def shared_tokenizer() -> Callable[..., Any]:
    """In place of `clip_tokenizer`: every CLIP has the same, and so have copies of it. For those who only read it."""
    build: Callable[..., Any] = tokenizer.clip_tokenizer

    @functools.cache
    def shared(context_length: int = 77) -> Any:
        built = build(context_length)
        built.__deepcopy__ = lambda _: built
        return built

    return shared
