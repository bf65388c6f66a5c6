r"""Reciprocal mixing laws: steep where a domain is nearly absent, flat further on.

Shape letters: B any leading axes, R runs, M training domains, P parameters of a law, F those of the
family, S starts, Q shrinkage residuals.

All are members of one family, $L(r) = c + (\sum_j C_j (r_j + e)^{g_j})^{-b}$. With b = 1 it is the
mixture's term of Shukor et al. (2025, arXiv:2507.09404); as b grows and g falls it becomes an
exponential of the logarithms of the shares. The small floor e keeps a share of 0 finite. C, g, b
and e are positive by their logarithms. For 0 < g <= 1 the sum is concave in the shares, and a
negative power of it convex.

A member ties or fixes some of the family's parameters: (c, log b, log e, log g_1 .. log g_M,
log C_1 .. log C_M) is a linear function of its own.
"""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from mixlaw.laws.base import (
    Curvature,
    MixingLaw,
    centering,
    level_guesses,
    loss_range,
    ridge_solution,
    tiled,
    with_level,
)

FIXED_FLOOR = 1e-3
"""e, where it is not fitted."""
TYPICAL_FLOOR = 3e-4
"""e to which a fitted one is shrunk: chosen on subsets of RegMix's runs, whose shares are rounded
to 0.001 (docs/log.md)."""
FLOOR_BOUNDS = (1e-6, 3e-2)
FLOOR_PRIOR = 1.0
"""Standard deviation of log e."""
TYPICAL_EXPONENT = 0.4
"""g to which exponents are shrunk: where it lies for most targets of the published runs."""
EXPONENT_PRIOR = 0.5
"""Standard deviation of log g, or of its mean over domains, around that."""
OWN_EXPONENT_PRIOR = 0.15
"""Standard deviation of a domain's log g around their mean: 0.15 did better than 0.3 and 0.6 with
few runs per parameter, and no worse with many (docs/log.md)."""
EXPONENT_BOUNDS = (0.02, 1.0)
OUTER_BOUNDS = (0.05, 20.0)
OUTER_PRIOR = 0.5
"""Standard deviation of log b around 0."""
CONTRAST_PRIOR = 3.0
"""Standard deviation of log C around its mean: a factor of 20 between domains."""
LOG_SCALE_LIMIT = 30.0
"""Bound of |log C|."""


