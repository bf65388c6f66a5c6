"""From `[objective]` and `[constraints]` to what is minimized, and within what limits."""

from collections.abc import Mapping, Sequence

from mixlaw.config import ConstraintsSection, ObjectiveSection
from mixlaw.errors import ConfigError
from mixlaw.fit.error import ErrorFit
from mixlaw.mixtures import Mixture
from mixlaw.optimize.constraints import GroupBound
from mixlaw.optimize.objective import Objective, RelativeLoss, WeightedLoss
from mixlaw.optimize.objectives_error import TaskError
from mixlaw.optimize.objectives_risk import MeanPlusSpread, TailLoss, WorstLoss

MODES = {
    "worst_case": "--worst-case",
    "relative_to_reference": "--relative-to-reference",
    "risk_sd": "--risk-sd",
    "cvar": "--cvar",
    "task": "--task",
}
"""Keys of `[objective]` that say what is made of the losses, and their flags."""
TOGETHER = ({"worst_case", "relative_to_reference"},)
"""Those that may be given together."""


def check_modes(section: ObjectiveSection, *, where: str) -> None:
    """Refuses an objective that asks for two things at once.

    Raises:
        ConfigError: Two of its keys exclude each other.
    """
    given = {mode for mode in MODES if getattr(section, mode) not in (None, False, "")}
    if len(given) > 1 and given not in TOGETHER:
        names = " and ".join(f"`{mode}` ({MODES[mode]})" for mode in MODES if mode in given)
        raise ConfigError(
            f"an objective can be one of these, but {names} are given",
            where=where,
            do="leave all but one out; only worst_case and relative_to_reference go together",
        )


def make_objective(
    section: ObjectiveSection,
    loss: WeightedLoss,
    *,
    reference: Mixture | None,
    errors: Mapping[str, ErrorFit] | None = None,
    where: str = "[objective] in mixlaw.toml",
) -> Objective:
    """Returns what is minimized.

    Args:
        section: What is asked for.
        loss: The weighted loss, its weights filled in.
        reference: The mixture that relative losses are measured by.
        errors: Fitted error laws by task.
        where: Where the objective was given, for errors.

    Raises:
        ConfigError: Two keys exclude each other, or what they need is not there.
    """
    check_modes(section, where=where)
    if section.task:
        return _task_error(section.task, errors or {}, where)
    if section.relative_to_reference and reference is None:
        raise ConfigError(
            "losses relative to a reference need one, and none is known",
            where=where,
            do="give it in [reference], or the domains' available_tokens",
        )
    if section.worst_case:
        named = tuple(name for name, weight in loss.weights.items() if weight > 0)
        base = reference if section.relative_to_reference else None
        return WorstLoss(targets=named, groups=loss.groups, reference=base)
    if section.relative_to_reference:
        assert reference is not None
        return RelativeLoss(loss.weights, reference, loss.groups)
    if section.cvar is not None:
        return TailLoss(loss, section.cvar)
    if section.risk_sd:
        return MeanPlusSpread(loss, section.risk_sd)
    return loss


def _task_error(task: str, errors: Mapping[str, ErrorFit], where: str) -> TaskError:
    if task not in errors:
        known = ", ".join(errors)
        raise ConfigError(
            f"there is no fitted error of a task {task!r}",
            where=where,
            do=f"the tasks are {known}" if known else "measure or import task errors first",
        )
    return TaskError(task, errors[task])


def parse_bound(text: str, names: Sequence[str], *, where: str) -> GroupBound:
    """Returns the bound in `web+cc>=0.3` or `code+math<=0.5`.

    Domains may hold a `+`: the longest known name counts.

    Raises:
        ConfigError: It is no such bound, or names an unknown domain.
    """
    for sign in (">=", "<="):
        group, found, number = text.rpartition(sign)
        if not found:
            continue
        try:
            share = float(number)
        except ValueError:
            break
        members = _split_names(group.strip(), names, text=text, where=where)
        if sign == ">=":
            return GroupBound(domains=members, low=share)
        return GroupBound(domains=members, high=share)
    raise ConfigError(
        f"a bound of a group must be DOMAIN+DOMAIN>=SHARE or <=SHARE, found {text!r}",
        where=where,
        do="for example: web+cc>=0.3",
    )


def _split_names(group: str, names: Sequence[str], *, text: str, where: str) -> tuple[str, ...]:
    members: list[str] = []
    left = group
    while left:
        fitting = [name for name in names if left == name or left.startswith(name + "+")]
        if not fitting:
            raise ConfigError(
                f"{left!r} of the bound {text!r} is no domain",
                where=where,
                do=f"the domains are {', '.join(names)}",
            )
        members.append(max(fitting, key=len))
        left = left[len(members[-1]) + 1 :]
    if not members or len(set(members)) < len(members):
        raise ConfigError(f"a bound must name each domain once, found {text!r}", where=where)
    return tuple(members)


def group_bounds(
    section: ConstraintsSection, names: Sequence[str], *, where: str
) -> tuple[GroupBound, ...]:
    """Returns the bounds of groups in `[constraints]`.

    Raises:
        ConfigError: One of them can't be read.
    """
    return tuple(parse_bound(text, names, where=where) for text in section.groups)
