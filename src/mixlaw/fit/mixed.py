"""A mixed model of one loss over mixtures, model sizes and steps: its likelihood and posterior.

Shape letters: P points (a model size and a step), G mixtures, K parameters, F free ones, Q new
points, B draws, C the coefficients (E, A, B) of a mixture, O the points of a group of mixtures.

A mixture's losses are its own surface (`mixlaw.fit.surface`) and errors. (E, A, B) are normal
around a mean that all mixtures share. A run's errors are an offset, a drift (a random walk in the
log area under its learning rate) and noise. A mixture's checkpoints at one step share an error over
sizes, since all sizes see the same data in the same order; and all mixtures share one of each
size, step, and both. Given the exponents and the variances all of it is linear and normal, so the
rest is exact. These few are found where their posterior is highest; its curvature there says how
sure they are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import cho_solve
from scipy.optimize import minimize

from mixlaw.fit.surface import (
    NOISE,
    NUM_EXPONENTS,
    SD,
    TIE,
    Points,
    Reference,
    basis,
    basis_slopes,
)

MEAN_SD = (1.0, 0.3, 0.3)
"""Standard deviations of the mean of (E, A, B), as shares of the loss: they decide nothing."""
FAR, FORBIDDEN = 12.0, 1e10
"""Further from the prior's mean the objective is this: a line search that strays there turns back
before a covariance overflows or is singular."""
NUDGE = 1e-4
"""Step of the central differences of the gradient; the parameters are of order one."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prior:
    """A normal prior of the parameters; those without variance are held."""

    mean_K: Float[np.ndarray, " K"]
    covariance_KK: Float[np.ndarray, "K K"]


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Mixtures that were observed at the same points, and what the likelihood needs of them."""

    rows: Int[np.ndarray, " N"]
    seen: Int[np.ndarray, " O"]
    sum_O: Float[np.ndarray, " O"]
    square_OO: Float[np.ndarray, "O O"]


@dataclass(frozen=True, slots=True, eq=False)
class _Solved:
    """The linear model at given parameters."""

    inverses: list[np.ndarray]
    """Per group, the inverse covariance of one mixture's losses around the common part."""
    information_PP: Float[np.ndarray, "P P"]
    """What the mixtures say about the common part."""
    posterior_PP: Float[np.ndarray, "P P"]
    """Covariance of the common part, given the losses."""
    log_determinant: float


