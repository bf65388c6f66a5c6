r"""Mixtures that tell most about a law's parameters, out of candidates: greedy, then by exchange.

Shape letters: C candidates, T targets, P parameters, K contrasts (directions in parameter space
whose variance counts).

A run at candidate c adds $x_c x_c^T$ to each target's information matrix, where $x_c$ is the
gradient of the predicted loss by the parameters, over the noise. Its inverse follows by a rank-one
update (Sherman and Morrison). Two criteria: `determinant` (D-optimal) lessens the volume of all
parameters' confidence region, `contrasts` (L-optimal) the summed variance of given contrasts, such
as differences of the objective between mixtures that may be the optimum.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

MOST_EXCHANGES = 3
"""Rounds in which each chosen mixture may be exchanged for a better one."""


class Information:
    """What is known of the parameters of all targets, as inverse information matrices.

    Args:
        information_TPP: Information of the runs that there are, and of the shrinkage.
        contrast_KTP: Contrasts whose variance is to fall; None: the determinant counts.
    """

    def __init__(
        self,
        information_TPP: Float[np.ndarray, "T P P"],
        contrast_KTP: Float[np.ndarray, "K T P"] | None = None,
    ) -> None:
        self.inverse_TPP = np.linalg.pinv(information_TPP, hermitian=True)
        self.contrast_KTP = contrast_KTP

    def gains(self, x_CTP: Float[np.ndarray, "C T P"]) -> Float[np.ndarray, " C"]:
        """Returns what one run of each candidate would gain."""
        spread_CTP = np.einsum("ctp,tpq->ctq", x_CTP, self.inverse_TPP)
        leverage_CT = np.einsum("ctp,ctp->ct", spread_CTP, x_CTP)
        if self.contrast_KTP is None:
            return np.sum(np.log1p(leverage_CT), axis=1)
        along_CKT = np.einsum("ctp,ktp->ckt", spread_CTP, self.contrast_KTP)
        return np.sum(along_CKT**2 / (1 + leverage_CT[:, None]), axis=(1, 2))

    def add(self, x_TP: Float[np.ndarray, "T P"], *, sign: float = 1.0) -> None:
        """Adds one run, or takes it away again with `sign=-1`."""
        spread_TP = np.einsum("tpq,tq->tp", self.inverse_TPP, x_TP)
        leverage_T = np.einsum("tp,tp->t", spread_TP, x_TP)
        outer_TPP = spread_TP[:, :, None] * spread_TP[:, None, :]
        self.inverse_TPP = self.inverse_TPP - sign * outer_TPP / (
            1 + sign * leverage_T[:, None, None]
        )


def choose_informative(
    x_CTP: Float[np.ndarray, "C T P"],
    information_TPP: Float[np.ndarray, "T P P"],
    *,
    n: int,
    contrast_KTP: Float[np.ndarray, "K T P"] | None = None,
    exchange: bool = True,
) -> tuple[list[int], Float[np.ndarray, " n"]]:
    """Returns the candidates to run, and what each gained when it was added.

    Args:
        x_CTP: Gradients of the candidates' losses by the parameters, over the noise.
        information_TPP: Information that there is.
        n: How many; each at most once.
        contrast_KTP: Contrasts whose variance is to fall; None: the determinant counts.
        exchange: Try to exchange each choice once all are made.
    """
    known = Information(information_TPP, contrast_KTP)
    chosen: list[int] = []
    for _ in range(min(n, len(x_CTP))):
        chosen.append(_best(known.gains(x_CTP), chosen))
        known.add(x_CTP[chosen[-1]])
    if exchange:
        chosen = _exchange(known, x_CTP, chosen)
    return chosen, _gains_in_order(x_CTP, information_TPP, chosen, contrast_KTP)


def _best(gain_C: Float[np.ndarray, " C"], taken: Sequence[int]) -> int:
    gain_C = gain_C.copy()
    gain_C[list(taken)] = -np.inf
    return int(np.argmax(gain_C))


def _exchange(
    known: Information, x_CTP: Float[np.ndarray, "C T P"], chosen: list[int]
) -> list[int]:
    chosen = list(chosen)
    for _ in range(MOST_EXCHANGES):
        before = list(chosen)
        for i, c in enumerate(before):
            known.add(x_CTP[c], sign=-1.0)
            others = [other for j, other in enumerate(chosen) if j != i]
            chosen[i] = _best(known.gains(x_CTP), others)
            known.add(x_CTP[chosen[i]])
        if chosen == before:
            break
    return chosen


def _gains_in_order(
    x_CTP: Float[np.ndarray, "C T P"],
    information_TPP: Float[np.ndarray, "T P P"],
    chosen: Sequence[int],
    contrast_KTP: Float[np.ndarray, "K T P"] | None,
) -> Float[np.ndarray, " n"]:
    known = Information(information_TPP, contrast_KTP)
    gains: list[float] = []
    for c in chosen:
        gains.append(float(known.gains(x_CTP[[c]])[0]))
        known.add(x_CTP[c])
    return np.array(gains)
