r"""The two building blocks of joint laws: what the mixture leaves, and how much scale can remove.

Shape letters: B any leading axes of parameters, R rows, M training domains, P parameters.

Every function takes the token shares `r_RM` and its own columns of the parameters, and returns the
value with its derivatives by those parameters and by the shares.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

Form = Literal["reciprocal", "power-reciprocal", "exponential"]
"""How the loss depends on the mixture at a given scale."""
Amplitude = Literal["constant", "mixing", "log-linear", "mixing-log-linear", "power-sum"]
"""How the reducible loss at a scale depends on the mixture."""
OFFSET = 1e-3
"""Added to shares: r^g has no slope at 0."""


@dataclass(frozen=True, slots=True, eq=False)
class Term:
    """A positive quantity's log, with its derivatives."""

    log_BR: Float[np.ndarray, "*B R"]
    by_theta_BRP: Float[np.ndarray, "*B R P"]
    by_share_BRM: Float[np.ndarray, "*B R M"]


def mixing_names(form: Form, *, own_exponents: bool) -> tuple[str, ...]:
    """Returns the parameters of a mixing term; those that end in [] are one per domain."""
    if form == "exponential":
        return ("t[]",)
    names = ("log C[]", "log g")
    names += ("log g[]",) if own_exponents else ()
    return (*names, "log q") if form == "power-reciprocal" else names


def mixing_term(
    form: Form,
    r_RM: Float[np.ndarray, "R M"],
    theta_BP: Float[np.ndarray, "*B P"],
    *,
    own_exponents: bool,
) -> Term:
    r"""Returns the log of $\exp(\sum_j t_j r_j)$, or of $[\sum_j C_j (r_j + e)^{g_j}]^{-q}$.

    q is 1 unless the form is power-reciprocal; $g_j = g$ unless each domain has its own.
    """
    count = r_RM.shape[1]
    if form == "exponential":
        return linear_term(r_RM, theta_BP)
    log_g_B1 = theta_BP[..., count : count + 1]
    own_BM = theta_BP[..., count + 1 : 2 * count + 1] if own_exponents else 0.0
    q_B1 = np.exp(theta_BP[..., -1:]) if form == "power-reciprocal" else np.ones_like(log_g_B1)
    g_BM = np.broadcast_to(np.exp(log_g_B1 + own_BM), (*theta_BP.shape[:-1], count))
    log_r_RM = np.log(r_RM + OFFSET)
    part_BRM = np.exp(theta_BP[..., None, :count] + g_BM[..., None, :] * log_r_RM)
    total_BR = part_BRM.sum(-1)
    log_BR = np.log(total_BR)
    by_log_BRM = -q_B1[..., None] * part_BRM / total_BR[..., None]
    by_g_BRM = by_log_BRM * g_BM[..., None, :] * log_r_RM
    columns = [by_log_BRM, by_g_BRM.sum(-1, keepdims=True)]
    if own_exponents:
        columns.append(by_g_BRM)
    if form == "power-reciprocal":
        columns.append(-(q_B1 * log_BR)[..., None])
    by_share_BRM = by_log_BRM * g_BM[..., None, :] / (r_RM + OFFSET)
    return Term(-q_B1 * log_BR, np.concatenate(columns, axis=-1), by_share_BRM)


def amplitude_names(amplitude: Amplitude, letter: str) -> tuple[str, ...]:
    """Returns the parameters of an amplitude, A or B."""
    level = {"constant": (), "mixing": (), "power-sum": (f"log {letter}[]", f"power {letter}")}
    names = level.get(amplitude, (f"log {letter}[]",)) or (f"log {letter}",)
    return (*names, f"kappa {letter}") if amplitude.startswith("mixing") else names


def amplitude_term(
    amplitude: Amplitude,
    r_RM: Float[np.ndarray, "R M"],
    theta_BP: Float[np.ndarray, "*B P"],
    mixing: Term,
) -> tuple[Term, Float[np.ndarray, "*B 1"]]:
    r"""Returns the log of an amplitude, and its elasticity by the mixing term.

    The log is $\sum_j A_j r_j + \kappa \log m(r)$, where m is the mixing term, or
    $\gamma \log \sum_j \exp(A_j) r_j$ (power-sum). The derivatives of the first by the parameters
    of m are the elasticity times those of m, and are the caller's to add.
    """
    none_B1 = np.zeros_like(theta_BP[..., :1])
    if amplitude == "power-sum":
        return _power_sum(r_RM, theta_BP), none_B1
    follows = amplitude.startswith("mixing")
    kappa_B1 = theta_BP[..., -1:] if follows else none_B1
    level_BP = theta_BP[..., :-1] if follows else theta_BP
    if level_BP.shape[-1] == 1:
        ones_BR1 = np.ones((*level_BP.shape[:-1], len(r_RM), 1))
        term = Term(level_BP * ones_BR1[..., 0], ones_BR1, np.zeros_like(mixing.by_share_BRM))
    else:
        term = linear_term(r_RM, level_BP)
    if not follows:
        return term, kappa_B1
    by_theta_BRP = np.concatenate([term.by_theta_BRP, mixing.log_BR[..., None]], axis=-1)
    by_share_BRM = term.by_share_BRM + kappa_B1[..., None] * mixing.by_share_BRM
    return Term(term.log_BR + kappa_B1 * mixing.log_BR, by_theta_BRP, by_share_BRM), kappa_B1


def linear_term(r_RM: Float[np.ndarray, "R M"], t_BM: Float[np.ndarray, "*B M"]) -> Term:
    """Returns r @ t."""
    shape = (*t_BM.shape[:-1], *r_RM.shape)
    slope_BRM = np.broadcast_to(t_BM[..., None, :], shape)
    return Term(t_BM @ r_RM.T, np.broadcast_to(r_RM, shape), slope_BRM)


def _power_sum(r_RM: Float[np.ndarray, "R M"], theta_BP: Float[np.ndarray, "*B P"]) -> Term:
    gamma_B1 = theta_BP[..., -1:]
    part_BRM = np.exp(theta_BP[..., None, :-1]) * r_RM
    total_BR = part_BRM.sum(-1)
    by_level_BRM = gamma_B1[..., None] * part_BRM / total_BR[..., None]
    by_theta_BRP = np.concatenate([by_level_BRM, np.log(total_BR)[..., None]], axis=-1)
    slope_BRM = np.exp(theta_BP[..., None, :-1]) / total_BR[..., None]
    return Term(gamma_B1 * np.log(total_BR), by_theta_BRP, gamma_B1[..., None] * slope_BRM)
