"""The one way in which per-class terms become a scalar."""

from torch import Tensor

REDUCTIONS = ("sum", "mean")


def check_reduction(reduction: str) -> str:
    """`reduction`, if it is one of `sum` and `mean`.

    Raises:
        ValueError: Otherwise.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; choose sum or mean (over the classes of an image)")
    return reduction


def over_classes(terms: Tensor, known: Tensor | None, reduction: str) -> Tensor:
    """(N, C) terms to (N,): sum or mean over the classes that are known of each image; (N,) zeros where none is.

    `known` may also hold weights of the terms, 0 where unknown: one over the probability that a class was drawn, say.
    """
    if known is None:
        return terms.sum(dim=1) if reduction == "sum" else terms.mean(dim=1)
    total = terms.masked_fill(known == 0, 0.0)
    if known.is_floating_point():
        total = total * known
    total = total.sum(dim=1)
    return total if reduction == "sum" else total / known.sum(dim=1).clamp_min(1)


def full_precision(logits: Tensor) -> Tensor:
    """Half-precision logits as fp32; fp32 and fp64 as they are."""
    return logits if logits.dtype.itemsize >= 4 else logits.float()
