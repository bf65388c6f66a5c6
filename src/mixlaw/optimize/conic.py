r"""Regions as products of cones, which is what quadratic programs over them are made of.

A region becomes A x + s = b with s in a product of cones: 0, the non-negative numbers and the
exponential cone, in variables x that start with the shares. Balls have variables of their own:
t_j >= r_j log(r_j / p_j) for KL, u_j >= |r_j - p_j| for L1, and the runs' weights for their hull.

Shape letters: M training domains, X variables of a region (the shares and what balls add), Y rows
of a cone program.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import sparse

from mixlaw.errors import OptimizeError
from mixlaw.optimize.cones import Cone, solve_cone
from mixlaw.optimize.region import ConstraintName, KLBall, L1Ball, Region, RunsBall

_ROUNDING = 1e-8
"""What is broken by less is met by a move towards the middle instead of a projection."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ConicForm:
    """A region as A x + s = b, s in cones."""

    num_domains: int
    A: "sparse.csc_array"
    b_Y: Float[np.ndarray, " Y"]
    num_zero: int
    """Rows of the zero cone, which come first."""
    num_nonnegative: int
    num_exponential: int
    """Triples of the exponential cone, at the end."""
    low_X: Float[np.ndarray, " X"]
    """Bounds of all variables; what is added by balls is bounded since shares are."""
    high_X: Float[np.ndarray, " X"]
    named: tuple[tuple[int, ConstraintName, float], ...]
    """Row, its constraint, and 1 or -1: whether the right-hand side grows with the limit."""
    is_box_Y: Any
    """Rows that only repeat `low_X` and `high_X`."""

    @property
    def cones(self) -> tuple[Cone, ...]:
        """The cones in the order of the rows."""
        return (
            ("zero", self.num_zero),
            ("nonnegative", self.num_nonnegative),
            ("exponential", self.num_exponential),
        )

    def lower_bound(
        self, cost_M: Float[np.ndarray, " M"], dual_Y: Float[np.ndarray, " Y"]
    ) -> float:
        """Returns a number that no mixture of the region has a lower linear cost than.

        It holds for any dual variables: what they leave of the cost is the least that it can be
        within the variables' bounds. Duals that are outside the dual cone count as 0.
        """
        dual_Y = np.where(self.is_box_Y, 0.0, self._clip_dual(dual_Y))
        rest_X = self.A.T @ dual_Y
        rest_X[: self.num_domains] += cost_M
        least = np.minimum(rest_X * self.low_X, rest_X * self.high_X)
        return float(np.sum(least) - self.b_Y @ dual_Y)

    def _clip_dual(self, dual_Y: Float[np.ndarray, " Y"]) -> Float[np.ndarray, " Y"]:
        clipped_Y = dual_Y.copy()
        first, last = self.num_zero, self.num_zero + self.num_nonnegative
        clipped_Y[first:last] = np.maximum(clipped_Y[first:last], 0.0)
        u_N, v_N, w_N = clipped_Y[last:].reshape(-1, 3).T
        # The dual cone: u < 0 and -u exp(v / u) <= e w, or u = 0 and v, w >= 0.
        negative_N = u_N < 0
        ratio_N = np.clip(v_N / np.where(negative_N, u_N, -1.0), -700, 700)
        inside_N = negative_N & (-u_N * np.exp(ratio_N - 1) <= w_N)
        clipped_Y[last:] *= np.repeat(inside_N, 3)
        return clipped_Y

    def prices(self, dual_Y: Float[np.ndarray, " Y"]) -> dict[ConstraintName, float]:
        """Returns the derivative of the least value by the limit of each named constraint."""
        prices: dict[ConstraintName, float] = {}
        for row, name, sign in self.named:
            price = prices.get(name, 0.0) - sign * float(dual_Y[row])
            # A share between a floor and an equal cap: the one that it presses on has the price.
            price = min(price, 0.0) if name.kind == "cap" else price
            prices[name] = max(price, 0.0) if name.kind == "floor" else price
        return prices


@dataclass(slots=True)
class _Rows:
    """Rows of A x + s = b in one cone, gathered one by one."""

    row: list[int] = field(default_factory=list[int])
    column: list[int] = field(default_factory=list[int])
    value: list[float] = field(default_factory=list[float])
    right: list[float] = field(default_factory=list[float])
    named: list[tuple[int, ConstraintName, float]] = field(
        default_factory=list[tuple[int, ConstraintName, float]]
    )
    box: list[int] = field(default_factory=list[int])

    def add(
        self,
        columns: Any,
        values: Any,
        right: float,
        *,
        name: ConstraintName | None = None,
        sign: float = 1.0,
        is_box: bool = False,
    ) -> None:
        """Adds the row: values at columns, and the right-hand side."""
        number = len(self.right)
        self.row.extend([number] * len(columns))
        self.column.extend(columns)
        self.value.extend(values)
        self.right.append(right)
        if name is not None:
            self.named.append((number, name, sign))
        if is_box:
            self.box.append(number)

    def matrix(self, num_columns: int) -> "sparse.coo_array":
        """Returns the rows."""
        return sparse.coo_array(
            (self.value, (self.row, self.column)), shape=(len(self.right), num_columns)
        )


