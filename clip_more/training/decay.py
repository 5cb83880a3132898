"""Which parameters weight decay is for."""

from torch import nn

from clip_more.training.vocabulary import CompactEmbedding


def decays(module: nn.Module) -> dict[str, bool]:
    """By parameter name: True for weight matrices, False for biases, norms and embedding tables."""
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding | CompactEmbedding)}
    return {name: p.ndim >= 2 and id(p) not in embeddings for name, p in module.named_parameters()}
