"""Predictions at larger sizes and more steps: planted surfaces, missing losses, published runs.

Shape letters: G mixtures, M training domains, P points (a model size and a step), T targets.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest

from mixlaw.errors import FitError, TableError
from mixlaw.fit.mixed import MixedModel, Prior
from mixlaw.fit.scaling import ScalingFit, fit_scaling
from mixlaw.fit.surface import EXPONENTS, PARAMETERS, Points, Reference, Schedule, basis
from mixlaw.importers.published import add_overall, read_mixinglaws, read_valid_weights
from published import published_data

SIZES = (20e6, 80e6, 200e6, 300e6)
"""Parameters without embeddings, about those of the published runs."""
STEPS = (10_000, 12_000, 14_000, 17_000, 20_000, 24_000, 30_000)
SCHEDULE = Schedule(steps=100_000.0, warmup_steps=2_000.0)
EXPONENT = {"log_a": np.log(0.4), "log_b": np.log(0.45), "d": 0.1, "c": 0.2, "s": -0.1}
"""Off the centre of the prior, all of them."""
NOISE_SD = 0.003
LARGE, LATE = 800e6, 90_000


@dataclass(frozen=True, kw_only=True)
class Planted:
    """Tables of runs whose expected losses are known everywhere."""

    runs: pl.DataFrame
    observations: pl.DataFrame
    mixture_ids: tuple[str, ...]
    coefficient_GTC: np.ndarray

    def losses(self, params: float, step: float | int) -> np.ndarray:
        """Returns the expected losses "G T" at a size and step."""
        row_C = _basis(np.array([params]), np.array([float(step)]))[0]
        return self.coefficient_GTC @ row_C


def _basis(params_P: np.ndarray, step_P: np.ndarray) -> np.ndarray:
    points = Points(
        size_P=params_P,
        step_P=step_P,
        area_P=SCHEDULE.area(step_P),
        rate_P=SCHEDULE.rate(step_P),
    )
    reference = Reference(size=100e6, area=16_000.0, rate=0.9)
    return basis(points, reference, np.array([EXPONENT[name] for name in EXPONENTS]))


def plant(
    *,
    num_mixtures: int = 16,
    num_targets: int = 1,
    sizes: tuple[float, ...] = SIZES,
    steps: tuple[int, ...] = STEPS,
    noise: float = NOISE_SD,
    seed: int = 0,
) -> Planted:
    """Returns runs of every mixture at every size and step."""
    rng = np.random.default_rng(seed)
    r_GM = rng.dirichlet(np.ones(3), size=num_mixtures)
    ids = tuple(f"m{g:02d}" for g in range(num_mixtures))
    mean_C = np.array([3.2, 0.25, 0.25])
    level_G = rng.standard_normal(num_mixtures)
    coefficient_GTC = np.broadcast_to(mean_C, (num_mixtures, num_targets, 3)).copy()
    coefficient_GTC[..., 0] += 0.15 * level_G[:, None]
    coefficient_GTC[..., 1:] += 0.008 * rng.standard_normal((num_mixtures, num_targets, 2))
    runs, rows = [], []
    for g, mixture_id in enumerate(ids):
        for params in sizes:
            run_id = f"{mixture_id}/{params:g}"
            shares = {f"r:d{j}": float(r) for j, r in enumerate(r_GM[g])}
            runs.append(
                {
                    "run_id": run_id,
                    "mixture_id": mixture_id,
                    "role": "imported",
                    "params_non_embedding": params,
                    "params_total": params,
                    "tokens_per_step": 1e6,
                    "schedule": "cosine",
                    "schedule_steps": 100_000,
                    **shares,
                }
            )
            basis_PC = _basis(np.full(len(steps), params), np.array(steps, dtype=float))
            loss_TP = coefficient_GTC[g] @ basis_PC.T
            loss_TP = loss_TP + noise * rng.standard_normal(loss_TP.shape)
            rows += [
                {"run_id": run_id, "step": step, "target": f"t{t}", "value": float(loss_TP[t, p])}
                for t in range(num_targets)
                for p, step in enumerate(steps)
            ]
    return Planted(
        runs=pl.DataFrame(runs),
        observations=pl.DataFrame(rows),
        mixture_ids=ids,
        coefficient_GTC=coefficient_GTC,
    )


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant()


@pytest.fixture(scope="module")
def fitted(planted: Planted) -> ScalingFit:
    return fit_scaling(planted.runs, planted.observations, warmup_steps=2_000)


def test_a_planted_surface_is_recovered_at_the_fitted_sizes(
    planted: Planted, fitted: ScalingFit
) -> None:
    assert fitted.mixture_ids == planted.mixture_ids
    error = fitted.losses(300e6, 30_000) - planted.losses(300e6, 30_000)
    assert np.sqrt(np.mean(error**2)) < NOISE_SD


def test_three_times_the_size_and_the_steps_lie_within_their_intervals(
    planted: Planted, fitted: ScalingFit
) -> None:
    truth = planted.losses(LARGE, LATE)
    low, high = np.quantile(fitted.draws(LARGE, LATE), [0.05, 0.95], axis=0)
    assert np.mean((low <= truth) & (truth <= high)) > 0.8
    assert np.mean(high - low) < 0.25
    assert np.mean(np.abs(fitted.losses(LARGE, LATE) - truth)) < 0.05


def test_intervals_grow_with_the_distance(fitted: ScalingFit) -> None:
    width = [
        np.ptp(np.quantile(fitted.draws(*at), [0.05, 0.95], axis=0), axis=0).mean()
        for at in ((300e6, 30_000), (LARGE, 30_000), (LARGE, LATE), (10 * LARGE, LATE))
    ]
    assert np.all(np.diff(width) > 0)


def test_exponents_lie_within_their_intervals(fitted: ScalingFit) -> None:
    truth_X = np.array([EXPONENT[name] for name in EXPONENTS])
    off_X = (fitted.exponent_X - truth_X) / np.sqrt(np.diag(fitted.exponent_covariance_XX))
    assert np.all(np.abs(off_X) < 2.5)


def test_the_report_names_the_runs_the_exponents_and_what_extrapolation_adds(
    fitted: ScalingFit,
) -> None:
    lines = fitted.report().splitlines()
    assert lines[0].startswith("16 mixtures, 4 sizes from 2e+07 to 3e+08 parameters, steps 10000")
    assert [line.split(" = ")[0] for line in lines if " = " in line] == ["a", "b", "d", "c", "s"]
    assert "from 3 sizes and 2 windows of steps held out" in lines[-1]


def test_differences_between_mixtures_are_surer_than_their_losses(
    planted: Planted, fitted: ScalingFit
) -> None:
    drawn_BG = fitted.draws(LARGE, LATE)[..., 0]
    truth_G = planted.losses(LARGE, LATE)[:, 0]
    difference_BG = drawn_BG[:, 1:] - drawn_BG[:, :1]
    low, high = np.quantile(difference_BG, [0.05, 0.95], axis=0)
    assert np.mean((low <= truth_G[1:] - truth_G[0]) & (truth_G[1:] - truth_G[0] <= high)) > 0.7
    assert difference_BG.std(axis=0).mean() < 0.8 * drawn_BG.std(axis=0).mean()


def test_draws_have_the_mean_of_the_prediction(fitted: ScalingFit) -> None:
    drawn = fitted.draws(300e6, 40_000)
    standard_error = drawn.std(axis=0) / np.sqrt(len(drawn) / 8)
    assert np.all(np.abs(drawn.mean(axis=0) - fitted.losses(300e6, 40_000)) < 4 * standard_error)


def test_one_seed_gives_the_same_draws_bit_for_bit(planted: Planted, fitted: ScalingFit) -> None:
    again = fit_scaling(planted.runs, planted.observations, warmup_steps=2_000)
    assert np.array_equal(again.draws(LARGE, LATE), fitted.draws(LARGE, LATE))
    other = fit_scaling(planted.runs, planted.observations, warmup_steps=2_000, seed=1)
    assert not np.array_equal(other.draws(LARGE, LATE), fitted.draws(LARGE, LATE))


def test_several_points_at_once_are_those_of_single_calls(fitted: ScalingFit) -> None:
    both = fitted.predict([300e6, LARGE], [30_000, LATE])
    assert np.allclose(both[1], fitted.losses(LARGE, LATE), atol=1e-9)
    assert fitted.draw([300e6, LARGE], [30_000, LATE]).shape == (200, 2, 16, 1)


def test_missing_checkpoints_and_runs_change_little(planted: Planted, fitted: ScalingFit) -> None:
    keep = np.random.default_rng(1).random(planted.observations.height) > 0.15
    whole = pl.col("run_id").is_in(["m03/3e+08", "m07/2e+08"]).not_()
    some = planted.observations.filter(pl.Series(keep)).filter(whole)
    fit = fit_scaling(planted.runs, some, warmup_steps=2_000)
    assert np.max(np.abs(fit.losses(300e6, 30_000) - fitted.losses(300e6, 30_000))) < 0.02


def test_the_order_of_rows_does_not_matter(planted: Planted, fitted: ScalingFit) -> None:
    mixed = fit_scaling(
        planted.runs.sample(fraction=1.0, shuffle=True, seed=1),
        planted.observations.sample(fraction=1.0, shuffle=True, seed=2),
        warmup_steps=2_000,
    )
    assert mixed.mixture_ids == fitted.mixture_ids
    assert np.allclose(mixed.losses(LARGE, LATE), fitted.losses(LARGE, LATE), atol=1e-6)


def test_a_single_odd_loss_moves_nothing(planted: Planted, fitted: ScalingFit) -> None:
    value = planted.observations["value"].to_numpy().copy()
    value[40] += 0.3
    odd = planted.observations.with_columns(pl.Series("value", value))
    fit = fit_scaling(planted.runs, odd, warmup_steps=2_000)
    assert any("1 of 448 losses lie far off" in note for note in fit.notes)
    assert np.max(np.abs(fit.losses(LARGE, 30_000) - fitted.losses(LARGE, 30_000))) < 0.01


def test_targets_share_their_exponents() -> None:
    planted = plant(num_targets=3, num_mixtures=8)
    fit = fit_scaling(planted.runs, planted.observations, warmup_steps=2_000)
    thetas = np.array([model.theta_K[: len(EXPONENTS)] for model in fit.models])
    assert np.array_equal(thetas, np.tile(fit.exponent_X, (3, 1)))
    assert fit.draws(LARGE, LATE).shape == (200, 8, 3)
    assert np.mean(np.abs(fit.losses(LARGE, 30_000) - planted.losses(LARGE, 30_000))) < 0.03


def test_longer_runs_of_another_study_narrow_the_far_end(
    planted: Planted, fitted: ScalingFit
) -> None:
    longer = plant(steps=(*STEPS, 50_000, 70_000, 90_000), sizes=SIZES[:2], seed=5)
    fit = fit_scaling(
        planted.runs,
        planted.observations,
        calibration=(longer.runs, longer.observations),
        warmup_steps=2_000,
    )

    def spread(one: ScalingFit) -> float:
        return float(one.draws(300e6, LATE).mean(axis=(1, 2)).std())

    assert spread(fit) < 0.6 * spread(fitted)
    assert np.mean(np.abs(fit.losses(300e6, LATE) - planted.losses(300e6, LATE))) < 0.02


def test_one_size_is_fitted_and_said_so() -> None:
    planted = plant(sizes=SIZES[:1], num_mixtures=6)
    fit = fit_scaling(planted.runs, planted.observations, warmup_steps=2_000)
    assert any(note.startswith("one model size") for note in fit.notes)
    near, far = (np.ptp(fit.draws(size, 30_000)[..., 0], axis=0).mean() for size in (20e6, 60e6))
    assert far > 5 * near


def test_one_size_and_one_step_is_an_error() -> None:
    planted = plant(sizes=SIZES[:1], steps=(10_000,))
    with pytest.raises(FitError, match="at least two sizes or two steps"):
        fit_scaling(planted.runs, planted.observations)


def test_two_mixtures_are_an_error() -> None:
    planted = plant(num_mixtures=2)
    with pytest.raises(FitError, match="at least 3 mixtures, found 2"):
        fit_scaling(planted.runs, planted.observations)


def test_an_unknown_target_is_named(planted: Planted) -> None:
    with pytest.raises(TableError, match="'nope' is no target"):
        fit_scaling(planted.runs, planted.observations, targets=["nope"])


def test_runs_without_a_size_are_an_error(planted: Planted) -> None:
    runs = planted.runs.with_columns(
        pl.lit(None, pl.Float64).alias(name) for name in ("params_non_embedding", "params_total")
    )
    with pytest.raises(FitError, match="every run must have a size"):
        fit_scaling(runs, planted.observations)


def test_runs_with_other_tokens_per_step_are_an_error(planted: Planted) -> None:
    first = pl.col("run_id") == "m00/2e+07"
    runs = planted.runs.with_columns(
        pl.when(first).then(2e6).otherwise(1e6).alias("tokens_per_step")
    )
    with pytest.raises(FitError, match="the same tokens per step"):
        fit_scaling(runs, planted.observations)


def test_a_calibration_with_another_kind_of_schedule_is_an_error(planted: Planted) -> None:
    unknown = planted.runs.with_columns(pl.lit(None, pl.String).alias("schedule"))
    with pytest.raises(FitError, match="recipe of the runs"):
        fit_scaling(planted.runs, planted.observations, calibration=(unknown, planted.observations))


def test_a_loss_that_is_not_finite_is_an_error(planted: Planted) -> None:
    value = planted.observations["value"].to_numpy().copy()
    value[3] = np.inf
    with pytest.raises(FitError, match="finite"):
        fit_scaling(planted.runs, planted.observations.with_columns(pl.Series("value", value)))


def test_the_area_is_the_integral_of_the_rate() -> None:
    step = np.linspace(1.0, 120_000.0, 120_000)
    trapezoid = np.concatenate(
        [[0.0], np.cumsum((SCHEDULE.rate(step)[1:] + SCHEDULE.rate(step)[:-1]) / 2)]
    )
    assert np.allclose(SCHEDULE.area(step) - SCHEDULE.area(step[:1]), trapezoid, atol=1.0)


def test_the_gradient_is_that_of_finite_differences() -> None:
    rng = np.random.default_rng(3)
    size, step = (grid.ravel() for grid in np.meshgrid(SIZES, np.array(STEPS, dtype=float)))
    points = Points(
        size_P=size,
        step_P=step,
        area_P=SCHEDULE.area(step),
        rate_P=SCHEDULE.rate(step),
    )
    loss_GP = 3.0 + 0.1 * rng.standard_normal((6, len(points)))
    loss_GP[0, 3:9] = np.nan
    count = len(PARAMETERS)
    mean_K = np.concatenate([list(EXPONENT.values()), np.full(count - len(EXPONENT), -2.0)])
    model = MixedModel(
        points,
        loss_GP,
        reference=Reference.of(points),
        prior=Prior(mean_K=mean_K, covariance_KK=np.eye(count)),
    )
    theta_K = mean_K + 0.1 * rng.standard_normal(count)
    gradient_K = model.negative_log_posterior(theta_K)[1]
    for k in range(count):
        nudge_K = np.zeros(count)
        nudge_K[k] = 1e-5
        up, down = (
            model.negative_log_posterior(theta_K + sign * nudge_K)[0] for sign in (1.0, -1.0)
        )
        assert gradient_K[k] == pytest.approx((up - down) / 2e-5, rel=1e-5, abs=1e-4)


def test_prediction_and_draws_are_the_exact_conditional_of_the_joint_normal() -> None:
    rng = np.random.default_rng(4)
    size, step = (grid.ravel() for grid in np.meshgrid(SIZES[:2], np.array(STEPS[:3], dtype=float)))
    points = Points(
        size_P=size,
        step_P=step,
        area_P=SCHEDULE.area(step),
        rate_P=SCHEDULE.rate(step),
    )
    loss_GP = 3.0 + 0.05 * rng.standard_normal((3, 6))
    loss_GP[1, 4] = np.nan
    mean_K = np.concatenate([list(EXPONENT.values()), np.full(len(PARAMETERS) - 5, -3.0)])
    prior = Prior(mean_K=mean_K, covariance_KK=np.eye(len(PARAMETERS)))
    model = MixedModel(points, loss_GP, reference=Reference.of(points), prior=prior)
    late = np.array([30_000.0])
    new = Points(
        size_P=np.array([LARGE]),
        step_P=late,
        area_P=SCHEDULE.area(late),
        rate_P=SCHEDULE.rate(late),
    )
    # The same normal written out: mixtures and points in one vector.
    own, common = model._joint_covariances(new, mean_K)  # pyright: ignore[reportPrivateUsage]
    joint = np.kron(np.eye(3), own) + np.kron(np.ones((3, 3)), common)
    seen = np.hstack([np.isfinite(loss_GP), np.zeros((3, 1), dtype=bool)]).ravel()
    wanted = np.tile(np.arange(7) == 6, 3)
    gain = np.linalg.solve(joint[np.ix_(seen, seen)], joint[np.ix_(seen, wanted)]).T
    left = loss_GP[np.isfinite(loss_GP)] - model.level
    assert np.allclose(model.predict(new)[:, 0], model.level + gain @ left, atol=1e-8)
    covariance = joint[np.ix_(wanted, wanted)] - gain @ joint[np.ix_(seen, wanted)]
    drawn = model.draw(new, mean_K, num=40_000, rng=rng)[..., 0]
    assert np.allclose(np.cov(drawn.T), covariance, rtol=0.05, atol=0.02 * covariance.max())


def test_long_runs_of_one_size_predict_the_end_of_those_of_another() -> None:
    folder = published_data() / "mixinglaws"
    study = read_mixinglaws(folder / "5Mix")
    observations = add_overall(study.observations, read_valid_weights(folder / "valid_weight.json"))
    sized = observations.join(
        study.runs.select("run_id", "mixture_id", "params_non_embedding"), on="run_id"
    ).filter(pl.col("target") == "overall")
    small = pl.col("params_non_embedding") == 18_915_328
    kept = sized.filter((pl.col("step") <= 30_000) | ~small)
    fit = fit_scaling(
        study.runs,
        kept.select(observations.columns),
        targets=["overall"],
        first_step=10_000,
        warmup_steps=2_000,
    )
    late = sized.filter(small & (pl.col("step") == 90_000))
    truth = dict(late.select("mixture_id", "value").iter_rows())
    assert len(truth) == 6
    rows = [fit.mixture_ids.index(mixture_id) for mixture_id in truth]
    error = fit.losses(18_915_328, 90_000)[rows, 0] - np.array(list(truth.values()))
    # Measured .003; without the long runs of 160M it is .008, with a plain power of the steps .02.
    assert np.mean(np.abs(error)) < 0.006
