r"""What to run next: the mixtures that most lessen the doubt about the optimum.

Shape letters: M training domains, T targets, P parameters, B bootstrap draws, C candidates, O
mixtures that may be the optimum, K contrasts.

The draws of the bootstrap are laws that the runs allow. Under draw b the best mixture is $o_b$, and
the mixture that would be recommended now costs the regret $f_b(r^*) - f_b(o_b)$ there. A run at a
mixture tells draws apart that predict different losses there, by more than the noise of a run and
the law's own misfit: weights of draws after it are $\exp(-d^2 / 4)$, with d in standard deviations
(the expectation over the run's noise, of which a pair of draws has two parts). What the
recommendation by those weights would still cost, averaged over draws, is the expected regret.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from mixlaw.design import sample_mixtures
from mixlaw.design.optimal import choose_informative
from mixlaw.design.points import spread_indices
from mixlaw.domains import Domain
from mixlaw.errors import DesignError
from mixlaw.fit.result import FitResult, evaluate_law
from mixlaw.fit.strength import retry_strengths, try_strengths
from mixlaw.mixtures import CappedSimplex, Mixture
from mixlaw.optimize.objective import Objective
from mixlaw.optimize.optimum import round_shares
from mixlaw.optimize.region import Region
from mixlaw.optimize.solver import minimize_draws, minimize_objective

Method = Literal["regret", "improvement", "optimum", "parameters", "space"]
METHODS: tuple[str, ...] = get_args(Method)
NUM_CANDIDATES = 300
"""Mixtures drawn from the allowed ones; the draws' optima are candidates as well."""
MOST_DRAWS = 100
"""Draws that are looked at; more tell little and cost their square."""
SAME = 0.02
"""Mixtures that differ in less than this share of the tokens are one candidate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suggestion:
    """A mixture to run, and what it is expected to buy with those before it in the list."""

    mixture: Mixture
    expected_regret: float
    """What the recommendation would then still cost against the best mixture, in the objective."""
    spread: float
    """Share of tokens by which mixtures that may then be the optimum differ from the recommended
    one, on average over the draws."""
    distance_to_runs: float
    """Share of tokens that must move to get to the closest mixture that was run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Advice:
    """The mixtures to run next, in the order in which they count."""

    suggestions: tuple[Suggestion, ...]
    method: str
    regret_now: float
    """Expected cost of recommending by the runs that there are (and those that are planned)."""
    spread_now: float
    best: Mixture
    """What would be recommended now."""
    noise: float
    """Standard deviation of an observed objective around the law: misfit and noise of a run."""
    unit: str
    notes: tuple[str, ...] = ()

    @property
    def mixtures(self) -> tuple[Mixture, ...]:
        """The mixtures alone."""
        return tuple(suggestion.mixture for suggestion in self.suggestions)

    def sentence(self) -> str:
        """Returns what they are expected to buy, in a sentence."""
        last = self.suggestions[-1]
        share = 1 - last.expected_regret / self.regret_now if self.regret_now > 0 else 0.0
        return (
            f"what is not known of the optimum costs {self.regret_now:.2g} {self.unit} on average"
            f" over the draws; after these {len(self.suggestions)} runs {last.expected_regret:.2g}"
            f" ({share:.0%} less), and mixtures that may be the best differ in {last.spread:.1%} of"
            f" the tokens instead of {self.spread_now:.1%}"
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Doubt:
    """What the draws say at the candidates and at the mixtures that may be the optimum."""

    candidate_CM: Float[np.ndarray, "C M"]
    optimum_OM: Float[np.ndarray, "O M"]
    value_BO: Float[np.ndarray, "B O"]
    """Objective of each such mixture under each draw, less the draw's own best."""
    told_CBB: Float[np.ndarray, "C B B"]
    """Squared distance of two draws' losses at a candidate, in variances of a run."""
    told_BB: Float[np.ndarray, "B B"]
    """The same for runs that are planned already."""

    def regret(self, told_BB: Float[np.ndarray, "B B"]) -> tuple[float, float]:
        """Returns the expected regret and the spread of the optimum after such runs."""
        weight_BB = np.exp(-told_BB / 4)
        weight_BB = weight_BB / weight_BB.sum(axis=1, keepdims=True)
        chosen_B = np.argmin(weight_BB @ self.value_BO, axis=1)
        draws = np.arange(len(chosen_B))
        regret = float(np.mean(self.value_BO[draws, chosen_B]))
        best_BM = self.optimum_OM[np.argmin(self.value_BO, axis=1)]
        apart_BB = np.abs(self.optimum_OM[chosen_B][:, None] - best_BM).sum(axis=2) / 2
        return regret, float(np.mean(np.sum(weight_BB * apart_BB, axis=1)))


def advise_mixtures(
    fit: FitResult,
    objective: Objective,
    allowed: Region | CappedSimplex,
    *,
    n: int,
    method: str = "optimum",
    pending: Sequence[Mixture] = (),
    candidates: Sequence[Mixture] | None = None,
    num_candidates: int = NUM_CANDIDATES,
    seed: int = 0,
) -> Advice:
    """Returns the mixtures to run next, and what each is expected to buy.

    Args:
        fit: Any fitted law, with its bootstrap draws.
        objective: What is minimized.
        allowed: The mixtures that may be run, over the domains of the fit.
        n: How many.
        method: `regret` (the least expected regret over the draws), `improvement` (expected
            improvement over the draws, of the whole batch), `optimum` (the variance of differences
            near the optimum), `parameters` (D-optimal) or `space` (as far as can be from all runs).
        pending: Mixtures that are planned and not in the fit.
        candidates: Mixtures to choose from; drawn from the allowed ones by default.
        num_candidates: How many are drawn.
        seed: Seeds the draw.

    Raises:
        DesignError: An unknown method, or fewer candidates than are asked for.
    """
    if method not in METHODS:
        raise DesignError(f"method must be one of {', '.join(METHODS)}, found {method!r}")
    if n < 1:
        raise DesignError(f"at least one mixture must be asked for, found {n}")
    region = Region.of(allowed).reordered(fit.domains)
    start = minimize_objective(objective.function(fit), region, with_prices=False)
    thinned = _thin_draws(fit)
    optimum_BM = minimize_draws(objective, thinned, region, start_M=start.r_M)
    optimum_OM = np.vstack([start.r_M, optimum_BM])
    given_CM = (
        _draw_candidates(region, num_candidates, seed)
        if candidates is None
        else np.stack([mixture.array(fit.domains) for mixture in candidates])
    )
    pool_CM = given_CM if candidates is not None else np.vstack([optimum_OM, given_CM])
    taken_RM = np.vstack([fit.table.r_RM, *(m.array(fit.domains)[None] for m in pending)])
    pool_CM = _short(pool_CM, region if candidates is None else None)
    pool_CM = _distinct(pool_CM, taken_RM, 0.0 if candidates is not None else SAME)
    if len(pool_CM) < n:
        raise DesignError(
            f"there must be {n} mixtures that differ from those that were run, but the constraints"
            f" allow {len(pool_CM)} of those drawn",
            do="ask for fewer, or widen the constraints",
        )
    doubt = _measure_doubt(thinned, objective, pool_CM, optimum_OM, pending)
    chosen = _choose(method, fit, objective, doubt, start.r_M, n=n, pending=pending)
    return _describe(fit, objective, doubt, chosen, method=method, start_M=start.r_M)


def _thin_draws(fit: FitResult) -> FitResult:
    step = max(1, -(-len(fit.theta_draws_BTP) // MOST_DRAWS))
    return replace(fit, theta_draws_BTP=fit.theta_draws_BTP[::step])


def _draw_candidates(region: Region, count: int, seed: int) -> Float[np.ndarray, "C M"]:
    """Returns mixtures spread over the allowed ones; what a constraint forbids is moved within."""
    domains = [Domain(name=name) for name in sorted(region.names)]
    bounds = CappedSimplex(region.names, region.floors, region.caps)
    if float(np.sum(bounds.floor_M)) > 1 - 1e-9:
        return bounds.floor_M[None]
    floors = dict(zip(region.names, region.floors, strict=True))
    drawn = sample_mixtures(
        domains, n=count, scale=None, method="dirichlet", floor=floors, strengths=(0.3, 2.0),
        seed=seed,
    )  # fmt: skip
    r_CM = np.stack([mixture.array(region.names) for mixture in drawn.mixtures])
    return np.stack([r_M if region.contains(r_M) else region.nearest(r_M) for r_M in r_CM])


def _short(pool_CM: Float[np.ndarray, "C M"], region: Region | None) -> Float[np.ndarray, "C M"]:
    """Returns the candidates to four digits; all digits where the region allows no fewer."""
    if region is not None:
        return np.stack([round_shares(r_M, region) for r_M in pool_CM])
    short_CM = np.clip(np.round(pool_CM, 4), 0.0, 1.0)
    return short_CM / short_CM.sum(axis=1, keepdims=True)


def _distinct(
    pool_CM: Float[np.ndarray, "C M"], taken_RM: Float[np.ndarray, "R M"], least: float
) -> Float[np.ndarray, "C M"]:
    """Returns the candidates that differ from each other and from what was run."""
    kept: list[np.ndarray] = []
    others_RM = taken_RM
    for share_M in pool_CM:
        if np.min(np.abs(others_RM - share_M).sum(axis=1)) / 2 > least:
            kept.append(share_M)
            others_RM = np.vstack([others_RM, share_M])
    return np.stack(kept) if kept else np.zeros((0, pool_CM.shape[1]))


def run_noise(fit: FitResult) -> Float[np.ndarray, " T"]:
    """Returns how far a new run lies off each target's law: its noise and the law's misfit."""
    residual_RT = fit.left_out_residual_RT
    return np.sqrt(np.nanmean(residual_RT**2, axis=0))


def _measure_doubt(
    fit: FitResult,
    objective: Objective,
    pool_CM: Float[np.ndarray, "C M"],
    optimum_OM: Float[np.ndarray, "O M"],
    pending: Sequence[Mixture],
) -> _Doubt:
    value_BO = np.stack(
        [objective.under(fit, theta_TP).value(optimum_OM) for theta_TP in fit.theta_draws_BTP]
    )
    counts_T = np.any(
        np.stack([objective.weights_at(fit, r_M) for r_M in optimum_OM[:1]]) != 0, axis=0
    )
    pending_CM = np.stack([m.array(fit.domains) for m in pending]) if pending else None
    told_BB = np.zeros((len(value_BO), len(value_BO)))
    if pending_CM is not None:
        told_BB = _told_apart(fit, pending_CM, counts_T).sum(axis=0)
    return _Doubt(
        candidate_CM=pool_CM,
        optimum_OM=optimum_OM,
        value_BO=value_BO - value_BO.min(axis=1, keepdims=True),
        told_CBB=_told_apart(fit, pool_CM, counts_T),
        told_BB=told_BB,
    )


def _told_apart(
    fit: FitResult, r_CM: Float[np.ndarray, "C M"], counts_T: Float[np.ndarray, " T"] | np.ndarray
) -> Float[np.ndarray, "C B B"]:
    loss_BCT = evaluate_law(fit.law, r_CM, fit.theta_draws_BTP) / np.maximum(run_noise(fit), 1e-12)
    told_CBB = np.zeros((len(r_CM), len(loss_BCT), len(loss_BCT)))
    for t in np.flatnonzero(counts_T):
        loss_CB = loss_BCT[:, :, t].T
        told_CBB += (loss_CB[:, :, None] - loss_CB[:, None, :]) ** 2
    return told_CBB


def _choose(
    method: str,
    fit: FitResult,
    objective: Objective,
    doubt: _Doubt,
    start_M: Float[np.ndarray, " M"],
    *,
    n: int,
    pending: Sequence[Mixture],
) -> list[int]:
    pool_CM = doubt.candidate_CM
    taken_RM = np.vstack([fit.table.r_RM, *(m.array(fit.domains)[None] for m in pending)])
    if method == "space":
        return spread_indices(pool_CM, n, taken_RM)
    if method == "regret":
        return _least_regret(doubt, n)
    if method == "improvement":
        return _most_improvement(fit, objective, pool_CM, start_M, n)
    noise_T1 = np.maximum(run_noise(fit), 1e-12)[:, None]
    weight_T = np.abs(objective.weights_at(fit, start_M))
    counted = np.flatnonzero(weight_T)
    x_CTP, x_RTP = (
        np.swapaxes(fit.law.jacobian(r_CM, fit.theta_TP), 0, 1)[:, counted] / noise_T1[counted]
        for r_CM in (pool_CM, taken_RM)
    )
    strength_T = np.array([status.strength for status in fit.status])[counted]
    prior_TQP = fit.law.penalty_jacobian(fit.theta_TP)[counted]
    information_TPP = np.einsum("rtp,rtq->tpq", x_RTP, x_RTP) + strength_T[:, None, None] * (
        np.swapaxes(prior_TQP, 1, 2) @ prior_TQP
    )
    contrast_KTP = None
    if method == "optimum":
        x_OTP = np.swapaxes(fit.law.jacobian(doubt.optimum_OM, fit.theta_TP), 0, 1)[:, counted]
        contrast_KTP = (x_OTP[1:] - x_OTP[:1]) * weight_T[counted][:, None]
    return choose_informative(x_CTP, information_TPP, n=n, contrast_KTP=contrast_KTP)[0]


def _least_regret(doubt: _Doubt, n: int) -> list[int]:
    """Returns the batch, each mixture the one after which the least regret is expected.

    Where no single run would change a recommendation, the spread of the optimum decides.
    """
    chosen: list[int] = []
    told_BB = doubt.told_BB
    scale = max(doubt.regret(told_BB)[0], 1e-12)
    for _ in range(n):
        scores = np.full(len(doubt.candidate_CM), np.inf)
        for c in range(len(scores)):
            if c not in chosen:
                regret, spread = doubt.regret(told_BB + doubt.told_CBB[c])
                scores[c] = regret / scale + 1e-3 * spread
        chosen.append(int(np.argmin(scores)))
        told_BB = told_BB + doubt.told_CBB[chosen[-1]]
    return chosen


def _most_improvement(
    fit: FitResult,
    objective: Objective,
    pool_CM: Float[np.ndarray, "C M"],
    start_M: Float[np.ndarray, " M"],
    n: int,
) -> list[int]:
    """Returns the batch with the largest expected improvement on what is recommended now.

    A draw counts what the best of the batch would improve under it, so that each further mixture is
    chosen for the draws that those before it serve badly.
    """
    functions = [objective.under(fit, theta_TP) for theta_TP in fit.theta_draws_BTP]
    now_B = np.array([function.value(start_M[None])[0] for function in functions])
    better_BC = now_B[:, None] - np.stack([function.value(pool_CM) for function in functions])
    best_B = np.zeros(len(now_B))
    chosen: list[int] = []
    for _ in range(n):
        gain_C = np.mean(np.maximum(better_BC, best_B[:, None]), axis=0)
        gain_C[chosen] = -np.inf
        chosen.append(int(np.argmax(gain_C)))
        best_B = np.maximum(best_B, better_BC[:, chosen[-1]])
    return chosen


def _describe(
    fit: FitResult,
    objective: Objective,
    doubt: _Doubt,
    chosen: Sequence[int],
    *,
    method: str,
    start_M: Float[np.ndarray, " M"],
) -> Advice:
    told_BB = doubt.told_BB
    regret_now, spread_now = doubt.regret(told_BB)
    suggestions: list[Suggestion] = []
    for c in chosen:
        told_BB = told_BB + doubt.told_CBB[c]
        regret, spread = doubt.regret(told_BB)
        r_M = doubt.candidate_CM[c]
        suggestions.append(
            Suggestion(
                mixture=Mixture.from_array(fit.domains, r_M),
                expected_regret=regret,
                spread=spread,
                distance_to_runs=float(np.min(np.abs(fit.table.r_RM - r_M).sum(axis=1)) / 2),
            )
        )
    weight_T = objective.weights_at(fit, start_M)
    known_RT = np.nan_to_num(fit.left_out_residual_RT)
    return Advice(
        suggestions=tuple(suggestions),
        method=method,
        regret_now=regret_now,
        spread_now=spread_now,
        best=Mixture.from_array(fit.domains, start_M / start_M.sum()),
        noise=float(np.sqrt(np.mean((known_RT @ weight_T) ** 2))),
        unit=fit.table.unit,
        notes=_notes(suggestions, regret_now),
    )


def _notes(suggestions: Sequence[Suggestion], regret_now: float) -> tuple[str, ...]:
    notes = [
        "expected by this law's draws: what the law can't describe counts as noise, and only runs"
        " far from all others show it"
    ]
    if suggestions and suggestions[-1].expected_regret > 0.8 * regret_now:
        notes.append(
            "these runs are expected to buy little: the optimum is known about as well as the law"
            " and its noise allow"
        )
    return tuple(notes)


def choose_group(
    fit: FitResult, objective: Objective, *, size: int, num_groups: int = 100, seed: int = 0
) -> tuple[str, ...]:
    """Returns the mixtures of the group whose law predicts all mixtures best.

    It is how Ye et al. chose 20 of 40 mixtures: small models are trained on all of them, and larger
    ones on the group that is enough to fit the law.

    Args:
        fit: The fit to all mixtures; its law is fitted to every group.
        objective: Whose error on all mixtures counts.
        size: Mixtures in a group.
        num_groups: Groups that are drawn.
        seed: Seeds the draw.

    Raises:
        DesignError: The group must be smaller than all, and larger than the least to fit.

    References:
        Ye et al. 2025, arXiv:2403.16952, Appendix.
    """
    ids = tuple(dict.fromkeys(fit.table.mixture_ids))
    if not 4 <= size < len(ids):
        raise DesignError(
            f"a group must have at least 4 mixtures and fewer than the {len(ids)} that were run,"
            f" found {size}"
        )
    rng = np.random.default_rng(seed)
    group_of = np.array([ids.index(mixture_id) for mixture_id in fit.table.mixture_ids])
    middle_M = np.average(fit.table.r_RM, axis=0, weights=fit.weight_R)
    weight_T = objective.weights_at(fit, middle_M)
    counted = np.flatnonzero(weight_T)
    y_TR = fit.table.y_RT[:, counted].T
    members = [np.sort(rng.permutation(len(ids))[:size]) for _ in range(num_groups)]
    inside_GR = np.stack([np.isin(group_of, group) for group in members])
    y_BR = np.where(inside_GR[:, None], y_TR, np.nan).reshape(-1, len(group_of))
    tried = try_strengths(fit.law, fit.table.r_RM, y_TR)
    index = np.tile(np.arange(len(counted)), num_groups)
    theta_BP = retry_strengths(
        fit.law, fit.table.r_RM, y_BR, tried=[part.select(index) for part in tried]
    ).theta_BP
    predicted_GTR = fit.law.predict(fit.table.r_RM, theta_BP).reshape(num_groups, len(counted), -1)
    off_GR = np.einsum("t,gtr->gr", weight_T[counted], predicted_GTR - y_TR)
    error_G = np.nanmean(np.abs(off_GR), axis=1)
    return tuple(ids[i] for i in members[int(np.argmin(error_G))])
