"""Points of the simplex: evenly spaced, kept below caps, and chosen to lie far apart.

Shape letters: R mixtures, S other mixtures, M training domains, P pairs of domains.
"""

import numpy as np
from jaxtyping import Float

_SOBOL_BITS = 30
_MOST_SOBOL_VALUES = 2**22
_SWEEPS = 40


def sobol_simplex(num_domains: int, log2_count: int, seed: int) -> Float[np.ndarray, "R M"]:
    r"""Returns $2^k$ points that fill the simplex evenly.

    A Sobol sequence over M - 1 numbers, with a random digital shift, goes through the inverse
    distribution functions of the uniform distribution on the simplex: share j is what is left after
    the shares before it, times $1 - (1 - u_j)^{1 / (M - 1 - j)}$. A longer sequence with the same
    seed begins with the shorter one.

    Args:
        num_domains: Number of training domains, M.
        log2_count: The k in the number of points.
        seed: Seeds the shift.
    """
    from scipy.stats import qmc

    dimensions = num_domains - 1
    sequence = qmc.Sobol(dimensions, scramble=False, bits=_SOBOL_BITS).random_base2(log2_count)
    digits = (sequence * 2**_SOBOL_BITS).astype(np.int64)
    shift = np.random.default_rng(seed).integers(2**_SOBOL_BITS, size=dimensions)
    u_RJ = ((digits ^ shift) + 0.5) / 2**_SOBOL_BITS
    r_RM = np.empty((len(u_RJ), num_domains))
    left_R = np.ones(len(u_RJ))
    for j in range(dimensions):
        r_RM[:, j] = left_R * (1 - (1 - u_RJ[:, j]) ** (1 / (dimensions - j)))
        left_R = left_R - r_RM[:, j]
    r_RM[:, -1] = np.maximum(left_R, 0.0)
    return r_RM


def uniform_points(
    cap_M: Float[np.ndarray, " M"], count: int, seed: int
) -> tuple[Float[np.ndarray, "R M"], bool]:
    """Returns points that are uniform on the simplex below caps, and whether they are even.

    Sobol points above a cap are rejected. Where the caps leave so little room that this does not
    end, the points come from a random walk (`walk_below_caps`): uniform, but not evenly spaced.

    Args:
        cap_M: Caps that sum to one or more.
        count: Number of points, R.
        seed: Seeds the points.
    """
    log2_count = max(1, (count - 1).bit_length())
    while True:
        r_RM = sobol_simplex(len(cap_M), log2_count, seed)
        within_R = np.all(r_RM <= cap_M, axis=1)
        if np.sum(within_R) >= count:
            return r_RM[within_R][:count], True
        if 2 * r_RM.size > _MOST_SOBOL_VALUES:
            start_RM = fill_to_caps(r_RM[:count], cap_M)
            rng = np.random.default_rng(seed)
            return walk_below_caps(start_RM, cap_M, np.ones(len(cap_M)), rng), False
        log2_count += 1


def walk_below_caps(
    r_RM: Float[np.ndarray, "R M"],
    cap_M: Float[np.ndarray, " M"],
    alpha_M: Float[np.ndarray, " M"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "R M"]:
    """Returns draws from a Dirichlet distribution that is cut off at caps, one from each start.

    Gibbs sampling over pairs: given what two domains have together, the share of the first in it is
    a Beta variable between the limits that the caps set. A sweep redraws all pairs of a random
    pairing; after 40 sweeps the start is forgotten.

    Args:
        r_RM: Starts, points of the simplex below the caps.
        cap_M: Caps.
        alpha_M: Parameters of the Dirichlet distribution; ones: uniform.
        rng: Draws the walk.
    """
    from scipy.special import betainc, betaincinv

    r_RM = r_RM.copy()
    half = len(cap_M) // 2
    for _ in range(_SWEEPS):
        order = rng.permutation(len(cap_M))
        i, j = order[:half], order[half : 2 * half]
        both_RP = r_RM[:, i] + r_RM[:, j]
        low_RP = np.maximum(0.0, both_RP - cap_M[j])
        high_RP = np.maximum(low_RP, np.minimum(cap_M[i], both_RP))
        u_RP = rng.random(both_RP.shape)
        if np.all(alpha_M == 1):
            share_RP = low_RP + u_RP * (high_RP - low_RP)
        else:
            scale_RP = np.maximum(both_RP, np.finfo(float).tiny)
            below_RP = betainc(alpha_M[i], alpha_M[j], np.minimum(1.0, low_RP / scale_RP))
            above_RP = betainc(alpha_M[i], alpha_M[j], np.minimum(1.0, high_RP / scale_RP))
            p_RP = below_RP + u_RP * (above_RP - below_RP)
            share_RP = np.clip(betaincinv(alpha_M[i], alpha_M[j], p_RP) * both_RP, low_RP, high_RP)
        r_RM[:, i] = share_RP
        r_RM[:, j] = both_RP - share_RP
    return r_RM


def fill_to_caps(
    r_RM: Float[np.ndarray, "R M"], cap_M: Float[np.ndarray, " M"]
) -> Float[np.ndarray, "R M"]:
    """Returns points in which what lies above a cap went to the other domains, in their ratio.

    Every row becomes min(cap, factor * r) with the one factor at which it sums to one.

    Args:
        r_RM: Points of the simplex.
        cap_M: Caps that sum to one or more.
    """
    filled_RM = np.maximum(r_RM, 1e-12)  # what is zero can take something too, if it must
    for row_M in filled_RM:
        capped_M = np.zeros(len(cap_M), dtype=bool)
        for _ in range(len(cap_M)):
            free = float(np.sum(row_M[~capped_M]))
            if free <= 0:
                break
            row_M[~capped_M] *= (1 - float(np.sum(cap_M[capped_M]))) / free
            above_M = ~capped_M & (row_M > cap_M)
            if not np.any(above_M):
                break
            capped_M |= above_M
            row_M[capped_M] = cap_M[capped_M]
    return filled_RM


def moved_shares(
    a_RM: Float[np.ndarray, "R M"], b_SM: Float[np.ndarray, "S M"]
) -> Float[np.ndarray, "R S"]:
    """Returns the share of tokens that must change domain to get from each mixture to each other.

    This is half the sum of absolute differences: 0 between equal mixtures, at most 1.
    """
    moved_RS = np.zeros((len(a_RM), len(b_SM)))
    for j in range(a_RM.shape[1]):
        moved_RS += np.abs(a_RM[:, j, None] - b_SM[None, :, j])
    return moved_RS / 2


def spread_indices(
    pool_RM: Float[np.ndarray, "R M"], n: int, start_SM: Float[np.ndarray, "S M"]
) -> list[int]:
    """Returns `n` rows of a pool, each the farthest from the ones before it and from `start_SM`."""
    nearest_R = np.min(moved_shares(pool_RM, start_SM), axis=1)
    chosen: list[int] = []
    for _ in range(min(n, len(pool_RM))):
        chosen.append(int(np.argmax(nearest_R)))
        distance_R = moved_shares(pool_RM, pool_RM[chosen[-1:]])[:, 0]
        nearest_R = np.minimum(nearest_R, distance_R)
        nearest_R[chosen] = -1.0
    return chosen
