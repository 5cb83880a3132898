"""Feature regularisation: long features cost (one-stage weight balancing, arXiv 2305.16573)."""

from torch import Tensor

from clip_more.losses.reduction import full_precision


def feature_norm(features: Tensor, strength: float = 0.01) -> Tensor:
    """`strength / 2` times the mean over images of `||h||^2`; its gradient is `strength h / N`.

    Args:
        features: (N, D) h, the input of the head, before any normalisation. A head that normalises it gives the same
            logits for any length, so this cannot help there.
        strength: lambda.

    Returns:
        A scalar, fp32 or better.

    Raises:
        ValueError: strength is below 0.
    """
    if not strength >= 0:
        raise ValueError(f"feature regularisation is {strength}; it must be >= 0")
    return strength / 2 * full_precision(features).square().sum(dim=1).mean()
