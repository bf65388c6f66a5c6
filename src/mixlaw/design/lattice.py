r"""The paper's double-diminishing grid of mixtures: counted and drawn from without listing it.

With the caps $r_{max}$ sorted from large to small, a domain's candidates are $\Gamma 2^{-s}$ for
$\Gamma = \delta \lfloor r_{max} / \delta \rfloor$ and every $s$ with $\Gamma 2^{-s} \ge \delta$,
and then 0. The last domain takes what remains, where that is within its cap. A quarter of the draws
have a zero, three quarters have none; within each class all points are equally likely.

With floors the grid spans what the floors leave: a share is its floor plus (1 - sum of the floors)
times a point of the grid, and a zero is a domain at its floor.

All candidates are whole units of $\delta 2^{-e}$, so the points that use `u` units are counted
domain by domain, from the last to the first, and a point is read off its rank.

References:
    Ye et al. 2025, arXiv:2403.16952, Algorithm 2. The mixtures that were published with it are
    points of this grid with delta = 1/16.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mixlaw.errors import DesignError

COARSEST_DELTA = 1 / 16
"""Where the search for a delta starts: the one of the paper's published mixtures."""
FINEST_DELTA = 1 / 4096
ENOUGH = 2
"""A delta is fine enough when its grid has this many points without a zero per draw of them."""
MOST_UNITS = 2048
"""Candidates are rounded down to 1/2048 of the span where their exact halves need finer units."""
SHARE_WITH_ZERO = 0.25
"""Share of the draws that have a zero (Ye et al.)."""
_ROUNDING = 1 + 1e-12  # a cap of 0.25 is four sixteenths, even when it was computed


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DyadicGrid:
    """The points of the grid as whole units, and how many there are."""

    delta: float
    """Smallest candidate that is not zero."""
    total: int
    """Units that a point's shares sum to."""
    candidates: tuple[tuple[int, ...], ...]
    """Candidates of every domain but the last, in units, from large to small, 0 at the end."""
    last_cap: int
    """Units that the last domain takes at most."""
    every: tuple[np.ndarray, ...]
    """Entry j, item u: how many points the domains j, j+1, ... have that sum to u units."""
    positive: tuple[np.ndarray, ...]
    """The same, of points without a zero; Python integers, since they outgrow 64 bits."""

    @classmethod
    def of(cls, caps: Sequence[float], delta: float) -> "DyadicGrid":
        """Returns the grid over domains with these caps.

        Args:
            caps: Largest share of each domain, from large to small.
            delta: Smallest candidate; one over a whole number.

        Raises:
            DesignError: `delta` is not one over a whole number from 1 to 4096.
        """
        steps = round(1 / delta) if 0 < delta <= 1 else 0
        if not 1 <= steps <= 1 / FINEST_DELTA or abs(steps * delta - 1) > 1e-9:
            raise DesignError(
                f"delta must be one over a whole number from 1 to 4096, found {delta:g}",
                do="give 1/16 (the paper's), 1/32, ... or leave it out",
            )
        multiples = [min(steps, int(cap * steps * _ROUNDING)) for cap in caps]
        halvings = max(_halvings(multiple) for multiple in multiples[:-1])
        while steps << halvings > MOST_UNITS and halvings:
            halvings -= 1
        unit = 1 << halvings
        total = steps * unit
        candidates = tuple(_candidates(multiple * unit, unit) for multiple in multiples[:-1])
        last_cap = min(total, int(caps[-1] * total * _ROUNDING))
        return cls(
            delta=1 / steps,
            total=total,
            candidates=candidates,
            last_cap=last_cap,
            every=_completions(candidates, last_cap, total, smallest=0),
            positive=_completions(candidates, last_cap, total, smallest=1),
        )

    @property
    def num_positive(self) -> int:
        """How many points have no zero."""
        return int(self.positive[0][self.total])

    @property
    def num_with_zero(self) -> int:
        """How many points have a zero."""
        return int(self.every[0][self.total]) - self.num_positive

    def point(self, rank: int, *, with_zero: bool) -> tuple[int, ...]:
        """Returns the point of a rank, in units, among those that have or don't have a zero."""
        units: list[int] = []
        left, has_zero = self.total, False
        for j, candidates in enumerate(self.candidates, start=1):
            for candidate in candidates:
                if candidate > left or (candidate == 0 and not with_zero):
                    continue
                settled = has_zero or candidate == 0
                count = int((self.every if with_zero else self.positive)[j][left - candidate])
                if with_zero and not settled:
                    count -= int(self.positive[j][left - candidate])
                if rank < count:
                    units.append(candidate)
                    left, has_zero = left - candidate, settled
                    break
                rank -= count
            else:
                raise AssertionError("a rank must be below the number of points")
        return (*units, left)

    def draw(self, *, with_zero: bool, rng: random.Random) -> Iterator[tuple[int, ...]]:
        """Yields the points of one class in random order, each once; all orders equally likely."""
        count = self.num_with_zero if with_zero else self.num_positive
        for rank in _shuffled(count, rng):
            yield self.point(rank, with_zero=with_zero)