@lru_cache(maxsize=16)
def conic_form(region: Region) -> ConicForm:
    """Returns a region as A x + s = b, s in cones."""
    size = len(region.names)
    zero, nonnegative, exponential = _Rows(), _Rows(), _Rows()
    low, high = list(region.floors), list(region.caps)
    zero.add(range(size), [1.0] * size, 1.0)
    _add_bounds(region, zero, nonnegative)
    for bound in region.linear:
        used = np.flatnonzero(bound.weight_M)
        sign = -1.0 if bound.sense == "at least" else 1.0
        rows = zero if bound.sense == "equal" else nonnegative
        rows.add(used, sign * bound.weight_M[used], sign * bound.limit, name=bound.name, sign=sign)
    for distance in region.distances:
        if isinstance(distance, KLBall):
            _add_kl(distance, low, high, nonnegative, exponential)
        elif isinstance(distance, L1Ball):
            _add_l1(distance, low, high, nonnegative)
        else:
            _add_runs(distance, low, high, zero, nonnegative)
    parts = (zero, nonnegative, exponential)
    first = np.cumsum([0, len(zero.right), len(nonnegative.right)])
    is_box_Y = np.zeros(sum(len(part.right) for part in parts), dtype=bool)
    is_box_Y[first[1] + np.array(nonnegative.box, dtype=int)] = True
    return ConicForm(
        num_domains=size,
        A=sparse.csc_array(sparse.vstack([part.matrix(len(low)) for part in parts])),
        b_Y=np.concatenate([part.right for part in parts]),
        num_zero=len(zero.right),
        num_nonnegative=len(nonnegative.right),
        num_exponential=len(exponential.right) // 3,
        low_X=np.array(low),
        high_X=np.array(high),
        named=tuple(
            (int(start) + row, name, sign)
            for start, part in zip(first, parts, strict=True)
            for row, name, sign in part.named
        ),
        is_box_Y=is_box_Y,
    )


def _add_bounds(region: Region, zero: _Rows, nonnegative: _Rows) -> None:
    # A region of one mixture is called after the distance that leaves no other: it has no price.
    named = {name for name in region.constraint_names if name.kind not in ("kl", "l1")}
    for j, (floor, cap) in enumerate(zip(region.floors, region.caps, strict=True)):
        floor_name = region.floor_names[j] if region.floor_names[j] in named else None
        cap_name = region.cap_names[j] if region.cap_names[j] in named else None
        if cap == floor:
            zero.add([j], [1.0], cap, name=cap_name)
            if floor_name not in (None, cap_name):
                zero.named.append((len(zero.right) - 1, floor_name, 1.0))
            continue
        nonnegative.add([j], [-1.0], -floor, name=floor_name, sign=-1.0, is_box=True)
        nonnegative.add([j], [1.0], cap, name=cap_name, is_box=True)


def _add_kl(
    ball: KLBall, low: list[float], high: list[float], nonnegative: _Rows, exponential: _Rows
) -> None:
    """Adds t_j >= r_j log(r_j / p_j), which is r_j exp(-t_j / r_j) <= p_j, and their sum."""
    used = np.flatnonzero(ball.reference_M > 0)
    first = len(low)
    for number, j in enumerate(used):
        share = float(ball.reference_M[j])
        column = first + number
        exponential.add([column], [1.0], 0.0)
        exponential.add([j], [-1.0], 0.0)
        exponential.add([], [], share)
        low.append(-share / np.e)
        high.append(max(float(-np.log(share)), 0.0))
    nonnegative.add(range(first, len(low)), [1.0] * len(used), ball.limit, name=ball.name)


def _add_l1(ball: L1Ball, low: list[float], high: list[float], nonnegative: _Rows) -> None:
    """Adds u_j >= |r_j - p_j| and their sum."""
    size = len(ball.reference_M)
    first = len(low)
    for j, share in enumerate(map(float, ball.reference_M)):
        nonnegative.add([j, first + j], [1.0, -1.0], share)
        nonnegative.add([j, first + j], [-1.0, -1.0], -share)
        low.append(0.0)
        high.append(1.0)
    nonnegative.add(range(first, len(low)), [1.0] * size, ball.limit, name=ball.name)


