"""CLIP's tokenizer, from a checkpoint or built offline from the vocabulary that open_clip's wheel carries."""

from __future__ import annotations

import gzip
import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CLIP_VOCABULARY = 49408
_MERGES = CLIP_VOCABULARY - 2 * 256 - 2
_FILES = ("tokenizer.json", "vocab.json")


def load_tokenizer(folder: Path, vocab_size: int, context_length: int) -> PreTrainedTokenizerBase:
    """The tokenizer saved in `folder`, or CLIP's own where there is none.

    Args:
        folder: A checkpoint's folder.
        vocab_size: Rows of the text tower's token table.
        context_length: Longest prompt in tokens, both marks included.

    Raises:
        ValueError: If there is no tokenizer and the vocabulary is not CLIP's, or the tokenizer gives ids that the text
            tower has no row for.
    """
    # AutoTokenizer answers a folder without these files with a tokenizer of two tokens and no complaint.
    if not any((folder / name).is_file() for name in _FILES):
        if vocab_size != CLIP_VOCABULARY:
            raise ValueError(
                f"{folder} has no tokenizer ({' or '.join(_FILES)}), and its vocabulary of {vocab_size} tokens is not "
                f"CLIP's {CLIP_VOCABULARY}; save its tokenizer there with tokenizer.save_pretrained"
            )
        return clip_tokenizer(context_length)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, but the text tower's table only {vocab_size} rows"
        )
    return tokenizer


def clip_tokenizer(context_length: int = 77) -> PreTrainedTokenizerBase:
    """CLIP's tokenizer built from open_clip's byte-pair vocabulary, without a network and without importing open_clip.

    Ids equal those of open_clip's `SimpleTokenizer`, save that its repairs of broken text (ftfy, HTML entities) are
    not made, just as transformers does not make them. Padding is the end token.

    Raises:
        FileNotFoundError: If open_clip is not installed or its wheel lacks the vocabulary.
    """
    from transformers import CLIPTokenizer

    spec = importlib.util.find_spec("open_clip")
    folder = Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
    path = folder / "bpe_simple_vocab_16e6.txt.gz" if folder else None
    if path is None or not path.is_file():
        raise FileNotFoundError(
            "this checkpoint has no tokenizer, and CLIP's vocabulary comes from open_clip, which is not here: "
            "pip install open_clip_torch, or save a tokenizer beside the checkpoint"
        )
    merges = _read_merges(path)
    characters = _byte_characters()
    words = [*characters, *(f"{character}</w>" for character in characters), *("".join(pair) for pair in merges)]
    vocabulary = {word: index for index, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=cast(Any, merges), model_max_length=context_length)


@cache
def _read_merges(path: Path) -> list[tuple[str, ...]]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        next(lines)  # a version line
        return [tuple(line.split()) for line, _ in zip(lines, range(_MERGES), strict=False)]


def _byte_characters() -> list[str]:
    """One printable character for each of the 256 bytes, in the order of CLIP's vocabulary."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
