"""The nested pipeline: step laws, size laws, and what it says of the published runs."""

import numpy as np
import polars as pl
import pytest

from mixlaw.errors import FitError
from mixlaw.fit import fit_law
from mixlaw.fit.nested import NestedForm, extrapolate_nested, group_targets
from mixlaw.fit.official import fit_restarts
from mixlaw.importers.published import add_overall, read_mixinglaws, read_valid_weights
from published import published_data

SIZES = (2e7, 8e7, 2e8, 3e8)
STEPS = (10_000, 12_000, 14_000, 17_000, 20_000, 25_000, 30_000)
TARGETS = ("a", "b")
FAR = (8e8, 100_000)


def true_loss(r_M: np.ndarray, target: int, params: float, step: float, *, tied: bool) -> float:
    """A loss that both stages follow exactly: E(r) + A(r) N^-a + B(r) N^-d S^-b.

    At one step it is a constant and a power of N only for d = 0 or d = a.
    """
    own = 0.0 if tied else 0.1 * target + 0.2 * float(r_M[0])
    constant = 1.5 + target + float(np.exp(-2 * r_M[target]))
    a, b = 0.3 + own, 0.5 + own
    size = (1 + r_M[1]) * (params / 1e8) ** -a
    return constant + 0.4 * float(size) + 0.3 * (1 + r_M[0]) * (step / 1e4) ** -b


