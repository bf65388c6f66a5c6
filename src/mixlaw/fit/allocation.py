"""The fit of Dai and Zheng's law, in which the targets share the splits of capacity.

Shape letters: R rows, K domains, X inputs (K shares, params, tokens), P parameters.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import least_squares

from mixlaw.errors import FitError
from mixlaw.fit.joint_pool import in_units
from mixlaw.fit.joint_table import JointTable
from mixlaw.laws.allocation import AllocationLaw

HUBER = 1e-3
"""Residuals of log loss beyond this count linearly: Chinchilla's value, which the paper keeps."""
STARTS = ((0.2, 0.3), (0.4, 0.5))
"""Exponents b of capacity and a of data."""
MAX_EVALUATIONS = 100
"""Of each start; capacity and data nearly trade places, so that descents crawl at the end."""
LEAST_EXPONENT, MOST_EXPONENT = 0.01, 1.0
"""The paper's."""
FIRST_SHARED = 0.1
"""Shared capacity at the start, as a share of the least model; it can't reach the whole of it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AllocationFit:
    """The law fitted to all domains at once."""

    law: AllocationLaw
    domains: tuple[str, ...]
    """Domains, which are the targets too."""
    unit_2: Float[np.ndarray, " 2"]
    """Params and tokens that the law counts in."""
    theta_P: Float[np.ndarray, " P"]
    objective: float
    converged: bool

    def predict(self, x_RX: Float[np.ndarray, "R X"]) -> Float[np.ndarray, "R K"]:
        """Returns the expected loss of every domain, for rows of shares, params and tokens."""
        return self.law.predict(in_units(x_RX, self.unit_2), self.theta_P)


def fit_allocation(table: JointTable) -> AllocationFit:
    """Returns the law fitted to the targets that are named as the domains are.

    Raises:
        FitError: A domain has no target of its name.
    """
    missing = [domain for domain in table.domains if domain not in table.targets]
    if missing:
        raise FitError(
            f"this law needs a target for every domain, but {missing[0]!r} has none",
            do="name targets as the domains they validate, or take another law",
        )
    y_RK = table.y_RT[:, [table.targets.index(domain) for domain in table.domains]]
    unit_2 = np.exp(np.mean(np.log(table.x_RX[:, -2:]), axis=0))
    x_RX = in_units(table.x_RX, unit_2)
    law = AllocationLaw()
    low_P, high_P = _bounds(x_RX, y_RK)
    ends = [
        least_squares(
            lambda theta_P: _residuals(law, x_RX, y_RK, theta_P),
            np.clip(_start(x_RX, y_RK, b, a), low_P + 1e-6, high_P - 1e-6),
            jac=lambda theta_P: _slopes(law, x_RX, y_RK, theta_P),
            bounds=(low_P, high_P),
            loss="huber",
            f_scale=HUBER,
            x_scale="jac",
            max_nfev=MAX_EVALUATIONS,
        )
        for b, a in STARTS
    ]
    best = min(ends, key=lambda end: float(end.cost))
    return AllocationFit(
        law=law,
        domains=table.domains,
        unit_2=unit_2,
        theta_P=np.asarray(best.x),
        objective=float(best.cost),
        converged=bool(best.success),
    )


def _residuals(
    law: AllocationLaw,
    x_RX: Float[np.ndarray, "R X"],
    y_RK: Float[np.ndarray, "R K"],
    theta_P: Float[np.ndarray, " P"],
) -> Float[np.ndarray, " N"]:
    residual_RK = np.log(law.predict(x_RX, theta_P)) - np.log(y_RK)
    return residual_RK[~np.isnan(y_RK)]


def _slopes(
    law: AllocationLaw,
    x_RX: Float[np.ndarray, "R X"],
    y_RK: Float[np.ndarray, "R K"],
    theta_P: Float[np.ndarray, " P"],
) -> Float[np.ndarray, "N P"]:
    loss_RK, jacobian_RKP = law.predict_with_jacobian(x_RX, theta_P)
    return (jacobian_RKP / loss_RK[..., None])[~np.isnan(y_RK)]


def _start(
    x_RX: Float[np.ndarray, "R X"], y_RK: Float[np.ndarray, "R K"], b: float, a: float
) -> Float[np.ndarray, " P"]:
    count = y_RK.shape[1]
    middle_K = np.nanmedian(y_RK, axis=0)
    # A quarter of each loss is left to capacity and to data, at an even split of the mean model.
    log_c_K = np.log(0.25 * middle_K) - b * np.log(count)
    log_A_K = np.log(0.25 * middle_K) - a * np.log(count)
    exponents = np.repeat(np.log([b, a]), count).reshape(2, count)
    shared = np.log(FIRST_SHARED * x_RX[:, -2].min())
    return np.concatenate(
        [log_c_K, exponents[0], log_A_K, exponents[1], 0.5 * middle_K, np.atleast_1d(shared)]
    )


def _bounds(
    x_RX: Float[np.ndarray, "R X"], y_RK: Float[np.ndarray, "R K"]
) -> tuple[Float[np.ndarray, " P"], Float[np.ndarray, " P"]]:
    count = y_RK.shape[1]
    level, exponent = np.full(count, 12.0), np.ones(count)
    low_exponent, high_exponent = np.log(LEAST_EXPONENT), np.log(MOST_EXPONENT)
    smallest = float(x_RX[:, -2].min())
    low = [-level, low_exponent * exponent, -level, low_exponent * exponent, np.zeros(count)]
    high = [level, high_exponent * exponent, level, high_exponent * exponent]
    return (
        np.append(np.concatenate(low), np.log(1e-4 * smallest)),
        np.append(np.concatenate([*high, np.nanmin(y_RK, axis=0)]), np.log(0.99 * smallest)),
    )
