r"""A mixing law for runs whose mixture changes on the way: what is seen late counts more.

Shape letters: B any leading axes, N the same as one, R runs, S stages, M training domains, X = S M
their pairs (stage by stage), P parameters, G starts, Q shrinkage residuals.

A schedule is a point of a larger simplex: share x_sj of all tokens comes from domain j in stage s.
A stage that takes the share f_s of the tokens has the mixture r^s_j = x_sj / f_s. So whatever takes
mixtures takes schedules too: fits, left-out errors, intervals, optima.

The effect of a token fades with what is trained after it: at the share u of the run its weight is
proportional to $e^{ku}$, which gives stages the weights $\phi_s(k)$. With k = 0 these are the
shares f_s. The loss is

$$L = b\, L_0(\sum_s \phi_s(k) r^s) + (1 - b) \sum_s \phi_s(k + d) L_0(r^s)$$

with any mixing law L_0: of the mixture that is remembered, and what each stage by itself would
have come to. Of a constant schedule both are L_0(r), whatever k, d and b. Both are convex in the
schedule where L_0 is convex. `docs/log.md` has the forms that were compared on real runs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Bool, Float

from mixlaw.errors import FitError
from mixlaw.laws.base import Curvature, MixingLaw, no_diagonal

NUM_EXTRA = 3
"""Parameters beside those of the law of mixtures: k, d and the logit of b."""
RECENCY_PRIOR = 5.0
"""Standard deviation to which k is shrunk around 0: the last fifth of a run then counts up to three
times its share. Real proxies have 3 to 6 (docs/log.md)."""
EXTRA_PRIOR = 2.0
"""Standard deviation of d around 0."""
BLEND_PRIOR = 1.5
"""Standard deviation of the logit of b around 0."""
RECENCY_BOUNDS = (-20.0, 30.0)
EXTRA_BOUNDS = (-5.0, 15.0)
BLEND_BOUNDS = (-6.0, 6.0)
RECENCY_GUESSES = (3.0, 0.0)
"""Where descents start, the most plausible first."""
SAME = 1e-12
"""Shares of stages that differ by less are the same: one of them stands for all."""
CHUNK = 30_000
"""Numbers that the law evaluates at a time for mixtures that differ between problems."""
Evaluate = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`predict`, `jacobian` or `gradient` of a law of mixtures."""
SMALL = 1e-2
"""Below it weights of stages are a series in k: their formula is 0 / 0 at k = 0."""