def planted(*, tied: bool, num_mixtures: int = 6) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns the tables of all mixtures at all sizes and steps, without noise."""
    rng = np.random.default_rng(0)
    runs, rows = [], []
    for g, r_M in enumerate(rng.dirichlet(np.ones(3), size=num_mixtures)):
        for params in SIZES:
            run_id = f"{g}-{params:g}"
            runs.append(
                {"run_id": run_id, "mixture_id": f"m{g}", "params_non_embedding": params}
                | {f"r:{name}": float(share) for name, share in zip("xyz", r_M, strict=True)}
            )
            rows += [
                {
                    "run_id": run_id,
                    "step": step,
                    "target": name,
                    "value": true_loss(r_M, t, params, step, tied=tied),
                    "unit": "nats_per_token",
                }
                for step in STEPS
                for t, name in enumerate(TARGETS)
            ]
    return pl.DataFrame(runs), pl.DataFrame(rows)


@pytest.mark.parametrize("form", ["nested", "official"])
def test_planted_laws_are_extrapolated_exactly(form: NestedForm) -> None:
    runs, observations = planted(tied=form == "official")
    params, step = FAR
    found = extrapolate_nested(runs, observations, params=params, step=step, form=form)
    assert found.mixture_ids == tuple(f"m{g}" for g in range(6))
    expected_GT = [
        [true_loss(r_M, t, params, step, tied=form == "official") for t in range(2)]
        for r_M in found.r_GM
    ]
    np.testing.assert_allclose(found.value_GT, expected_GT, atol=2e-4)


def test_own_exponents_beat_tied_ones_where_they_differ() -> None:
    runs, observations = planted(tied=False)
    params, step = FAR
    errors = {}
    for form in ("nested", "official"):
        found = extrapolate_nested(runs, observations, params=params, step=step, form=form)
        truth_GT = np.array(
            [[true_loss(r, t, params, step, tied=False) for t in range(2)] for r in found.r_GM]
        )
        errors[form] = np.abs(found.value_GT - truth_GT).mean()
    assert errors["nested"] < 0.1 * errors["official"]


def test_what_was_observed_is_taken_as_it_is() -> None:
    runs, observations = planted(tied=True)
    found = extrapolate_nested(runs, observations, params=SIZES[2], step=20_000)
    rows = observations.filter((pl.col("step") == 20_000) & (pl.col("target") == "b"))
    at_size = rows.filter(pl.col("run_id").str.ends_with("2e+08"))["value"].to_list()
    assert found.value_GT[:, 1].tolist() == at_size


def test_replicates_are_averaged_and_travel_with_their_mixture() -> None:
    runs, observations = planted(tied=True)
    twin = runs.filter(pl.col("run_id") == "0-2e+08").with_columns(run_id=pl.lit("twin"))
    shifted = observations.filter(pl.col("run_id") == "0-2e+08").with_columns(
        run_id=pl.lit("twin"), value=pl.col("value") + 0.02
    )
    alone = extrapolate_nested(runs, observations, params=2e8, step=30_000)
    both = extrapolate_nested(
        pl.concat([runs, twin]), pl.concat([observations, shifted]), params=2e8, step=30_000
    )
    np.testing.assert_allclose(both.value_GT[0], alone.value_GT[0] + 0.01, rtol=1e-12)
    np.testing.assert_array_equal(both.value_GT[1:], alone.value_GT[1:])


def test_order_of_rows_changes_nothing() -> None:
    runs, observations = planted(tied=False)
    first = extrapolate_nested(runs, observations, params=8e8, step=100_000)
    shuffled = observations.sample(fraction=1.0, shuffle=True, seed=3)
    second = extrapolate_nested(runs, shuffled, params=8e8, step=100_000, targets=TARGETS)
    np.testing.assert_array_equal(first.value_GT, second.value_GT)


def test_mixtures_of_too_few_sizes_are_left_out_and_said() -> None:
    runs, observations = planted(tied=False)
    runs = runs.filter((pl.col("mixture_id") != "m1") | (pl.col("params_non_embedding") < 1e8))
    found = extrapolate_nested(runs, observations, params=8e8, step=100_000)
    assert found.mixture_ids == ("m0", "m2", "m3", "m4", "m5")
    assert found.notes == ("1 of 6 mixtures have too few steps or sizes and are left out",)


def test_missing_checkpoints_cost_only_themselves() -> None:
    runs, observations = planted(tied=False)
    gaps = observations.filter(~((pl.col("run_id") == "0-2e+07") & (pl.col("step") < 20_000)))
    whole = extrapolate_nested(runs, observations, params=8e8, step=30_000)
    found = extrapolate_nested(runs, gaps, params=8e8, step=30_000)
    np.testing.assert_array_equal(found.value_GT, whole.value_GT)


def test_too_little_is_an_error_that_says_so() -> None:
    runs, observations = planted(tied=False)
    with pytest.raises(FitError, match="no mixture has enough steps and sizes"):
        extrapolate_nested(
            runs.filter(pl.col("params_non_embedding") < 1e8), observations, params=8e8, step=10_000
        )
    with pytest.raises(FitError, match="known `params_total`"):
        extrapolate_nested(runs, observations, params=8e8, step=10_000, size_column="params_total")


def test_tables_are_what_a_mixing_law_is_fitted_to() -> None:
    runs, observations = planted(tied=False, num_mixtures=12)
    found = extrapolate_nested(runs, observations, params=8e8, step=100_000)
    fit = fit_law("m4", *found.tables(), num_draws=2)
    assert fit.table.targets == TARGETS
    assert fit.table.step == 100_000
    np.testing.assert_array_equal(fit.table.y_RT, found.value_GT)


def test_groups_of_targets_add_up_to_the_overall_loss() -> None:
    folder = published_data() / "mixinglaws"
    weights = read_valid_weights(folder / "valid_weight.json")
    observations = read_mixinglaws(folder / "RedPajama").observations
    overall = add_overall(observations, weights).filter(pl.col("target") == "overall")
    groups = group_targets(observations, weights)
    assert groups["target"].n_unique() == 5
    total = groups.group_by("run_id", "step", maintain_order=True).agg(pl.col("value").sum())
    both = overall.join(total, on=["run_id", "step"], suffix="_sum")
    assert both.height == overall.height == total.height
    np.testing.assert_allclose(both["value_sum"], both["value"], rtol=1e-13)


@pytest.mark.parametrize(("form", "limit"), [("nested", 0.0075), ("official", 0.0082)])
def test_largest_redpajama_size_is_predicted_from_the_smaller_ones(
    form: NestedForm, limit: float
) -> None:
    """Measured: 0.0069 and 0.0075."""
    folder = published_data() / "mixinglaws"
    weights = read_valid_weights(folder / "valid_weight.json")
    found = read_mixinglaws(folder / "RedPajama")
    largest = found.runs["params_non_embedding"].max()
    is_largest = pl.col("params_non_embedding") == largest
    known = found.runs.filter(~is_largest)
    used = group_targets(found.observations, weights) if form == "official" else found.observations
    truth = add_overall(found.observations, weights).filter(
        pl.col("target") == "overall", pl.col("step") == 30_000
    )
    truth = truth.join(found.runs.filter(is_largest), on="run_id").select("mixture_id", "value")
    losses = extrapolate_nested(known, used, params=largest, step=30_000, form=form)
    weight_T = np.array([weights.get(target, 1.0) for target in losses.targets])
    predicted = pl.DataFrame(
        {"mixture_id": losses.mixture_ids, "predicted": losses.value_GT @ weight_T}
    )
    both = truth.join(predicted, on="mixture_id")
    assert both.height == 20
    assert (both["predicted"] - both["value"]).abs().mean() < limit


def test_restarts_repeat_and_predict_better_than_one_start() -> None:
    rng = np.random.default_rng(4)
    r_RM = rng.dirichlet(np.full(4, 0.6), size=30)
    slope_M = np.array([-9.0, -3.0, -1.0, 0.5])
    truth_RT = np.stack([2 + np.exp(slope_M * r_RM).sum(axis=1), 3 + r_RM @ slope_M / 9], axis=1)
    noisy_RT = truth_RT + rng.normal(0, 0.005, size=truth_RT.shape)
    few = fit_restarts(r_RM[:20], noisy_RT[:20], num_implicit=8, num_restarts=6)
    again = fit_restarts(r_RM[:20], noisy_RT[:20], num_implicit=8, num_restarts=6)
    np.testing.assert_array_equal(few.theta_TKP, again.theta_TKP)
    each_KRT = np.moveaxis(few.law.predict(r_RM[20:], few.theta_TKP), 0, -1)
    single = np.abs(each_KRT - truth_RT[20:]).mean()
    mean = np.abs(few.predict(r_RM[20:]) - truth_RT[20:]).mean()
    assert mean < single
    assert mean < 0.3 * np.abs(truth_RT[20:] - truth_RT[:20].mean(axis=0)).mean()
    assert np.all(few.disagreement(r_RM) >= 0)


def test_restarts_need_two_losses_of_each_target() -> None:
    with pytest.raises(FitError, match="two losses of each target"):
        fit_restarts(np.eye(3), np.array([[1.0], [np.nan], [np.nan]]))
