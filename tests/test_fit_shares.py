"""Shares of an overall loss, where the losses of its parts were observed."""

import numpy as np
import pytest

from mixlaw.errors import FitError
from mixlaw.fit.shares import estimate_shares
from mixlaw.importers.published import add_overall, read_mixinglaws, read_valid_weights
from mixlaw.observations import loss_table
from published import published_data


def test_planted_shares_are_recovered() -> None:
    rng = np.random.default_rng(0)
    y_RT = 3 + rng.normal(size=(40, 5))
    planted_T = np.array([0.5, 0.3, 0.2, 0.0, 0.0])
    found = estimate_shares(y_RT @ planted_T, y_RT)
    np.testing.assert_allclose(found.share_T, planted_T, atol=1e-9)
    assert found.is_identified
    assert found.largest_residual < 1e-9


def test_shares_of_the_pile_are_those_of_valid_weight_json() -> None:
    folder = published_data() / "mixinglaws"
    weights = read_valid_weights(folder / "valid_weight.json")
    found = read_mixinglaws(folder / "5Mix")
    table = loss_table(
        found.runs,
        add_overall(found.observations, weights),
        targets=["overall", *weights],
        step=30_000,
    )
    shares = estimate_shares(table.y_RT[:, 0], table.y_RT[:, 1:])
    np.testing.assert_allclose(shares.share_T, list(weights.values()), atol=1e-6)


def test_targets_that_move_together_are_not_told_apart() -> None:
    y_RT = 3 + np.random.default_rng(1).normal(size=(30, 3))
    twins_RT = np.column_stack([y_RT, y_RT[:, 2]])
    found = estimate_shares(y_RT @ np.full(3, 1 / 3), twins_RT)
    assert not found.is_identified
    assert found.share_T[2] + found.share_T[3] == pytest.approx(1 / 3)


def test_a_missing_part_shows_in_the_residual() -> None:
    y_RT = 3 + np.random.default_rng(2).normal(size=(30, 4))
    found = estimate_shares(y_RT @ np.full(4, 0.25), y_RT[:, :3])
    assert found.largest_residual > 0.1


def test_shares_need_all_losses() -> None:
    y_RT = np.ones((3, 2))
    y_RT[1, 1] = np.nan
    with pytest.raises(FitError, match="every run's loss"):
        estimate_shares(np.ones(3), y_RT)
