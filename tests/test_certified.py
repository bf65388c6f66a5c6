"""Fits of published losses against an independent optimization, in digits of agreement.

The objective is written down again, from the formulas: in extended precision, with the paper's
redundant parameters for M4. It is minimized by SciPy's L-BFGS-B from starts of its own, with
gradients by complex steps, and polished by Newton's method. What is certified is what is identified:
objective, predictions, and contrasts at the mean mixture.

Data: the 26 five-domain mixtures of Ye et al. 2025 (github.com/yegcjs/mixinglaws, `data/5Mix`), 70M
parameters, step 30,000.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import polars as pl
import pytest
from scipy.optimize import minimize

from mixlaw.fit.solver import Problems
from mixlaw.fit.strength import choose_strength, solve_starts, try_strengths
from mixlaw.importers.published import read_mixinglaws
from mixlaw.laws.base import MixingLaw
from mixlaw.laws.library import MIXING_LAWS
from mixlaw.observations import loss_table
from published import published_data

PARAMS, STEP = 18_915_328, 30_000
TARGETS = ("ArXiv", "DM_Mathematics", "Github", "PhilPapers", "Pile-CC")
"""Symbols, prose and code. M4's fit to DM_Mathematics ends at a bound of t, the power-reciprocal
law's to PhilPapers at bounds of exponents and floor."""
HUBER = 1.345
EXTENDED = np.finfo(np.longdouble).eps < 1e-18


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A law written down again: parameters to losses and to shrinkage residuals."""

    predict: Callable[[np.ndarray, np.ndarray], np.ndarray]
    penalty: Callable[[np.ndarray], np.ndarray]
    start: Callable[[np.ndarray], np.ndarray]
    """A start that none of the law's own is, from the losses."""


def m4_loss(r_RM: np.ndarray, u_P: np.ndarray) -> np.ndarray:
    """Returns c + k exp(t r) as the paper has it, with the redundant k."""
    return u_P[0] + np.exp(u_P[1]) * np.exp(r_RM @ u_P[2:])


def m4_penalty(u_P: np.ndarray) -> np.ndarray:
    return (u_P[2:] - u_P[2:].mean()) / 3


def power_loss(r_RM: np.ndarray, u_P: np.ndarray) -> np.ndarray:
    """Returns c + (sum_j C_j (r_j + e)^g_j)^-b."""
    size = r_RM.shape[1]
    g_M, scale_M = np.exp(u_P[3 : 3 + size]), np.exp(u_P[3 + size :])
    return u_P[0] + ((r_RM + np.exp(u_P[2])) ** g_M @ scale_M) ** -np.exp(u_P[1])


def power_penalty(u_P: np.ndarray) -> np.ndarray:
    size = (len(u_P) - 3) // 2
    log_g_M, log_scale_M = u_P[3 : 3 + size], u_P[3 + size :]
    typical = [
        u_P[1] / 0.5,
        u_P[2] - np.log(np.longdouble(3e-4)),
        (log_g_M.mean() - np.log(np.longdouble(0.4))) / 0.5,
    ]
    own = (log_g_M - log_g_M.mean()) / 0.15
    return np.concatenate([typical, own, (log_scale_M - log_scale_M.mean()) / 3])


def power_start(y_R: np.ndarray) -> np.ndarray:
    return np.concatenate([[0.8 * y_R.min(), -0.5, np.log(1e-3)], np.full(5, -0.7), np.zeros(5)])


REFERENCES = {
    "m4": Reference(
        predict=m4_loss,
        penalty=m4_penalty,
        start=lambda y_R: np.array([0.8 * y_R.min(), 1.0, -1.0, -1.0, -1.0, -1.0, -1.0]),
    ),
    "power-reciprocal": Reference(predict=power_loss, penalty=power_penalty, start=power_start),
}


