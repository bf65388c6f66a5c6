from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mixlaw.advise import METHODS, advise_mixtures, choose_group
from mixlaw.design.optimal import choose_informative
from mixlaw.domains import Domain
from mixlaw.errors import DesignError, StudyError
from mixlaw.fit import FitResult
from mixlaw.fit.law import fit_table
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.mixtures import CappedSimplex
from mixlaw.observations import loss_table
from mixlaw.optimize.constraints import Constraints, GroupBound
from mixlaw.optimize.objective import WeightedLoss
from mixlaw.optimize.region import Region
from mixlaw.study import Study
from simulated import simulate_study
from tiny_studies import copy_trained, few_draws, write_text  # noqa: F401

OBJECTIVE = WeightedLoss({"d0": 0.5, "d1": 0.5})


def fitted(seed: int = 0, *, law: str = "m4", mixtures: int = 10) -> FitResult:
    study = simulate_study(seed, num_domains=4, num_mixtures=mixtures, method="sobol")
    table = loss_table(study.runs, study.observations, targets=("d0", "d1"), roles=("design",))
    return fit_table(MIXING_LAWS[law], table, num_draws=40)


@pytest.fixture(scope="module")
def fit() -> FitResult:
    return fitted()


def region_of(fit: FitResult, floor: float = 0.04) -> Region:
    return Region.of(CappedSimplex.of(fit.domains, floors=floor))


# ---- designs that take a Jacobian


def test_d_optimal_choices_reach_the_best_determinant_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    x_CTP = rng.normal(size=(14, 1, 3))
    prior_TPP = 0.1 * np.eye(3)[None]
    chosen, gain_n = choose_informative(x_CTP, prior_TPP, n=2)
    best = -np.inf
    for i in range(14):
        for j in range(i):
            rows = x_CTP[[i, j], 0]
            best = max(best, np.linalg.slogdet(prior_TPP[0] + rows.T @ rows)[1])
    rows = x_CTP[chosen, 0]
    reached = np.linalg.slogdet(prior_TPP[0] + rows.T @ rows)[1]
    assert reached == pytest.approx(best, abs=1e-9)
    assert gain_n.sum() == pytest.approx(reached - 3 * np.log(0.1), abs=1e-9)


def test_contrast_gains_are_the_fall_of_the_variance_by_the_full_inverse() -> None:
    rng = np.random.default_rng(1)
    x_CTP, contrast_KTP = rng.normal(size=(20, 2, 4)), rng.normal(size=(5, 2, 4))
    start_TPP = np.stack([np.eye(4), 2 * np.eye(4)])
    chosen, gain_n = choose_informative(x_CTP, start_TPP, n=3, contrast_KTP=contrast_KTP)

    def variance(rows: list[int]) -> float:
        return sum(
            float(c @ np.linalg.inv(start_TPP[t] + x_CTP[rows, t].T @ x_CTP[rows, t]) @ c)
            for t in range(2)
            for c in contrast_KTP[:, t]
        )

    assert gain_n.sum() == pytest.approx(variance([]) - variance(chosen), rel=1e-9)
    others = [c for c in range(20) if c not in chosen]
    for swapped in others:  # no single exchange is better
        assert variance([*chosen[:-1], swapped]) >= variance(chosen) - 1e-9


# ---- advice


@pytest.mark.parametrize("method", METHODS)
def test_advice_is_new_distinct_and_allowed(fit: FitResult, method: str) -> None:
    domains = tuple(Domain(name=name) for name in fit.domains)
    group = GroupBound(domains=("d2", "d3"), low=0.3)
    region = Constraints(
        domains=domains,
        floors=dict.fromkeys(fit.domains, 0.05123456),
        caps={"d0": 0.5},
        groups=(group,),
    ).region()
    advice = advise_mixtures(fit, OBJECTIVE, region, n=3, method=method, num_candidates=60)
    assert len({m.mixture_id for m in advice.mixtures}) == 3
    for suggestion in advice.suggestions:
        r_M = suggestion.mixture.array(fit.domains)
        assert region.contains(r_M, 1e-9)
        assert suggestion.mixture.mixture_id not in fit.table.mixture_ids
        assert suggestion.distance_to_runs > 0.02
    again = advise_mixtures(fit, OBJECTIVE, region, n=3, method=method, num_candidates=60)
    assert again.mixtures == advice.mixtures


