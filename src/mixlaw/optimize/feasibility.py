"""Which constraints contradict each other, and by how much they would have to give way.

Every named constraint gets a slack. Where the least sum of slacks is not 0, there is a conflict:
the constraints with a dual variable prove it. Those that are not needed for the proof are dropped
one by one, until no further one can be (the deletion filter: Chinneck and Dravnieks 1991).

Shape letters: M training domains, X variables, Y rows, C named constraints.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float
from scipy import sparse

from mixlaw.errors import OptimizeError
from mixlaw.optimize.cones import Cone, solve_cone
from mixlaw.optimize.conic import ConicForm, conic_form
from mixlaw.optimize.region import ConstraintName, Region

CONFLICT = 1e-8
"""Constraints that miss each other by more than this contradict each other."""
COUNTED = 1e-5
"""Dual variables above this share of the largest take part in the proof of a conflict."""
MOST_NAMED = 8
"""Constraints of a conflict that a message names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """Constraints that can't hold together, all of which are needed for the contradiction."""

    gives: dict[ConstraintName, float]
    """By how much each would have to give way if the others stay, in its own unit."""
    limits: dict[ConstraintName, float]
    """The limit of each."""

    @property
    def sentence(self) -> str:
        """What contradicts what."""
        parts = [
            f"{name} at {self.limits[name]:.4g}"
            if name.kind in ("cap", "floor", "fixed")
            else f"{name}"
            for name in self.gives
        ]
        return f"these constraints can't hold together: {_join(parts)}"

    @property
    def way_out(self) -> str:
        """By how much one of them would have to give way."""
        parts = [f"{name} by {give:.4g}" for name, give in self.gives.items()]
        supply = any("token supply" in str(name) for name in self.gives)
        more = "; more tokens or `max_epochs` of a domain raise its cap" if supply else ""
        return f"loosen one of them: {_join(parts, 'or')}{more}"


def require_feasible(region: Region) -> None:
    """Raises an error where no mixture meets all constraints.

    Raises:
        OptimizeError: Constraints conflict; it names them.
    """
    conflict = find_conflict(region)
    if conflict is not None:
        raise OptimizeError(conflict.sentence, do=conflict.way_out)


def find_conflict(region: Region) -> Conflict | None:
    """Returns an irreducible set of constraints that contradict each other; None: there is none."""
    gives = _conflict_of_bounds(region)
    if gives is None and not region.has_only_bounds:
        gives = _conflict_of_all(region)
    if gives is None:
        return None
    return Conflict(gives=gives, limits={name: region.limit_of(name) for name in gives})


def _conflict_of_bounds(region: Region) -> dict[ConstraintName, float] | None:
    """Returns floors and caps that conflict by themselves, with what each must give."""
    floor_M, cap_M = region.floor_M, region.cap_M
    over = floor_M - cap_M
    if np.max(over) > CONFLICT:
        j = int(np.argmax(over))
        return dict.fromkeys((region.floor_names[j], region.cap_names[j]), float(over[j]))
    if np.sum(floor_M) > 1 + CONFLICT:
        # The largest ones, down to the one at which they exceed 1: each of them is needed.
        order = np.argsort(-floor_M, kind="stable")
        sums = np.cumsum(floor_M[order])
        count = int(np.argmax(sums > 1 + CONFLICT)) + 1
        over = float(sums[count - 1] - 1)
        return {region.floor_names[j]: over for j in order[:count]}
    if np.sum(cap_M) < 1 - CONFLICT:
        return dict.fromkeys(region.cap_names, float(1 - np.sum(cap_M)))
    return None


