import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixlaw.proxy import ModelShape, nearest_shape


@pytest.mark.parametrize(
    ("params", "width", "depth", "built"),
    [
        (12_000, 32, 1, 12_288),
        (49_000, 64, 1, 49_152),
        (200_000, 128, 1, 196_608),
        (300_000, 160, 1, 307_200),
        (400_000, 128, 2, 393_216),
        (1_000_000, 192, 2, 884_736),
        (4_000_000, 288, 4, 3_981_312),
        (124_000_000, 1152, 8, 127_401_984),
    ],
)
def test_shapes_are_wide_and_shallow(params: int, width: int, depth: int, built: int) -> None:
    shape = nearest_shape(params)
    assert (shape.width, shape.depth, shape.params_non_embedding) == (width, depth, built)


@given(st.floats(1.0, 1e10))
def test_no_neighbouring_width_is_nearer(params: float) -> None:
    shape = nearest_shape(params)
    miss = abs(math.log(shape.params_non_embedding / params))
    for width in (shape.width - 32, shape.width + 32):
        if width > 0:
            other = 12 * width**2 * shape.depth
            assert abs(math.log(other / params)) >= miss
    assert shape.width % 32 == 0


@given(st.integers(1, 100))
def test_heads_divide_the_width_and_are_at_most_64_wide(thirty_twos: int) -> None:
    shape = ModelShape(width=32 * thirty_twos, depth=1, vocab_size=256, sequence_length=128)
    assert shape.width % shape.heads == 0
    assert shape.width // shape.heads <= 64


def test_total_counts_three_input_tables_positions_and_the_output() -> None:
    shape = nearest_shape(49_000, vocab_size=256, sequence_length=128)
    assert shape.params_total == 49_152 + 64 * (3 * 256 + 128 + 256)


def test_flops_are_six_per_parameter_and_token_where_attention_is_negligible() -> None:
    shape = ModelShape(width=4096, depth=32, vocab_size=256, sequence_length=16)
    assert shape.flops_per_token == pytest.approx(6 * shape.params_non_embedding, rel=0.01)


def test_learning_rate_falls_with_the_root_of_the_width() -> None:
    assert nearest_shape(49_152).learning_rate == 5e-3
    wide = ModelShape(width=256, depth=1, vocab_size=256, sequence_length=128)
    assert wide.learning_rate == 2.5e-3