def test_each_run_is_expected_to_leave_less_regret_and_regret_advice_leaves_least(
    fit: FitResult,
) -> None:
    region = region_of(fit)
    left = {}
    for method in METHODS:
        advice = advise_mixtures(fit, OBJECTIVE, region, n=3, method=method, num_candidates=80)
        left[method] = advice.suggestions[-1].expected_regret
        assert left[method] <= advice.regret_now + 1e-12
        assert advice.regret_now == pytest.approx(
            advise_mixtures(fit, OBJECTIVE, region, n=1, method="space").regret_now
        )
    assert left["regret"] == min(left.values())


def test_what_is_planned_already_is_not_advised_again(fit: FitResult) -> None:
    region = region_of(fit)
    first = advise_mixtures(fit, OBJECTIVE, region, n=3, num_candidates=80)
    second = advise_mixtures(fit, OBJECTIVE, region, n=3, num_candidates=80, pending=first.mixtures)
    assert not {m.mixture_id for m in first.mixtures} & {m.mixture_id for m in second.mixtures}
    assert second.regret_now == pytest.approx(first.suggestions[-1].expected_regret, rel=1e-9)


def test_draws_that_agree_leave_nothing_to_buy(fit: FitResult) -> None:
    sure = replace(fit, theta_draws_BTP=np.repeat(fit.theta_TP[None], 20, axis=0))
    advice = advise_mixtures(sure, OBJECTIVE, region_of(fit), n=2, num_candidates=60)
    assert advice.regret_now == pytest.approx(0, abs=1e-7)
    assert any("buy little" in note for note in advice.notes) or advice.regret_now == 0


def test_any_law_can_be_advised_on() -> None:
    for law in ("reciprocal", "log-linear", "linear"):
        if law in MIXING_LAWS:
            other = fitted(law=law)
            assert advise_mixtures(other, OBJECTIVE, region_of(other), n=2, num_candidates=40)


def test_wrong_questions_are_told_so(fit: FitResult) -> None:
    region = region_of(fit)
    with pytest.raises(DesignError, match="method must be one of"):
        advise_mixtures(fit, OBJECTIVE, region, n=2, method="luck")
    with pytest.raises(DesignError, match="at least one"):
        advise_mixtures(fit, OBJECTIVE, region, n=0)
    with pytest.raises(DesignError, match="must be 3 mixtures"):
        advise_mixtures(fit, OBJECTIVE, region_of(fit, 0.2499), n=3)


def test_advised_runs_lower_the_true_regret_of_the_recommendation() -> None:
    # 14 studies of 5 domains, 12 + 4 mixtures: from .0131 to .0099, at random to .0120 (docs/log.md).
    from mixlaw.optimize.solver import minimize_objective
    from simulated import DESIGN_SEED, Noise, observe_losses

    before, after = [], []
    for seed in range(4):
        study = simulate_study(seed, form="power", num_domains=4, num_mixtures=9, method="sobol")
        table = loss_table(study.runs, study.observations, targets=("d0", "d1"), roles=("design",))
        fit = fit_table(MIXING_LAWS["reciprocal"], table, num_draws=40)
        region = region_of(fit)
        advice = advise_mixtures(fit, OBJECTIVE, region, n=5, num_candidates=80)
        r_RM = np.stack([m.array(fit.domains) for m in advice.mixtures])
        y_RT = observe_losses(
            np.random.default_rng(seed), study.truth, r_RM, [DESIGN_SEED] * 5, Noise(offset_sd=0)
        )[:, :2]
        more = replace(
            table,
            run_ids=(*table.run_ids, *(f"n{i}" for i in range(5))),
            mixture_ids=(*table.mixture_ids, *(m.mixture_id for m in advice.mixtures)),
            seeds=(*table.seeds, *[DESIGN_SEED] * 5),
            r_RM=np.vstack([table.r_RM, r_RM]),
            y_RT=np.vstack([table.y_RT, y_RT]),
            standard_error_RT=np.full((len(table.run_ids) + 5, 2), np.nan),
        )
        for kept, one in (
            (before, fit),
            (after, fit_table(MIXING_LAWS["reciprocal"], more, num_draws=1)),
        ):
            r_M = minimize_objective(OBJECTIVE.function(one), region).r_M
            kept.append(float(study.truth(r_M[None])[0, :2].mean()))
    assert np.mean(after) < np.mean(before)