def choose_grid(caps: Sequence[float], *, with_zero: int, positive: int) -> DyadicGrid:
    """Returns the coarsest grid with enough points for so many draws of either class.

    Delta is halved from 1/16 until there are as many points with a zero as are drawn, and twice as
    many without, so that the draw has a choice. Where no delta down to 1/4096 has them, the one
    with the most points without a zero is taken.

    Args:
        caps: Largest share of each domain, from large to small.
        with_zero: Draws that are to have a zero.
        positive: Draws that are to have none.
    """
    steps = int(COARSEST_DELTA / FINEST_DELTA).bit_length()
    deltas = [COARSEST_DELTA / 2**halving for halving in range(steps)]
    fine = [d for d in deltas if (len(caps) - 1) * d <= 1 and caps[-2] >= d]
    if not fine:  # every point has a zero: too many domains, or a cap below the finest delta
        fine, with_zero, positive = deltas, with_zero + positive, 0
    best: DyadicGrid | None = None
    for delta in fine:
        grid = DyadicGrid.of(caps, delta)
        if grid.num_positive >= ENOUGH * positive and grid.num_with_zero >= with_zero:
            return grid
        if best is None or grid.num_positive > best.num_positive:
            best = grid
    assert best is not None
    return best


def draw_lattice(
    caps: Sequence[float], n: int, *, seed: int, delta: float | None = None
) -> tuple[Iterator[tuple[float, ...]], str | None]:
    """Returns an iterator over distinct points of the grid, and a note on what could not be met.

    The first `n` points hold the paper's quarter with a zero, in random order; what follows are the
    remaining points of the grid, first those without a zero.

    Args:
        caps: Largest share of each domain, from large to small.
        n: Points that are wanted.
        seed: Seeds the draw.
        delta: Smallest candidate; None: chosen by `choose_grid`.

    Raises:
        DesignError: The grid has no point within the caps.
    """
    with_zero = int(n * SHARE_WITH_ZERO)
    if delta is None:
        grid = choose_grid(caps, with_zero=with_zero, positive=n - with_zero)
    else:
        grid = DyadicGrid.of(caps, delta)
    if grid.num_positive + grid.num_with_zero == 0:
        raise DesignError(
            f"the double-diminishing grid with delta 1/{round(1 / grid.delta)} has no point within"
            f" the caps, which sum to {sum(caps):.6g}",
            do='use method "sobol" or "dirichlet", a smaller delta, or looser caps',
        )
    num_zero, num_positive = _split(grid, n, with_zero)
    note = None
    if num_zero + num_positive == n and num_zero != with_zero:
        short = "with" if num_zero < with_zero else "without"
        note = (
            f"the grid has only {min(num_zero, num_positive)} mixtures {short} a zero within the"
            f" caps; the other {max(num_zero, num_positive)} of {n} are of the other kind"
        )
    return _draw(grid, num_zero, num_positive, random.Random(seed)), note


def _split(grid: DyadicGrid, n: int, with_zero: int) -> tuple[int, int]:
    """How many draws of each class, where one that is short is made up for by the other."""
    num_zero = min(with_zero, grid.num_with_zero)
    num_positive = min(n - num_zero, grid.num_positive)
    return min(n - num_positive, grid.num_with_zero), num_positive


def _draw(
    grid: DyadicGrid, num_zero: int, num_positive: int, rng: random.Random
) -> Iterator[tuple[float, ...]]:
    zeros = grid.draw(with_zero=True, rng=rng)
    positives = grid.draw(with_zero=False, rng=rng)
    first = [next(zeros) for _ in range(num_zero)] + [next(positives) for _ in range(num_positive)]
    rng.shuffle(first)
    for source in (first, positives, zeros):
        for units in source:
            yield tuple(share / grid.total for share in units)


def _shuffled(count: int, rng: random.Random) -> Iterator[int]:
    """Yields the numbers below `count` in random order, also where they can't be listed."""
    if count <= 100_000:
        ranks = list(range(count))
        rng.shuffle(ranks)
        yield from ranks
        return
    seen: set[int] = set()
    while len(seen) < count:
        rank = rng.randrange(count)
        if rank not in seen:
            seen.add(rank)
            yield rank


def _halvings(multiple: int) -> int:
    """How often the unit must be halved until all candidates of `multiple` deltas are whole."""
    if multiple == 0:
        return 0
    trailing_zeros = (multiple & -multiple).bit_length() - 1
    return multiple.bit_length() - 1 - trailing_zeros


def _candidates(largest: int, smallest: int) -> tuple[int, ...]:
    halves: list[int] = []
    while largest >> len(halves) >= smallest:
        halves.append(largest >> len(halves))
    return (*halves, 0)


def _completions(
    candidates: tuple[tuple[int, ...], ...], last_cap: int, total: int, *, smallest: int
) -> tuple[np.ndarray, ...]:
    """Counts of what the domains from each one on can sum to, in shares of `smallest` or more."""
    last = np.zeros(total + 1, dtype=object)
    last[smallest : last_cap + 1] = 1
    counts = [last]
    for choices in reversed(candidates):
        count = np.zeros(total + 1, dtype=object)
        for choice in choices:
            if choice >= smallest:
                count[choice:] += counts[-1][: total + 1 - choice]
        counts.append(count)
    return tuple(reversed(counts))