@dataclass(frozen=True, slots=True)
class StagedLaw(MixingLaw):
    """A law of mixtures as a law of schedules, which takes stages as one row of shares x."""

    law: MixingLaw
    """The law of runs of one mixture."""
    ends: tuple[float, ...]
    """Share of the tokens after which each stage ends: rising, the last one 1."""

    formula: ClassVar[str] = (
        "L = b L0(sum_s phi_s(k) r^s) + (1 - b) sum_s phi_s(k + d) L0(r^s),"
        " phi_s(k) the integral of exp(k u) over stage s"
    )

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip((0.0, *self.ends), self.ends, strict=False))
        if not self.ends or not rising or self.ends[-1] != 1.0:
            raise FitError(
                "the ends of stages must rise from above 0 to 1, as shares of the tokens, found"
                f" {', '.join(f'{end:g}' for end in self.ends)}"
            )

    @property
    def name(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the law of mixtures: the members of a stack are told apart by it."""
        return f"staged {self.law.name}"

    @property
    def fraction_S(self) -> Float[np.ndarray, " S"]:
        """Share of the tokens that each stage takes."""
        return np.diff(self.ends, prepend=0.0)

    def describe(self) -> str:
        """Returns both formulas."""
        return f"{self.formula}; {self.law.describe().replace('L(r)', 'L0(r)', 1)}"

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns those of the law of mixtures, then `k`, `d` and `logit b`.

        Args:
            domains: Names of the X columns; those of the first stage name the law's parameters.
        """
        count = max(1, len(domains) // len(self.ends))
        names = tuple(domain.removesuffix(stage_suffix(0)) for domain in domains[:count])
        return (*self.law.parameter_names(names), "k", "d", "logit b")

    def predict(
        self, r_RM: Float[np.ndarray, "R X"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns the loss of each schedule."""
        parts = _Parts.of(self, r_RM, theta_BP)
        stage_NRS = parts.of_stages(self.law.predict)
        together_NR = parts.of_remembered(self.law.predict, stage_NRS)
        loss_NR = parts.blended(together_NR, parts.apart(stage_NRS))
        return loss_NR.reshape(*theta_BP.shape[:-1], -1)

    def jacobian(
        self, r_RM: Float[np.ndarray, "R X"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns the chain rule through both parts."""
        parts = _Parts.of(self, r_RM, theta_BP)
        stage_NRS = parts.of_stages(self.law.predict)
        together_NR = parts.of_remembered(self.law.predict, stage_NRS)
        slope_NRM = parts.of_remembered(self.law.gradient, parts.of_stages(self.law.gradient))
        inner_NRSP = parts.of_stages(self.law.jacobian)
        b_N1 = parts.b_N[:, None]
        out_NRP = np.empty((*together_NR.shape, theta_BP.shape[-1]))
        out_NRP[..., :-NUM_EXTRA] = parts.blended(
            parts.of_remembered(self.law.jacobian, inner_NRSP), parts.apart(inner_NRSP)
        )
        moved_NRM = np.einsum("ns,rsm->nrm", parts.by_k_NS, parts.stage_RSM)
        by_d_NR = (1 - b_N1) * np.einsum("ns,nrs->nr", parts.apart_by_k_NS, stage_NRS)
        out_NRP[..., -3] = b_N1 * np.einsum("nrm,nrm->nr", slope_NRM, moved_NRM) + by_d_NR
        out_NRP[..., -2] = by_d_NR
        out_NRP[..., -1] = b_N1 * (1 - b_N1) * (together_NR - parts.apart(stage_NRS))
        return out_NRP.reshape(*theta_BP.shape[:-1], *out_NRP.shape[1:])

    def gradient(
        self, r_RM: Float[np.ndarray, "R X"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R X"]:
        """Returns the derivatives by the shares x."""
        parts = _Parts.of(self, r_RM, theta_BP)
        apart_NRSM = parts.of_stages(self.law.gradient)
        together_NRM = parts.of_remembered(self.law.gradient, apart_NRSM)
        b_N1 = parts.b_N[:, None]
        by_rho_NS = b_N1 * parts.weight_NS / self.fraction_S
        by_stage_NS = (1 - b_N1) * parts.apart_NS / self.fraction_S
        by_x_NRSM = np.einsum("ns,nrm->nrsm", by_rho_NS, together_NRM)
        by_x_NRSM += by_stage_NS[:, None, :, None] * apart_NRSM
        return by_x_NRSM.reshape(*theta_BP.shape[:-1], len(r_RM), -1)

    def curvature(
        self, r_M: Float[np.ndarray, " X"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Curvature | None:
        """Returns the law's curvature through the linear maps from x to mixtures, all as rows."""
        parts = _Parts.of(self, r_M[None], theta_BP)
        rows_NKX: list[np.ndarray] = []
        for n, theta_P in enumerate(parts.theta_NP):
            share_S = np.sqrt(parts.b_N[n]) * parts.weight_NS[n] / self.fraction_S
            mixtures = [(parts.rho_NRM[n, 0], share_S)]
            root_S = np.sqrt((1 - parts.b_N[n]) * parts.apart_NS[n]) / self.fraction_S
            mixtures += [
                (r, root * np.eye(len(root_S))[s])
                for s, (r, root) in enumerate(zip(parts.stage_RSM[0], root_S, strict=True))
            ]
            rows: list[np.ndarray] = []
            for r, map_S in mixtures:
                found = self.law.curvature(r, theta_P)
                if found is None:
                    return None
                rows_KM = np.vstack([np.diag(np.sqrt(found[0])), found[1]])
                rows.append((map_S[None, :, None] * rows_KM[:, None]).reshape(-1, len(r_M)))
            rows_NKX.append(np.vstack(rows))
        factor = np.stack(rows_NKX).reshape(*theta_BP.shape[:-1], -1, len(r_M))
        return no_diagonal(factor), factor

    def bounds(
        self, r_RM: Float[np.ndarray, "R X"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns those of the law of mixtures, and -20 <= k <= 30, -5 <= d <= 15."""
        low_BK, high_BK = self.law.bounds(self._remembered(r_RM, 0.0), y_BR)
        extra = np.array([RECENCY_BOUNDS, EXTRA_BOUNDS, BLEND_BOUNDS]).T
        low_BP, high_BP = (
            np.concatenate([side, np.broadcast_to(more, (*side.shape[:-1], NUM_EXTRA))], axis=-1)
            for side, more in zip((low_BK, high_BK), extra, strict=True)
        )
        return low_BP, high_BP

    def starts(
        self, r_RM: Float[np.ndarray, "R X"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B G P"]:
        """Returns the law's own guesses for the mixtures that several k would remember."""
        guesses: list[np.ndarray] = []
        for k in RECENCY_GUESSES:
            inner_BGP = self.law.starts(self._remembered(r_RM, k), y_BR)
            extra = np.broadcast_to([k, 0.0, 0.0], (*inner_BGP.shape[:-1], NUM_EXTRA))
            guesses.append(np.concatenate([inner_BGP, extra], axis=-1))
        return np.concatenate(guesses, axis=-2)

    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns that of the law of mixtures, then k, d and logit b in units of their priors."""
        inner_BQ = self.law.penalty(theta_BP[..., :-NUM_EXTRA])
        return np.concatenate([inner_BQ, theta_BP[..., -NUM_EXTRA:] / _PRIORS], axis=-1)

    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns the law's block and a diagonal one."""
        inner_BQP = self.law.penalty_jacobian(theta_BP[..., :-NUM_EXTRA])
        *lead, rows, columns = inner_BQP.shape
        out_BQP = np.zeros((*lead, rows + NUM_EXTRA, columns + NUM_EXTRA))
        out_BQP[..., :rows, :columns] = inner_BQP
        out_BQP[..., rows:, columns:] = np.diag(1 / _PRIORS)
        return out_BQP

    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Whether the law of mixtures is: means of it over linear maps of x are then, too."""
        return self.law.is_convex(theta_P[:-NUM_EXTRA])

    def _remembered(self, r_RM: Float[np.ndarray, "R X"], k: float) -> Float[np.ndarray, "R M"]:
        """Returns the mean of the stages' mixtures with the weights of a k."""
        weight_S = stage_weights(np.array(k), self.ends)[0]
        return np.einsum("s,rsm->rm", weight_S, self.stage_mixtures(r_RM))

    def stage_mixtures(self, r_RM: Float[np.ndarray, "R X"]) -> Float[np.ndarray, "R S M"]:
        """Returns the mixtures of the stages, x_sj / f_s."""
        x_RSM = r_RM.reshape(len(r_RM), len(self.ends), -1)
        return x_RSM / self.fraction_S[:, None]


_PRIORS = np.array([RECENCY_PRIOR, EXTRA_PRIOR, BLEND_PRIOR])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Parts:
    """What `predict` and its derivatives have in common, with one leading axis."""

    theta_NP: Float[np.ndarray, "N K"]
    """Parameters of the law of mixtures."""
    stage_RSM: Float[np.ndarray, "R S M"]
    rho_NRM: Float[np.ndarray, "N R M"]
    """The mixture that is remembered."""
    weight_NS: Float[np.ndarray, "N S"]
    by_k_NS: Float[np.ndarray, "N S"]
    """Derivatives of the weights by k."""
    apart_NS: Float[np.ndarray, "N S"]
    """Weights of the stages' own losses."""
    apart_by_k_NS: Float[np.ndarray, "N S"]
    b_N: Float[np.ndarray, " N"]
    is_staged_R: Bool[np.ndarray, " R"]
    """Runs whose mixture changes."""

    @classmethod
    def of(cls, staged: StagedLaw, r_RX: np.ndarray, theta_BP: np.ndarray) -> "_Parts":
        theta_NP = theta_BP.reshape(-1, theta_BP.shape[-1])
        stage_RSM = staged.stage_mixtures(r_RX)
        k_N, d_N, logit_N = theta_NP[:, -NUM_EXTRA:].T
        weight_NS, by_k_NS = stage_weights(k_N, staged.ends)
        apart_NS, apart_by_k_NS = stage_weights(k_N + d_N, staged.ends)
        return cls(
            theta_NP=theta_NP[:, :-NUM_EXTRA],
            stage_RSM=stage_RSM,
            rho_NRM=np.einsum("ns,rsm->nrm", weight_NS, stage_RSM),
            weight_NS=weight_NS,
            by_k_NS=by_k_NS,
            apart_NS=apart_NS,
            apart_by_k_NS=apart_by_k_NS,
            b_N=1 / (1 + np.exp(-logit_N)),
            is_staged_R=np.ptp(stage_RSM, axis=1).max(axis=-1) > SAME,
        )

    def of_stages(self, evaluate: Evaluate) -> np.ndarray:
        """Returns N x R x S values of the law (losses, derivatives): each stage by itself."""
        flat_RM = self.stage_RSM.reshape(-1, self.stage_RSM.shape[-1])
        value = evaluate(flat_RM, self.theta_NP)
        return value.reshape(len(value), *self.stage_RSM.shape[:2], *value.shape[2:])

    def of_remembered(self, evaluate: Evaluate, of_stages: np.ndarray) -> np.ndarray:
        """Returns N x R values of the law for the mixtures that are remembered.

        These differ between problems, but for runs of one mixture, whose values are those of any
        stage. The law takes the same mixtures for all problems: a few problems at a time get those
        of all of these, and keep their own.
        """
        value = of_stages[:, :, 0].copy()
        rho_NRM = self.rho_NRM[:, self.is_staged_R]
        count, size = rho_NRM.shape[1], self.theta_NP.shape[-1]
        if not count:
            return value
        together = max(1, int(math.sqrt(CHUNK / (count * size))))
        for first in range(0, len(rho_NRM), together):
            part_NRM = rho_NRM[first : first + together]
            num = len(part_NRM)
            theta_NP = self.theta_NP[first : first + together]
            all_NNR = evaluate(part_NRM.reshape(-1, part_NRM.shape[-1]), theta_NP)
            all_NNR = all_NNR.reshape(num, num, count, *all_NNR.shape[2:])
            index = np.arange(num)
            value[first : first + num, self.is_staged_R] = all_NNR[index, index]
        return value

    def apart(self, value_NRS: np.ndarray) -> np.ndarray:
        """Returns the weighted means of what the stages have by themselves."""
        return np.einsum("ns,nrs...->nr...", self.apart_NS, value_NRS)

    def blended(self, together: np.ndarray, apart: np.ndarray) -> np.ndarray:
        """Returns b of the one and 1 - b of the other."""
        b_N = self.b_N.reshape(-1, *(1,) * (together.ndim - 1))
        return apart + b_N * (together - apart)


def stage_weights(
    k_N: Float[np.ndarray, "*N"], ends: tuple[float, ...]
) -> tuple[Float[np.ndarray, "*N S"], Float[np.ndarray, "*N S"]]:
    """Returns the stages' weights, integrals of k e^(k u) / (e^k - 1), and their derivatives."""
    k_N1, end_S = k_N[..., None], np.array(ends)
    is_small = np.abs(k_N1) < SMALL
    large = np.where(is_small, 1.0, k_N1)
    whole = np.expm1(large)
    below = np.expm1(large * end_S) / whole
    slope = (end_S * np.exp(large * end_S) - below * np.exp(large)) / whole
    c1, c2 = (end_S**2 - end_S) / 2, (2 * end_S**3 - 3 * end_S**2 + end_S) / 12
    c3 = (end_S**4 - 2 * end_S**3 + end_S**2) / 24
    near = np.where(is_small, k_N1, 0.0)
    below = np.where(is_small, end_S + near * (c1 + near * (c2 + near * c3)), below)
    slope = np.where(is_small, c1 + near * (2 * c2 + near * 3 * c3), slope)
    return np.diff(below, prepend=0.0), np.diff(slope, prepend=0.0)


def stage_suffix(stage: int) -> str:
    """Returns what the columns of a stage have after the domain's name."""
    return f" (stage {stage + 1})"


def stage_columns(domains: tuple[str, ...], num_stages: int) -> tuple[str, ...]:
    """Returns the names of the X columns, stage by stage."""
    return tuple(domain + stage_suffix(s) for s in range(num_stages) for domain in domains)
