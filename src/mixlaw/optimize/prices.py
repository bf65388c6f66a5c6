"""What binding constraints cost, in the units of those who can loosen them.

Shape letters: M training domains.

A price is the multiplier of a constraint at the optimum: by how much the objective falls per unit
by which its limit is loosened. It is a slope, and falls as the limit moves; so the problem is
solved again with the limit moved, which says how far the slope is right.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mixlaw.domains import Domain, Scale
from mixlaw.optimize.objective import ObjectiveFunction
from mixlaw.optimize.region import ConstraintName, Region
from mixlaw.optimize.solver import Minimum, minimize_objective

WORTH_TELLING = 1e-9
"""A price below this share of the objective, per unit of share, is none."""
HOLDS = 0.8
"""A slope holds as far as it promises no more than a quarter above what moving the limit gains."""
STEPS = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
"""By how much a limit is moved to see how far its price holds, in units of the constraint."""
LOOSER = {"cap": 1.0, "floor": -1.0, "kl": 1.0, "l1": 1.0, "distance": 1.0}
"""In which direction a limit is loosened; a group's and a fixed share's depends on its price."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowPrice:
    """What a binding constraint costs."""

    constraint: str
    """In words, such as `cap of code (token supply)`."""
    kind: str
    """cap | floor | fixed | group | kl | l1 | distance."""
    subject: str
    """The domain or domains; empty for what bounds all."""
    price: float
    """Fall of the objective per unit by which the limit is loosened (1 is all tokens for a cap)."""
    step: float
    """A loosening for which the price holds: it promises at most a quarter more than it gains."""
    step_gain: float
    """Fall of the objective when the limit is loosened by `step`, the optimum chosen anew."""
    step_tokens: float | None
    """The same step in tokens of the run that is to be decided; None: not a share, or no scale."""
    epoch_price: float | None
    """Fall of the objective per further epoch of the domain, at the same slope; None: it is not the
    token supply that binds, or not known."""

    def sentence(self, unit: str) -> str:
        """Returns the price as a team would say it."""
        what = _loosened(self)
        text = f"{what} would gain {self.step_gain:.2g} {unit} ({self.constraint} binds"
        if self.epoch_price is not None:
            text += f"; {self.epoch_price:.2g} per epoch, at the margin"
        return text + ")"


def find_prices(
    function: ObjectiveFunction,
    region: Region,
    *,
    minimum: Minimum,
    domains: Mapping[str, Domain] | None = None,
    scale: Scale | None = None,
) -> tuple[ShadowPrice, ...]:
    """Returns the prices of the constraints that bind, the dearest first.

    Args:
        function: What was minimised.
        region: The allowed mixtures.
        minimum: Its minimum there.
        domains: What is known of the domains' tokens, by name.
        scale: The run that is to be decided.
    """
    least = WORTH_TELLING * max(abs(minimum.value), 1e-12)
    found: list[ShadowPrice] = []
    for name, slope in minimum.prices.items():
        direction = LOOSER.get(name.kind, -1.0 if slope > 0 else 1.0)
        price = -direction * slope
        if price <= least or _room(region, name, direction) < STEPS[-1] / 10:
            continue
        step, gain = _try_steps(function, region, minimum, name, direction=direction, price=price)
        is_share = name.kind in ("cap", "floor", "fixed", "group")
        is_supply = name.kind == "cap" and name.text.endswith("(token supply)")
        domain = (domains or {}).get(name.subject) if is_supply else None
        supply = None if domain is None else domain.available_tokens
        found.append(
            ShadowPrice(
                constraint=str(name),
                kind=name.kind,
                subject=name.subject,
                price=price,
                step=step,
                step_gain=gain,
                step_tokens=None if scale is None or not is_share else step * scale.tokens,
                epoch_price=None if scale is None or not supply else price * supply / scale.tokens,
            )
        )
    return tuple(sorted(found, key=lambda one: -one.price))


def _try_steps(
    function: ObjectiveFunction,
    region: Region,
    minimum: Minimum,
    name: ConstraintName,
    *,
    direction: float,
    price: float,
) -> tuple[float, float]:
    """Returns the largest of the steps for which the price holds, and what it gains."""
    room = _room(region, name, direction)
    steps = sorted({step for step in STEPS if step <= room} | {min(room, STEPS[0])}, reverse=True)
    gain = 0.0
    for step in steps:
        moved = region.shifted(name, direction * step)
        gain = minimum.value - minimize_objective(function, moved, start_M=minimum.r_M).value
        if gain >= HOLDS * price * step:
            return step, gain
    return steps[-1], gain


def _room(region: Region, name: ConstraintName, direction: float) -> float:
    """Returns by how much a limit can be moved at all."""
    if name.kind == "floor":
        return region.floors[region.names.index(name.subject)]
    if name.kind == "cap":
        return 1.0 - region.caps[region.names.index(name.subject)]
    if name.kind in ("fixed", "group"):
        limits = [bound.limit for bound in region.linear if bound.name == name]
        limit = limits[0] if limits else region.floors[region.names.index(name.subject)]
        return limit if direction < 0 else 1.0 - limit
    return STEPS[0]


def _loosened(price: ShadowPrice) -> str:
    """Returns in words by how much which limit is loosened."""
    if price.kind in ("cap", "floor"):
        if price.step_tokens is not None:
            more = "more" if price.kind == "cap" else "fewer"
            return f"{_count(price.step_tokens)} {more} tokens of {price.subject}"
        more = "more" if price.kind == "cap" else "less"
        return f"{price.step:g} {more} of {price.subject}"
    if price.kind in ("fixed", "group"):
        return f"moving “{price.constraint}” by {price.step:g}"
    return f"allowing {price.step:g} more of “{price.constraint}”"


def _count(number: float) -> str:
    for limit, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.3g}"
