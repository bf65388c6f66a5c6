"""Which model a number of parameters means: wide and shallow, since that is what a CPU runs fast.

Sizes are counted as the scaling laws do it, without embeddings: the blocks hold 12 D^2 parameters
per layer (4 D^2 in attention, 8 D^2 in the feed-forward part), and nothing else is counted. Tables
of the last three tokens and of positions, and the output matrix, come on top in `params_total`.
"""

import math
from dataclasses import dataclass

WIDTH_STEP = 32
"""Widths are multiples of this, so that every tensor starts at a cache line."""
LARGEST_HEAD = 64
"""Heads are as wide as this where the width allows it: fewer softmaxes, the same loss."""
SINGLE_LAYER_PARAMS = 3e5
"""Up to here one layer was as good as two after the same tokens, and faster (docs/log.md)."""
INPUT_TOKENS = 3
"""Input embeddings look at this many tokens: one layer need not learn what came just before."""
FEED_FORWARD_FACTOR = 4
"""Width of the feed-forward part, in widths of the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """A decoder-only transformer's dimensions and what follows from them."""

    width: int
    depth: int
    vocab_size: int
    sequence_length: int

    @property
    def heads(self) -> int:
        """Attention heads: the fewest of equal width that are not wider than `LARGEST_HEAD`."""
        return next(
            heads
            for heads in range(1, self.width + 1)
            if self.width % heads == 0 and self.width // heads <= LARGEST_HEAD
        )

    @property
    def params_non_embedding(self) -> int:
        """Parameters of the blocks."""
        return (4 + 2 * FEED_FORWARD_FACTOR) * self.width**2 * self.depth

    @property
    def params_total(self) -> int:
        """All parameters: the blocks, input embeddings, positions and the output matrix."""
        rows = (INPUT_TOKENS + 1) * self.vocab_size + self.sequence_length
        return self.params_non_embedding + rows * self.width

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of a training step per token, those of attention included.

        Forward and backward take 6 per parameter that is multiplied with and token, and attention
        12 T D per layer (scores and values, nothing saved by the causal mask).
        """
        multiplied = self.params_non_embedding + self.vocab_size * self.width
        return 6.0 * multiplied + 12.0 * self.depth * self.sequence_length * self.width

    @property
    def learning_rate(self) -> float:
        """Peak learning rate, falling with the square root of the width.

        Flat between 3e-3 and 6e-3 at width 64 and between 2e-3 and 4e-3 at 128 (docs/log.md).
        """
        return 5e-3 * math.sqrt(64 / self.width)


def nearest_shape(
    params: float, *, vocab_size: int = 256, sequence_length: int = 128
) -> ModelShape:
    """Returns the shape whose parameters without embeddings are nearest to `params`, as a ratio.

    One layer up to 300 thousand parameters, then twice as many with each factor of ten: two up to
    3 million, four up to 30 million. The width is the multiple of 32 that comes nearest.

    Args:
        params: Parameters, without embeddings.
        vocab_size: Tokens that there are.
        sequence_length: Tokens per sequence.
    """
    decades = math.log10(params / SINGLE_LAYER_PARAMS)
    depth = 2 ** max(0, math.ceil(decades - 1e-12))
    below = int(math.sqrt(params / (12 * depth))) // WIDTH_STEP * WIDTH_STEP
    candidates = [
        ModelShape(width=width, depth=depth, vocab_size=vocab_size, sequence_length=sequence_length)
        for width in (max(below, WIDTH_STEP), below + WIDTH_STEP)
    ]
    return min(candidates, key=lambda shape: abs(math.log(shape.params_non_embedding / params)))