class MixedModel:
    """One loss of many mixtures, fitted by its penalized marginal likelihood.

    Args:
        points: Where the mixtures were observed.
        loss_GP: Losses; NaN where a mixture was not observed.
        reference: The middle of the runs.
        prior: Of the parameters, in the order of `surface.PARAMETERS`.
    """

    def __init__(
        self,
        points: Points,
        loss_GP: Float[np.ndarray, "G P"],
        *,
        reference: Reference,
        prior: Prior,
    ) -> None:
        self.points, self.reference, self.prior = points, reference, prior
        self.loss_GP = loss_GP
        self.level = float(np.nanmean(loss_GP))
        self.centred_GP = loss_GP - self.level
        self.free = np.flatnonzero(np.diag(prior.covariance_KK) > 0)
        self.precision_FF = np.linalg.inv(prior.covariance_KK[np.ix_(self.free, self.free)])
        self.mean_variance_C = (np.array(MEAN_SD) * self.level) ** 2
        self.groups = _group_rows(self.centred_GP)
        self.errors = _shared_errors(points, reference)
        self.theta_K = prior.mean_K.copy()
        self.covariance_KK = prior.covariance_KK.copy()
        self.converged = False

    def fit(self, start_K: Float[np.ndarray, " K"] | None = None) -> "MixedModel":
        """Finds the mode of the parameters and the curvature there, and returns itself.

        Args:
            start_K: Where to start; parameters that the prior holds stay where it holds them.
        """
        scale_F = np.minimum(1 / np.sqrt(np.diag(self.precision_FF)), 0.3)
        theta_K = self.prior.mean_K.copy()
        if start_K is not None:
            theta_K[self.free] = start_K[self.free]

        def objective(z_F: np.ndarray) -> tuple[float, np.ndarray]:
            theta_K[self.free] = z_F * scale_F
            value, gradient_K = self.negative_log_posterior(theta_K)
            return value, gradient_K[self.free] * scale_F

        start_F = theta_K[self.free] / scale_F
        found = minimize(
            objective, start_F, jac=True, method="L-BFGS-B", options={"maxiter": 300, "maxls": 40}
        )
        theta_K[self.free] = found.x * scale_F
        self.theta_K, self.converged = theta_K, bool(found.success)
        self.covariance_KK = self._curvature(theta_K)
        return self

    def _curvature(self, theta_K: Float[np.ndarray, " K"]) -> Float[np.ndarray, "K K"]:
        """Returns the covariance of the normal that touches the posterior at its mode."""
        hessian = np.empty((len(self.free), len(self.free)))
        for i, k in enumerate(self.free):
            nudge_K = np.zeros(len(theta_K))
            nudge_K[k] = NUDGE
            up = self.negative_log_posterior(theta_K + nudge_K)[1][self.free]
            down = self.negative_log_posterior(theta_K - nudge_K)[1][self.free]
            hessian[i] = (up - down) / (2 * NUDGE)
        # Nothing is less sure than the prior: where the likelihood bends the wrong way, only it is.
        root = np.linalg.cholesky(self.precision_FF)
        white = np.linalg.solve(root, np.linalg.solve(root, (hessian + hessian.T) / 2).T)
        value, vector = np.linalg.eigh((white + white.T) / 2)
        spread = np.linalg.solve(root.T, vector / np.sqrt(np.maximum(value, 1.0)))
        covariance_KK = np.zeros((len(theta_K), len(theta_K)))
        covariance_KK[np.ix_(self.free, self.free)] = spread @ spread.T
        return covariance_KK

    def negative_log_posterior(
        self, theta_K: Float[np.ndarray, " K"]
    ) -> tuple[float, Float[np.ndarray, " K"]]:
        """Returns minus the log posterior, up to a constant, and its gradient."""
        if np.any(np.abs(theta_K - self.prior.mean_K)[self.free] > FAR):
            return FORBIDDEN, np.zeros(len(theta_K))
        basis_PC = basis(self.points, self.reference, theta_K[:NUM_EXPONENTS])
        try:
            solved = self._solve(*self._covariances(self.points, basis_PC, theta_K))
        except np.linalg.LinAlgError:
            return FORBIDDEN, np.zeros(len(theta_K))
        score_P = np.zeros(len(self.points))
        value = solved.log_determinant
        for group, inverse in zip(self.groups, solved.inverses, strict=True):
            value += 0.5 * np.sum(inverse * group.square_OO)
            score_P[group.seen] += inverse @ group.sum_O
        mean_P = solved.posterior_PP @ score_P
        value -= 0.5 * score_P @ mean_P
        gradient_K = self._gradient(theta_K, basis_PC, solved=solved, score_P=score_P)
        gap_F = (theta_K - self.prior.mean_K)[self.free]
        pull_F = self.precision_FF @ gap_F
        gradient_K[self.free] += pull_F
        return float(value + 0.5 * gap_F @ pull_F), gradient_K

    def _solve(self, own_PP: np.ndarray, common_PP: np.ndarray) -> _Solved:
        size = len(self.points)
        information_PP, log_determinant = np.zeros((size, size)), 0.0
        inverses: list[np.ndarray] = []
        for group in self.groups:
            at, count = np.ix_(group.seen, group.seen), len(group.rows)
            root = np.linalg.cholesky(own_PP[at])
            inverses.append(cho_solve((root, True), np.eye(len(root)), check_finite=False))
            information_PP[at] += count * inverses[-1]
            log_determinant += count * np.log(np.diag(root)).sum()
        root = np.linalg.cholesky(common_PP)
        inner = np.linalg.cholesky(np.eye(size) + root.T @ information_PP @ root)
        half = np.linalg.solve(inner, root.T)
        log_determinant += np.log(np.diag(inner)).sum()
        return _Solved(inverses, information_PP, half.T @ half, float(log_determinant))

    def _gradient(
        self,
        theta_K: np.ndarray,
        basis_PC: np.ndarray,
        *,
        solved: _Solved,
        score_P: np.ndarray,
    ) -> Float[np.ndarray, " K"]:
        """Returns the gradient of minus the log likelihood."""
        information, posterior = solved.information_PP, solved.posterior_PP
        mean_P = posterior @ score_P
        left_P = score_P - information @ mean_P
        by_common = information - information @ posterior @ information - np.outer(left_P, left_P)
        by_own = np.zeros_like(by_common)
        for group, inverse in zip(self.groups, solved.inverses, strict=True):
            at, count, mean_O = np.ix_(group.seen, group.seen), len(group.rows), mean_P[group.seen]
            crossed = np.outer(group.sum_O, mean_O)
            moment = group.square_OO - crossed - crossed.T
            moment = moment + count * (posterior[at] + np.outer(mean_O, mean_O))
            by_own[at] += count * inverse - inverse @ moment @ inverse
        return self._chain(theta_K, basis_PC, by_own=by_own / 2, by_common=by_common / 2)

    def _chain(
        self,
        theta_K: np.ndarray,
        basis_PC: np.ndarray,
        *,
        by_own: np.ndarray,
        by_common: np.ndarray,
    ) -> Float[np.ndarray, " K"]:
        """Returns the gradient by the parameters, from that by the two covariances."""
        gradient_K = np.zeros(len(theta_K))
        root_CC = _root(theta_K)
        own_PC, common_PC = by_own @ basis_PC, by_common @ basis_PC
        by_basis_PC = 2 * (own_PC @ (root_CC @ root_CC.T) + common_PC * self.mean_variance_C)
        slopes_XPC = basis_slopes(self.points, self.reference, theta_K[:NUM_EXPONENTS])
        gradient_K[:NUM_EXPONENTS] = np.einsum("xpc,pc->x", slopes_XPC, by_basis_PC)
        by_root_CC = 2 * (basis_PC.T @ own_PC) @ root_CC
        gradient_K[SD:TIE] = np.sum(by_root_CC * root_CC, axis=1)
        sd_C = np.exp(theta_K[SD:TIE])
        rows, columns = [1, 2, 2], [0, 0, 1]
        gradient_K[TIE:NOISE] = by_root_CC[rows, columns] * sd_C[rows]
        own, common = self._errors(self.points)
        by_variance = [np.sum(by_own * kind) for kind in own]
        by_variance += [np.sum(by_common * kind) for kind in common]
        gradient_K[NOISE:] = 2 * np.exp(2 * theta_K[NOISE:]) * np.array(by_variance)
        return gradient_K

    def _covariances(
        self, points: Points, basis_PC: np.ndarray, theta_K: np.ndarray
    ) -> tuple[Float[np.ndarray, "P P"], Float[np.ndarray, "P P"]]:
        """Returns the covariance of one mixture's losses around the common part, and of that."""
        own_errors, common_errors = self._errors(points)
        variance = np.exp(2 * theta_K[NOISE:])
        mixed_PC = basis_PC @ _root(theta_K)
        own = mixed_PC @ mixed_PC.T
        own += np.tensordot(variance[: len(own_errors)], own_errors, axes=1)
        common = (basis_PC * self.mean_variance_C) @ basis_PC.T
        common += np.tensordot(variance[len(own_errors) :], common_errors, axes=1)
        return own, common

    def _errors(self, points: Points) -> tuple[np.ndarray, np.ndarray]:
        return self.errors if points is self.points else _shared_errors(points, self.reference)

    def predict(self, new: Points) -> Float[np.ndarray, "G Q"]:
        """Returns the expected losses at new points, given the losses observed."""
        own, common = self._joint_covariances(new, self.theta_K)
        return self.level + self._posterior_mean(own, common)(self.centred_GP[None])[0]

    def draw(
        self, new: Points, theta_K: Float[np.ndarray, " K"], *, num: int, rng: np.random.Generator
    ) -> Float[np.ndarray, "B G Q"]:
        """Returns draws of the losses at new points, joint over mixtures and points.

        Each is a draw of everything from the prior, moved by what the observed losses say about
        its error (Matheron's rule).
        """
        own, common = self._joint_covariances(new, theta_K)
        normal = rng.standard_normal((num, len(self.loss_GP) + 1, len(own)))
        prior = normal[:, 1:] @ np.linalg.cholesky(own).T
        prior += (normal[:, 0] @ np.linalg.cholesky(common).T)[:, None]
        known = len(self.points)
        moved = self._posterior_mean(own, common)(self.centred_GP - prior[..., :known])
        return self.level + prior[..., known:] + moved

    def _joint_covariances(self, new: Points, theta_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        both = self.points.join(new)
        basis_PC = basis(both, self.reference, theta_K[:NUM_EXPONENTS])
        return self._covariances(both, basis_PC, theta_K)

    def _posterior_mean(
        self, own: np.ndarray, common: np.ndarray
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Returns the linear map from losses "B G P" to those expected at new points, "B G Q"."""
        size = len(self.points)
        solved = self._solve(own[:size, :size], common[:size, :size])
        groups = list(zip(self.groups, solved.inverses, strict=True))

        def expected(loss_BGP: np.ndarray) -> np.ndarray:
            score_BP = np.zeros((len(loss_BGP), size))
            for group, inverse in groups:
                score_BP[:, group.seen] += (
                    loss_BGP[:, group.rows][..., group.seen].sum(axis=1) @ inverse
                )
            mean_BP = score_BP @ solved.posterior_PP
            shared_BQ = (score_BP - mean_BP @ solved.information_PP) @ common[:size, size:]
            expected_BGQ = np.repeat(shared_BQ[:, None], loss_BGP.shape[1], axis=1)
            for group, inverse in groups:
                left = loss_BGP[:, group.rows][..., group.seen] - mean_BP[:, None, group.seen]
                expected_BGQ[:, group.rows] += left @ (inverse @ own[group.seen, size:])
            return expected_BGQ

        return expected


def _group_rows(centred_GP: Float[np.ndarray, "G P"]) -> list[_Group]:
    patterns, which = np.unique(np.isfinite(centred_GP), axis=0, return_inverse=True)
    groups: list[_Group] = []
    for k, pattern_P in enumerate(patterns):
        rows, seen = np.flatnonzero(which.ravel() == k), np.flatnonzero(pattern_P)
        if len(seen):
            y_NO = centred_GP[np.ix_(rows, seen)]
            groups.append(_Group(rows, seen, y_NO.sum(axis=0), y_NO.T @ y_NO))
    return groups


def _root(theta_K: np.ndarray) -> Float[np.ndarray, "C C"]:
    """Returns the lower root of the covariance of (E, A, B) between mixtures."""
    sd_E, sd_A, sd_B = np.exp(theta_K[SD:TIE])
    tie_AE, tie_BE, tie_BA = theta_K[TIE:NOISE]
    return np.array(
        [[sd_E, 0.0, 0.0], [sd_A * tie_AE, sd_A, 0.0], [sd_B * tie_BE, sd_B * tie_BA, sd_B]]
    )


def _shared_errors(points: Points, reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """Returns which points share each kind of error, first a mixture's own kinds, then common ones.

    Both in the order of their parameters.
    """
    same_size = (points.size_P[:, None] == points.size_P[None]).astype(float)
    same_step = (points.step_P[:, None] == points.step_P[None]).astype(float)
    log_P = np.log(points.area_P / reference.area)
    nearer = np.minimum(np.abs(log_P[:, None]), np.abs(log_P[None]))
    # A random walk that starts in the middle of the runs, in both directions.
    walk = same_size * np.where(log_P[:, None] * log_P[None] > 0, nearer, 0.0)
    alone = np.eye(len(points))
    return np.stack([same_size, walk, alone, same_step]), np.stack([same_step, alone, same_size])