def huber(u: np.ndarray) -> np.ndarray:
    """Returns Huber's rho, for complex steps too."""
    size = np.where(u.real < 0, -u, u)
    return np.where(size.real <= HUBER, size * size / 2, HUBER * (size - HUBER / 2))


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The objective of one target."""

    reference: Reference
    r_RM: np.ndarray
    y_R: np.ndarray
    scale: float
    strength: float

    def value(self, u_P: np.ndarray):
        misfit_R = (self.reference.predict(self.r_RM, u_P) - self.y_R) / self.scale
        shrinkage_Q = self.strength * self.reference.penalty(u_P)
        return huber(misfit_R).sum() + huber(shrinkage_Q).sum()

    def gradient(self, u_P: np.ndarray) -> np.ndarray:
        """Returns exact derivatives: a complex step has no cancellation."""
        steps = np.eye(len(u_P)) * 1e-30j
        return np.array([self.value(u_P + step).imag / 1e-30 for step in steps])

    def hessian(self, u_P: np.ndarray) -> np.ndarray:
        steps = np.eye(len(u_P), dtype=np.longdouble) * 1e-6
        columns = [(self.gradient(u_P + s) - self.gradient(u_P - s)) / 2e-6 for s in steps]
        return np.array(columns, dtype=np.float64)

    def minimize(self, low_P: np.ndarray, high_P: np.ndarray) -> np.ndarray:
        """Returns a minimum in extended precision; what the slope pushes into a bound stays there."""
        start_P = np.clip(self.reference.start(self.y_R), low_P, high_P)
        rough = minimize(
            lambda u: float(self.value(u)),
            start_P,
            jac=lambda u: self.gradient(u).astype(np.float64),
            method="L-BFGS-B",
            bounds=list(zip(low_P, high_P, strict=True)),
            options={
                "maxiter": 20_000,
                "maxfun": 50_000,
                "ftol": 1e-15,
                "gtol": 1e-9,
                "maxcor": 30,
            },
        )
        u_P = rough.x.astype(np.longdouble)
        for _ in range(50):
            slope_P = self.gradient(u_P)
            held_P = ((u_P <= low_P) & (slope_P > 0)) | ((u_P >= high_P) & (slope_P < 0))
            free_P = ~held_P
            curve_PP = self.hessian(u_P)[np.ix_(free_P, free_P)]
            # The gauge of M4 has no curvature: the pseudo-inverse leaves it where it is.
            step_P = np.zeros(len(u_P))
            step_P[free_P] = -np.linalg.pinv(curve_PP, rcond=1e-11) @ slope_P[free_P].astype(float)
            before_P, u_P = u_P, np.clip(u_P + step_P, low_P, high_P)
            if np.max(np.abs(u_P - before_P)) < 1e-14:
                break
        return u_P

    def contrasts(self, r_M: np.ndarray, u_P: np.ndarray) -> np.ndarray:
        """Returns what moving share to each domain does at a mixture, by complex steps."""
        moves_MM = np.eye(len(r_M)) - r_M
        return np.array(
            [
                self.reference.predict((r_M + 1e-30j * move_M)[None], u_P)[0].imag / 1e-30
                for move_M in moves_MM
            ]
        )


@dataclass(frozen=True, kw_only=True)
class Ours:
    """The fits to be certified."""

    law: MixingLaw
    problems: Problems
    theta_TP: np.ndarray
    objective_T: np.ndarray


@pytest.fixture(scope="module")
def losses() -> tuple[np.ndarray, np.ndarray]:
    published = read_mixinglaws(published_data() / "mixinglaws" / "5Mix")
    runs = published.runs.filter(pl.col("params_non_embedding") == PARAMS)
    table = loss_table(runs, published.observations, targets=TARGETS, step=STEP)
    assert len(table.run_ids) == 26
    return table.r_RM, table.y_RT


def fit(law: MixingLaw, r_RM: np.ndarray, y_RT: np.ndarray) -> Ours:
    """Returns our fits: the rule's scales and strengths, all starts, the best polished."""
    chosen = choose_strength(try_strengths(law, r_RM, y_RT.T))
    starts_TSP = np.concatenate([chosen.theta_BP[:, None], law.starts(r_RM, y_RT.T)], axis=1)
    held = {"scale_B": chosen.scale_B, "strength_B": chosen.strength_B}
    solutions = solve_starts(law, r_RM, y_RT.T, start_BSP=starts_TSP, **held)
    assert solutions.converged_B.all()
    return Ours(
        law=law,
        problems=Problems.of(law, r_RM, y_RT.T, **held),
        theta_TP=solutions.theta_BP,
        objective_T=solutions.objective_B,
    )


def digits(found: np.ndarray, exact: np.ndarray) -> float:
    """Returns to how many digits numbers agree, the largest of them setting the scale."""
    error = np.max(np.abs(found - exact)) / np.max(np.abs(exact))
    return float(-np.log10(max(error, 1e-18)))


@pytest.mark.skipif(not EXTENDED, reason="long double is not wider than double here")
@pytest.mark.parametrize("name", REFERENCES)
def test_published_fits_agree_with_an_independent_optimization(
    name: str, losses: tuple[np.ndarray, np.ndarray]
) -> None:
    """Eight digits of the objective, five of predictions (on and off the runs) and of contrasts.

    Reached on 2026-11-24: 12.7 or more, 7.8 and 6.8, where no parameter is at a bound.
    """
    r_RM, y_RT = losses
    ours = fit(MIXING_LAWS[name], r_RM, y_RT)
    fresh_RM = np.vstack([r_RM, np.random.default_rng(0).dirichlet(np.ones(5), size=20)])
    for i, target in enumerate(TARGETS):
        objective = Objective(
            reference=REFERENCES[name],
            r_RM=r_RM,
            y_R=y_RT[:, i],
            scale=ours.problems.scale_B[i],
            strength=ours.problems.strength_B[i],
        )
        low_P, high_P = ours.problems.low_BP[i], ours.problems.high_BP[i]
        if name == "m4":
            # The bounds of t are meant at k = 1: where one binds, so must the reference's k.
            inside = np.all((low_P < ours.theta_TP[i]) & (ours.theta_TP[i] < high_P))
            far = 100.0 if inside else 0.0
            low_P, high_P = np.insert(low_P - far, 1, -far), np.insert(high_P + far, 1, far)
            low_P[0], high_P[0] = ours.problems.low_BP[i, 0], ours.problems.high_BP[i, 0]
        u_P = objective.minimize(low_P, high_P)
        predicted_R = ours.law.predict(fresh_RM, ours.theta_TP[i])
        contrast_M = ours.law.contrasts(r_RM.mean(axis=0), ours.theta_TP[i])
        agreement = (
            digits(ours.objective_T[i], objective.value(u_P)),
            digits(predicted_R, objective.reference.predict(fresh_RM, u_P)),
            digits(contrast_M, objective.contrasts(r_RM.mean(axis=0), u_P)),
        )
        assert agreement[0] >= 8, (target, agreement)
        assert agreement[1] >= 5, (target, agreement)
        assert agreement[2] >= 5, (target, agreement)
