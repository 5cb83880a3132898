"""What a CLIP is made of, counted: matrix products, parameters and the bytes that a pass keeps.

A product of (n, i) with (i, o) is 2 n i o operations. A block of width D and MLP width M over n tokens has

    8 n D^2  queries, keys, values, output      4 n D M  MLP      4 n^2 D  scores and their sums of values

and the same twice over in its backward pass, for the gradients of inputs and of weights. A feature is read out at one
position, so our last block has 4 n D^2 + 4 D^2 + 4 D M + 4 n D. Norms, activations, softmax and the losses are no
products and are not counted; neither are the scores that fused attention makes again backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

CONTEXT = 77
RHO = 0.1


@dataclass(frozen=True)
class Matrix:
    """A weight and how many tokens of an image or prompt pass through it.

    Attributes:
        out: Rows.
        inner: Columns.
        tokens: A row of the batch.
        first: Whether its input needs no gradient, as pixels do not.
    """

    out: int
    inner: int
    tokens: int
    first: bool = False

    @property
    def size(self) -> int:
        """Numbers in it."""
        return self.out * self.inner

    @property
    def products(self) -> int:
        """Operations of a forward pass, a row of the batch."""
        return 2 * self.size * self.tokens

    @property
    def rank(self) -> int:
        """Of its tail, as `MoreConfig` has it."""
        return max(1, round(RHO * min(self.out, self.inner)))

    @property
    def tail_size(self) -> int:
        """Numbers in A and B."""
        return self.rank * (self.out + self.inner)

    @property
    def tail_product(self) -> int:
        """Operations of B A, whatever the batch."""
        return 2 * self.size * self.rank

    @property
    def token_space(self) -> int:
        """Operations of B (A x), a row of the batch."""
        return 2 * self.tail_size * self.tokens


@dataclass(frozen=True)
class Stage:
    """The embeddings, a block, or the projection: its weights, and its attention's operations a row of the batch."""

    matrices: tuple[Matrix, ...] = ()
    attention: int = 0


@dataclass(frozen=True)
class Tower:
    """A tower of a CLIP.

    Attributes:
        width: D.
        layers: Blocks.
        mlp: M.
        joint: Width of the space that images and prompts share.
        patch: Side of a patch; 0 for a text tower.
        image: Side of the images.
    """

    width: int
    layers: int
    mlp: int
    joint: int
    patch: int = 0
    image: int = 224

    @property
    def tokens(self) -> int:
        """Of an image."""
        return 1 + (self.image // self.patch) ** 2

    @cache  # noqa: B019 - a handful of frozen towers
    def stages(self, tokens: int, readout: bool = True) -> tuple[Stage, ...]:
        """Embeddings, blocks, projection.

        Args:
            tokens: Of a row of the batch.
            readout: Whether the last block computes the one position that is read, as ours does, or all of them.
        """
        width, mlp = self.width, self.mlp
        patches = Matrix(width, 3 * self.patch**2, tokens - 1, first=True)

        def block(seen: int) -> Stage:
            # Keys and values of all tokens; queries, output and MLP of those that are computed.
            rest = [Matrix(width, width, seen)] * 2 + [Matrix(mlp, width, seen), Matrix(width, mlp, seen)]
            return Stage((*[Matrix(width, width, tokens)] * 2, *rest), 4 * seen * tokens * width)

        blocks = [block(tokens)] * (self.layers - 1) + [block(1 if readout else tokens)]
        embeddings = Stage((patches,) if self.patch else ())
        return (embeddings, *blocks, Stage((Matrix(self.joint, width, 1),)))

    def parameters(self, rows: int = 0) -> int:
        """Numbers in it, projection included; `rows` of the token table, for a text tower."""
        stages = self.stages(self.tokens if self.patch else CONTEXT)
        weights = sum(matrix.size for stage in stages for matrix in stage.matrices)
        blocks = self.layers * (9 * self.width + self.mlp)
        if self.patch:
            return weights + blocks + self.width * (1 + self.tokens + 4)
        return weights + blocks + self.width * (rows + CONTEXT + 2)

    def tail_parameters(self, split: int = 0) -> int:
        """Numbers in the tail of stages `split` and above."""
        stages = self.stages(self.tokens if self.patch else CONTEXT)
        return sum(matrix.tail_size for stage in stages[split:] for matrix in stage.matrices)

    def split(self, depth: float) -> int:
        """The first stage with a tail, where the upper `depth` of the blocks have one."""
        return 0 if depth >= 1 else 1 + self.layers - max(1, round(depth * self.layers))

    def kept(self, tokens: int, number: int = 2, readout: bool = True) -> tuple[int, ...]:
        """Bytes that a pass keeps for its backward pass, by block, a row of the batch.

        Of a token: the block's input and the sum before the MLP in fp32, and in `number` bytes a number what the
        products take: the normalised input (three times where it is cast for queries, keys and values apart), these
        three, the attention's result, the MLP's normalised input, its argument, the sigmoid of it, and their product.
        """
        casts = 3 if number < 4 else 1
        whole = (8 + (casts + 5) * number) * self.width + 3 * number * self.mlp
        keys = (4 + (min(casts, 2) + 2) * number) * self.width
        last = tokens * keys + whole - keys if readout else tokens * whole
        return (*[tokens * whole] * (self.layers - 1), last)


@dataclass(frozen=True)
class Clip:
    """Both towers."""

    name: str
    vision: Tower
    text: Tower

    def parameters(self, rows: int) -> int:
        """Numbers in both, with `rows` rows of the token table."""
        return self.vision.parameters() + self.text.parameters(rows)


B32 = Clip("ViT-B/32", Tower(768, 12, 3072, 512, patch=32), Tower(512, 12, 2048, 512))
B16 = Clip("ViT-B/16", Tower(768, 12, 3072, 512, patch=16), Tower(512, 12, 2048, 512))
L14 = Clip("ViT-L/14", Tower(1024, 24, 4096, 768, patch=14), Tower(768, 12, 3072, 768))


def products(stages: tuple[Stage, ...], frozen: bool = False) -> int:
    """Operations of a forward and a backward pass over these stages, a row of the batch; `frozen` weights have no
    gradient."""
    total = 0
    for stage in stages:
        total += 3 * stage.attention
        total += sum(matrix.products * (3 - frozen - matrix.first) for matrix in stage.matrices)
    return total


def forward(stages: tuple[Stage, ...]) -> int:
    """Operations of a forward pass alone, a row of the batch."""
    return sum(stage.attention + sum(matrix.products for matrix in stage.matrices) for stage in stages)


def token_space(stages: tuple[Stage, ...]) -> int:
    """Operations that LoRA's own form adds to a forward and a backward pass, a row of the batch."""
    matrices = [matrix for stage in stages for matrix in stage.matrices]
    return sum(3 * m.token_space - m.first * 2 * m.rank * m.inner * m.tokens for m in matrices)


def weight_space(stages: tuple[Stage, ...]) -> int:
    """Operations of W + B A in a forward and a backward pass, whatever the batch: B A, B A again, gradients of B and A.

    A convolution keeps its kernel, and so makes it once.
    """
    return sum((4 - matrix.first) * matrix.tail_product for stage in stages for matrix in stage.matrices)