def _add_runs(
    ball: RunsBall, low: list[float], high: list[float], zero: _Rows, nonnegative: _Rows
) -> None:
    """Adds u_j >= |r_j - sum_i w_i p_ij| for a mean with weights w of the runs."""
    runs_RM = np.unique(ball.runs_RM, axis=0)
    num_runs, size = runs_RM.shape
    weights = range(len(low), len(low) + num_runs)
    zero.add(weights, [1.0] * num_runs, 1.0)
    for column in weights:
        nonnegative.add([column], [-1.0], 0.0, is_box=True)
    low.extend([0.0] * num_runs)
    high.extend([1.0] * num_runs)
    if ball.limit == 0:  # a mean of runs itself: room of 0 would leave the cones no inside
        for j in range(size):
            zero.add([j, *weights], [1.0, *-runs_RM[:, j]], 0.0)
        return
    first = len(low)
    for j in range(size):
        for sign in (1.0, -1.0):
            columns = [j, *weights, first + j]
            nonnegative.add(columns, [sign, *(-sign * runs_RM[:, j]), -1.0], 0.0)
        low.append(0.0)
        high.append(1.0)
    nonnegative.add(range(first, len(low)), [0.5] * size, ball.limit, name=ball.name)


def minimize_linear(region: Region, cost_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
    """Returns the mixture of a region with the least linear cost.

    Raises:
        OptimizeError: The region is empty.
    """
    unit = max(float(np.ptp(cost_M)), 1e-300)
    return _minimize(region, None, (cost_M - np.min(cost_M)) / unit)


def project(region: Region, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
    """Returns the mixture of a region that is closest to a point.

    Raises:
        OptimizeError: The region is empty.
    """
    if region.contains(r_M, _ROUNDING):
        nearby_M = clean(region, r_M)
        if region.contains(nearby_M, 1e-12):
            return nearby_M  # the program would have nothing to do, and its solver may give up
    return _minimize(region, np.ones(len(r_M)), -r_M)


def _minimize(
    region: Region, diag_M: Float[np.ndarray, " M"] | None, cost_M: Float[np.ndarray, " M"]
) -> Float[np.ndarray, " M"]:
    form = conic_form(region)
    num_variables = form.A.shape[1]
    diag_X, cost_X = np.zeros(num_variables), np.zeros(num_variables)
    cost_X[: len(cost_M)] = cost_M
    if diag_M is not None:
        diag_X[: len(diag_M)] = diag_M
    P = sparse.csc_array(sparse.diags_array(diag_X))
    found = solve_cone(P, cost_X, form.A, form.b_Y, form.cones)
    if not found.is_solved:
        raise OptimizeError(
            "the constraints leave no mixture, or one that can't be found",
            do="loosen one of them a little",
        )
    return clean(region, found.x[: len(cost_M)])


@lru_cache(maxsize=16)
def _middle(region: Region) -> tuple[float, ...]:
    """Returns a mixture inside the region, where it has an inside."""
    form = conic_form(region)
    num_variables = form.A.shape[1]
    nothing = sparse.csc_array((num_variables, num_variables))
    found = solve_cone(nothing, np.zeros(num_variables), form.A, form.b_Y, form.cones)
    return tuple(map(float, meet_equalities(region, found.x[: form.num_domains])))


def clean(region: Region, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
    """Returns a mixture next to one that meets all constraints up to a solver's rounding.

    Shares are moved into their bounds and to the sums that must hold; what is then still broken is
    met a little closer to the middle of the region.
    """
    r_M = meet_equalities(region, r_M)
    if region.contains(r_M, 1e-12):
        return r_M
    if region.has_only_bounds:
        return region.box.nearest(r_M)
    middle_M = np.array(_middle(region))
    for step in (1e-10, 1e-9, 1e-8, 1e-7, 1e-6):
        moved_M = (1 - step) * r_M + step * middle_M
        if region.contains(moved_M, 1e-12):
            return moved_M
    return r_M


def meet_equalities(region: Region, r_M: Float[np.ndarray, " M"]) -> Float[np.ndarray, " M"]:
    """Returns shares within bounds, with the sums that must hold, close to given ones."""
    rows = [np.ones(len(r_M)), *(b.weight_M for b in region.linear if b.sense == "equal")]
    right = np.array([1.0, *(b.limit for b in region.linear if b.sense == "equal")])
    matrix = np.stack(rows)
    for _ in range(20):
        r_M = np.clip(r_M, region.floor_M, region.cap_M)
        off = right - matrix @ r_M
        if np.max(np.abs(off)) < 1e-15:
            break
        # The change is spread over shares with room, so that the next clip undoes none of it.
        room_M = np.minimum(r_M - region.floor_M, region.cap_M - r_M)
        weighted = matrix * room_M
        r_M = r_M + room_M * (matrix.T @ np.linalg.lstsq(weighted @ matrix.T, off, rcond=None)[0])
    return np.clip(r_M, region.floor_M, region.cap_M)
