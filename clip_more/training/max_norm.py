"""MaxNorm: classifier rows are projected onto a ball after each step (weight balancing, arXiv 2203.14197)."""

import torch
from torch import Tensor


def threshold(weight: Tensor, share: float) -> float:
    """`min + share (max - min)` of the norms of the rows, from the classifier of stage 1.

    Args:
        weight: (C, D), one row a class.
        share: In [0, 1]: at 1 no row is clipped, at 0 all are brought to the smallest norm.

    Raises:
        ValueError: share is out of its range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share of MaxNorm is {share}; it must be in [0, 1]")
    norms = _norms(weight)
    return float(norms.min() + share * (norms.max() - norms.min()))


@torch.no_grad()
def project(weight: Tensor, delta: float) -> int:
    """`w_k <- w_k min(1, delta / ||w_k||)`, in place.

    Args:
        weight: (C, D), one row a class.
        delta: Norm that no row may pass, above 0; `threshold` gives it.

    Returns:
        How many rows were longer than delta, beyond rounding.

    Raises:
        ValueError: delta is not above 0.
    """
    if not delta > 0:
        raise ValueError(f"delta of MaxNorm is {delta}; it must be above 0 (is there a row of zeros?)")
    norms = _norms(weight)
    # A row that was brought to delta before may be a rounding error longer, and is left as it is.
    clipped = norms > delta * (1 + 4 * torch.finfo(weight.dtype).eps)
    weight[clipped] = (weight[clipped].to(norms.dtype) * (delta / norms[clipped])[:, None]).to(weight.dtype)
    return int(clipped.sum())


def _norms(weight: Tensor) -> Tensor:
    """(C,) in fp32 or better."""
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32)).norm(dim=1)