def test_the_best_group_fits_all_mixtures_better_than_most_groups(fit: FitResult) -> None:
    big = fitted(mixtures=16)
    chosen = choose_group(big, OBJECTIVE, size=9, num_groups=30)
    assert len(set(chosen)) == 9
    assert set(chosen) <= set(big.table.mixture_ids)

    def error(ids: tuple[str, ...]) -> float:
        rows = [i for i, one in enumerate(big.table.mixture_ids) if one in ids]
        part = fit_table(big.law, big.table.select(rows), num_draws=1)
        return float(np.mean(np.abs((part.losses(big.table.r_RM) - big.table.y_RT).mean(axis=1))))

    rng = np.random.default_rng(5)
    ids = list(big.table.mixture_ids)
    others = [error(tuple(rng.choice(ids, 9, replace=False))) for _ in range(12)]
    assert error(chosen) <= np.quantile(others, 0.3)
    with pytest.raises(DesignError, match="fewer than the 16"):
        choose_group(big, OBJECTIVE, size=16)
    del fit


# ---- in a study


def test_kept_advice_is_trained_with_the_design_and_known_to_the_next_one(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "study")
    before = study.fitted_tables()[0]
    runs_before = len(study.plan().runs)
    looked = study.advise(2)
    assert looked.path is None
    assert len(study.plan().runs) == runs_before
    kept = study.advise(2, keep=True)
    assert kept.tokens == pytest.approx(2 * 40960)
    plan = study.plan()
    assert len(plan.runs) == runs_before + 2
    assert [run.role for run in plan.runs[-2:]] == ["design", "design"]
    assert {run.spec.mixture.mixture_id for run in plan.runs[-2:]} == {
        m.mixture_id for m in kept.advice.mixtures
    }
    waiting = study.advise(1)
    assert len(waiting.pending) == 2
    assert study.run(slots=1).failed == 0
    after = study.fitted_tables()[0]
    assert after.height == before.height + 2
    assert study.advise(1).pending == ()


def test_a_budget_says_how_many_and_must_pay_for_one(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "study")
    assert len(study.advise(tokens=3.5 * 40960).advice.mixtures) == 3
    assert len(study.advise(2, tokens=1e9).advice.mixtures) == 2
    with pytest.raises(StudyError, match="must allow a run"):
        study.advise(flops=10.0)
    with pytest.raises(StudyError, match="number of runs or a budget"):
        study.advise()
    (study.path / "next.json").write_text("[1")
    with pytest.raises(StudyError, match="kept mixtures can't be read"):
        study.plan()


def test_runs_from_before_a_domain_was_added_stay_usable(tmp_path: Path) -> None:
    study = copy_trained(tmp_path / "study")
    before = study.tables()[0].height
    study.add_domain("poems", [write_text(tmp_path, "poems", "aeiouxyz")])
    again = Study.open(study.path)
    runs, _ = again.tables()
    assert runs.height == before
    assert runs["r:poems"].to_list() == [0.0] * before
    assert again.domain_changes[0].sentence() == "'poems' added: share 0 in earlier runs"
    assert any("no run has trained on 'poems'" in note for note in again.fit(law="m4").notes)