@dataclass(frozen=True, slots=True)
class ReciprocalFamily(MixingLaw):
    """What the members share; each says which parameters of the family it has."""

    own_exponents: ClassVar[bool]
    """A g for each domain, rather than one."""
    outer_exponent: ClassVar[bool]
    """b is fitted, rather than 1."""
    fitted_floor: ClassVar[bool]
    """e is fitted, rather than 0.001."""

    def parameter_names(self, domains: tuple[str, ...]) -> tuple[str, ...]:
        """Returns `c`, `log b` and `log e` where fitted, `log g` or one per domain, and `log C`."""
        exponents = tuple(f"log g[{d}]" for d in domains) if self.own_exponents else ("log g",)
        return (
            "c",
            *(("log b",) if self.outer_exponent else ()),
            *(("log e",) if self.fitted_floor else ()),
            *exponents,
            *(f"log C[{domain}]" for domain in domains),
        )

    def predict(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R"]:
        """Returns c + (sum C (r + e)^g)^-b."""
        full_BF = self._full(theta_BP, r_RM.shape[1])
        sum_BR = self._terms(r_RM, full_BF)[0].sum(axis=-1)
        return full_BF[..., :1] + sum_BR ** -np.exp(full_BF[..., 1:2])

    def jacobian(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R P"]:
        """Returns the chain rule through the sum; a tied exponent's entries are added up."""
        size = r_RM.shape[1]
        full_BF = self._full(theta_BP, size)
        terms_BRM, log_q_BRM = self._terms(r_RM, full_BF)
        sum_BR, b_B1 = terms_BRM.sum(axis=-1), np.exp(full_BF[..., 1:2])
        lost_BR = sum_BR**-b_B1
        jacobian_BRP = np.empty((*sum_BR.shape, theta_BP.shape[-1]))
        jacobian_BRP[..., 0] = 1.0
        if self.outer_exponent:
            jacobian_BRP[..., 1] = -b_B1 * lost_BR * np.log(sum_BR)
        by_scale_BRM = jacobian_BRP[..., -size:]
        np.multiply((-b_B1 * lost_BR / sum_BR)[..., None], terms_BRM, out=by_scale_BRM)
        exponents = slice(1 + self.outer_exponent + self.fitted_floor, -size)
        # The terms are not needed any more: what follows is written over them.
        by_log_q_BRM = np.multiply(
            by_scale_BRM, np.exp(full_BF[..., None, 3 : 3 + size]), out=terms_BRM
        )
        if self.fitted_floor:
            e_B1 = np.exp(full_BF[..., 2:3])
            by_q_BRM = by_log_q_BRM / (r_RM + e_B1[..., None])
            jacobian_BRP[..., exponents.start - 1] = e_B1 * by_q_BRM.sum(axis=-1)
        if self.own_exponents:
            np.multiply(by_log_q_BRM, log_q_BRM, out=jacobian_BRP[..., exponents])
        else:
            by_log_q_BRM *= log_q_BRM
            jacobian_BRP[..., exponents.start] = by_log_q_BRM.sum(axis=-1)
        return jacobian_BRP

    def gradient(
        self, r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Float[np.ndarray, "*B R M"]:
        """Returns the chain rule through the sum."""
        size = r_RM.shape[1]
        full_BF = self._full(theta_BP, size)
        terms_BRM, _ = self._terms(r_RM, full_BF)
        b_B1, g_B1M = np.exp(full_BF[..., 1:2]), np.exp(full_BF[..., None, 3 : 3 + size])
        slope_BR = -b_B1 * terms_BRM.sum(axis=-1) ** (-b_B1 - 1)
        q_BRM = r_RM + np.exp(full_BF[..., None, 2:3])
        return slope_BR[..., None] * g_B1M * terms_BRM / q_BRM

    def curvature(
        self, r_M: Float[np.ndarray, " M"], theta_BP: Float[np.ndarray, "*B P"]
    ) -> Curvature:
        """Returns the chain rule through the sum: its curvature, where g <= 1, and its slope."""
        size = len(r_M)
        full_BF = self._full(theta_BP, size)
        terms_BM = self._terms(r_M[None], full_BF)[0][..., 0, :]
        b_B1, g_BM = np.exp(full_BF[..., 1:2]), np.exp(full_BF[..., 3 : 3 + size])
        q_BM = r_M + np.exp(full_BF[..., 2:3])
        sum_B1 = terms_BM.sum(axis=-1, keepdims=True)
        slope_BM = g_BM * terms_BM / q_BM
        diag_BM = b_B1 * sum_B1 ** (-b_B1 - 1) * np.maximum(1 - g_BM, 0) * slope_BM / q_BM
        factor_BM = np.sqrt(b_B1 * (b_B1 + 1)) * sum_B1 ** (-b_B1 / 2 - 1) * slope_BM
        return diag_BM, factor_BM[..., None, :]

    def bounds(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> tuple[Float[np.ndarray, "*B P"], Float[np.ndarray, "*B P"]]:
        """Returns those of the level for c, 0.02 <= g <= 1, 0.05 <= b <= 20, |log C| <= 30."""
        size = r_RM.shape[1]
        num_exponents = size if self.own_exponents else 1
        low_K, high_K = (
            np.concatenate(
                [
                    np.log([OUTER_BOUNDS[side]] * self.outer_exponent),
                    np.log([FLOOR_BOUNDS[side]] * self.fitted_floor),
                    np.log([EXPONENT_BOUNDS[side]] * num_exponents),
                    np.full(size, (-LOG_SCALE_LIMIT, LOG_SCALE_LIMIT)[side]),
                ]
            )
            for side in (0, 1)
        )
        return with_level(y_BR, low_K, high_K)

    def starts(
        self, r_RM: Float[np.ndarray, "R M"], y_BR: Float[np.ndarray, "*B R"]
    ) -> Float[np.ndarray, "*B S P"]:
        """Returns, for several levels of c, typical exponents and the C of 1 / (y - c) for these.

        A C is at least a tenth of their mean: a descent from a negligible one would go nowhere.
        """
        c_BS = level_guesses(y_BR)
        least_B11 = 1e-2 * loss_range(y_BR)[2][..., None]
        inverse_BSR = 1 / np.maximum(y_BR[..., None, :] - c_BS[..., None], least_B11)
        powers_RM = (r_RM + FIXED_FLOOR) ** TYPICAL_EXPONENT
        even_BS1 = np.nanmean(inverse_BSR, axis=-1, keepdims=True) / powers_RM.sum(axis=1).mean()
        rest_BSR = inverse_BSR - even_BS1 * powers_RM.sum(axis=1)
        scale_BSM = even_BS1 + ridge_solution(powers_RM, rest_BSR, ridge=1e-2)
        log_scale_BSM = np.log(np.maximum(scale_BSM, 0.1 * even_BS1))
        middle_K = _typical(*self._flags, r_RM.shape[1])[1 : -r_RM.shape[1]]
        exponents_BSK = np.broadcast_to(middle_K, (*c_BS.shape, len(middle_K)))
        return np.concatenate([c_BS[..., None], exponents_BSK, log_scale_BSM], axis=-1)

    def penalty(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q"]:
        """Returns how far exponents, floor and contrasts are from typical, in the prior's units."""
        size = self._num_domains(theta_BP)
        return (theta_BP - _typical(*self._flags, size)) @ _shrinkage(*self._flags, size).T

    def penalty_jacobian(self, theta_BP: Float[np.ndarray, "*B P"]) -> Float[np.ndarray, "*B Q P"]:
        """Returns a constant matrix."""
        return tiled(_shrinkage(*self._flags, self._num_domains(theta_BP)), theta_BP)

    def is_convex(self, theta_P: Float[np.ndarray, " P"]) -> bool:
        """Where no g is above 1, as bounds see to in a fit; C and b are positive."""
        first = 1 + self.outer_exponent + self.fitted_floor
        return bool(np.all(theta_P[first : -self._num_domains(theta_P)] <= 0))

    @property
    def _flags(self) -> tuple[bool, bool, bool]:
        return self.own_exponents, self.outer_exponent, self.fitted_floor

    def _num_domains(self, theta_BP: Float[np.ndarray, "*B P"]) -> int:
        rest = theta_BP.shape[-1] - 1 - self.outer_exponent - self.fitted_floor
        return rest // 2 if self.own_exponents else rest - 1

    def _full(self, theta_BP: Float[np.ndarray, "*B P"], size: int) -> Float[np.ndarray, "*B F"]:
        """Returns the parameters of the family."""
        if all(self._flags):
            return theta_BP
        matrix_FP, offset_F = _embedding(*self._flags, size)
        return theta_BP @ matrix_FP.T + offset_F

    def _terms(
        self, r_RM: Float[np.ndarray, "R M"], full_BF: Float[np.ndarray, "*B F"]
    ) -> tuple[Float[np.ndarray, "*B R M"], Float[np.ndarray, "*B R M"]]:
        """Returns C_j (r_j + e)^g_j and log (r_j + e)."""
        size = r_RM.shape[1]
        if self.fitted_floor:
            log_q_BRM = np.log(r_RM + np.exp(full_BF[..., None, 2:3]))
        else:
            # The same for all problems: a view, so that its logarithms are taken once.
            log_q_BRM = np.broadcast_to(
                np.log(r_RM + FIXED_FLOOR), (*full_BF.shape[:-1], *r_RM.shape)
            )
        terms_BRM = np.exp(full_BF[..., None, 3 : 3 + size]) * log_q_BRM
        terms_BRM += full_BF[..., None, 3 + size :]
        return np.exp(terms_BRM, out=terms_BRM), log_q_BRM


@dataclass(frozen=True, slots=True)
class ReciprocalLaw(ReciprocalFamily):
    """The reciprocal law with an exponent per domain, after Shukor et al."""

    name: ClassVar[str] = "reciprocal"
    formula: ClassVar[str] = "L(r) = c + 1 / sum_j C_j (r_j + e)^g_j, e = 0.001"
    own_exponents: ClassVar[bool] = True
    outer_exponent: ClassVar[bool] = False
    fitted_floor: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class ReciprocalSharedLaw(ReciprocalFamily):
    """The reciprocal law with one exponent, after Shukor et al."""

    name: ClassVar[str] = "reciprocal-shared"
    formula: ClassVar[str] = "L(r) = c + 1 / sum_j C_j (r_j + e)^g, e = 0.001"
    own_exponents: ClassVar[bool] = False
    outer_exponent: ClassVar[bool] = False
    fitted_floor: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class PowerReciprocalSharedLaw(ReciprocalFamily):
    """A fitted negative power of a sum of powers with one exponent."""

    name: ClassVar[str] = "power-reciprocal-shared"
    formula: ClassVar[str] = "L(r) = c + (sum_j C_j (r_j + e)^g)^-b"
    own_exponents: ClassVar[bool] = False
    outer_exponent: ClassVar[bool] = True
    fitted_floor: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class PowerReciprocalLaw(ReciprocalFamily):
    """The whole family: exponents of domains shrunk to a common one."""

    name: ClassVar[str] = "power-reciprocal"
    formula: ClassVar[str] = "L(r) = c + (sum_j C_j (r_j + e)^g_j)^-b"
    own_exponents: ClassVar[bool] = True
    outer_exponent: ClassVar[bool] = True
    fitted_floor: ClassVar[bool] = True


@cache
def _embedding(
    own_exponents: bool, outer_exponent: bool, fitted_floor: bool, size: int
) -> tuple[Float[np.ndarray, "F P"], Float[np.ndarray, " F"]]:
    """Returns the matrix and the offset that take a member's parameters to the family's."""
    exponents_MK = np.eye(size) if own_exponents else np.ones((size, 1))
    blocks = [
        np.eye(1),
        np.ones((1, int(outer_exponent))),
        np.ones((1, int(fitted_floor))),
        exponents_MK,
        np.eye(size),
    ]
    matrix_FP = np.zeros((sum(len(b) for b in blocks), sum(b.shape[1] for b in blocks)))
    row = column = 0
    for block in blocks:
        matrix_FP[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    offset_F = np.zeros(len(matrix_FP))
    offset_F[2] = 0.0 if fitted_floor else np.log(FIXED_FLOOR)
    return matrix_FP, offset_F


@cache
def _typical(
    own_exponents: bool, outer_exponent: bool, fitted_floor: bool, size: int
) -> Float[np.ndarray, " P"]:
    """Returns typical exponents and floor; 0 for what has none."""
    typical_F = np.zeros(3 + 2 * size)
    typical_F[2], typical_F[3 : 3 + size] = np.log(TYPICAL_FLOOR), np.log(TYPICAL_EXPONENT)
    matrix_FP, _ = _embedding(own_exponents, outer_exponent, fitted_floor, size)
    return typical_F @ matrix_FP / matrix_FP.sum(axis=0)


@cache
def _shrinkage(
    own_exponents: bool, outer_exponent: bool, fitted_floor: bool, size: int
) -> Float[np.ndarray, "Q P"]:
    """Returns the matrix that takes parameters, less typical ones, to units of the prior."""
    full_QF = np.zeros((3 + 2 * size, 3 + 2 * size))
    full_QF[0, 1], full_QF[1, 2] = 1 / OUTER_PRIOR, 1 / FLOOR_PRIOR
    exponents, scales = slice(3, 3 + size), slice(3 + size, 3 + 2 * size)
    full_QF[2, exponents] = 1 / size / EXPONENT_PRIOR
    full_QF[exponents, exponents] = centering(size) / OWN_EXPONENT_PRIOR
    full_QF[scales, scales] = centering(size) / CONTRAST_PRIOR
    matrix_QP = full_QF @ _embedding(own_exponents, outer_exponent, fitted_floor, size)[0]
    return matrix_QP[np.any(np.abs(matrix_QP) > 1e-12, axis=1)]