def _conflict_of_all(region: Region) -> dict[ConstraintName, float] | None:
    program = _ElasticProgram.of(region)
    everything = np.ones(len(program.names), dtype=bool)
    total, _, dual_C = program.solve(everything)
    if total <= CONFLICT:
        return None
    held_C = dual_C > COUNTED * np.max(dual_C)
    if program.solve(held_C)[0] <= CONFLICT:
        held_C = everything
    for i in np.flatnonzero(held_C):
        without_C = held_C.copy()
        without_C[i] = False
        if program.solve(without_C)[0] > CONFLICT:
            held_C = without_C
    gives: dict[ConstraintName, float] = {}
    for i in np.flatnonzero(held_C):
        alone_C = np.zeros(len(held_C), dtype=bool)
        alone_C[i] = True
        _, slack_C, _ = program.solve(alone_C, rigid_C=held_C & ~alone_C)
        gives[program.names[i]] = float(slack_C[i])
    return gives


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _ElasticProgram:
    """A region whose named constraints may give way, each by its slack."""

    form: ConicForm
    A: "sparse.csc_array"
    """Rows of the region with their slacks, then bounds of shares, then bounds of slacks."""
    b_Y: Float[np.ndarray, " Y"]
    names: tuple[ConstraintName, ...]

    @classmethod
    def of(cls, region: Region) -> "_ElasticProgram":
        """Returns the program; rows of equalities have a slack to both sides."""
        form = conic_form(_apart(region))
        names = tuple(dict.fromkeys(name for _, name, _ in form.named))
        count, size = len(names), form.num_domains
        num_variables = form.A.shape[1]
        give = sparse.lil_array((form.A.shape[0], 2 * count))
        for row, name, _ in form.named:
            i = names.index(name)
            give[row, i] = -1.0
            if row < form.num_zero:
                give[row, count + i] = 1.0
        whole = sparse.hstack([form.A, give])
        share = sparse.eye_array(size, num_variables + 2 * count)
        slack = sparse.eye_array(2 * count, num_variables + 2 * count, k=num_variables)
        # Exponential rows stay last.
        last = form.num_zero + form.num_nonnegative
        whole = sparse.csr_array(whole)
        A = sparse.vstack([whole[:last], -share, share, -slack, slack, whole[last:]])
        b_Y = np.concatenate(
            [
                form.b_Y[:last],
                np.zeros(size),
                np.ones(size),
                np.zeros(2 * count),
                np.zeros(2 * count),
                form.b_Y[last:],
            ]
        )
        return cls(form=form, A=sparse.csc_array(A), b_Y=b_Y, names=names)

    def solve(
        self,
        counted_C: np.ndarray,
        *,
        rigid_C: np.ndarray | None = None,
    ) -> tuple[float, Float[np.ndarray, " C"], Float[np.ndarray, " C"]]:
        """Returns the least sum of counted slacks, all slacks, and the sizes of the duals.

        Args:
            counted_C: Constraints whose slacks are summed; those of the others are free.
            rigid_C: Constraints that have no slack at all.
        """
        count, form = len(self.names), self.form
        num_variables = form.A.shape[1]
        most_C = np.full(count, 100.0)
        if rigid_C is not None:
            most_C[rigid_C] = 0.0
        first = form.num_zero + form.num_nonnegative + 2 * form.num_domains + 2 * count
        b_Y = self.b_Y.copy()
        b_Y[first : first + 2 * count] = np.tile(most_C, 2)
        cost = np.concatenate([np.zeros(num_variables), np.tile(counted_C.astype(float), 2)])
        num_nonnegative = form.num_nonnegative + 2 * form.num_domains + 4 * count
        cones: tuple[Cone, ...] = (
            ("zero", form.num_zero),
            ("nonnegative", num_nonnegative),
            ("exponential", form.num_exponential),
        )
        nothing = sparse.csc_array((len(cost), len(cost)))
        found = solve_cone(nothing, cost, self.A, b_Y, cones)
        slack_C = found.x[num_variables:].reshape(2, count).sum(axis=0)
        dual_C = np.zeros(count)
        for row, name, _ in form.named:
            i = self.names.index(name)
            dual_C[i] = max(dual_C[i], abs(float(found.dual[row])))
        return float(slack_C @ counted_C), slack_C, dual_C


def _apart(region: Region) -> Region:
    """Returns the region with a hair's room where limits leave none, so that each has its row."""
    pairs = zip(region.floors, region.caps, strict=True)
    return replace(
        region,
        floors=tuple(f - 1e-12 if f == c else f for f, c in pairs),
        distances=tuple(replace(b, limit=max(b.limit, 1e-12)) for b in region.distances),
    )


def _join(parts: list[str], word: str = "and") -> str:
    shown = parts[:MOST_NAMED]
    if len(parts) > len(shown):
        return f"{', '.join(shown)} {word} {len(parts) - len(shown)} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} {word} {shown[-1]}"
