"""Repetition in the answer: a fit for a run whose domains repeat, and where the proxies did not.

Shape letters: R runs, M training domains, T targets, P parameters, B draws.

A law that was fitted to effective shares (`effective_map`) is put into a `RepeatedLaw` of the run
that is to be decided. Its table is put there too: each run becomes the mixture that has the same
effective shares in the longer run, so that residuals stay what they were, and distances to the runs
are distances between mixtures of that run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from mixlaw.fit.law import fit_table
from mixlaw.fit.repetition import TokenLoss
from mixlaw.fit.result import FitResult
from mixlaw.laws.repetition import RepeatedLaw, effective_shares, nominal_shares
from mixlaw.mixtures import Mixture

ShareMap = Callable[[np.ndarray], np.ndarray]
MORE_EPOCHS = 1.25
"""A target run that sees a domain this much more often than any proxy did is warned about."""


def supply_array(
    domains: Sequence[str], supply: Mapping[str, float | None]
) -> Float[np.ndarray, " M"]:
    """Returns unique tokens in the order of the domains; infinite where they are not known."""
    known = ((supply.get(name)) for name in domains)
    return np.array([np.inf if tokens is None else float(tokens) for tokens in known])


def effective_map(
    domains: Sequence[str],
    supply: Mapping[str, float | None],
    *,
    tokens: float,
    constant: float,
) -> ShareMap:
    """Returns what turns runs' token shares into shares of effective tokens."""
    supply_M = supply_array(domains, supply)
    return lambda r_RM: effective_shares(r_RM, supply_M, tokens=tokens, constant=constant)[0]


def fit_effective(fit: FitResult, share_map: ShareMap, *, seed: int = 0) -> FitResult:
    """Returns the fit's law fitted to effective shares; the same fit where nothing repeats."""
    q_RM = share_map(fit.table.r_RM)
    if np.allclose(q_RM, fit.table.r_RM, atol=1e-12):
        return fit
    again = fit_table(
        fit.law, replace(fit.table, r_RM=q_RM), num_draws=len(fit.theta_draws_BTP), seed=seed
    )
    return replace(
        again,
        replicate_NT=fit.replicate_NT,
        replicate_freedom=fit.replicate_freedom,
        level_shift_T=fit.level_shift_T,
        seed_factor=fit.seed_factor,
        notes=fit.notes,
    )


def repeat_fit(
    fit: FitResult,
    supply: Mapping[str, float | None],
    *,
    tokens: float,
    constant: float,
    constant_draws: Float[np.ndarray, " B"] | None = None,
    token_loss: TokenLoss | None = None,
) -> FitResult:
    """Returns a fit for a run of so many tokens, in which domains repeat.

    Args:
        fit: A law fitted to effective shares.
        supply: Unique tokens of each domain in that run; None or not named: not known, no
            repetition.
        tokens: The run's tokens.
        constant: R*.
        constant_draws: R* of each of the fit's draws; `constant` by default.
        token_loss: What more tokens are worth, in the order of the fit's targets; None: not known,
            so that only the shares count.
    """
    supply_M = supply_array(fit.domains, supply)
    law = RepeatedLaw(fit.law, tuple(supply_M.tolist()), tokens)
    num_targets = len(fit.targets)
    own_T3 = np.column_stack(
        [
            np.zeros(num_targets) if token_loss is None else token_loss.at(tokens),
            np.ones(num_targets) if token_loss is None else token_loss.exponent_T,
            np.full(num_targets, constant),
        ]
    )
    draws_BTP = _with_own(fit.theta_draws_BTP, own_T3)
    if constant_draws is not None:
        draws_BTP[..., -1] = np.resize(constant_draws, len(draws_BTP))[:, None]
    r_RM = nominal_shares(fit.table.r_RM, supply_M, tokens=tokens, constant=constant)
    _, sum_R = effective_shares(r_RM, supply_M, tokens=tokens, constant=constant)
    shorter_RT = own_T3[:, 0] * np.expm1(-own_T3[:, 1] * np.log(sum_R)[:, None])
    return replace(
        fit,
        law=law,
        table=replace(fit.table, r_RM=r_RM, y_RT=fit.table.y_RT + shorter_RT),
        theta_TP=_with_own(fit.theta_TP, own_T3),
        theta_loo_RTP=_with_own(fit.theta_loo_RTP, own_T3),
        theta_draws_BTP=draws_BTP,
    )


def compare_epochs(
    mixture: Mixture,
    supply: Mapping[str, float | None],
    *,
    tokens: float,
    proxy_epochs: Mapping[str, float],
) -> tuple[str, ...]:
    """Returns sentences on domains that a run would repeat more often than any proxy did.

    Args:
        mixture: The run's mixture.
        supply: Unique tokens of each domain in the run.
        tokens: The run's tokens.
        proxy_epochs: The most epochs of each domain in any run that the law was fitted to.
    """
    told: list[str] = []
    for name, share in mixture.items():
        available = supply.get(name)
        if available is None:
            continue
        epochs, seen = share * tokens / available, max(proxy_epochs.get(name, 0.0), 1.0)
        if epochs > MORE_EPOCHS * seen:
            told.append(
                f"the run would see {name} {epochs:.2g} times, the proxies saw it at most"
                f" {proxy_epochs.get(name, 0.0):.2g} times: what its repeated text is worth is not"
                " in their losses"
            )
    return tuple(told)


def _with_own(
    theta_BTP: Float[np.ndarray, "*B T P"], own_T3: Float[np.ndarray, "T 3"]
) -> Float[np.ndarray, "*B T P3"]:
    own_BT3 = np.broadcast_to(own_T3, (*theta_BTP.shape[:-1], 3))
    return np.concatenate([theta_BTP, own_BT3], axis=-1)
